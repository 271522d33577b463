import gzip
from pathlib import Path

import pytest
import torch

from training.errors import DataError
from training.sources.bundled import (
    FASHION_CAPTIONS,
    fashion_labels,
    load_fashion,
    read_idx_images,
    read_idx_labels,
)


def test_bundled_set_is_whole_dark_on_white_and_captioned_by_class() -> None:
    found = load_fashion()
    assert found.images.shape == (10_000, 1, 32, 32)
    assert fashion_labels().bincount().tolist() == [1000] * 10
    assert int(found.images[:, :, 0, :].min()) == 255
    assert found.captions[0] == "an ankle boot"
    assert set(found.captions) == set(FASHION_CAPTIONS)


def idx_images(count: int = 1, magic: int = 2051, side: int = 28, data: int = 784) -> bytes:
    head = b"".join(value.to_bytes(4, "big") for value in (magic, count, side, side))
    return gzip.compress(head + bytes(data))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not gzip", "cannot be read"),
        (idx_images()[:-9], "cannot be read"),
        (gzip.compress(b"short"), "too short"),
        (idx_images(magic=2049), "not an IDX file"),
        (idx_images(side=32), "not an IDX file"),
        (idx_images(count=2), "do not hold 2"),
    ],
)
def test_altered_pictures_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_idx_images(path)


def test_pictures_are_inverted_and_padded(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(idx_images())
    assert torch.equal(read_idx_images(path), torch.full((1, 1, 32, 32), 255, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("labels", "reason"), [(bytes(9), None), (bytes([10] * 9), "above 9")], ids=["good", "ten"]
)
def test_labels_above_nine_are_refused(tmp_path: Path, labels: bytes, reason: str | None) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress((2049).to_bytes(4, "big") + (9).to_bytes(4, "big") + labels))
    if reason is None:
        assert len(read_idx_labels(path)) == 9
        return
    with pytest.raises(DataError, match=reason):
        read_idx_labels(path)
    path.write_bytes(gzip.compress((2049).to_bytes(4, "big") + (8).to_bytes(4, "big") + labels))
    with pytest.raises(DataError, match="not an IDX file"):
        read_idx_labels(path)
