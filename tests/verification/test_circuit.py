"""Layouts have room for weights and salt at every shape, and names that say all that fixes them."""

import hashlib
import json
import re
from pathlib import Path

import pytest

import verification.circuit
from tests.support.proofs import NARROW, SEED, SQUARE, WIDE, layer
from training.config import PRESETS
from verification import native
from verification.adapter import salted
from verification.circuit import (
    LEAST_PROOFS,
    MAX_PROOFS,
    MAX_RANK,
    MAX_SIDE,
    PROOF_BITS,
    SALT_BITS,
    SLACK_BITS,
    Circuit,
    Pin,
    Shape,
    circuit_of,
    known,
    onnx_bytes,
)
from verification.digests import felt_hex
from verification.errors import StatementError
from verification.keys import KeyStore
from verification.srs import PINNED

USABLE = {k: 2**k - 6 for k in range(10, 14)}
"""Rows of a column that hold what is committed to."""


def preset_shapes() -> list[Shape]:
    sides = set()
    for preset in PRESETS.values():
        width = preset.width
        sides |= {(width, width), (width, 4 * width), (4 * width, width)}
    return sorted(Shape(i, r, o) for i, o in sides for r in range(1, MAX_RANK + 1))


SHAPES = preset_shapes()
CIRCUITS = [circuit_of(shape) for shape in SHAPES]


def salt_in_columns(circuit: Circuit) -> list[int]:
    """Salt entries of each committed column, counted one by one."""
    rows, columns = circuit.is_salt()
    flat = [mark for mark in rows for _ in range(circuit.shape.rank)]
    flat += [mark for _ in range(circuit.shape.rank) for mark in columns]
    usable = USABLE[circuit.logrows]
    return [sum(flat[start : start + usable]) for start in range(0, len(flat), usable)]


def test_every_layout_fits_its_columns_with_a_row_to_spare() -> None:
    for circuit in CIRCUITS:
        numbers = circuit.shape.rank * (circuit.inputs + circuit.outputs)
        most = circuit.columns * (USABLE[circuit.logrows] - 1)
        assert (circuit.columns - 1) * USABLE[circuit.logrows] < numbers < most, circuit


def test_public_numbers_of_every_layout_fit_their_column() -> None:
    for circuit in CIRCUITS:
        assert circuit.inputs + circuit.outputs + 1 <= USABLE[circuit.logrows], circuit


def test_every_length_of_a_layout_is_even() -> None:
    for circuit in CIRCUITS:
        assert circuit.inputs % 2 == circuit.outputs % 2 == 0, circuit


@pytest.mark.slow
def test_every_layout_hides_the_weights_from_all_proofs_an_offer_may_need() -> None:
    for circuit in CIRCUITS:
        assert LEAST_PROOFS <= circuit.hidden_proofs <= MAX_PROOFS, circuit


def test_hidden_proofs_tell_less_than_the_salt_of_the_thinnest_column() -> None:
    for circuit in CIRCUITS[::7]:
        spare = SALT_BITS * min(salt_in_columns(circuit)) - PROOF_BITS * circuit.hidden_proofs
        assert spare >= SLACK_BITS, circuit
        assert spare < SLACK_BITS + PROOF_BITS or circuit.hidden_proofs == MAX_PROOFS, circuit


def test_salt_marks_are_as_many_as_the_layout_says() -> None:
    for circuit in CIRCUITS[::7]:
        rows, columns = circuit.is_salt()
        assert (len(rows), sum(rows)) == (circuit.inputs, circuit.salt_rows)
        assert (len(columns), sum(columns)) == (circuit.outputs, circuit.salt_columns)


@pytest.mark.slow
def test_columns_end_where_the_layout_takes_them_to_end(keys: KeyStore) -> None:
    """Two columns of k = 10: one entry moves one point of the commitment, and no other."""
    circuit = circuit_of(Shape(64, 4, 256))
    assert (circuit.logrows, circuit.columns) == (10, 2)
    found = keys.verifying(circuit)
    message = salted(layer(shape=circuit.shape), SEED).message()

    def points(message: list[int]) -> list[bytes]:
        felts = [felt_hex(x) for x in message]
        data = native.commit(felts, found.vk, found.settings, found.srs)
        return [data[i : i + 64] for i in range(0, len(data), 64)]

    before = points(message)
    for index in (0, USABLE[10] - 1, USABLE[10], len(message) - 1):
        moved = [*message]
        moved[index] += 1
        differs = [a != b for a, b in zip(before, points(moved), strict=True)]
        assert differs == [column == index // USABLE[10] for column in range(2)]


def test_table_has_every_shape_of_every_preset_and_no_other() -> None:
    rows = json.loads(Path(verification.circuit.__file__).with_name("circuits.json").read_text())
    assert [Shape(*row[:3]) for row in rows] == SHAPES
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for row in rows for digest in row[3:5])


