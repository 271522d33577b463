"""JSON in and out: canonical bytes when writing, no guessing when reading.

Frozen dataclasses of str, int, float, bool, tuples and further such dataclasses are read strictly:
an unknown key, a missing key and a wrong type are errors that name the key.
"""

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar, get_args, get_origin, get_type_hints

from training.errors import ConfigError

MAX_JSON_BYTES: Final = 64 * 2**20
"""A caption index of a million captions is about 40 MB; more is not one of ours."""

T = TypeVar("T")

_LATER: Final = "may be absent"


def added(default: T, *, before: object = _LATER) -> T:
    """A dataclass field that files written before it was added do not have.

    Other fields must be present when read, whether or not they have a default in Python.

    Args:
        default: in Python.
        before: what those files mean, where that is not the default.
    """
    meant = default if before is _LATER else before
    value: T = dataclasses.field(default=default, metadata={_LATER: meant})
    return value


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, UTF-8, finite numbers only: the same value gives the same bytes."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def to_json(value: object) -> dict[str, object]:
    """The JSON object of a dataclass of this package (tuples become lists once it is written)."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"to_json takes a dataclass instance, not {type(value).__name__}")
    return dataclasses.asdict(value)


def parse_json(data: bytes, where: str) -> dict[str, object]:
    """A JSON object from outside bytes.

    Raises:
        ConfigError: too long, not UTF-8 JSON, nested too deep, a key twice, NaN, or not an object.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ConfigError(f"{where}: {len(data)} bytes of JSON, at most {MAX_JSON_BYTES}")
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def read_json(path: Path) -> dict[str, object]:
    """`parse_json` of a file.

    Raises:
        ConfigError: also when the file cannot be read.
    """
    return parse_json(read_bounded(path), path.name)


def read_bounded(path: Path) -> bytes:
    """A file's bytes, at most one more than `parse_json` takes.

    Raises:
        ConfigError: when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path.name}: cannot be read: {error.strerror}") from error


def from_json(cls: type[T], value: object, where: str) -> T:
    """A dataclass from a parsed JSON object, strictly.

    Args:
        cls: a dataclass whose fields are str, int, float, bool, `tuple[X, ...]`, an optional, a
            `dict[str, X]`, or such a dataclass again.
        value: the parsed object.
        where: what to call it in messages.

    Raises:
        ConfigError: an unknown or missing key, or a value of another type; the message names it.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected an object, got {type(value).__name__}")
    hints = get_type_hints(cls)
    described = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    fields = list(described)
    unknown = sorted(str(key) for key in value if key not in described)
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(fields)}")
    absent = [name for name in fields if name not in value]
    missing = [name for name in absent if _LATER not in described[name].metadata]
    if missing:
        raise ConfigError(f"{where}: missing key {missing[0]!r}")
    found = {name: described[name].metadata[_LATER] for name in absent}
    for name in (name for name in fields if name in value):
        found[name] = _value(hints[name], value[name], f"{where}: {name}")
    return cls(**found)


def _value(hint: object, value: object, where: str) -> object:
    """One field's value, checked against its type hint."""
    origin = get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {type(value).__name__}")
        kinds = get_args(hint)
        if kinds[-1] is not Ellipsis and len(kinds) != len(value):
            raise ConfigError(f"{where}: expected {len(kinds)} values, got {len(value)}")
        inner = [kinds[0]] * len(value) if kinds[-1] is Ellipsis else list(kinds)
        pairs = enumerate(zip(inner, value, strict=True))
        return tuple(_value(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected an object, got {type(value).__name__}")
        return {k: _value(get_args(hint)[1], v, f"{where}: {k}") for k, v in value.items()}
    if origin is types.UnionType:
        options = [option for option in get_args(hint) if option is not type(None)]
        return None if value is None else _value(options[0], value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value, where)
    return _scalar(hint, value, where)


def _scalar(hint: object, value: object, where: str) -> object:
    if hint is float and type(value) in (int, float):
        number = float(value)  # type: ignore[arg-type]
        if not math.isfinite(number):
            raise ConfigError(f"{where}: expected a finite number")
        return number
    if type(value) is hint:
        return value
    expected = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{where}: expected {expected}, got {type(value).__name__} {value!r:.60}")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
