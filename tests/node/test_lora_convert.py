"""Offers between the packages: what is refused before any proof, and statements that are ours."""

import re
from dataclasses import replace

import pytest

from node.lora_convert import (
    check_offer,
    delivered_size,
    modules_plain,
    offer_statement,
    question_statement,
    sheet_of,
)
from p2p.errors import PeerError
from p2p.lora_matrices import pack_values
from p2p.lora_messages import Answer
from p2p.lora_records import LoraModule, LoraOffer
from p2p.offer_proofs import ModuleProof
from p2p.sealed_box import TAG_SIZE
from tests.support.lora_offers import (
    HEX,
    OFFER_ID,
    blind_question,
    delta_question,
    lora_offer,
)
from training.lora.layers import adaptable_layers
from verification.adapter import DELIVERY_MAGIC, SALT_SEED_SIZE
from verification.circuit import Shape, circuit_of, known
from verification.errors import PolicyError
from verification.jobs import statement_of
from verification.policy import Policy
from verification.statement import DELTA, OFFER, PROBE

PRESET, RANK = "tiny-cpu", 4
NONCE = b"n" * 16


def module(name: str, inputs: int, outputs: int, rank: int = RANK) -> LoraModule:
    shape = Shape(inputs, rank, outputs)
    commitment = b"c" * circuit_of(shape).commitment_size
    return LoraModule(name, inputs, outputs, known(shape).circuit, commitment)


def modules(targets: str = "attention", rank: int = RANK) -> tuple[LoraModule, ...]:
    return tuple(
        module(layer.name, layer.in_features, layer.out_features, rank)
        for layer in adaptable_layers(PRESET, targets)
    )


MODULES = modules()
OFFER_MADE = lora_offer(modules=MODULES, rank=RANK)


def checked(offer: LoraOffer) -> None:
    check_offer(offer, PRESET, Policy())


@pytest.mark.parametrize("targets", ["attention", "attention+ff"])
@pytest.mark.parametrize("rank", [1, RANK, 16])
def test_offer_of_exactly_the_layers_of_its_base_passes(targets: str, rank: int) -> None:
    offer = lora_offer(modules=modules(targets, rank), targets=targets, rank=rank, alpha=1.0)
    checked(offer)


def without(place: int) -> tuple[LoraModule, ...]:
    return MODULES[:place] + MODULES[place + 1 :]


def changed(place: int, **changes: object) -> tuple[LoraModule, ...]:
    other = replace(MODULES[place], **changes)  # type: ignore[arg-type]
    return (*MODULES[:place], other, *MODULES[place + 1 :])


@pytest.mark.parametrize(
    ("altered", "why"),
    [
        (without(0), "not the layers of tiny-cpu"),
        (without(7), "not the layers of tiny-cpu"),
        (MODULES[:-1], "from 31 on"),  # the last one is missing
        ((*MODULES, module("another", 128, 128)), "from 32 on"),
        ((module("another", 128, 128), *MODULES), "from ('another', 128, 128) on"),
        ((MODULES[1], MODULES[0], *MODULES[2:]), "attn1.to_k', 128, 128) on"),
        (changed(3, name="transformer_blocks.0.attn1.to_out"), "attn1.to_out', 128, 128) on"),
        (changed(3, inputs=64), "attn1.to_out.0', 64, 128) on"),
        (changed(3, outputs=64), "attn1.to_out.0', 128, 64) on"),
        (changed(5, circuit=HEX), f"LoraModule.circuit: is {HEX[:16]}"),
        (changed(31, circuit=known(Shape(64, 4, 64)).circuit), "LoraModule.circuit: is "),
        (changed(5, commitment=b"c" * 64), "LoraModule.commitment: 64 bytes, expected"),
        (changed(31, commitment=b"c" * 64 * 16), "LoraModule.commitment: 1024 bytes, expected"),
    ],
)
def test_offer_of_anything_else_is_refused_naming_it(
    altered: tuple[LoraModule, ...], why: str
) -> None:
    with pytest.raises(PeerError, match=re.escape(why)):
        checked(replace(OFFER_MADE, modules=altered))


def test_rank_is_bound_by_this_nodes_policy_on_both_sides() -> None:
    check_offer(OFFER_MADE, PRESET, Policy(max_rank=RANK))
    with pytest.raises(PolicyError, match="rank 4; this node takes at most 3"):
        check_offer(OFFER_MADE, PRESET, Policy(max_rank=RANK - 1))


def test_rank_that_no_circuit_has_is_refused_by_the_policy_as_it_is() -> None:
    with pytest.raises(PolicyError, match="rank 17; this node takes at most 16"):
        checked(replace(OFFER_MADE, rank=17))


def test_rank_beyond_all_circuits_is_refused_whatever_the_policy_says() -> None:
    with pytest.raises(PeerError, match=r"LoraModule\.circuit: shape \(128, 17, 128\)"):
        check_offer(replace(OFFER_MADE, rank=17), PRESET, Policy(max_rank=64))


