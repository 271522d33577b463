"""What a request asks for, checked: bytes and strings in, plain values out. Pure."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from node.api import Json
from node.errors import ErrorCode, NodeError
from p2p import limits
from p2p.errors import DecodeError
from p2p.ids import parse_blob_id, parse_peer_id
from p2p.routing import DEFAULT_THRESHOLD, DEFAULT_TOP_K, ROUTERS, SAMPLERS, STRATEGIES

MAX_SEED: Final = 2**63 - 1
"""torch takes a signed 64-bit seed."""
MAX_LOCAL_IMAGES: Final = 1024
"""In one request, on this machine; a peer draws `limits.MAX_IMAGES_PER_REQUEST` at most."""
PLACES: Final = ("auto", "local", "peer")

Check = Callable[[object], bool]


def _is_whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _is_number(low: float, high: float) -> Check:
    def check(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return low <= value <= high  # false for NaN

    return check


def _is_prompt(value: object) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        return len(value.encode("utf-8")) <= limits.MAX_PROMPT_BYTES
    except UnicodeEncodeError:  # a lone surrogate: JSON can carry it, nothing after us can
        return False


def _is_peer(value: object) -> bool:
    try:
        return bool(parse_peer_id(value))
    except DecodeError:
        return False


def _is_one_of(words: tuple[str, ...]) -> Check:
    return lambda value: isinstance(value, str) and value in words


_GENERATE: Final[Mapping[str, tuple[Check, str, object]]] = {
    # field: (check, what is expected, value when it is absent)
    "prompt": (_is_prompt, f"1 to {limits.MAX_PROMPT_BYTES} bytes of text", None),
    "n": (_is_whole(1, MAX_LOCAL_IMAGES), f"a whole number from 1 to {MAX_LOCAL_IMAGES}", 1),
    "seed": (_is_whole(0, MAX_SEED), f"a whole number from 0 to {MAX_SEED}", None),
    "strategy": (_is_one_of(STRATEGIES), f"one of {', '.join(STRATEGIES)}", None),
    "top_k": (_is_whole(1, limits.MAX_CLUSTERS), f"1 to {limits.MAX_CLUSTERS}", None),
    "threshold": (_is_number(0, 1), "a number from 0 to 1", None),
    "router": (_is_one_of(ROUTERS), f"one of {', '.join(ROUTERS)}", None),
    "sampler": (_is_one_of(SAMPLERS), f"one of {', '.join(SAMPLERS)}", "ab2"),
    "steps": (
        _is_whole(1, limits.MAX_STEPS),
        f"a whole number from 1 to {limits.MAX_STEPS}",
        10,  # AB2 at 10 beats Euler at 20
    ),
    "guidance": (
        _is_number(0, limits.MAX_GUIDANCE),
        f"a number from 0 to {limits.MAX_GUIDANCE:g}",
        4.0,
    ),
    "autoguidance": (
        _is_number(0, limits.MAX_AUTOGUIDANCE),
        f"a number from 0 to {limits.MAX_AUTOGUIDANCE:g}",
        0.0,
    ),
    "where": (_is_one_of(PLACES), f"one of {', '.join(PLACES)}", "auto"),
    "peer": (_is_peer, "a peer id, '12D3KooW...'", None),
}


def parse_generate(body: bytes) -> Json:
    """The request of `NodeApi.generate`: every field present; seed and peer None if unsaid.

    Raises:
        NodeError: `USAGE` naming the field, what was got and what is expected.
    """
    request = _parse_object(body)
    unknown = sorted(request.keys() - _GENERATE.keys())
    if unknown:
        raise _usage(f"Unknown field {unknown[0]!r:.60}.", f"fields: {', '.join(_GENERATE)}")
    if request.get("prompt") is None:
        raise _usage("The prompt is missing.", 'send {"prompt": "a red boat at dawn"}')
    parsed: dict[str, Any] = {}
    for field, (check, expected, default) in _GENERATE.items():
        value = request.get(field)
        if value is None:
            value = default
        elif not check(value):
            raise _usage(f"Bad {field}: got {_short(value)}, expected {expected}.")
        parsed[field] = value
    _settle_routing(parsed)
    if parsed["peer"] is not None and parsed["where"] == "local":
        raise _usage("A peer is named, but where is 'local'.", "leave one of the two out")
    if parsed["where"] != "local" and parsed["n"] > limits.MAX_IMAGES_PER_REQUEST:
        raise _usage(
            f"Bad n: got {parsed['n']}; a peer draws at most {limits.MAX_IMAGES_PER_REQUEST}.",
            "draw more on this machine: --where local",
        )
    return parsed


def _settle_routing(parsed: dict[str, Any]) -> None:
    """A number that only one strategy takes implies it; with another strategy it is a mistake."""
    for field, strategy in (("top_k", "topk"), ("threshold", "threshold")):
        if parsed[field] is None:
            continue
        parsed["strategy"] = parsed["strategy"] or strategy
        if parsed["strategy"] != strategy:
            raise _usage(
                f"{field} goes with the strategy {strategy}, not with {parsed['strategy']}.",
                f"leave one of the two out, or say strategy {strategy}",
            )
    parsed["strategy"] = parsed["strategy"] or "sticky"
    if parsed["top_k"] is None:
        parsed["top_k"] = DEFAULT_TOP_K
    if parsed["threshold"] is None:
        parsed["threshold"] = DEFAULT_THRESHOLD
    if parsed["router"] not in (None, "caption") and parsed["strategy"] == "sticky":
        raise _usage(
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
        raise _usage(f"{error}.", "see the CIDs with: paris-node experts find") from error


def parse_cluster(text: str | None) -> int | None:
    """The cluster of a query string; None if it names none.

    Raises:
        NodeError: `USAGE` if it is not a cluster's number.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text[:10]) < limits.MAX_CLUSTERS):
        raise _usage(f"Bad cluster {text!r:.30}, expected 0 to {limits.MAX_CLUSTERS - 1}.")
    return int(text)


def _parse_object(body: bytes) -> Mapping[str, object]:
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _usage(f"The body is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise _usage("The body is not a JSON object.")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _usage(message: str, fix: str = "") -> NodeError:
    return NodeError(ErrorCode.USAGE, message, fix)
