"""Feature rows that need not fit in memory: in memory, in a file, or in a sequence of files.

Files are read a piece at a time, not memory-mapped: pages of a map count as this process's memory
and a file cut short while mapped kills it (SIGBUS), while a short read is an error that names it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from training.errors import DataError, TensorFileError
from training.tensors import find_tensor

BLOCK_ROWS: Final = 65_536
BLOCK_BYTES: Final = 64 * 2**20
"""Of a block as float32: the unit of work that may go to another machine."""

MAX_ROWS: Final = 2**31
MAX_WIDTH: Final = 65_536
_DTYPES: Final = {"F32": "<f4", "F16": "<f2"}


class Rows(Protocol):
    """N rows of D numbers, read in any pieces."""

    @property
    def width(self) -> int:
        """D."""
        ...

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop (exclusive), float32 [stop - start, D].

        Raises:
            DataError: a file of theirs cannot be read, or is shorter than it was.
        """
        ...

    def part(self, start: int, stop: int) -> "Rows":
        """Those rows alone, holding nothing of the others: what is sent to another machine."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class MemoryRows:
    """Rows in memory.

    Args:
        tensor: [N, D] of a floating-point type.

    Raises:
        DataError: another type or shape.
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        if self.tensor.ndim != 2 or not self.tensor.is_floating_point():
            shape = list(self.tensor.shape)
            raise DataError(
                f"features: got {self.tensor.dtype} {shape}, expected floating-point rows [N, D]"
            )

    @property
    def width(self) -> int:
        """D."""
        return self.tensor.shape[1]

    def __len__(self) -> int:
        return len(self.tensor)

    def read(self, start: int, stop: int) -> Tensor:
        """See `Rows`."""
        return self.tensor[start:stop].float()

    def part(self, start: int, stop: int) -> "MemoryRows":
        """See `Rows`; a copy, since a view is sent with all it is a view of."""
        return MemoryRows(self.tensor[start:stop].clone())


@dataclass(frozen=True, slots=True)
class FileRows:
    """Rows in a file, C order, little-endian. Made by `open_rows`.

    Args:
        path: the file.
        dtype: "F32" or "F16".
        offset: of the first row, in bytes.
        count: N.
        width: D.
    """

    path: Path
    dtype: str
    offset: int
    count: int
    width: int

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> Tensor:
        """See `Rows`."""
        start, stop, _ = slice(start, stop).indices(self.count)
        kind = np.dtype(_DTYPES[self.dtype])
        place = self.offset + start * self.width * kind.itemsize
        wanted = max(0, stop - start) * self.width
        try:
            found = np.fromfile(self.path, kind, wanted, offset=place)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error
        if found.size != wanted:
            raise DataError(
                f"{self.path}: ends within row {start + found.size // self.width}, "
                f"expected {self.count} rows: it was cut short"
            )
        return torch.from_numpy(found.reshape(-1, self.width)).float()

    def part(self, start: int, stop: int) -> "FileRows":
        """See `Rows`: the path and a place in it; the other machine must see the same files."""
        start, stop, _ = slice(start, stop).indices(self.count)
        size = self.width * np.dtype(_DTYPES[self.dtype]).itemsize
        count = max(0, stop - start)
        return FileRows(self.path, self.dtype, self.offset + start * size, count, self.width)


@dataclass(frozen=True, slots=True, eq=False)
class ChainedRows:
    """Rows of several sources, one after the other: batches that were spooled to files.

    Args:
        sources: of one width; at least one.

    Raises:
        DataError: none, or of different widths.
    """

    sources: tuple[Rows, ...]

    def __post_init__(self) -> None:
        widths = sorted({source.width for source in self.sources})
        if len(widths) != 1:
            raise DataError(f"features: got sources of widths {widths}, expected one width")

    @property
    def width(self) -> int:
        """D."""
        return self.sources[0].width

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def read(self, start: int, stop: int) -> Tensor:
        """See `Rows`."""
        pieces = [source.read(a, b) for source, a, b in self._pieces(start, stop)]
        return torch.cat(pieces) if pieces else torch.empty(0, self.width)

    def part(self, start: int, stop: int) -> Rows:
        """See `Rows`."""
        pieces = [source.part(a, b) for source, a, b in self._pieces(start, stop)]
        return ChainedRows(tuple(pieces)) if pieces else MemoryRows(torch.empty(0, self.width))

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Rows, int, int]]:
        ends = list(accumulate(map(len, self.sources)))
        start, stop, _ = slice(start, stop).indices(ends[-1])
        number = bisect_right(ends, start)
        while start < stop:
            source = self.sources[number]
            begin = ends[number] - len(source)
            end = min(stop, ends[number])
            if start < end:
                yield source, start - begin, end - begin
            start = max(start, end)
            number += 1


def open_rows(path: Path, name: str = "features") -> FileRows:
    """Rows of a .npy or .safetensors file of float32 or float16; only its header is read now.

    Args:
        path: the file.
        name: the tensor, in a .safetensors file.

    Raises:
        DataError: not such a file, or an impossible shape.
        TensorFileError: a malformed .safetensors file.
    """
    if path.suffix == ".npy":
        dtype, shape, offset = _npy_header(path)
    else:
        spec, offset = find_tensor(path, name)
        dtype, shape = spec.dtype, spec.shape
    if dtype not in _DTYPES or len(shape) != 2:
        raise DataError(f"{path}: got {dtype} {list(shape)}, expected float32 or float16 rows")
    count, width = shape
    if not (0 < count <= MAX_ROWS and 0 < width <= MAX_WIDTH):
        raise DataError(f"{path}: {count} rows of {width} numbers are out of range")
    return FileRows(path, dtype, offset, count, width)


def open_spool(paths: Sequence[Path], name: str = "features") -> ChainedRows:
    """Rows of several files in the given order; see `open_rows`."""
    return ChainedRows(tuple(open_rows(path, name) for path in paths))


def cut(rows: Rows, block_rows: int | None = None) -> Iterator[Rows]:
    """The rows in parts of `block_rows`; by default at most `BLOCK_ROWS` and `BLOCK_BYTES`."""
    size = block_rows or max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * rows.width)))
    for start in range(0, len(rows), size):
        yield rows.part(start, min(start + size, len(rows)))


def pieces(rows: Rows, size: int) -> Iterator[Tensor]:
    """The rows as float32 tensors of at most `size` rows."""
    for start in range(0, len(rows), size):
        yield rows.read(start, min(start + size, len(rows)))


def _npy_header(path: Path) -> tuple[str, tuple[int, ...], int]:
    """The dtype as safetensors names it (else as found), the shape, where the data start."""
    try:
        with path.open("rb") as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, is_fortran, kind = read(file)
            offset = file.tell()
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: not a .npy file: {error}") from error
    if is_fortran and len(shape) > 1:
        raise DataError(f"{path}: columns are stored together (Fortran order), expected rows")
    names = {np.dtype(text): name for name, text in _DTYPES.items()}
    expected = offset + kind.itemsize * int(np.prod(shape, dtype=object))
    if kind in names and size != expected:
        raise TensorFileError(path, f"{size} bytes, its header describes {expected}")
    return names.get(kind, str(kind)), tuple(shape), offset
