"""safetensors files, checked by us before anything is built from them.

The format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}},
then the data.  Source: https://huggingface.co/docs/safetensors (Format).  Why not the library's
reader: a 58 MB header costs it 20-42 s and 1-2 GB, a file truncated while mapped is a SIGBUS, and
NaN and path-like names pass.  Here the header is bounded first, must match an exact schema, and
each tensor is read into memory of its own, never mapped.
"""

import json
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Final, cast

import torch
from torch import Tensor

from training.errors import TensorFileError

MAX_HEADER_BYTES: Final = 256 * 1024
"""XL/2, our largest net, has a header of about 60 KiB."""

MAX_TENSORS: Final = 2000
"""XL/2 has about 700."""

MAX_RANK: Final = 8
MAX_FILE_BYTES: Final = 16 * 2**30
MAX_DIMENSION: Final = 2**40

DTYPES: Final = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,255}")
_PREFIX: Final = 8


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What one tensor of a file must be: dtype by its safetensors name, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def spec_of(tensor: Tensor) -> TensorSpec:
    """The specification a stored copy of `tensor` meets (works on meta tensors)."""
    return TensorSpec(_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))


def read_tensors(
    path: Path,
    schema: Mapping[str, TensorSpec],
    *,
    only: Collection[str] | None = None,
    must_be_finite: bool = True,
) -> dict[str, Tensor]:
    """Read a file that holds exactly the tensors of `schema`.

    Args:
        path: the file; a symbolic link is refused.
        schema: every name with its dtype and shape; neither more nor less may be there.
        only: read these alone, the others stay on the disk; by default all.
        must_be_finite: refuse NaN and infinities.

    Returns:
        Tensors that own their memory; no second copy of the file is held on the way.

    Raises:
        TensorFileError: whatever is wrong, naming the file and the reason.
    """
    limit = _PREFIX + MAX_HEADER_BYTES + sum(spec.size_bytes for spec in schema.values())
    tensors = {}
    with _opened(path, min(limit, MAX_FILE_BYTES)) as (file, size):
        header, start = _header(path, _read_head(file), size)
        _check_schema(path, header, schema)
        for name, (spec, begin, end) in header.items():
            if only is not None and name not in only:
                continue
            file.seek(start + begin)
            tensor = _tensor(_read_exactly(path, file, end - begin), spec)
            if must_be_finite and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise TensorFileError(path, f"tensor {name} holds NaN or infinite values")
            tensors[name] = tensor
    return tensors


def read_header(path: Path) -> dict[str, TensorSpec]:
    """The names, dtypes and shapes of a file, fully checked; no tensor is read.

    Raises:
        TensorFileError: naming the file and the reason.
    """
    header, _ = _head_of(path)
    return {name: spec for name, (spec, _, _) in header.items()}


def find_tensor(path: Path, name: str) -> tuple[TensorSpec, int]:
    """Where a tensor lies in a file too large to read at once; its data are not looked at.

    Returns:
        its specification, and the offset of its first byte in the file.

    Raises:
        TensorFileError: naming `path` and the reason; no tensor of that name.
    """
    header, start = _head_of(path)
    if name not in header:
        raise TensorFileError(path, f"has no tensor {name!r}, it holds {', '.join(header)[:200]}")
    spec, begin, _ = header[name]
    return spec, start + begin


