from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_sample_image
from torch.nn import functional

from training.errors import ModelMissingError
from training.parts import efficientnet
from training.parts.efficientnet import (
    DEVIATION,
    MEAN,
    EfficientNetLite0,
    _SameConv,
    read_pinned_pickle,
)
from training.parts.hub import EFFICIENTNET, ModelFiles, Models
from training.parts.network_input import network_input
from training.sources.bundled import load_fashion

DAISY, PALACE = 985, 698


@pytest.fixture(scope="module")
def extractor() -> EfficientNetLite0:
    return EfficientNetLite0(Models())


@pytest.mark.slow
def test_network_knows_what_photographs_show(extractor: EfficientNetLite0) -> None:
    """ImageNet's classes of scikit-learn's two photographs: weights and input fit together."""
    for name, expected in (("flower.jpg", DAISY), ("china.jpg", PALACE)):
        photograph = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)
        height, width = photograph.shape[1:]
        edge = (width - height) // 2
        square = photograph[None, :, :, edge : edge + height]
        with torch.no_grad():
            scores = extractor.network(network_input(square, MEAN, DEVIATION))
        assert int(scores.argmax()) == expected


@pytest.mark.slow
def test_features_are_repeated_and_do_not_depend_on_the_batch(
    extractor: EfficientNetLite0, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = load_fashion().images[:3]
    together = extractor(images)
    assert together.shape == (3, extractor.dim) == (3, 1280)
    assert bool((together >= 0).all())
    assert torch.equal(extractor(images), together)
    monkeypatch.setattr(efficientnet, "BLOCK", 2)
    assert torch.allclose(extractor(images), together, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(extractor(images), together, atol=1e-4)
    assert extractor(images[:0]).shape == (0, 1280)


@pytest.mark.parametrize(
    ("kernel", "stride", "side", "edges"),
    [(3, 2, 224, (0, 1)), (5, 2, 56, (1, 2)), (3, 2, 7, (1, 1)), (3, 1, 14, (1, 1))],
)
def test_padding_is_tensorflows(
    kernel: int, stride: int, side: int, edges: tuple[int, int]
) -> None:
    """SAME: ceil(side / stride) positions, the odd pixel at the end."""
    conv = _SameConv(1, 1, kernel, stride, bias=False)
    x = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    expected = functional.conv2d(functional.pad(x, edges * 2), conv.weight, stride=stride)
    assert torch.equal(conv(x), expected)
    assert expected.shape[-1] == -(-side // stride)


def test_pickle_that_changed_after_it_was_found_is_not_unpickled(
    extractor: EfficientNetLite0, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", fail)
    (name,) = EFFICIENTNET.files
    (tmp_path / name).write_bytes(b"another pickle")
    with pytest.raises(ModelMissingError, match="was altered"):
        read_pinned_pickle(ModelFiles(EFFICIENTNET, {name: tmp_path / name}, {}))
