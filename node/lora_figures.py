"""What is asked of an offer's owner, and what the answers come to: arithmetic alone.

Nothing here is believed of the owner but what was proved: a receipt that tells of more left to ask
than there can be is cut down to that.
"""

from collections.abc import Mapping, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

from node.adapter_facts import ProbePlan
from node.api import Json
from node.lora_asking import ProbeAnswer
from node.lora_budget import Leak, ModuleSize, adapter_leak
from node.lora_convert import offer_name
from p2p.codec import Verified
from p2p.errors import PeerError
from p2p.limits import OFFER_PROOF_SCALARS
from p2p.lora_matrices import unpack_values
from p2p.lora_messages import Question
from p2p.lora_records import LoraOffer, ProbeReceipt
from verification.effect import norm_squared, predicted_change


def squares_of(facts: Mapping[str, object], offer: LoraOffer) -> Mapping[str, float] | None:
    """The squared norms among an offer's facts; None unless there is one of each of its layers."""
    squares = facts.get("squares")
    if not isinstance(squares, Mapping) or squares.keys() != {one.name for one in offer.modules}:
        return None
    if not all(type(square) in (int, float) and square > 0 for square in squares.values()):
        return None
    return {str(name): float(square) for name, square in squares.items()}


def leak_of(offer: LoraOffer, *, scalars: int = 0, rows: int = 0) -> float:
    """How much of an adapter is known in per cent, by what was told of each of its layers."""
    sizes = {m.name: ModuleSize(m.inputs, offer.rank, m.outputs) for m in offer.modules}
    leak = Leak(scalars, rows)
    return round(adapter_leak(sizes, dict.fromkeys(sizes, leak)).percent, 3)


def questions_of(plan: ProbePlan, rng: Random) -> list[Question]:
    """What is asked of each layer, each answer one number: its pairs, and one of fair signs.

    The signs of an offer's own proof depend on what its owner committed to, and so can be drawn
    again and again until the adapter looks small; these cannot.

    Args:
        plan: the pairs.
        rng: of the signs; nobody may guess them.
    """
    questions = []
    for module in plan.modules:
        rows = list(zip(module.left, module.right, strict=True))
        inputs, outputs = module.left.shape[1], module.right.shape[1]
        rows.append((_signs(rng, inputs), _signs(rng, outputs)))
        questions += [
            Question(module.module, 1, 1, u.astype("<i2").tobytes(), v.astype("<i2").tobytes())
            for u, v in rows
        ]
    return questions


def _signs(rng: Random, count: int) -> NDArray[np.int16]:
    return np.array([1 - 2 * rng.getrandbits(1) for _ in range(count)], np.int16)


def values_of(answers: Sequence[ProbeAnswer]) -> dict[str, list[int]]:
    """The numbers that came, by layer, in the order they were asked: the last is that of signs."""
    values: dict[str, list[int]] = {}
    for reply in answers:
        found = unpack_values(reply.answer.values, 1, 1)[0][0]
        values.setdefault(reply.question.module, []).append(found)
    return values


def own_squares(values: Mapping[str, Sequence[int]]) -> Mapping[str, float]:
    """Squared norms of the layers by our own signs, one sample each: sure only of the whole."""
    return {name: norm_squared(((found[-1],),), 1.0) for name, found in values.items()}


def looked_into(
    offer: Verified[LoraOffer],
    plan: ProbePlan,
    values: Mapping[str, Sequence[int]],
    ratio: float,
    receipt: ProbeReceipt,
) -> Json:
    """The last event of a look into an offer; see `node.lora_market`.

    Args:
        offer: what was looked into.
        plan: what was asked.
        values: of its answers, their proofs checked.
        ratio: of the adapter's size to its layers'.
        receipt: of its owner.
    """
    record = offer.record
    pairs = {name: found[:-1] for name, found in values.items()}
    weights = {module.module: module.weights for module in plan.modules}
    asked = OFFER_PROOF_SCALARS + max(map(len, values.values()), default=0)
    left = max(0, min(receipt.scalars_left, record.leaks.scalars - asked))
    captured = sum(module.captured for module in plan.modules) / len(plan.modules)
    return {
        "event": "done",
        "offer": offer_name(offer),
        "cluster": record.cluster,
        "base": record.base,
        "layers": len(record.modules),
        "rank": record.rank,
        "rows": plan.rows,
        "base_loss": plan.base_loss,
        "predicted": predicted_change(pairs, weights, record.alpha / record.rank),
        "captured": captured,
        "ratio": ratio,
        "claimed_base": record.claims.base_loss,
        "claimed_loss": record.claims.adapted_loss,
        "scalars_left": left,
        "leak_percent": leak_of(record, scalars=record.leaks.scalars - left),
    }


def int64_of(values: bytes) -> bytes:
    """Values of 16 bytes as the adapter worker takes them: 8 bytes each.

    Raises:
        PeerError: one that no int16 weights could give.
    """
    words = np.frombuffer(values, dtype="<i8").reshape(-1, 2)
    low, high = words[:, 0], words[:, 1]
    if np.any(high != low >> 63):
        raise PeerError("Answer.values: a delta of more than 64 bits")
    return low.tobytes()
