"""LoRAs on the command line of a drawing: what is asked for, and what is told of them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from node.api import Json
from node.cli.output import short_id
from node.errors import ErrorCode, NodeError
from node.lora_shelf import SHORT_ID
from node.lora_use import MAX_LORA_SCALE


def wished_loras(said: Sequence[str], *, no_lora: bool, where: str) -> list[Json] | None:
    """The `loras` of a request, from each --lora ID[:SCALE].

    Args:
        said: the options' values.
        no_lora: none at all.
        where: who draws.

    Returns:
        None for those in use.

    Raises:
        NodeError: `USAGE` for what contradicts itself, or a scale that cannot be.
    """
    if not said:
        return [] if no_lora else None
    if no_lora:
        raise NodeError(ErrorCode.USAGE, "--lora and --no-lora exclude each other.", "choose one")
    if where == "peer":
        raise NodeError(
            ErrorCode.USAGE,
            "A LoRA never leaves this machine, so that no peer can draw with it.",
            "draw here, without --where peer and --peer; or draw without --lora",
        )
    return [_wish(text) for text in said]


def _wish(text: str) -> Json:
    """`ID` or `ID:SCALE`; a name may have a colon in it, but then a scale must follow."""
    name, colon, tail = text.rpartition(":")
    if not colon:
        name, scale = text, 1.0
    else:
        try:
            scale = float(tail)
        except ValueError:
            scale = math.nan
    if not name or not -MAX_LORA_SCALE <= scale <= MAX_LORA_SCALE:
        raise NodeError(
            ErrorCode.USAGE,
            f"Bad --lora {text!r:.80}, expected ID or ID:SCALE with a scale within "
            f"{MAX_LORA_SCALE:g} of 0.",
            "paris-node generate PROMPT --lora my-style:0.8",
        )
    return {"id": name, "scale": scale}


def lora_lines(event: Mapping[str, Any]) -> Iterator[str]:
    """What a route says of adapters: each is for one checkpoint, which need not be the newest."""
    for lora in event.get("loras") or []:
        bought = f", bought as {short_id(lora['offer'])}" if lora.get("offer") else ""
        yield (
            f"        LoRA {_name(lora)} at {_scale(lora)} on expert {lora.get('cluster')}, "
            f"its base {short_id(lora.get('base'))}{bought}"
        )


def idle_lines(done: Mapping[str, Any]) -> Iterator[str]:
    """Adapters that a drawing had and did not need: other experts drew all of it."""
    drew = {row.get("cluster") for row in done.get("experts") or [] if row.get("weight")}
    for lora in done.get("loras") or []:
        if lora.get("cluster") not in drew:
            yield (
                f"note    LoRA {_name(lora)} changed nothing: expert {lora.get('cluster')} had no "
                "part in it"
            )


def _name(lora: Mapping[str, Any]) -> str:
    return str(lora.get("id"))[:SHORT_ID]


def _scale(lora: Mapping[str, Any]) -> str:
    scale = lora.get("scale")
    return f"{scale:g}" if isinstance(scale, (int, float)) else "?"