def check_header(path: Path, data: bytes) -> dict[str, TensorSpec]:
    """The names, dtypes and shapes of a whole file held in memory, fully checked.

    Raises:
        TensorFileError: naming `path` and the reason.
    """
    header, _ = _header(path, data, len(data))
    return {name: spec for name, (spec, _, _) in header.items()}


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a safetensors file; the same tensors give the same bytes.

    Raises:
        ValueError: for a name or dtype that could not be read back.
    """
    stored = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    for name, tensor in stored.items():
        if tensor.dtype not in _DTYPE_NAMES:
            raise ValueError(f"cannot store tensor {name!r} of {tensor.dtype}")
    head, _ = pack_header({name: spec_of(tensor) for name, tensor in stored.items()})
    return head + b"".join(tensor_bytes(tensor) for tensor in stored.values())


def pack_header(schema: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The head of a file that holds these tensors, for one written piece by piece.

    Returns:
        all bytes before the data, and the offset in the file of each tensor's first byte; the data
        follow each other in the order of the names.

    Raises:
        ValueError: for a name that could not be read back.
    """
    header: dict[str, object] = {}
    offset = 0
    places: dict[str, int] = {}
    for name in sorted(schema):
        spec = schema[name]
        if not _NAME.fullmatch(name) or ".." in name:
            raise ValueError(f"cannot store a tensor called {name!r}")
        places[name], end = offset, offset + spec.size_bytes
        header[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data aligned to 8 bytes, as the format asks
    head = struct.pack("<Q", len(text)) + text
    return head, {name: len(head) + place for name, place in places.items()}


def tensor_bytes(tensor: Tensor) -> bytes:
    """A contiguous tensor's data, as a file holds them."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@contextmanager
def _opened(path: Path, limit: int | None = None) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size; never a link, nor one longer than `limit`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if limit is not None and size > limit:
                raise TensorFileError(path, f"{size} bytes, expected at most {limit}")
            yield file, size
    except OSError as error:
        raise TensorFileError(path, f"cannot be read: {error.strerror}") from error


def _read_head(file: BinaryIO) -> bytes:
    """The beginning of a file: all of its header, if that is not too long."""
    return file.read(_PREFIX + MAX_HEADER_BYTES)


def _read_exactly(path: Path, file: BinaryIO, length: int) -> bytearray:
    data = bytearray(length)
    found = file.readinto(data)  # type: ignore[attr-defined]
    if found != length:
        raise TensorFileError(path, "grew shorter while it was read")
    return data


_Header = dict[str, tuple[TensorSpec, int, int]]


def _head_of(path: Path) -> tuple[_Header, int]:
    """`_header` of a file, of which no more is read."""
    with _opened(path) as (file, size):
        return _header(path, _read_head(file), size)


def _header(path: Path, data: bytes, size: int) -> tuple[_Header, int]:
    """Checked entries (spec, begin, end) and where the data start.

    Args:
        path: for messages.
        data: the file from its beginning, its whole header at least if that is not too long.
        size: of the whole file.
    """
    if len(data) < _PREFIX:
        raise TensorFileError(path, f"{len(data)} bytes: too short for a header length")
    (length,) = struct.unpack_from("<Q", data)
    if length > MAX_HEADER_BYTES:
        raise TensorFileError(path, f"header of {length} bytes, at most {MAX_HEADER_BYTES}")
    start = _PREFIX + length
    if start > size:
        raise TensorFileError(path, f"header of {length} bytes in a file of {size}")
    try:
        raw = json.loads(data[_PREFIX:start].decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise TensorFileError(path, f"header is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise TensorFileError(path, "header is not a JSON object")
    _check_metadata(path, raw.pop("__metadata__", {}))
    if len(raw) > MAX_TENSORS:
        raise TensorFileError(path, f"{len(raw)} tensors, at most {MAX_TENSORS}")
    entries = {name: _entry(path, name, value) for name, value in raw.items()}
    _check_layout(path, entries, size - start)
    return entries, start


def _check_metadata(path: Path, value: object) -> None:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise TensorFileError(path, "header __metadata__ is not an object of strings")


def _entry(path: Path, name: str, value: object) -> tuple[TensorSpec, int, int]:
    """One tensor's description, every part type-checked before use."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise TensorFileError(path, f"tensor name {name!r:.80} is not allowed")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise TensorFileError(path, f"tensor {name}: needs exactly dtype, shape, data_offsets")
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise TensorFileError(path, f"tensor {name}: dtype {dtype!r:.20} is not allowed")
    shape = _sizes(path, name, value["shape"])
    offsets = _sizes(path, name, value["data_offsets"])
    if len(shape) > MAX_RANK:
        raise TensorFileError(path, f"tensor {name}: rank {len(shape)}, at most {MAX_RANK}")
    if len(offsets) != 2:
        raise TensorFileError(path, f"tensor {name}: data_offsets must be two numbers")
    spec = TensorSpec(dtype, shape)
    if offsets[1] - offsets[0] != spec.size_bytes:
        raise TensorFileError(
            path,
            f"tensor {name}: {offsets[1] - offsets[0]} bytes for a {dtype} of shape {shape}",
        )
    return spec, offsets[0], offsets[1]


def _sizes(path: Path, name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(
        type(item) is int and 0 <= item <= MAX_DIMENSION for item in value
    ):
        raise TensorFileError(path, f"tensor {name}: shape and offsets must be lists of sizes")
    return tuple(cast("list[int]", value))


def _check_layout(path: Path, entries: _Header, data_bytes: int) -> None:
    """Offsets follow each other without gap or overlap and end where the file ends."""
    position = 0
    for name, (_, begin, end) in sorted(entries.items(), key=lambda item: item[1][1:]):
        if begin != position:
            raise TensorFileError(path, f"tensor {name}: starts at {begin}, expected {position}")
        position = end
    if position != data_bytes:
        raise TensorFileError(path, f"{data_bytes} bytes of data, the header describes {position}")


def _check_schema(path: Path, header: _Header, schema: Mapping[str, TensorSpec]) -> None:
    missing = sorted(set(schema) - set(header))
    extra = sorted(set(header) - set(schema))
    if missing or extra:
        wrong = f"lacks tensor {missing[0]}" if missing else f"has unexpected tensor {extra[0]}"
        raise TensorFileError(path, f"{wrong} ({len(missing)} missing, {len(extra)} unexpected)")
    for name, spec in schema.items():
        got = header[name][0]
        if got != spec:
            raise TensorFileError(
                path,
                f"tensor {name}: expected {spec.dtype} {list(spec.shape)}, "
                f"got {got.dtype} {list(got.shape)}",
            )


def _tensor(data: bytearray, spec: TensorSpec) -> Tensor:
    dtype = DTYPES[spec.dtype]
    if not data:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(spec.shape)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found
