"""Bytes to plain values and back, in the one canonical form of msgpack that we accept.

Canonical: shortest integer and length forms, doubles only (finite, no minus zero), text keys in
ascending order, no extension types. A structural scan that builds nothing runs before the real
decoder: nesting, item count and lengths are known to be in bounds before memory is spent.
Knows nothing of records. Source of the layout: github.com/msgpack/msgpack/blob/master/spec.md.
"""

import math
from typing import Final, TypeAlias

import msgpack

from p2p.errors import DecodeError, EncodeError, LimitError
from p2p.limits import CHUNK_SIZE, DECODE_BYTES_PER_ITEM, MAX_DECODE_DEPTH

Plain: TypeAlias = "bool | int | float | str | bytes | list[Plain] | dict[str, Plain] | None"

_SPARE_ITEMS: Final = 128
_FIXED_SIZES: Final = {
    **dict.fromkeys((0xC0, 0xC2, 0xC3), 0),  # nil, false, true
    **dict.fromkeys((0xCC, 0xD0), 1),  # unsigned and signed integers
    **dict.fromkeys((0xCD, 0xD1), 2),
    **dict.fromkeys((0xCE, 0xD2), 4),
    **dict.fromkeys((0xCF, 0xD3, 0xCB), 8),  # and the double
}
_LENGTH_SIZES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bytes, text
_COUNT_SIZES: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""Arrays, then maps: bytes of the count, and children for each one counted."""


def decode_plain(data: bytes, *, max_size: int) -> Plain:
    """Decode canonical msgpack from outside.

    Args:
        data: the whole value and nothing after it.
        max_size: the largest size in bytes that is looked at.

    Raises:
        LimitError: if there are more bytes than `max_size`.
        DecodeError: for anything else that is not exactly what `encode_plain` writes.
    """
    if len(data) > max_size:
        raise LimitError(f"msgpack: got {len(data)} bytes, the limit is {max_size}")
    _scan(data)
    try:
        plain: Plain = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=max_size,
            max_bin_len=max_size,
            max_array_len=max_size,
            max_map_len=max_size,
            max_ext_len=0,
        )
    except (ValueError, TypeError) as error:  # bad UTF-8, keys that are not text
        raise DecodeError(f"msgpack: {type(error).__name__}: {str(error)[:100]}") from error
    _check_values(plain)
    packer = msgpack.Packer(autoreset=False, buf_size=len(data) + 1)  # no doubling, no copy
    packer.pack(plain)
    if packer.getbuffer() != data:
        raise DecodeError("msgpack: not in canonical form (a longer form, or a key twice)")
    return plain


def encode_plain(plain: Plain) -> bytes:
    """Encode in canonical form; the caller gives maps in ascending key order.

    Raises:
        EncodeError: if `decode_plain` would refuse the result.
    """
    try:
        _check_values(plain)
        data: bytes = msgpack.packb(plain)
        _scan(data)
    except (DecodeError, ValueError, TypeError, OverflowError) as error:
        raise EncodeError(f"cannot be encoded: {error}") from error
    return data


def _scan(data: bytes) -> None:
    """Walk the structure without building it: depth, item count, lengths, no trailing bytes."""
    size = len(data)
    budget = _SPARE_ITEMS + min(size, CHUNK_SIZE) // DECODE_BYTES_PER_ITEM
    at, left = 0, 1  # items still to come at this level,
    above: list[int] = []  # and at those around it
    while left or above:
        if not left:
            left = above.pop()
            continue
        left -= 1
        budget -= 1
        if at >= size:
            raise DecodeError(f"msgpack: ends after {size} bytes inside a value")
        if budget < 0:
            raise DecodeError(f"msgpack: too many items for {size} bytes")
        at, children = _step(data, at)
        if children < 0:
            continue
        if len(above) >= MAX_DECODE_DEPTH:
            raise DecodeError(f"msgpack: nested deeper than {MAX_DECODE_DEPTH}")
        if children > size - at:
            raise DecodeError(f"msgpack: announces {children} items in {size - at} bytes")
        if children:
            above.append(left)
            left = children
    if at != size:
        raise DecodeError(f"msgpack: {size - at} bytes too many" if at < size else "msgpack: cut")


def _step(data: bytes, at: int) -> tuple[int, int]:
    """Position after one item's head (and body, for a leaf), and its children: -1 for a leaf."""
    tag = data[at]
    at += 1
    if tag <= 0x7F or tag >= 0xE0:  # small integers
        return at, -1
    if tag <= 0x9F:  # small maps and arrays
        return at, (tag & 0x0F) * (2 if tag <= 0x8F else 1)
    if tag <= 0xBF:
        return at + (tag & 0x1F), -1
    if tag in _LENGTH_SIZES:  # most of what large values hold: CIDs and blobs
        body = at + _LENGTH_SIZES[tag]
        return body + int.from_bytes(data[at:body], "big"), -1
    if tag in _FIXED_SIZES:
        return at + _FIXED_SIZES[tag], -1
    if tag in _COUNT_SIZES:
        width, each = _COUNT_SIZES[tag]
        return at + width, each * int.from_bytes(data[at : at + width], "big")
    raise DecodeError(f"msgpack: type 0x{tag:02x} is not used here (extension or single float)")


def _check_values(plain: Plain) -> None:
    """Check what the bytes alone do not show: key types and order, and the floats."""
    pending: list[Plain] = [plain]
    while pending:
        item = pending.pop()
        if isinstance(item, str):  # by far the most
            continue
        if isinstance(item, dict):
            keys = list(item)
            if not all(isinstance(key, str) for key in keys):
                raise DecodeError("msgpack: a map key is not text")
            if keys != sorted(keys):
                raise DecodeError(f"msgpack: map keys out of order: {keys[:20]!r:.200}")
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, float) and not _is_canonical_float(item):
            raise DecodeError(f"msgpack: {item} is not a number that is shared (finite, no -0.0)")


def _is_canonical_float(number: float) -> bool:
    return math.isfinite(number) and (number != 0.0 or math.copysign(1.0, number) > 0)
