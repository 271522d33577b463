"""What a request asks for, checked: bytes and strings in, plain values out. Pure."""

from typing import Any, Final

from node.api import Json
from node.http.fields import (
    REQUIRED,
    Fields,
    is_number,
    is_one_of,
    is_peer,
    is_whole,
    parse_fields,
    parse_object,
    usage,
)
from node.lora_use import MAX_LORA_SCALE
from p2p import limits
from p2p.errors import DecodeError
from p2p.ids import parse_blob_id
from p2p.routing import DEFAULT_THRESHOLD, DEFAULT_TOP_K, ROUTERS, SAMPLERS, STRATEGIES

MAX_SEED: Final = 2**63 - 1
"""torch takes a signed 64-bit seed."""
MAX_LOCAL_IMAGES: Final = 1024
"""In one request, on this machine; a peer draws `limits.MAX_IMAGES_PER_REQUEST` at most."""
PLACES: Final = ("auto", "local", "peer")
MAX_LORA_ID_CHARS: Final = 255
"""A folder's name on most file systems."""


def _is_prompt(value: object) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        return len(value.encode("utf-8")) <= limits.MAX_PROMPT_BYTES
    except UnicodeEncodeError:  # a lone surrogate: JSON can carry it, nothing after us can
        return False


def _are_loras(value: object) -> bool:
    if not isinstance(value, list) or len(value) > limits.MAX_CLUSTERS:
        return False
    is_scale = is_number(-MAX_LORA_SCALE, MAX_LORA_SCALE)
    names = set()
    for item in value:
        if not isinstance(item, dict) or not item.keys() <= {"id", "scale"}:
            return False
        name = item.get("id")
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_LORA_ID_CHARS:
            return False
        if not is_scale(item.get("scale", 1.0)):
            return False
        names.add(name)
    return len(names) == len(value)


_GENERATE: Final[Fields] = {
    "prompt": (_is_prompt, f"1 to {limits.MAX_PROMPT_BYTES} bytes of text", REQUIRED),
    "n": (is_whole(1, MAX_LOCAL_IMAGES), f"a whole number from 1 to {MAX_LOCAL_IMAGES}", 1),
    "seed": (is_whole(0, MAX_SEED), f"a whole number from 0 to {MAX_SEED}", None),
    "strategy": (is_one_of(STRATEGIES), f"one of {', '.join(STRATEGIES)}", None),
    "top_k": (is_whole(1, limits.MAX_CLUSTERS), f"1 to {limits.MAX_CLUSTERS}", None),
    "threshold": (is_number(0, 1), "a number from 0 to 1", None),
    "router": (is_one_of(ROUTERS), f"one of {', '.join(ROUTERS)}", None),
    "sampler": (is_one_of(SAMPLERS), f"one of {', '.join(SAMPLERS)}", "ab2"),
    "steps": (
        is_whole(1, limits.MAX_STEPS),
        f"a whole number from 1 to {limits.MAX_STEPS}",
        10,  # AB2 at 10 beats Euler at 20
    ),
    "guidance": (
        is_number(0, limits.MAX_GUIDANCE),
        f"a number from 0 to {limits.MAX_GUIDANCE:g}",
        4.0,
    ),
    "autoguidance": (
        is_number(0, limits.MAX_AUTOGUIDANCE),
        f"a number from 0 to {limits.MAX_AUTOGUIDANCE:g}",
        0.0,
    ),
    "where": (is_one_of(PLACES), f"one of {', '.join(PLACES)}", "auto"),
    "peer": (is_peer, "a peer id, '12D3KooW...'", None),
    "loras": (
        _are_loras,
        "a list of {id, scale}, each id once, each scale from "
        f"{-MAX_LORA_SCALE:g} to {MAX_LORA_SCALE:g}",
        None,
    ),
}


def parse_generate(body: bytes) -> Json:
    """The request of `NodeApi.generate`: every field present; seed, peer, loras None if unsaid.

    Raises:
        NodeError: `USAGE` naming the field, what was got and what is expected.
    """
    parsed = parse_fields(parse_object(body), _GENERATE)
    _settle_routing(parsed)
    if parsed["peer"] is not None and parsed["where"] == "local":
        raise usage("A peer is named, but where is 'local'.", "leave one of the two out")
    if parsed["loras"]:
        _settle_loras(parsed)
    if parsed["where"] != "local" and parsed["n"] > limits.MAX_IMAGES_PER_REQUEST:
        raise usage(
            f"Bad n: got {parsed['n']}; a peer draws at most {limits.MAX_IMAGES_PER_REQUEST}.",
            "draw more on this machine: --where local",
        )
    return parsed


def _settle_loras(parsed: dict[str, Any]) -> None:
    """An adapter never leaves the machine: whoever asks for one means to draw here."""
    if parsed["where"] == "peer" or parsed["peer"] is not None:
        raise usage(
            "A LoRA never leaves this machine, so that no peer can draw with it.",
            "draw here: --where local; or without it: --no-lora",
        )
    parsed["where"] = "local"


def _settle_routing(parsed: dict[str, Any]) -> None:
    """A number that only one strategy takes implies it; with another strategy it is a mistake."""
    for field, strategy in (("top_k", "topk"), ("threshold", "threshold")):
        if parsed[field] is None:
            continue
        parsed["strategy"] = parsed["strategy"] or strategy
        if parsed["strategy"] != strategy:
            raise usage(
                f"{field} goes with the strategy {strategy}, not with {parsed['strategy']}.",
                f"leave one of the two out, or say strategy {strategy}",
            )
    parsed["strategy"] = parsed["strategy"] or "sticky"
    if parsed["top_k"] is None:
        parsed["top_k"] = DEFAULT_TOP_K
    if parsed["threshold"] is None:
        parsed["threshold"] = DEFAULT_THRESHOLD
    if parsed["router"] not in (None, "caption") and parsed["strategy"] == "sticky":
        raise usage(
            f"The strategy sticky goes by the caption alone, not by the router {parsed['router']}.",
            "with a router, say strategy relay, contrast, top1, top2, topk, threshold or all",
        )


def parse_cid(text: str) -> str:
    """The CID in a path.

    Raises:
        NodeError: `USAGE` if it is none.
    """
    try:
        return parse_blob_id(text)
    except DecodeError as error:
        raise usage(f"{error}.", "see the CIDs with: paris-node experts find") from error


def parse_cluster(text: str | None) -> int | None:
    """The cluster of a query string; None if it names none.

    Raises:
        NodeError: `USAGE` if it is not a cluster's number.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text[:10]) < limits.MAX_CLUSTERS):
        raise usage(f"Bad cluster {text!r:.30}, expected 0 to {limits.MAX_CLUSTERS - 1}.")
    return int(text)
