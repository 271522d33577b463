"""Statements: what they may say, that no two share their bytes, and how they are folded."""

import hashlib
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.proofs import (
    BASE,
    NARROW,
    SEED,
    SQUARE,
    WIDE,
    changed,
    delta_of,
    layer,
    offered,
    probed,
    questions,
)
from verification.adapter import QuantisedModule, salted
from verification.circuit import Shape, circuit_of
from verification.digests import PRIME, Matrix
from verification.errors import StatementError
from verification.prover import true_values
from verification.statement import (
    DELTA,
    MAX_PAIRS,
    MAX_ROWS,
    NORM_PAIRS,
    OFFER,
    PROBE,
    PROBE_BOUND,
    Statement,
    offer_signs,
    sheet_nonce,
)

COMMITMENT = b"c" * circuit_of(SQUARE).commitment_size
PROBED = probed(layer(), COMMITMENT)
DELTAS = delta_of(layer(), COMMITMENT)
OFFERED = offered(layer(), COMMITMENT)
STATEMENTS = {PROBE: PROBED, DELTA: DELTAS, OFFER: OFFERED}


def right_of(statement: Statement) -> Matrix:
    assert statement.right is not None
    return statement.right


def zeros(rows: int, columns: int) -> Matrix:
    return ((0,) * columns,) * rows


# --- bytes ----------------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "kind": PROBE,
    "base": BASE + "2",
    "offer": "another offer",
    "module": "to_k",
    "shape": Shape(64, 5, 64),
    "commitment": COMMITMENT[:-1] + b"d",
    "nonce": bytes(16),
    "left": changed(PROBED.left, 1, 63),
    "right": changed(right_of(PROBED), 63, 1),
    "values": changed(PROBED.values, 1, 1),
}


@pytest.mark.parametrize("name", [field.name for field in fields(Statement)])
def test_every_field_alone_gives_other_bytes_and_another_fold(name: str) -> None:
    statement = OFFERED if name == "kind" else PROBED
    other = replace(statement, **{name: CHANGES[name]})
    assert getattr(other, name) != getattr(statement, name)
    assert other.canonical() != statement.canonical()
    assert not {*other.fold().u} & {*statement.fold().u} - {0}


def test_equal_statements_have_equal_bytes() -> None:
    assert probed(layer(), COMMITMENT).canonical() == PROBED.canonical()


def test_no_two_of_many_statements_share_their_bytes() -> None:
    everything = [*STATEMENTS.values(), replace(OFFERED, kind=PROBE)]
    everything += [replace(PROBED, **{name: CHANGES[name]}) for name in CHANGES if name != "kind"]
    assert len({statement.canonical() for statement in everything}) == len(everything)


text = st.text(max_size=3)


