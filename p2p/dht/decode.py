"""The one decoder for values that come from other hivemind nodes: bounded, and it never nests.

hivemind decodes msgpack extension types by recursion: about 400 nested ones (1.5 KB) overflow the C
stack and kill the process, at a store and at every later read. Its wire needs exactly three shapes,
and only these pass here: bytes, nil, and one dictionary of records that is not inside anything.

Knows hivemind's dictionary layout (ext 0x50 holding `[max size, latest expiry, [[subkey, value,
expiry]...]]`) but does not import hivemind.
"""

import math
from dataclasses import dataclass
from typing import Final

import msgpack

from p2p.errors import DecodeError
from p2p.limits import MAX_OWNERS_PER_KEY, MAX_RECORD_SIZE

DICTIONARY_EXT: Final = 0x50
SUBKEY_SIZE: Final = 32
_MAX_ENTRY_SIZE: Final = MAX_RECORD_SIZE + SUBKEY_SIZE + 32
MAX_WIRE_SIZE: Final = 2 * MAX_OWNERS_PER_KEY * _MAX_ENTRY_SIZE
"""Twice a full dictionary: what an honest replica may send, with room for its expired entries."""
_MAX_ENTRIES: Final = 2 * MAX_OWNERS_PER_KEY


@dataclass(frozen=True, slots=True)
class WireRecord:
    """One entry of a dictionary as a replica sent it: well-formed, otherwise unchecked."""

    subkey: bytes
    value: bytes
    expires_at: float


def decode_value(payload: bytes) -> bytes | tuple[WireRecord, ...] | None:
    """Decode what hivemind would hand to its own msgpack decoder.

    Returns:
        Plain bytes (a subkey), None (the subkey of a plain value), or a dictionary's entries;
        entries of a wrong shape are left out, so that one bad entry does not hide the others.

    Raises:
        DecodeError: if it is too large, nested, or anything else.
    """
    if len(payload) > MAX_WIRE_SIZE:
        raise DecodeError(f"DHT value: got {len(payload)} bytes, the limit is {MAX_WIRE_SIZE}")
    value = _unpack(payload, max_ext_len=MAX_WIRE_SIZE)
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, msgpack.ExtType) or value.code != DICTIONARY_EXT:
        raise DecodeError(f"DHT value: got {type(value).__name__}, expected bytes or a dictionary")
    return _entries(_unpack(value.data, max_ext_len=0))


def _entries(body: object) -> tuple[WireRecord, ...]:
    match body:
        case [_, _, list(entries)]:
            wanted = entries[:_MAX_ENTRIES]
            return tuple(record for record in map(_entry, wanted) if record is not None)
        case _:
            raise DecodeError("DHT dictionary: expected [max size, latest expiry, entries]")


def _entry(entry: object) -> WireRecord | None:
    match entry:
        case [bytes(subkey), bytes(value), float() | int() as expires_at] if (
            len(subkey) == SUBKEY_SIZE
            and len(value) <= MAX_RECORD_SIZE
            and not isinstance(expires_at, bool)
            and math.isfinite(expires_at)
        ):
            return WireRecord(subkey, value, float(expires_at))
        case _:
            return None


def _unpack(payload: bytes, *, max_ext_len: int) -> object:
    """One msgpack value; extension types stay undecoded (`ExtType`), so nothing recurses."""
    try:
        return msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            max_ext_len=max_ext_len,
            max_array_len=4 * _MAX_ENTRIES,
            max_map_len=0,
            max_str_len=0,
            max_bin_len=MAX_RECORD_SIZE,
        )
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise DecodeError(f"DHT value: {len(payload)} bytes are not ours: {error}") from error
