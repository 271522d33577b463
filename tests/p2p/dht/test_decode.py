"""The decoder of hivemind's values: three shapes, nothing nested, whatever comes."""

import math

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.dht.decode import DICTIONARY_EXT, MAX_WIRE_SIZE, WireRecord, decode_value
from p2p.errors import DecodeError
from p2p.limits import MAX_OWNERS_PER_KEY, MAX_RECORD_SIZE

OWNER = b"o" * 32


def dictionary(entries: object) -> bytes:
    body = msgpack.packb([math.inf, 2e9, entries])
    return bytes(msgpack.packb(msgpack.ExtType(DICTIONARY_EXT, body)))


def test_the_three_shapes_are_read() -> None:
    assert decode_value(msgpack.packb(OWNER)) == OWNER
    assert decode_value(msgpack.packb(None)) is None
    entries = [[OWNER, b"value", 1.5], [b"p" * 32, b"", 2]]
    assert decode_value(dictionary(entries)) == (
        WireRecord(OWNER, b"value", 1.5),
        WireRecord(b"p" * 32, b"", 2.0),
    )


@pytest.mark.parametrize(
    "entry",
    [
        [OWNER, b"value"],
        [OWNER, b"value", 1.5, 1],
        [OWNER[:-1], b"value", 1.5],
        [OWNER, b"value", math.nan],
        [OWNER, b"value", math.inf],
        [OWNER, b"value", True],
        [OWNER, [b"value"], 1.5],
        [[OWNER], b"value", 1.5],
        7,
    ],
)
def test_bad_entry_is_left_out_and_hides_no_other(entry: object) -> None:
    good = [OWNER, b"value", 1.5]
    assert decode_value(dictionary([entry, good])) == (WireRecord(OWNER, b"value", 1.5),)


def test_largest_value_is_read_and_a_larger_one_is_not() -> None:
    largest = [OWNER, b"v" * MAX_RECORD_SIZE, 1.5]
    (record,) = decode_value(dictionary([largest])) or ()
    assert isinstance(record, WireRecord)
    with pytest.raises(DecodeError):
        decode_value(dictionary([[OWNER, b"v" * (MAX_RECORD_SIZE + 1), 1.5]]))
    with pytest.raises(DecodeError, match="limit"):
        decode_value(b"\x00" * (MAX_WIRE_SIZE + 1))


def test_full_dictionary_of_largest_records_is_read() -> None:
    full = [
        [number.to_bytes(32, "big"), b"v" * MAX_RECORD_SIZE, 1.5]
        for number in range(MAX_OWNERS_PER_KEY)
    ]
    assert len(decode_value(dictionary(full)) or ()) == MAX_OWNERS_PER_KEY


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        "text",
        1,
        1.5,
        True,
        msgpack.ExtType(0x40, b"\x90"),
        msgpack.ExtType(DICTIONARY_EXT, msgpack.packb([1, 2])),
        msgpack.ExtType(DICTIONARY_EXT, msgpack.packb([1, 2, {}])),
        msgpack.ExtType(DICTIONARY_EXT, b""),
        msgpack.Timestamp(1),
    ],
)
def test_other_shapes_are_refused(value: object) -> None:
    with pytest.raises(DecodeError):
        decode_value(msgpack.packb(value))


def nested_extensions(levels: int, code: int) -> bytes:
    value = b"\xc0"
    for _ in range(levels):
        value = msgpack.packb(msgpack.ExtType(code, b"\x91" + value))
    return value


@pytest.mark.parametrize("code", [0x40, DICTIONARY_EXT])
@pytest.mark.parametrize("levels", [2, 400, 20_000])
def test_nested_extensions_are_refused(levels: int, code: int) -> None:
    with pytest.raises(DecodeError):
        decode_value(nested_extensions(levels, code))


@pytest.mark.parametrize("levels", [2, 400, 100_000])
def test_nested_arrays_are_refused(levels: int) -> None:
    with pytest.raises(DecodeError):
        decode_value(b"\x91" * levels + b"\xc0")


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    try:
        value = decode_value(payload)
    except DecodeError:
        return
    assert value is None or isinstance(value, bytes | tuple)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.binary(max_size=40) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            | st.builds(lambda v: msgpack.ExtType(DICTIONARY_EXT, msgpack.packb(v)), inner)
        ),
        max_leaves=20,
    )
)
def test_any_msgpack_is_read_or_refused(value: object) -> None:
    try:
        decoded = decode_value(msgpack.packb(value))
    except DecodeError:
        return
    assert decoded is None or isinstance(decoded, bytes | tuple)
