"""What a person or program asks to be drawn, checked field by field. Pure."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from node.drawing import DrawOrder
from node.errors import ErrorCode, NodeError
from p2p.errors import DecodeError
from p2p.ids import PeerId, parse_peer_id
from p2p.inference import SAMPLERS, STRATEGIES
from p2p.limits import (
    MAX_GUIDANCE,
    MAX_IMAGES_PER_REQUEST,
    MAX_PROMPT_BYTES,
    MAX_SEED,
    MAX_STEPS,
)

WHERE: Final = ("auto", "local", "peer")
MAX_LOCAL_IMAGES: Final = 1024
"""On one's own machine; a peer draws at most `MAX_IMAGES_PER_REQUEST`."""
DEFAULT_STEPS: Final = 10
DEFAULT_GUIDANCE: Final = 4.0
_KNOWN: Final = frozenset(
    {"prompt", "n", "seed", "strategy", "sampler", "steps", "guidance", "where", "peer"}
)
_RANDOM_SEED_BITS: Final = 31


@dataclass(frozen=True, slots=True)
class GenerateOrder:
    """A checked request."""

    draw: DrawOrder
    where: str
    peer: PeerId | None


def parse_order(request: Mapping[str, object]) -> GenerateOrder:
    """Check a request; what is absent or null takes its default.

    Raises:
        NodeError: USAGE, naming the field and what is allowed.
    """
    unknown = sorted(set(request) - _KNOWN)
    if unknown:
        raise _usage(f"unknown field {unknown[0]!r}", f"known: {', '.join(sorted(_KNOWN))}")
    fields = {name: value for name, value in request.items() if value is not None}
    where = _name(fields, "where", WHERE)
    most = MAX_LOCAL_IMAGES if where == "local" else MAX_IMAGES_PER_REQUEST
    seed = fields.get("seed", secrets.randbits(_RANDOM_SEED_BITS))
    n = _whole(fields.get("n", 1), "n", 1, most)
    draw = DrawOrder(
        prompt=_prompt(fields),
        n=n,
        seed=_whole(seed, "seed", 0, MAX_SEED - n),
        strategy=_name(fields, "strategy", STRATEGIES),
        sampler=_name(fields, "sampler", SAMPLERS),
        steps=_whole(fields.get("steps", DEFAULT_STEPS), "steps", 1, MAX_STEPS),
        guidance=_guidance(fields.get("guidance", DEFAULT_GUIDANCE)),
    )
    return GenerateOrder(draw, where, _peer(fields.get("peer"), where))


def _prompt(fields: Mapping[str, object]) -> str:
    prompt = fields.get("prompt")
    if not isinstance(prompt, str):
        raise _usage("prompt: expected a text", 'paris-node generate "a sneaker"')
    try:
        size = len(prompt.encode())
    except UnicodeEncodeError as error:
        raise _usage("prompt: is not valid text", "remove the broken character") from error
    if size > MAX_PROMPT_BYTES:
        raise _usage(f"prompt: got {size} bytes, at most {MAX_PROMPT_BYTES}", "shorten it")
    return prompt


def _name(fields: Mapping[str, object], field: str, allowed: tuple[str, ...]) -> str:
    value = fields.get(field, allowed[0])
    if value not in allowed or not isinstance(value, str):
        raise _usage(f"{field}: got {value!r:.60}", f"one of: {', '.join(allowed)}")
    return value


def _whole(value: object, field: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _usage(f"{field}: got {value!r:.60}", f"a whole number from {low} to {high}")
    return value


def _guidance(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(float(str(value))):
        raise _usage(f"guidance: got {value!r:.60}", f"a number from 0 to {MAX_GUIDANCE:g}")
    guidance = float(str(value))
    if not 0 <= guidance <= MAX_GUIDANCE:
        raise _usage(f"guidance: got {guidance:g}", f"a number from 0 to {MAX_GUIDANCE:g}")
    return guidance


def _peer(value: object, where: str) -> PeerId | None:
    if value is None:
        return None
    if where != "peer":
        raise _usage("peer: only means something with where = peer", "add --where peer")
    try:
        return parse_peer_id(value)
    except DecodeError as error:
        raise _usage(f"peer: {error}", "copy it from: paris-node peers") from error


def _usage(message: str, fix: str) -> NodeError:
    return NodeError(ErrorCode.USAGE, message, fix)
