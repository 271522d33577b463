"""Fashion-MNIST (MIT): its 10,000 test pictures come with the package, all 70,000 as IDX files.

Labels serve one purpose here: to write captions. Clustering, codec and experts never see them.
"""

import gzip
import zlib
from collections.abc import Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training.errors import DataError
from training.sources.data import Entry, Pictures, Skipped

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

IDX_IMAGES: Final = "train-images-idx3-ubyte.gz"
IDX_LABELS: Final = "train-labels-idx1-ubyte.gz"
"""The training split, 60,000 pictures, as Debian's `dataset-fashion-mnist` installs it."""

MAX_IDX_PICTURES: Final = 1_000_000
_FOLDER: Final = Path(__file__).parent / "datasets" / "fashion_mnist"
_SIDE: Final = 28
_PADDED: Final = 32
_IMAGES_MAGIC: Final = 2051
_LABELS_MAGIC: Final = 2049


class PixelSource:
    """Pictures that are pixels already, as a source.

    Args:
        name: what a person calls the set.
        pictures: all of it.
    """

    def __init__(self, name: str, pictures: Pictures) -> None:
        self._name = name
        self._pictures = pictures

    @property
    def name(self) -> str:
        """As given."""
        return self._name

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the pixels and captions."""
        digest = sha256(self._pictures.images.numpy().tobytes())
        digest.update("\n".join(self._pictures.captions).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, positions: range) -> Iterator[Entry | Skipped]:
        """The picture at each position."""
        pictures = self._pictures
        for i in positions:
            yield Entry(f"picture {i}", pictures.captions[i], pictures.images[i])


def fashion_source() -> PixelSource:
    """The bundled set.

    Raises:
        DataError: if the package's data files are missing or altered.
    """
    return PixelSource(FASHION, load_fashion())


def idx_source(folder: Path) -> PixelSource:
    """The training split of Fashion-MNIST from a folder of its IDX files.

    Raises:
        DataError: if a file is missing or not such a file, or they do not belong together.
    """
    return PixelSource(str(folder), _captioned(folder / IDX_IMAGES, folder / IDX_LABELS))


def load_fashion() -> Pictures:
    """All 10,000 pictures, 32x32 grey, dark things on white, with their captions.

    Raises:
        DataError: if the package's data files are missing or altered.
    """
    names = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    return _captioned(_FOLDER / names[0], _FOLDER / names[1])


def _captioned(images_path: Path, labels_path: Path) -> Pictures:
    images, labels = read_idx_images(images_path), read_idx_labels(labels_path)
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: {len(labels)} labels for {len(images)} pictures")
    return Pictures(images, tuple(FASHION_CAPTIONS[label] for label in labels.tolist()))


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
    limit = MAX_IDX_PICTURES * _SIDE * _SIDE
    try:
        with gzip.open(path) as file:
            data = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name}: cannot be read: {error}") from error
    if len(data) < 8:
        raise DataError(f"{path.name}: too short")
    if len(data) > limit:
        raise DataError(f"{path.name}: more than {limit} bytes when unpacked")
    return data
