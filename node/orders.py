"""What is to be drawn: a request that `node.http.requests` has checked, as values. Pure."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from node.drawing import DrawOrder
from node.lora_choice import LoraWish
from p2p.ids import PeerId
from p2p.routing import AUTOGUIDANCE_DIGITS, Routing

_RANDOM_SEED_BITS: Final = 31


@dataclass(frozen=True, slots=True)
class GenerateOrder:
    """A checked request."""

    draw: DrawOrder
    where: str
    """auto, local or peer."""
    peer: PeerId | None
    """Whom to ask; None for whoever serves."""
    loras: tuple[LoraWish, ...] | None = None
    """Adapters to draw with, here; None for those in use."""


def order_of(request: Mapping[str, object]) -> GenerateOrder:
    """The order that a checked request makes; a seed is drawn if none was said."""
    seed, router = request["seed"], request["router"]
    draw = DrawOrder(
        prompt=str(request["prompt"]),
        n=cast("int", request["n"]),
        seed=secrets.randbits(_RANDOM_SEED_BITS) if seed is None else cast("int", seed),
        routing=Routing(
            strategy=str(request["strategy"]),
            top_k=cast("int", request["top_k"]),
            threshold=float(cast("float", request["threshold"])),
            router=None if router is None else str(router),
            autoguidance=round(cast("float", request["autoguidance"]), AUTOGUIDANCE_DIGITS),
        ),
        sampler=str(request["sampler"]),
        steps=cast("int", request["steps"]),
        guidance=float(cast("float", request["guidance"])),
    )
    peer = request["peer"]
    asked = None if peer is None else PeerId(str(peer))
    return GenerateOrder(draw, str(request["where"]), asked, _wishes(request["loras"]))


def _wishes(loras: object) -> tuple[LoraWish, ...] | None:
    if loras is None:
        return None
    rows = cast("Sequence[Mapping[str, object]]", loras)
    return tuple(
        LoraWish(str(row["id"]), float(cast("float", row.get("scale", 1.0)))) for row in rows
    )
