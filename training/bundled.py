"""The picture set shipped with the package: Fashion-MNIST's 10,000 test pictures (MIT).

Labels serve one purpose here: to write captions. Clustering, codec and experts never see them.
"""

import gzip
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training.data import Pictures
from training.errors import DataError

FASHION: Final = "fashion"
FASHION_CAPTIONS: Final = (
    "a t-shirt",
    "a pair of trousers",
    "a pullover",
    "a dress",
    "a coat",
    "a sandal",
    "a shirt",
    "a sneaker",
    "a bag",
    "an ankle boot",
)
"""The caption of each of the ten classes, by label."""

_FOLDER: Final = Path(__file__).parent / "datasets" / "fashion_mnist"
_SIDE: Final = 28
_PADDED: Final = 32
_IMAGES_MAGIC: Final = 2051
_LABELS_MAGIC: Final = 2049


def load_fashion() -> Pictures:
    """All 10,000 pictures, 32x32 grey, dark things on white, with their captions.

    Raises:
        DataError: if the package's data files are missing or altered.
    """
    labels = fashion_labels()
    captions = tuple(FASHION_CAPTIONS[label] for label in labels.tolist())
    return Pictures(read_idx_images(_FOLDER / "t10k-images-idx3-ubyte.gz"), captions, ())


def fashion_labels() -> Tensor:
    """The class of each picture of `load_fashion`, int64 [10000]: for captions and evaluation."""
    return read_idx_labels(_FOLDER / "t10k-labels-idx1-ubyte.gz")


def read_idx_images(path: Path) -> Tensor:
    """Pictures of a gzipped IDX file, as `load_fashion` gives them.

    Returns:
        uint8 [N, 1, 32, 32], inverted to dark on white, padded with white.

    Raises:
        DataError: if the file is missing or not such a file.
    """
    data = _unpack(path)
    header = 16
    count = int.from_bytes(data[4:8], "big")
    sides = (int.from_bytes(data[8:12], "big"), int.from_bytes(data[12:16], "big"))
    if int.from_bytes(data[:4], "big") != _IMAGES_MAGIC or sides != (_SIDE, _SIDE):
        raise DataError(f"{path.name}: not an IDX file of {_SIDE}x{_SIDE} pictures")
    if len(data) != header + count * _SIDE * _SIDE:
        raise DataError(f"{path.name}: {len(data)} bytes do not hold {count} pictures")
    raw = torch.frombuffer(bytearray(data[header:]), dtype=torch.uint8)
    images = torch.full((count, 1, _PADDED, _PADDED), 255, dtype=torch.uint8)
    edge = (_PADDED - _SIDE) // 2
    images[:, 0, edge:-edge, edge:-edge] = 255 - raw.reshape(count, _SIDE, _SIDE)
    return images


def read_idx_labels(path: Path) -> Tensor:
    """Labels of a gzipped IDX file, int64 [N], each below 10.

    Raises:
        DataError: if the file is missing or not such a file.
    """
    data = _unpack(path)
    header = 8
    count = int.from_bytes(data[4:8], "big")
    if int.from_bytes(data[:4], "big") != _LABELS_MAGIC or len(data) != header + count:
        raise DataError(f"{path.name}: not an IDX file of labels")
    labels = torch.frombuffer(bytearray(data[header:]), dtype=torch.uint8).long()
    if int(labels.max()) >= len(FASHION_CAPTIONS):
        raise DataError(f"{path.name}: labels above {len(FASHION_CAPTIONS) - 1}")
    return labels


def _unpack(path: Path) -> bytes:
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path.name}: cannot be read: {error}") from error
    if len(data) < 16:
        raise DataError(f"{path.name}: too short")
    return data
