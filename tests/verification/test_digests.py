"""Challenges nobody can steer, integers and lists that have one form in bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verification.digests import (
    INTEGER_SIZE,
    PRIME,
    Challenge,
    combine,
    felt_hex,
    framed,
    integers_bytes,
    signs,
    text_bytes,
    transposed,
)
from verification.errors import StatementError

MOST = 2 ** (8 * INTEGER_SIZE - 1)


@pytest.mark.parametrize("value", [0, 1, -1, PRIME - 1, PRIME, -PRIME, 2**300, -(2**300)])
def test_field_elements_are_32_bytes_below_the_prime(value: int) -> None:
    data = bytes.fromhex(felt_hex(value))
    assert len(data) == 32
    assert int.from_bytes(data, "little") == value % PRIME


def test_integers_fit_sixteen_bytes_and_not_one_more() -> None:
    data = integers_bytes(((MOST - 1, -MOST), (0, -1)))
    assert [int.from_bytes(data[i : i + 16], "little", signed=True) for i in range(0, 64, 16)] == [
        *(MOST - 1, -MOST, 0, -1)
    ]
    for too_large in (MOST, -MOST - 1):
        with pytest.raises(StatementError, match="more than 128 bits"):
            integers_bytes(((too_large,),))


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=20), max_size=4), st.lists(st.binary(max_size=20), max_size=4))
def test_two_lists_of_parts_never_give_the_same_bytes(one: list[bytes], other: list[bytes]) -> None:
    assert (framed(one) == framed(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [([b"ab", b"c"], [b"a", b"bc"]), ([b"a"], [b"a", b""]), ([], [b""]), ([bytes(8)], [b"", b""])],
)
def test_parts_that_run_together_are_told_apart(one: list[bytes], other: list[bytes]) -> None:
    assert framed(one) != framed(other)


def test_half_of_a_character_is_no_text() -> None:
    assert text_bytes("module", "to_q €") == "to_q €".encode()
    with pytest.raises(StatementError, match="module: no text"):
        text_bytes("module", "\ud800")


def test_challenges_depend_on_domain_and_transcript_and_nothing_else() -> None:
    drawn = Challenge("a", b"transcript").felts(3)
    assert drawn == Challenge("a", b"transcript").felts(3)
    assert len({*drawn, *Challenge("b", b"transcript").felts(3)}) == 6
    assert not {*drawn} & {*Challenge("a", b"transcripT").felts(3)}


def test_challenges_fill_the_field() -> None:
    drawn = Challenge("a", b"b").felts(400)
    assert max(drawn) < PRIME
    assert 0.45 < sum(drawn) / len(drawn) / PRIME < 0.55
    assert min(felt.bit_length() for felt in drawn) > 230


def test_signs_are_fair_coins_that_differ_by_domain_and_transcript() -> None:
    drawn = signs("a", b"b", 4, 1000)
    assert {x for row in drawn for x in row} == {-1, 1}
    assert abs(sum(x for row in drawn for x in row)) < 4 * 4000**0.5
    for others in (signs("a", b"c", 4, 1000), signs("b", b"b", 4, 1000)):
        pairs = zip(sum(drawn, ()), sum(others, ()), strict=True)
        same = sum(x == y for x, y in pairs)
        assert abs(same - 2000) < 4 * 1000**0.5
    for row in range(4):
        for other in range(row):
            agree = sum(x * y for x, y in zip(drawn[row], drawn[other], strict=True))
            assert abs(agree) < 4 * 1000**0.5


@pytest.mark.parametrize(("rows", "columns"), [(4, 64), (64, 4), (1, 1), (3, 5)])
def test_signs_have_the_size_asked_for(rows: int, columns: int) -> None:
    drawn = signs("a", b"b", rows, columns)
    assert (len(drawn), {len(row) for row in drawn}) == (rows, {columns})


def test_combination_is_a_product_modulo_the_prime() -> None:
    assert combine([2, PRIME - 1], ((1, -5, 0), (3, 4, 7))) == [PRIME - 1, PRIME - 14, PRIME - 7]
    with pytest.raises(ValueError, match="shorter"):
        combine([1, 2, 3], ((1,), (2,)))


def test_transposed_twice_is_the_same() -> None:
    matrix = ((1, 2, 3), (4, 5, 6))
    assert transposed(matrix) == ((1, 4), (2, 5), (3, 6))
    assert transposed(transposed(matrix)) == matrix
