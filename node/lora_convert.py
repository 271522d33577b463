"""LoRA offers between the packages: p2p's records as verification's plain statements. Pure.

A statement is always made from the offer and from what this node asked; a peer gives only values
and a proof.
"""

from collections.abc import Mapping

from p2p.codec import Verified
from p2p.errors import PeerError
from p2p.ids import BlobId, blob_id
from p2p.lora_matrices import ENTRY_SIZE, VALUE_SIZE
from p2p.lora_messages import Answer, Question
from p2p.lora_records import LoraModule, LoraOffer
from p2p.offer_proofs import ModuleProof
from p2p.sealed_box import TAG_SIZE
from training.errors import ConfigError
from training.lora.layers import adaptable_layers
from verification.adapter import delivery_size
from verification.circuit import Shape, circuit_of, known
from verification.errors import StatementError
from verification.policy import Policy
from verification.statement import DELTA, OFFER, PROBE, sheet_nonce

Plain = dict[str, object]


def check_offer(offer: LoraOffer, preset: str, policy: Policy) -> None:
    """Check all of an offer that needs no proof: rank, layers, circuits, commitments.

    Args:
        offer: opened, so of good form.
        preset: of the run's experts.
        policy: this node's.

    Raises:
        PeerError: a layer that the base does not have, another circuit than its shape's, or a
            commitment of another size.
        PolicyError: too high a rank.
    """
    policy.check_rank(offer.rank)
    try:
        layers = adaptable_layers(preset, offer.targets)
    except ConfigError as error:
        raise PeerError(f"LoraOffer.targets: {error}") from error
    expected = [(layer.name, layer.in_features, layer.out_features) for layer in layers]
    got = [(module.name, module.inputs, module.outputs) for module in offer.modules]
    if got != expected:
        equal = min(len(got), len(expected))  # as far as both go
        wrong = next((a for a, b in zip(got, expected, strict=False) if a != b), equal)
        raise PeerError(f"LoraOffer.modules: not the layers of {preset}, from {wrong!r:.120} on")
    for module in offer.modules:
        try:
            shape = shape_of(offer, module)
            circuit, pin = circuit_of(shape), known(shape)
        except StatementError as error:
            raise PeerError(f"LoraModule.circuit: {error}") from error
        if module.circuit != pin.circuit:
            raise PeerError(
                f"LoraModule.circuit: is {module.circuit[:16]}, the one of {shape} is "
                f"{pin.circuit[:16]}"
            )
        if len(module.commitment) != circuit.commitment_size:
            raise PeerError(
                f"LoraModule.commitment: {len(module.commitment)} bytes, expected "
                f"{circuit.commitment_size}"
            )


def shape_of(offer: LoraOffer, module: LoraModule) -> Shape:
    """The shape of one layer's A and B; raises `StatementError`."""
    return Shape(module.inputs, offer.rank, module.outputs)


def sheet_of(offer: LoraOffer) -> bytes:
    """What the signs of an offer's own proofs are drawn from."""
    return sheet_nonce(
        offer.base,
        [(module.name, shape_of(offer, module), module.commitment) for module in offer.modules],
    )


def delivered_size(offer: LoraOffer) -> int:
    """Bytes that a delivery of an offer has once it is encrypted: no other can hold its adapter.

    Raises:
        PeerError: the offer has a layer that no circuit fits.
    """
    try:
        shapes = [shape_of(offer, module) for module in offer.modules]
    except StatementError as error:
        raise PeerError(f"LoraOffer.modules: {error}") from error
    return delivery_size(shapes) + TAG_SIZE


def modules_plain(offer: LoraOffer) -> list[Mapping[str, object]]:
    """An offer's layers as jobs of a prover take them."""
    return [
        {
            "name": module.name,
            "inputs": module.inputs,
            "rank": offer.rank,
            "outputs": module.outputs,
            "commitment": module.commitment,
        }
        for module in offer.modules
    ]


def offer_statement(
    offer: LoraOffer, offer_id: BlobId, module: LoraModule, proof: ModuleProof | None = None
) -> Plain:
    """The statement of an offer's own proof of a layer; with the values that its owner gives."""
    return {
        **_about(OFFER, offer, offer_id, module),
        "nonce": sheet_of(offer),
        "values": None if proof is None else _values(proof.values, columns=4),
    }


def question_statement(
    offer: LoraOffer,
    offer_id: BlobId,
    question: Question,
    nonce: bytes,
    answer: Answer | None = None,
) -> Plain:
    """The statement that answers a question; with the values that the offer's owner gives.

    Raises:
        PeerError: a layer that the offer does not have.
    """
    module = module_named(offer, question.module)
    left = (question.rows, module.inputs, ENTRY_SIZE, question.left)
    right = None
    columns = module.outputs
    if not question.is_delta:
        right = (module.outputs, question.columns, ENTRY_SIZE, question.right)
        columns = question.columns
    return {
        **_about(DELTA if question.is_delta else PROBE, offer, offer_id, module),
        "nonce": nonce,
        "left": left,
        "right": right,
        "values": None if answer is None else _values(answer.values, columns=columns),
    }


def module_named(offer: LoraOffer, name: str) -> LoraModule:
    """A layer of an offer.

    Raises:
        PeerError: it has none of that name.
    """
    for module in offer.modules:
        if module.name == name:
            return module
    raise PeerError(f"the offer has no layer {name!r:.80}")


def offer_name(offer: Verified[LoraOffer]) -> BlobId:
    """An offer's id: the CID of its sealed bytes."""
    return blob_id(offer.envelope)


def _about(kind: str, offer: LoraOffer, offer_id: BlobId, module: LoraModule) -> Plain:
    return {
        "kind": kind,
        "base": offer.base,
        "offer": offer_id,
        "module": module.name,
        "inputs": module.inputs,
        "rank": offer.rank,
        "outputs": module.outputs,
        "commitment": module.commitment,
    }


def _values(data: bytes, *, columns: int) -> tuple[int, int, int, bytes]:
    return len(data) // (VALUE_SIZE * columns), columns, VALUE_SIZE, data
