from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.conftest import SIDE
from training.errors import DataError
from training.preparation import encode
from training.preparation.encode import Encoder, encode_source, pictures_per_batch
from training.run import Run
from training.sources.data import PictureShape
from training.sources.folders import load_folder


def test_pictures_of_a_source_become_latents_of_a_run(
    pictures: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = load_folder(pictures, SIDE, 1)
    monkeypatch.setattr(encode, "pictures_per_batch", lambda shape: 7)
    found = encode_source(pictures, run)
    assert found.captions == known.captions
    assert found.latents.dtype == torch.float16
    torch.testing.assert_close(
        found.latents.float(), run.codec.encode(known.images), atol=2e-3, rtol=2e-3
    )


def test_skipped_pictures_are_counted_over_all_batches(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "pictures_per_batch", lambda shape: 2)
    for i in range(5):
        (tmp_path / f"boat {i}.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"no usable picture \(5 skipped\) 5 unreadable picture: b"):
        encode_source(tmp_path, run)


def test_source_larger_than_asked_for_is_refused(pictures: Path, run: Run) -> None:
    assert len(encode_source(pictures, run, max_pictures=48).captions) == 48
    with pytest.raises(DataError, match="48 pictures, at most 47 here"):
        encode_source(pictures, run, max_pictures=47)


class Placed:
    """A codec and extractor that notes where it was given pictures."""

    latent = (1, 1, 1)
    digest = ""
    dim = pixels = 1

    def __init__(self, pins: Mapping[str, str]) -> None:
        self.pins = pins
        self.seen = ""

    def stored(self) -> bytes:
        return b""

    def tensors(self) -> Mapping[str, Tensor]:
        return {}

    def encode(self, images: Tensor) -> Tensor:
        self.seen = images.device.type
        return torch.zeros(len(images), 1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def __call__(self, images: Tensor) -> Tensor:
        return self.encode(images).flatten(1)


def test_pretrained_parts_are_given_pictures_on_the_device_and_fitted_ones_here() -> None:
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    for codec, extractor in (({"a": "0"}, {}), ({}, {"a": "0"})):
        encoder = Encoder(Placed(codec), Placed(extractor), "meta")
        assert encoder.latents(images).device.type == encoder.features(images).device.type == "cpu"
        seen = (encoder.codec.seen, encoder.extractor.seen)  # type: ignore[attr-defined]
        assert seen == (("meta", "cpu") if codec else ("cpu", "meta"))


def test_batches_shrink_with_the_size_of_pictures() -> None:
    sizes = [pictures_per_batch(PictureShape(size, 3)) for size in (16, 64, 256, 1024)]
    assert sizes == [1024, 1024, 170, 16]
