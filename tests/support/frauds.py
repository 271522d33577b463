"""Alice offers two small layers with real commitments and delivers something to Bob: the file."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from p2p.fraud import FraudProof, pack_fraud
from p2p.ids import blob_id
from p2p.lora_records import LoraModule, LoraOffer
from tests.support.lora_offers import (
    BUYER_SECRET,
    agreed_by,
    ciphertext_for,
    delivery,
    lora_offer,
)
from tests.support.people import alice, sealed
from tests.support.proofs import SEED, layer
from verification.adapter import QuantisedModule, pack_delivery
from verification.circuit import known
from verification.keys import KeyStore
from verification.prover import commit

SOLD = (layer("block.0.to_q"), layer("block.0.to_k", draw=1))


def committed_offer(keys: KeyStore, **changes: Any) -> LoraOffer:
    """Alice's offer of `SOLD`."""
    modules = tuple(
        LoraModule(
            name=module.name,
            inputs=module.shape.inputs,
            outputs=module.shape.outputs,
            circuit=known(module.shape).circuit,
            commitment=commit(module, SEED, keys),
        )
        for module in SOLD
    )
    return lora_offer(modules=modules, **changes)


def with_module(offer: LoraOffer, **changes: Any) -> LoraOffer:
    """The offer, its last layer changed."""
    *others, last = offer.modules
    return replace(offer, modules=(*others, replace(last, **changes)))


def delivered(*modules: QuantisedModule, seed: bytes = SEED) -> bytes:
    """The plaintext of a delivery: of `SOLD`, unless others are given."""
    return pack_delivery(seed, modules or SOLD)


def one_number_off(module: QuantisedModule) -> QuantisedModule:
    """The layer with one of its 512 integers moved by one."""
    a = module.a.copy()
    a[63, 3] += 1
    return replace(module, a=a)


def accusation(
    offer: LoraOffer, plaintext: bytes | None = None, *, ciphertext: bytes | None = None
) -> FraudProof:
    """What Bob keeps of Alice's delivery under an offer: honest, unless something else is given."""
    envelope = sealed(offer, alice)
    name = blob_id(envelope)
    agreed = agreed_by(offer=name, terms=offer.terms, run=offer.run)
    data = ciphertext
    if data is None:
        data = ciphertext_for(agreed, delivered() if plaintext is None else plaintext)
    about = delivery(
        data,
        offer=name,
        agreement=blob_id(agreed.envelope),
        ciphertext=hashlib.sha256(data).hexdigest(),
    )
    return FraudProof(envelope, agreed.envelope, sealed(about, alice), BUYER_SECRET, data)


def write_accusation(path: Path, proof: FraudProof) -> Path:
    """The file, as a buyer's node leaves it."""
    path.write_bytes(pack_fraud(proof))
    return path