def test_shapes_share_a_name_only_if_they_share_the_model_and_the_key() -> None:
    by_name: dict[str, set[object]] = {}
    for circuit in CIRCUITS:
        pin = known(circuit.shape)
        sides = (circuit.inputs, circuit.shape.rank, circuit.outputs, circuit.logrows)
        by_name.setdefault(pin.circuit, set()).add((sides, pin.vk_sha256, pin.proof_size))
    assert all(len(kinds) == 1 for kinds in by_name.values())
    assert len(set().union(*by_name.values())) == len(by_name) < len(CIRCUITS)


@pytest.mark.parametrize("shape", [SQUARE, NARROW, WIDE, Shape(128, 3, 512)], ids=str)
def test_names_in_the_table_are_those_of_the_models_themselves(shape: Shape) -> None:
    assert known(shape).circuit == circuit_of(shape).id


def test_circuit_that_no_preset_has_is_unknown() -> None:
    assert circuit_of(Shape(64, 4, 66)).columns == 1
    with pytest.raises(StatementError, match=r"\(64, 4, 66\)"):
        known(Shape(64, 4, 66))


def test_name_covers_model_settings_release_and_srs(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {circuit_of(SQUARE).id, circuit_of(NARROW).id}
    monkeypatch.setattr(verification.circuit, "EZKL_VERSION", "23.0.6")
    names.add(circuit_of(SQUARE).id)
    monkeypatch.undo()
    monkeypatch.setattr(verification.circuit, "PINNED", {**PINNED, 10: PINNED[11]})
    names.add(circuit_of(SQUARE).id)
    monkeypatch.undo()
    usual = verification.circuit.run_args
    monkeypatch.setattr(
        verification.circuit, "run_args", lambda k: {**usual(k), "check_mode": "safe"}
    )
    names.add(circuit_of(SQUARE).id)
    monkeypatch.undo()
    assert len(names) == 5
    assert circuit_of(SQUARE).id in names


def test_model_is_the_same_bytes_each_time_and_other_bytes_for_other_weights() -> None:
    circuit = circuit_of(SQUARE)
    digest = hashlib.sha256(onnx_bytes(circuit)).hexdigest()
    assert digest == hashlib.sha256(onnx_bytes(circuit)).hexdigest()
    mixed = salted(layer(), SEED)
    assert onnx_bytes(circuit, mixed.a.tolist(), mixed.b.tolist()) != onnx_bytes(circuit)


@pytest.mark.parametrize("sides", [(1, 1, 1), (16, 16, 16), (64, 16, MAX_SIDE), (MAX_SIDE, 1, 1)])
def test_shapes_within_the_limits_are_shapes(sides: tuple[int, int, int]) -> None:
    assert str(Shape(*sides)) == str(sides)


@pytest.mark.parametrize(
    "sides",
    [
        (64, 0, 64),
        (64, 17, 64),
        (64, -1, 64),
        (3, 4, 64),
        (64, 4, 3),
        (MAX_SIDE + 1, 4, 64),
        (64, 4, MAX_SIDE + 1),
    ],
)
def test_shapes_past_the_limits_are_refused(sides: tuple[int, int, int]) -> None:
    with pytest.raises(StatementError, match=r"expected a rank of 1\.\.16"):
        Shape(*sides)


def test_shape_too_large_for_any_shipped_size_is_refused() -> None:
    with pytest.raises(StatementError, match="does not fit any circuit"):
        circuit_of(Shape(4000, 16, 8000))


def test_layouts_of_strangers_shapes_are_not_kept_for_good() -> None:
    limit = circuit_of.cache_info().maxsize
    assert limit is not None
    assert limit >= len(SHAPES)


def test_pins_say_how_long_proofs_are() -> None:
    assert known(SQUARE) == Pin(known(SQUARE).circuit, known(SQUARE).vk_sha256, 2176)