@settings(max_examples=60)
@given(st.tuples(text, text, text), st.tuples(text, text, text))
def test_names_never_run_into_each_other(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    small = tiny((1,), (2,))
    first, second = (
        replace(small, base=base, offer=offer, module=module)
        for base, offer, module in (one, other)
    )
    assert (first.canonical() == second.canonical()) == (one == other)


def tiny(u: tuple[int, ...], v: tuple[int, ...], value: int = 0) -> Statement:
    """The probe of a layer of one number in and one out, with len(u) x len(v) values."""
    circuit = circuit_of(Shape(1, 1, 1))
    return Statement(
        kind=PROBE,
        base="b",
        offer="o",
        module="m",
        shape=circuit.shape,
        commitment=bytes(circuit.commitment_size),
        nonce=bytes(16),
        left=tuple((x,) for x in u),
        right=(v,),
        values=((value,) * len(v),) * len(u),
    )


entries = st.lists(st.sampled_from((0, 1, -1, 2047)), min_size=1, max_size=4).map(tuple)


@settings(max_examples=60)
@given(*[st.tuples(entries, entries, st.integers(-(2**127), 2**127 - 1))] * 2)
def test_matrices_never_run_into_each_other(one: Any, other: Any) -> None:
    assert (tiny(*one).canonical() == tiny(*other).canonical()) == (one == other)


def test_delta_is_not_taken_for_a_probe_with_an_empty_right_side() -> None:
    narrow = replace(DELTAS, left=DELTAS.left[:1], values=DELTAS.values[:1])
    assert narrow.canonical() not in {PROBED.canonical(), OFFERED.canonical()}


# --- what a statement may say ---------------------------------------------------------------------


def test_packing_several_rows_into_one_answer_is_refused() -> None:
    for sign in (1, -1):
        largest = sign * (PROBE_BOUND - 1)
        for statement in (PROBED, DELTAS):
            rest = statement.left[0][1:]
            replace(statement, left=((largest, *rest), *statement.left[1:]))
            with pytest.raises(StatementError, match="left: an entry of 12 bits"):
                replace(statement, left=((largest + sign, *rest), *statement.left[1:]))
        right = right_of(PROBED)
        replace(PROBED, right=((largest, 0), *right[1:]))
        with pytest.raises(StatementError, match="right: an entry of 12 bits"):
            replace(PROBED, right=((largest + sign, 0), *right[1:]))


def test_entry_too_long_to_print_is_refused_as_any_other() -> None:
    with pytest.raises(StatementError, match="left: an entry of 100001 bits"):
        replace(PROBED, left=changed(PROBED.left, by=2**100_000))


def test_value_too_large_for_its_bytes_is_refused_before_it_is_folded() -> None:
    with pytest.raises(StatementError, match="more than 128 bits"):
        replace(PROBED, values=changed(PROBED.values, by=2**128)).fold()


def test_values_equal_modulo_the_prime_are_other_values() -> None:
    with pytest.raises(StatementError, match="more than 128 bits"):
        replace(PROBED, values=changed(PROBED.values, by=PRIME)).canonical()


@pytest.mark.parametrize("kind", ["", "Offer", "offer ", "proof"])
def test_other_kinds_are_refused(kind: str) -> None:
    with pytest.raises(StatementError, match="kind: got"):
        replace(PROBED, kind=kind)


@pytest.mark.parametrize("size", [0, 63, 65, 128])
def test_commitment_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(StatementError, match=rf"commitment: got {size} bytes.* has 64"):
        replace(PROBED, commitment=bytes(size))


@pytest.mark.parametrize("size", [0, 15, 17])
def test_nonce_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(StatementError, match=f"nonce: got {size} bytes, expected 16"):
        replace(PROBED, nonce=bytes(size))


@pytest.mark.parametrize("name", ["base", "offer", "module"])
def test_half_of_a_character_is_refused_in_every_name(name: str) -> None:
    changes: dict[str, Any] = {name: "\udcff"}
    with pytest.raises(StatementError, match=f"{name}: no text"):
        replace(PROBED, **changes).canonical()


def test_number_of_pairs_is_limited_on_both_sides() -> None:
    for pairs in (1, MAX_PAIRS):
        left, right = questions(SQUARE, pairs=pairs)
        replace(PROBED, left=left, right=right, values=zeros(pairs, pairs))
    left, right = questions(SQUARE, pairs=MAX_PAIRS + 1)
    with pytest.raises(StatementError, match=r"left: got 5 rows, expected 1\.\.4"):
        replace(PROBED, left=left, values=zeros(5, 2))
    with pytest.raises(StatementError, match=r"right: got 5 columns, expected 1\.\.4"):
        replace(PROBED, right=right, values=zeros(2, 5))
    with pytest.raises(StatementError, match="left: got 0 rows"):
        replace(PROBED, left=(), values=())
    with pytest.raises(StatementError, match="right: got 0 columns"):
        replace(PROBED, right=((),) * 64, values=((),) * 2)
    with pytest.raises(StatementError, match="right: got 0 columns"):
        replace(PROBED, right=(), values=((),) * 2)


def test_number_of_rows_is_limited_on_both_sides() -> None:
    narrow = delta_of(layer(shape=NARROW), bytes(circuit_of(NARROW).commitment_size))
    replace(narrow, left=zeros(MAX_ROWS, 64), values=zeros(MAX_ROWS, 64))
    with pytest.raises(StatementError, match=r"left: got 1025 rows, expected 1\.\.1024"):
        replace(narrow, left=zeros(MAX_ROWS + 1, 64), values=zeros(MAX_ROWS + 1, 64))


@pytest.mark.parametrize(
    ("statement", "name", "matrix", "says"),
    [
        (PROBED, "left", zeros(2, 63), "left: got 2 x 63, expected 2 x 64"),
        (PROBED, "left", ((0,) * 64, (0,) * 65), "left: got 2 x 64, expected 2 x 64"),
        (PROBED, "right", zeros(65, 2), "right: got 65 x 2, expected 64 x 2"),
        (PROBED, "right", ((0, 0),) * 63 + ((0,),), "right: got 64 x 2, expected 64 x 2"),
        (PROBED, "values", zeros(2, 3), "values: got 2 x 3, expected 2 x 2"),
        (PROBED, "values", zeros(1, 2), "values: got 1 x 2, expected 2 x 2"),
        (PROBED, "values", (), "values: got 0 x 0, expected 2 x 2"),
        (PROBED, "right", None, "right: absent in delta statements alone; this is a probe"),
        (DELTAS, "right", zeros(64, 1), "right: absent in delta statements alone; this is a delta"),
        (DELTAS, "values", zeros(3, 63), "values: got 3 x 63, expected 3 x 64"),
        (OFFERED, "right", None, "right: absent in delta statements alone; this is a offer"),
    ],
)
def test_matrices_of_other_sizes_are_refused(
    statement: Statement, name: str, matrix: Matrix | None, says: str
) -> None:
    changes: dict[str, Any] = {name: matrix}
    with pytest.raises(StatementError, match=says):
        replace(statement, **changes)


# --- an offer's own signs -------------------------------------------------------------------------


def test_offer_may_not_choose_its_questions() -> None:
    for changes in (
        {"left": changed(OFFERED.left, by=-2 * OFFERED.left[0][0])},
        {"right": changed(right_of(OFFERED), by=-2 * right_of(OFFERED)[0][0])},
        {"left": OFFERED.left[:3], "values": OFFERED.values[:3]},
        {"nonce": bytes(16)},
        {"module": "to_k"},
    ):
        with pytest.raises(StatementError, match="not the signs that the commitments draw"):
            replace(OFFERED, **changes)


def test_signs_have_four_pairs_and_differ_by_nonce_and_module() -> None:
    drawn = offer_signs(b"n" * 16, "to_q", WIDE)
    left, right = drawn
    assert (len(left), len(left[0])) == (NORM_PAIRS, 64)
    assert (len(right), len(right[0])) == (256, NORM_PAIRS)
    assert drawn == offer_signs(b"n" * 16, "to_q", WIDE)
    others = [offer_signs(b"m" * 16, "to_q", WIDE), offer_signs(b"n" * 16, "to_k", WIDE)]
    for other in others:
        assert other[0] != left
        assert other[1] != right
    assert sum(left, ()) != sum(right, ())[: 4 * 64]


def test_signs_of_each_pair_are_fair() -> None:
    left, right = offer_signs(b"n" * 16, "to_q", Shape(4000, 1, 4000))
    for line in (*left, *zip(*right, strict=True)):
        assert {*line} == {-1, 1}
        assert abs(sum(line)) < 4 * 4000**0.5


SHEET = [("q", SQUARE, b"c" * 64), ("k", NARROW, b"d" * 64)]


@pytest.mark.parametrize(
    ("base", "sheet"),
    [
        (BASE + "2", SHEET),
        (BASE, SHEET[:1]),
        (BASE, SHEET[::-1]),
        (BASE, [("Q", *SHEET[0][1:]), SHEET[1]]),
        (BASE, [("q", WIDE, b"c" * 64), SHEET[1]]),
        (BASE, [SHEET[0], ("k", NARROW, b"d" * 63 + b"e")]),
        (BASE, [*SHEET, SHEET[1]]),
    ],
)
def test_sheets_nonce_is_drawn_from_all_the_offer_commits_to(
    base: str, sheet: list[tuple[str, Shape, bytes]]
) -> None:
    assert len(sheet_nonce(BASE, SHEET)) == 16
    assert sheet_nonce(BASE, iter(SHEET)) == sheet_nonce(BASE, SHEET)
    assert sheet_nonce(base, sheet) != sheet_nonce(BASE, SHEET)


# --- folding --------------------------------------------------------------------------------------


def form(statement: Statement, module: QuantisedModule) -> int:
    """(u A)(B v) of the folded vectors and the salted weights, modulo the prime."""
    folded, mixed = statement.fold(), salted(module, SEED)
    u, v = np.array(folded.u, object), np.array(folded.v, object)
    return int((u @ mixed.a.astype(object)) @ (mixed.b.astype(object) @ v)) % PRIME


@pytest.mark.parametrize("kind", STATEMENTS)
def test_fold_of_a_true_statement_holds_of_its_weights_alone(kind: str) -> None:
    statement = STATEMENTS[kind]
    assert form(statement, layer()) == statement.fold().y
    assert form(statement, layer(draw=1)) != statement.fold().y


@pytest.mark.parametrize("kind", STATEMENTS)
def test_fold_of_a_value_off_by_one_unit_does_not_hold(kind: str) -> None:
    for row, column, by in ((0, 0, 1), (-1, -1, -1), (1, 0, 2**126)):
        false = STATEMENTS[kind]
        false = replace(false, values=changed(false.values, row, column, by))
        assert form(false, layer()) != false.fold().y


def test_errors_that_cancel_out_do_not_hold() -> None:
    """What a sum with small or equal weights would miss."""
    false = replace(PROBED, values=changed(changed(PROBED.values, 0, 0, 1), 0, 1, -1))
    assert form(false, layer()) != false.fold().y
    swapped = replace(PROBED, values=PROBED.values[::-1])
    assert form(swapped, layer()) != swapped.fold().y


@pytest.mark.parametrize("kind", STATEMENTS)
def test_salt_is_met_by_zeros_and_weights_by_field_elements(kind: str) -> None:
    folded, circuit = STATEMENTS[kind].fold(), circuit_of(SQUARE)
    for vector, marks in zip((folded.u, folded.v), circuit.is_salt(), strict=True):
        assert len(vector) == len(marks)
        for value, is_salt in zip(vector, marks, strict=True):
            assert (value == 0) == is_salt
            assert is_salt or value.bit_length() > 200


@pytest.mark.parametrize("kind", STATEMENTS)
def test_what_is_proved_does_not_depend_on_the_salt(kind: str) -> None:
    folded = STATEMENTS[kind].fold()
    for seed in (SEED, bytes(32)):
        mixed = salted(layer(), seed)
        half = np.array(folded.u, object) @ mixed.a.astype(object)
        y = half @ (mixed.b.astype(object) @ np.array(folded.v, object))
        assert int(y) % PRIME == folded.y


def test_true_values_are_exact_at_the_largest_numbers() -> None:
    most = QuantisedModule(
        "m", np.full((64, 16), -(2**15), np.int16), np.full((16, 64), -(2**15), np.int16)
    )
    left, right = ((-2047,) * 64,), ((2047,),) * 64
    assert true_values(most, left, right) == ((-2047 * 2047 * 64 * 64 * 16 * 2**30,),)
    assert true_values(most, left, None) == ((-2047 * 64 * 16 * 2**30,) * 64,)


# --- for good: what old proofs were made of -------------------------------------------------------


def digest(plain: object) -> str:
    return hashlib.sha256(repr(plain).encode()).hexdigest()[:16]


def test_salt_lies_where_it_always_lay() -> None:
    places = [circuit_of(shape).is_salt() for shape in (SQUARE, NARROW, WIDE)]
    assert [digest(place) for place in places] == [
        "ac2ff0d4477858f1",
        "89995cc92a283081",
        "4076f1fd0144317e",
    ]


def test_signs_nonces_and_folds_are_what_they_always_were() -> None:
    drawn = (offer_signs(b"n" * 16, "to_q", WIDE), sheet_nonce(BASE, SHEET))
    folds = [statement.fold() for statement in STATEMENTS.values()]
    assert [digest(one) for one in (*drawn, *folds)] == [
        "748933a025c08848",
        "bfac48c3655b1b45",
        "2164069d04ae4839",
        "667facfb57cb75a8",
        "157b83187e8b2071",
    ]
