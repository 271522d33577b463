import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.hub_models import DINO_WIDTH, write_dinov2
from training.errors import ModelMissingError
from training.parts import dinov2
from training.parts.dinov2 import Dinov2
from training.parts.hub import Models
from training.parts.libraries import dinov2_classes


def pictures(count: int, side: int = 224) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator).byte()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dino")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return write_dinov2(folder / "dinov2-vitl14")


@pytest.fixture(scope="module")
def extractor(folder: Path, reference: Any) -> Dinov2:
    return Dinov2(Models(folder))


def normalised(images: Tensor) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    return (images.float() / 255 - mean) / deviation


def test_features_are_the_last_class_token(extractor: Dinov2, reference: Any) -> None:
    images = pictures(3)
    with torch.no_grad():
        expected = reference(pixel_values=normalised(images)).pooler_output
    found = extractor(images)
    assert found.shape == (3, extractor.dim) == (3, DINO_WIDTH)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_weights_are_those_the_library_itself_loads(folder: Path, extractor: Dinov2) -> None:
    """transformers knows of the old names too: its own loader is the judge."""
    _, network = dinov2_classes()
    theirs = network.from_pretrained(folder / "dinov2-vitl14", local_files_only=True).eval()
    images = pictures(1)
    with torch.no_grad():
        expected = theirs(pixel_values=normalised(images)).last_hidden_state[:, 0]
    assert torch.allclose(extractor(images), expected, atol=1e-5)


def test_features_do_not_depend_on_the_batch(
    extractor: Dinov2, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(3, 32)
    together = extractor(images)
    monkeypatch.setattr(dinov2, "BLOCK", 2)
    assert torch.allclose(extractor(images), together, atol=1e-5)
    assert extractor(images[:0]).shape == (0, DINO_WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(extractor(images), together, atol=1e-5)


def test_width_must_be_said_and_fit(folder: Path, tmp_path: Path) -> None:
    write_dinov2(tmp_path / "dinov2-vitl14")
    path = tmp_path / "dinov2-vitl14" / "config.json"
    good = json.loads(path.read_text())
    for width, said in ((None, "None"), (0, "0"), (4097, "4097")):
        settings = {key: value for key, value in good.items() if key != "hidden_size"}
        path.write_text(json.dumps(settings if width is None else {**good, "hidden_size": width}))
        with pytest.raises(ModelMissingError, match=f"hidden_size is {said}, expected 1 to 4096"):
            Dinov2(Models(tmp_path))
    path.write_text(json.dumps({**good, "num_hidden_layers": 2}))
    with pytest.raises(ModelMissingError, match=r"lacks tensor encoder\.layer\.1\."):
        Dinov2(Models(tmp_path))(pictures(1))
