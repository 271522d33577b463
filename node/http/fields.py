"""A JSON object from a request's body, checked against a table of fields. Pure."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from node.errors import ErrorCode, NodeError
from p2p.errors import DecodeError
from p2p.ids import parse_peer_id

Check = Callable[[object], bool]
Fields = Mapping[str, tuple[Check, str, object]]
"""Field -> (check, what is expected, value when it is absent); `REQUIRED` if it must be there."""

REQUIRED: Final = object()
_LONGEST_SHOWN: Final = 60


def is_whole(low: int, high: int) -> Check:
    """Whole numbers of a range, both ends in it."""
    return lambda value: type(value) is int and low <= value <= high


def is_number(low: float, high: float) -> Check:
    """Numbers of a range, both ends in it."""

    def check(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return low <= value <= high  # false for NaN

    return check


def is_one_of(words: tuple[str, ...]) -> Check:
    """One of these words."""
    return lambda value: isinstance(value, str) and value in words


def is_peer(value: object) -> bool:
    """A peer id."""
    try:
        return bool(parse_peer_id(value))
    except DecodeError:
        return False


def parse_object(body: bytes) -> Mapping[str, object]:
    """The JSON object that a body is.

    Raises:
        NodeError: `USAGE` if it is anything else.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise usage(f"The body is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise usage("The body is not a JSON object.")
    return value


def parse_fields(request: Mapping[str, object], fields: Fields) -> dict[str, Any]:
    """A request with every field present; null counts as absent.

    Raises:
        NodeError: `USAGE` naming the field, what was got and what is expected.
    """
    unknown = sorted(request.keys() - fields.keys())
    if unknown:
        raise usage(f"Unknown field {unknown[0]!r:.60}.", f"fields: {', '.join(fields)}")
    parsed: dict[str, Any] = {}
    for field, (check, expected, default) in fields.items():
        value = request.get(field)
        if value is None:
            if default is REQUIRED:
                raise usage(f"The field {field} is missing, expected {expected}.")
            value = default
        elif not check(value):
            raise usage(f"Bad {field}: got {_short(value)}, expected {expected}.")
        parsed[field] = value
    return parsed


def usage(message: str, fix: str = "") -> NodeError:
    """What a bad request is told."""
    return NodeError(ErrorCode.USAGE, message, fix)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."
