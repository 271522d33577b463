import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.errors import DecodeError, EncodeError, LimitError
from p2p.limits import MAX_PROBE_VALUE
from p2p.lora_matrices import check_probe, pack_probe, pack_values, unpack_probe, unpack_values

MOST, LEAST = 2**127 - 1, -(2**127)


def matrices(low: int, high: int) -> st.SearchStrategy[list[list[int]]]:
    return st.integers(1, 5).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(low, high), min_size=width, max_size=width), min_size=1, max_size=5
        )
    )


@settings(max_examples=40)
@given(matrix=matrices(LEAST, MOST))
def test_any_values_round_trip_in_the_form_python_writes(matrix: list[list[int]]) -> None:
    data = pack_values(matrix)
    assert data == b"".join(
        value.to_bytes(16, "little", signed=True) for row in matrix for value in row
    )
    assert unpack_values(data, len(matrix), len(matrix[0])) == matrix


@settings(max_examples=40)
@given(matrix=matrices(-MAX_PROBE_VALUE, MAX_PROBE_VALUE))
def test_any_probe_round_trips_in_the_form_python_writes(matrix: list[list[int]]) -> None:
    data = pack_probe(matrix)
    assert data == b"".join(
        entry.to_bytes(2, "little", signed=True) for row in matrix for entry in row
    )
    assert unpack_probe(data, len(matrix), len(matrix[0])) == matrix
    check_probe(data)


def test_rows_come_before_columns() -> None:
    assert unpack_values(pack_values([[1, 2, 3], [4, 5, 6]]), 3, 2) == [[1, 2], [3, 4], [5, 6]]
    assert unpack_probe(pack_probe([[1, 2, 3], [4, 5, 6]]), 3, 2) == [[1, 2], [3, 4], [5, 6]]


def test_bytes_are_swapped_on_a_machine_of_the_other_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(data: bytes, size: int) -> bytes:
        return b"".join(data[at : at + size][::-1] for at in range(0, len(data), size))

    here = pack_values([[1, -(2**70)]]), pack_probe([[1, -2]])
    monkeypatch.setattr(sys, "byteorder", {"little": "big", "big": "little"}[sys.byteorder])
    there = pack_values([[1, -(2**70)]]), pack_probe([[1, -2]])
    assert there == (swapped(here[0], 8), swapped(here[1], 2))
    assert unpack_values(there[0], 1, 2) == [[1, -(2**70)]]
    assert unpack_probe(there[1], 1, 2) == [[1, -2]]
    check_probe(there[1])


@pytest.mark.parametrize("value", [MOST + 1, LEAST - 1, 2**300])
def test_a_value_of_more_than_128_bits_is_not_written(value: int) -> None:
    assert unpack_values(pack_values([[MOST, LEAST]]), 1, 2) == [[MOST, LEAST]]
    with pytest.raises(EncodeError, match="128 bits"):
        pack_values([[0, value]])


PACKED = {
    "two rows at 2^40": 3 + 5 * 2**40,
    "two rows at 2^11": 3 + 2**11,
    "the second row alone": 2**11,
    "two rows at 2^11, below": -(3 + 2**11),
    "one above": MAX_PROBE_VALUE + 1,
    "one below": -MAX_PROBE_VALUE - 1,
    "the least of 16 bits": -(2**15),
}


@pytest.mark.parametrize("value", PACKED.values(), ids=PACKED)
def test_an_entry_that_could_hold_two_numbers_is_neither_written_nor_read(value: int) -> None:
    """`e1 + 2^k e2` in one entry would read several rows of an adapter in one answer."""
    with pytest.raises(EncodeError, match="2\\^11"):
        pack_probe([[0, value]])
    if abs(value) < 2**40:  # what is larger has no form at all
        data = b"\0\0" + value.to_bytes(2, "little", signed=True)
        with pytest.raises(LimitError, match="2\\^11"):
            unpack_probe(data, 1, 2)
        with pytest.raises(LimitError, match="2\\^11"):
            check_probe(data)


@pytest.mark.parametrize("matrix", [[], [[]], [[], []], [[1, 2], [3]], [[1], [2, 3]]])
def test_what_is_no_matrix_is_not_written(matrix: list[list[int]]) -> None:
    for write in (pack_values, pack_probe):
        with pytest.raises(EncodeError, match="one length"):
            write(matrix)


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 2), (2, 2), (3, 3), (2, 4), (0, 6), (6, 0), (-2, -3), (-1, 6)]
)
def test_a_matrix_of_another_shape_is_refused(rows: int, columns: int) -> None:
    values, probe = pack_values([[1] * 3] * 2), pack_probe([[1] * 3] * 2)
    with pytest.raises(DecodeError, match="values"):
        unpack_values(values, rows, columns)
    with pytest.raises(DecodeError, match="probe"):
        unpack_probe(probe, rows, columns)


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (0, 0), (-1, 0)])
def test_nothing_at_all_is_no_matrix(rows: int, columns: int) -> None:
    for read in (unpack_values, unpack_probe):
        with pytest.raises(DecodeError):
            read(b"", rows, columns)


def test_a_cut_or_longer_matrix_is_refused() -> None:
    values, probe = pack_values([[1, 2]]), pack_probe([[1, 2]])
    for data in (b"", values[:-1], values + b"\0", values[:-16]):
        with pytest.raises(DecodeError):
            unpack_values(data, 1, 2)
    for data in (b"", probe[:-1], probe + b"\0"):
        with pytest.raises(DecodeError):
            unpack_probe(data, 1, 2)
        with pytest.raises(DecodeError):
            check_probe(data)
