"""Integer matrices as bytes, row by row, little-endian two's complement.

Values (16 bytes each) are answers: exact sums that may pass 64 bits. Probes (2 bytes each) are
questions: every entry is below 2^11, so that none can carry two numbers (`e1 + 2^11 e2` reads two
rows of an adapter in one answer). Pure Python: `p2p` has no numpy of its own.
"""

import sys
from array import array
from collections.abc import Sequence
from typing import Final

from p2p.errors import DecodeError, EncodeError, LimitError
from p2p.limits import MAX_PROBE_VALUE

VALUE_SIZE: Final = 16
"""Bytes of one answer value."""
ENTRY_SIZE: Final = 2
"""Bytes of one probe entry."""
_WORD: Final = (1 << 64) - 1


def pack_values(rows: Sequence[Sequence[int]]) -> bytes:
    """A matrix of values, 16 bytes each.

    Raises:
        EncodeError: if it is empty or ragged, or a value needs more than 128 bits.
    """
    flat = _flat(rows)
    words = array("Q", bytes(len(flat) * VALUE_SIZE))
    words[0::2] = array("Q", [value & _WORD for value in flat])
    try:
        high = array("q", [value >> 64 for value in flat])
    except OverflowError as error:
        raise EncodeError("values: one needs more than 128 bits") from error
    words[1::2] = array("Q", high.tobytes())
    return _little(words).tobytes()


def unpack_values(data: bytes, rows: int, columns: int) -> list[list[int]]:
    """Read a matrix of values.

    Raises:
        DecodeError: if the bytes are not exactly so many.
    """
    _check_length("values", data, (rows, columns), VALUE_SIZE)
    words = array("Q")
    words.frombytes(data)
    words = _little(words)
    high = array("q", words[1::2].tobytes())
    flat = [(top << 64) | low for top, low in zip(high, words[0::2], strict=True)]
    return _rows(flat, columns)


def pack_probe(rows: Sequence[Sequence[int]]) -> bytes:
    """A matrix of probe entries, 2 bytes each.

    Raises:
        EncodeError: if it is empty or ragged, or an entry passes `MAX_PROBE_VALUE`.
    """
    flat = _flat(rows)
    if min(flat) < -MAX_PROBE_VALUE or max(flat) > MAX_PROBE_VALUE:
        raise EncodeError(
            f"probe: entries reach {min(flat)} and {max(flat)}, allowed is |x| < 2^11"
        )
    return _little(array("h", flat)).tobytes()


def unpack_probe(data: bytes, rows: int, columns: int) -> list[list[int]]:
    """Read a matrix of probe entries.

    Raises:
        DecodeError: if the bytes are not exactly so many.
        LimitError: if an entry passes `MAX_PROBE_VALUE`.
    """
    _check_length("probe", data, (rows, columns), ENTRY_SIZE)
    return _rows(_checked_entries(data).tolist(), columns)


def check_probe(data: bytes) -> None:
    """Check entries without making a matrix of them.

    Raises:
        DecodeError: if there are none, or half of one.
        LimitError: if an entry passes `MAX_PROBE_VALUE`.
    """
    if not data or len(data) % ENTRY_SIZE:
        raise DecodeError(f"probe: {len(data)} bytes are no entries of {ENTRY_SIZE} bytes")
    _checked_entries(data)


def _checked_entries(data: bytes) -> "array[int]":
    entries = array("h")
    entries.frombytes(data)
    entries = _little(entries)
    low, high = min(entries), max(entries)
    if low < -MAX_PROBE_VALUE or high > MAX_PROBE_VALUE:
        raise LimitError(f"probe: entries reach {low} and {high}, allowed is |x| < 2^11")
    return entries


def _flat(rows: Sequence[Sequence[int]]) -> list[int]:
    width = len(rows[0]) if len(rows) else 0
    if not width or any(len(row) != width for row in rows):
        raise EncodeError("matrix: expected rows of one length, and at least one number")
    return [value for row in rows for value in row]


def _rows(flat: list[int], columns: int) -> list[list[int]]:
    return [flat[at : at + columns] for at in range(0, len(flat), columns)]


def _check_length(what: str, data: bytes, shape: tuple[int, int], size: int) -> None:
    rows, columns = shape
    if rows < 1 or columns < 1 or len(data) != rows * columns * size:
        raise DecodeError(f"{what}: got {len(data)} bytes, expected {rows} x {columns} of {size}")


def _little(words: "array[int]") -> "array[int]":
    """Between this machine's byte order and ours."""
    if sys.byteorder == "big":
        words.byteswap()
    return words
