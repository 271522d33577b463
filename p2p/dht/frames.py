"""Messages between a node and its swarm child: msgpack maps in `p2p.wire` frames. No I/O here.

Both ends are ours, but a crashed or half-started end writes garbage: everything is checked all the
same, and whatever does not decode ends the connection (the child is then started anew).

A request is `{id, op, ...}`; its answer `{id, ok: {...}}` or `{id, error: code, message}`, after
any number of `{id, progress: {...}}`. What the child says unasked is `{event, ...}`.
"""

from typing import Final

import msgpack

from p2p.errors import DecodeError
from p2p.limits import MAX_CHILD_FRAME_SIZE
from p2p.wire import FrameDecoder, encode_frame

Message = dict[str, object]

_MAX_ITEMS: Final = 65_536
"""Elements of one list: a pull may name the 16 GiB of `MAX_FILE_SIZE` in chunks of 1 MiB."""


def pack_message(message: Message) -> bytes:
    """One message as a frame ready to send.

    Raises:
        LimitError: if it is larger than `MAX_CHILD_FRAME_SIZE`.
    """
    return encode_frame(msgpack.packb(message, use_bin_type=True), max_size=MAX_CHILD_FRAME_SIZE)


def unpack_message(payload: bytes) -> Message:
    """The message inside one frame.

    Raises:
        DecodeError: if it is not a msgpack map with text keys.
    """
    try:
        message = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            max_ext_len=0,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
        )
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise DecodeError(f"child message: {len(payload)} bytes are not msgpack") from error
    if not isinstance(message, dict) or not all(isinstance(name, str) for name in message):
        raise DecodeError("child message: expected a map with text keys")
    return message


class MessageDecoder:
    """Bytes of the socket in, whole messages out."""

    def __init__(self) -> None:
        self._frames = FrameDecoder(max_size=MAX_CHILD_FRAME_SIZE)

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes as they came; the messages they complete, in order.

        Raises:
            DecodeError: if a frame is not a message.
            LimitError: if a frame announces too much.
        """
        return [unpack_message(payload) for payload in self._frames.feed(data)]


def text(message: Message, name: str) -> str:
    """The text field `name`. Raises `DecodeError` if it is missing or something else."""
    value = message.get(name)
    if not isinstance(value, str):
        raise _wrong(name, value, "text")
    return value


def optional_text(message: Message, name: str) -> str | None:
    """The text field `name`, or None. Raises `DecodeError` if it is something else."""
    return None if message.get(name) is None else text(message, name)


def data(message: Message, name: str) -> bytes:
    """The bytes field `name`. Raises `DecodeError` if it is missing or something else."""
    value = message.get(name)
    if not isinstance(value, bytes):
        raise _wrong(name, value, "bytes")
    return value


def integer(message: Message, name: str) -> int:
    """The integer field `name`. Raises `DecodeError` if it is missing or something else."""
    value = message.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, value, "an integer")
    return value


def number(message: Message, name: str) -> float:
    """The number field `name`. Raises `DecodeError` if it is missing or something else."""
    value = message.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(name, value, "a number")
    return float(value)


def optional_number(message: Message, name: str) -> float | None:
    """The number field `name`, or None. Raises `DecodeError` if it is something else."""
    return None if message.get(name) is None else number(message, name)


def flag(message: Message, name: str) -> bool:
    """The boolean field `name`. Raises `DecodeError` if it is missing or something else."""
    value = message.get(name)
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def texts(message: Message, name: str) -> tuple[str, ...]:
    """The list of texts `name`. Raises `DecodeError` if it is missing or something else."""
    value = message.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(name, value, "a list of texts")
    return tuple(value)


def rows(message: Message, name: str) -> tuple[list[object], ...]:
    """The list of lists `name`. Raises `DecodeError` if it is missing or something else."""
    value = message.get(name)
    if not isinstance(value, list) or not all(isinstance(item, list) for item in value):
        raise _wrong(name, value, "a list of lists")
    return tuple(value)


def mapping(message: Message, name: str) -> Message:
    """The map `name`. Raises `DecodeError` if it is missing or something else."""
    value = message.get(name)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _wrong(name, value, "a map with text keys")
    return value


def _wrong(name: str, value: object, expected: str) -> DecodeError:
    return DecodeError(f"child message: {name}: got {type(value).__name__}, expected {expected}")
