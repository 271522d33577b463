"""Frozen dataclasses to plain values and back, by their type hints alone.

Strict in both directions: exact types, no missing or unknown field, ids parsed by `p2p.ids`.
Supports what the records use: int, float, str, bytes, bool, the id types, None unions, tuples and
other dataclasses. Field names are the map keys, in ascending order.
"""

import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar

from p2p import ids
from p2p.errors import DecodeError, EncodeError
from p2p.limits import MAX_CLUSTERS
from p2p.msgpack_guard import Plain

T = TypeVar("T")

_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class _Shape:
    """How one type is read (`load`) and written (`dump`); `where` names the field in errors."""

    load: Callable[[Any, str], Any]
    dump: Callable[[Any, str], Any]


def from_plain(kind: type[T], plain: Plain) -> T:
    """Build a `kind` from decoded values.

    Raises:
        DecodeError: naming the field, if a value, a name or a type is not as declared.
        LimitError: if the dataclass's own check finds a limit passed.
    """
    built: T = _shape_of(kind).load(plain, kind.__name__)
    return built


def to_plain(thing: object) -> dict[str, Plain]:
    """The map of a dataclass's fields, keys in ascending order.

    Raises:
        EncodeError: naming the field, if a value is not of its declared type.
        TypeError: if `thing` is no dataclass of the types supported here.
    """
    kind = type(thing)
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"{kind.__name__} is not a dataclass")
    try:
        plain: dict[str, Plain] = _shape_of(kind).dump(thing, kind.__name__)
    except DecodeError as error:
        raise EncodeError(str(error)) from error
    return plain


def _shape_of(hint: Any) -> _Shape:  # noqa: ANN401 - a type hint has no better type
    simple = _SIMPLE.get(hint)
    return simple if simple is not None else _composite(hint)


@cache
def _composite(hint: Any) -> _Shape:  # noqa: ANN401
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _of_dataclass(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and arguments[-1] is Ellipsis:
        return _of_sequence(_shape_of(arguments[0]))
    if origin is tuple:
        return _of_fixed_tuple(tuple(_shape_of(argument) for argument in arguments))
    if (
        origin in (types.UnionType, typing.Union)
        and len(arguments) == 2
        and type(None) in arguments
    ):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _of_optional(_shape_of(inner))
    raise TypeError(f"{hint} cannot be a field of a record")


def _of_dataclass(kind: type) -> _Shape:
    hints = typing.get_type_hints(kind)
    names = sorted(field.name for field in dataclasses.fields(kind))
    shapes = {name: _shape_of(hints[name]) for name in names}
    label = kind.__name__

    def load(value: object, where: str) -> object:
        if not isinstance(value, dict):
            raise DecodeError(f"{where}: got {_named(value)}, expected the map of a {label}")
        if list(value) != names:
            missing = [name for name in names if name not in value]
            unknown = [str(name)[:40] for name in value if name not in shapes]
            raise DecodeError(f"{where}: missing fields {missing}, unknown fields {unknown[:5]}")
        return kind(**{name: shapes[name].load(value[name], f"{where}.{name}") for name in names})

    def dump(value: object, where: str) -> Plain:
        if type(value) is not kind:
            raise DecodeError(f"{where}: got {_named(value)}, expected a {label}")
        return {name: shapes[name].dump(getattr(value, name), f"{where}.{name}") for name in names}

    return _Shape(load, dump)


def _of_sequence(item: _Shape) -> _Shape:
    def load(value: object, where: str) -> object:
        if not isinstance(value, list):
            raise DecodeError(f"{where}: got {_named(value)}, expected a list")
        return tuple([item.load(element, where) for element in value])

    def dump(value: object, where: str) -> Plain:
        if not isinstance(value, tuple):
            raise DecodeError(f"{where}: got {_named(value)}, expected a tuple")
        return [item.dump(element, where) for element in value]

    return _Shape(load, dump)


def _of_fixed_tuple(items: tuple[_Shape, ...]) -> _Shape:
    def check(value: object, where: str, kind: type) -> Any:  # noqa: ANN401
        if not isinstance(value, kind) or len(value) != len(items):  # type: ignore[arg-type]
            raise DecodeError(f"{where}: got {_named(value)}, expected {len(items)} values")
        return value

    def load(value: object, where: str) -> object:
        given = check(value, where, list)
        return tuple(item.load(one, where) for item, one in zip(items, given, strict=True))

    def dump(value: object, where: str) -> Plain:
        given = check(value, where, tuple)
        return [item.dump(one, where) for item, one in zip(items, given, strict=True)]

    return _Shape(load, dump)


def _of_optional(inner: _Shape) -> _Shape:
    def load(value: object, where: str) -> object:
        return None if value is None else inner.load(value, where)

    def dump(value: object, where: str) -> Plain:
        return None if value is None else inner.dump(value, where)

    return _Shape(load, dump)


def _exactly(kind: type) -> _Shape:
    def same(value: Any, where: str) -> Any:  # noqa: ANN401
        if type(value) is not kind:
            raise DecodeError(f"{where}: got {_named(value)}, expected {kind.__name__}")
        return value

    return _Shape(same, same)


def _int(value: Any, where: str) -> int:  # noqa: ANN401
    if type(value) is not int or not _INT_MIN <= value <= _INT_MAX:
        raise DecodeError(f"{where}: got {_named(value)}, expected an integer of 64 bits")
    return value


def _dump_float(value: Any, where: str) -> float:  # noqa: ANN401
    """Our own code may say 0 for 0.0, and minus zero: both are written as the one double."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DecodeError(f"{where}: got {_named(value)}, expected a number")
    return float(value) + 0.0


def _cluster(value: Any, where: str) -> int:  # noqa: ANN401
    number = _int(value, where)
    if not 0 <= number < MAX_CLUSTERS:
        raise DecodeError(f"{where}: got {number}, expected a cluster in 0..{MAX_CLUSTERS - 1}")
    return number


def _parsed(parse: Callable[[object], Any]) -> _Shape:
    def load(value: object, where: str) -> Any:  # noqa: ANN401
        try:
            return parse(value)
        except DecodeError as error:
            raise DecodeError(f"{where}: {error}") from error

    return _Shape(load, load)


def _named(value: object) -> str:
    return "null" if value is None else type(value).__name__


_BLOB: Final = _parsed(ids.parse_blob_id)
_SIMPLE: Final[dict[object, _Shape]] = {
    bool: _exactly(bool),
    str: _exactly(str),
    bytes: _exactly(bytes),
    int: _Shape(_int, _int),
    float: _Shape(_exactly(float).load, _dump_float),
    ids.ClusterId: _Shape(_cluster, _cluster),
    ids.PeerId: _parsed(ids.parse_peer_id),
    ids.BlobId: _BLOB,
    ids.RunId: _BLOB,
}