def test_layers_of_other_ranks_circuits_are_refused() -> None:
    with pytest.raises(PeerError, match=r"the one of \(128, 4, 128\) is"):
        checked(replace(OFFER_MADE, modules=modules(rank=8)))


def test_unknown_targets_are_refused_and_known_ones_are_those_of_the_layers() -> None:
    with pytest.raises(PeerError, match=r"LoraOffer\.targets: unknown LoRA targets 'everything'"):
        checked(replace(OFFER_MADE, targets="everything"))
    with pytest.raises(PeerError, match="not the layers"):
        checked(replace(OFFER_MADE, targets="attention+ff"))


def test_offer_for_another_preset_is_refused() -> None:
    with pytest.raises(PeerError, match="not the layers of S/2"):
        check_offer(OFFER_MADE, "S/2", Policy())


def test_delivery_has_the_size_of_its_layers_and_no_other() -> None:
    weights = len(MODULES) * 2 * (128 * RANK + RANK * 128)
    size = len(DELIVERY_MAGIC) + SALT_SEED_SIZE + weights + TAG_SIZE
    assert delivered_size(OFFER_MADE) == size
    with pytest.raises(PeerError, match=r"LoraOffer\.modules: shape"):
        delivered_size(replace(OFFER_MADE, rank=17))


# --- statements: all of them ours but the values --------------------------------------------------


def test_statement_of_an_offers_proof_is_made_of_the_offer_alone() -> None:
    chosen = MODULES[2]
    values = pack_values([[1, 2, 3, 4]] * 4)
    proof = ModuleProof(chosen.name, values, b"proof")
    stated = statement_of(offer_statement(OFFER_MADE, OFFER_ID, chosen, proof))
    assert (stated.kind, stated.base, stated.offer) == (OFFER, OFFER_MADE.base, OFFER_ID)
    assert (stated.module, stated.shape) == (chosen.name, Shape(128, RANK, 128))
    assert (stated.commitment, stated.nonce) == (chosen.commitment, sheet_of(OFFER_MADE))
    assert stated.values == ((1, 2, 3, 4),) * 4


@pytest.mark.parametrize(
    "other",
    [
        replace(OFFER_MADE, base=OFFER_ID),
        replace(OFFER_MADE, modules=changed(9, commitment=b"C" * len(MODULES[9].commitment))),
        replace(OFFER_MADE, modules=MODULES[:-1]),
    ],
    ids=["base", "a commitment", "a layer"],
)
def test_signs_are_drawn_from_the_base_and_all_the_commitments(other: LoraOffer) -> None:
    assert sheet_of(other) != sheet_of(OFFER_MADE)


@pytest.mark.parametrize(
    "change", [{"terms": "x"}, {"seq": 9}, {"name": "x"}, {"expires_at": OFFER_MADE.expires_at + 1}]
)
def test_signs_stay_as_they_are_when_an_adapter_is_offered_anew(change: dict[str, object]) -> None:
    assert sheet_of(replace(OFFER_MADE, **change)) == sheet_of(OFFER_MADE)  # type: ignore[arg-type]


def test_statement_of_an_answer_takes_everything_from_the_question() -> None:
    question = blind_question(MODULES[1], pairs=2)
    answer = Answer(MODULES[1].name, pack_values([[5, 6], [7, -8]]), b"proof")
    stated = statement_of(question_statement(OFFER_MADE, OFFER_ID, question, NONCE, answer))
    assert (stated.kind, stated.nonce, stated.module) == (PROBE, NONCE, MODULES[1].name)
    assert stated.left == ((1,) * 128,) * 2
    assert stated.right == ((2, 2),) * 128
    assert stated.values == ((5, 6), (7, -8))


def test_statement_of_deltas_has_no_right_side() -> None:
    question = delta_question(MODULES[0], rows=3)
    answer = Answer(MODULES[0].name, pack_values([[1] * 128] * 3), b"proof")
    stated = statement_of(question_statement(OFFER_MADE, OFFER_ID, question, NONCE, answer))
    assert (stated.kind, stated.right) == (DELTA, None)
    assert (len(stated.left), len(stated.values)) == (3, 3)


def test_question_about_a_layer_that_is_not_offered_is_refused() -> None:
    question = blind_question(module("another", 128, 128))
    with pytest.raises(PeerError, match="no layer 'another'"):
        question_statement(OFFER_MADE, OFFER_ID, question, NONCE)


def test_jobs_name_the_layers_in_the_offers_order() -> None:
    plain = modules_plain(OFFER_MADE)
    assert [one["name"] for one in plain] == [one.name for one in MODULES]
    assert all(one["commitment"] == MODULES[0].commitment for one in plain)
    assert {(one["inputs"], one["rank"], one["outputs"]) for one in plain} == {(128, RANK, 128)}
