"""What is asked of an offer's owner, and what is made of the answers: figures, and their bounds."""

from random import Random

import numpy as np
import pytest

from node.adapter_facts import ModulePairs, ProbePlan
from node.lora_asking import ProbeAnswer
from node.lora_figures import (
    int64_of,
    leak_of,
    looked_into,
    own_squares,
    questions_of,
    squares_of,
    values_of,
)
from p2p.errors import PeerError
from p2p.lora_matrices import pack_values, unpack_probe
from p2p.lora_messages import Answer
from tests.support.lora_offers import OFFER, TO_K, TO_Q, opened_offer, probe_receipt

PLAN = ProbePlan(
    base_loss=0.5,
    rows=64,
    seed=7,
    modules=tuple(
        ModulePairs(
            module=module.name,
            captured=0.8,
            norm=8.0,
            weights=(0.5, 0.25),
            left=np.arange(2 * module.inputs, dtype=np.int16).reshape(2, -1),
            right=np.arange(2 * module.outputs, dtype=np.int16).reshape(2, -1),
        )
        for module in (TO_Q, TO_K)
    ),
)
VALUES = {TO_Q.name: [1, 2, 3], TO_K.name: [4, 5, 6]}


def test_each_layer_is_asked_its_pairs_and_then_one_number_of_signs() -> None:
    questions = questions_of(PLAN, Random(1))
    assert [one.module for one in questions] == [TO_Q.name] * 3 + [TO_K.name] * 3
    assert unpack_probe(questions[1].left, 1, 6) == [[6, 7, 8, 9, 10, 11]]
    assert unpack_probe(questions[1].right, 1, 5) == [[5, 6, 7, 8, 9]]
    for question, (inputs, outputs) in ((questions[2], (6, 5)), (questions[5], (4, 8))):
        signs = unpack_probe(question.left, 1, inputs) + unpack_probe(question.right, 1, outputs)
        assert {abs(x) for row in signs for x in row} == {1}
    assert all(one.scalars == 1 for one in questions)


def test_signs_are_those_of_the_askers_chance() -> None:
    one, same, other = (questions_of(PLAN, Random(seed)) for seed in (1, 1, 2))
    assert one == same
    assert (one[2], one[5]) != (other[2], other[5])
    assert one[:2] == other[:2]


def test_values_are_told_apart_by_layer_and_size_is_of_the_last() -> None:
    asked = questions_of(PLAN, Random(1))
    answers = [
        ProbeAnswer(question, Answer(question.module, pack_values([[number]]), b"p"), b"n" * 16)
        for number, question in enumerate(asked, start=1)
    ]
    assert values_of(answers) == VALUES
    assert own_squares({"a": [7, 7, -(2**24)], "b": [2**25]}) == {"a": 1.0, "b": 4.0}


@pytest.mark.parametrize(("said", "left"), [(32, 13), (14, 13), (13, 13), (12, 12), (0, 0)])
def test_what_is_left_to_ask_is_at_most_what_we_know(said: int, left: int) -> None:
    """16 numbers were told by the offer, and three by the answers."""
    receipt = probe_receipt(scalars_left=said)
    looked = looked_into(opened_offer(), PLAN, VALUES, 0.1, receipt)
    assert looked["scalars_left"] == left
    assert looked["leak_percent"] == leak_of(OFFER, scalars=32 - left) > 0


def test_effect_is_predicted_by_the_pairs_alone() -> None:
    looked = looked_into(opened_offer(), PLAN, VALUES, 0.1, probe_receipt())
    expected = 0.5 * 1 + 0.25 * 2 + 0.5 * 4 + 0.25 * 5
    assert looked["predicted"] == pytest.approx(expected)
    assert looked["captured"] == pytest.approx(0.8)


@pytest.mark.parametrize("value", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_deltas_of_64_bits_pass(value: int) -> None:
    packed = pack_values([[value, 5], [-value if value > -(2**63) else 0, -5]])
    found = np.frombuffer(int64_of(packed), "<i8")
    assert found[0] == value
    assert (found[1], found[3]) == (5, -5)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**127 - 1, -(2**127), 2**64])
def test_deltas_of_more_are_refused(value: int) -> None:
    with pytest.raises(PeerError, match="more than 64 bits"):
        int64_of(pack_values([[3, value]]))


@pytest.mark.parametrize(
    "squares",
    [None, 3, [], {}, {TO_Q.name: 1.0}, {TO_Q.name: 1.0, TO_K.name: 0.0}],
)
def test_squares_that_are_not_of_each_layer_are_none(squares: object) -> None:
    assert squares_of({"squares": squares}, OFFER) is None
    whole = {TO_Q.name: 1.0, TO_K.name: 2}
    assert squares_of({"squares": whole}, OFFER) == whole
