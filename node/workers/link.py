"""The worker's end of the line to its node: msgpack messages in frames over an inherited socket.

Not stdin and stdout, since libraries print there. End of file means that the node is gone: a worker
then finishes its step, saves what it has and leaves.
"""

import select
import socket
from typing import Final

import msgpack

from p2p.limits import MAX_CHILD_FRAME_SIZE
from p2p.wire import FrameDecoder, encode_frame

Message = dict[str, object]
_READ_SIZE: Final = 1 << 18


class ParentGoneError(Exception):
    """The node closed the line, or died."""


def encode_message(message: Message) -> bytes:
    """One message as a frame."""
    return encode_frame(msgpack.packb(message), max_size=MAX_CHILD_FRAME_SIZE)


def decode_message(frame: bytes) -> Message:
    """The message in one frame, as our own other half wrote it.

    Raises:
        ValueError: if it is not a map with a `kind`.
    """
    message = msgpack.unpackb(frame, strict_map_key=True)
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise ValueError("worker message: expected a map with a 'kind'")
    return message


class ParentLink:
    """Blocking messages to and from the node.

    Args:
        descriptor: the inherited socket's file descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(True)
        self._decoder = FrameDecoder(max_size=MAX_CHILD_FRAME_SIZE)
        self._pending: list[Message] = []

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            ParentGoneError: if nobody listens any more.
        """
        try:
            self._socket.sendall(encode_message(message))
        except OSError as error:
            raise ParentGoneError from error

    def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            ParentGoneError: at end of file.
        """
        while not self._pending:
            self._read()
        return self._pending.pop(0)

    def poll(self) -> Message | None:
        """The next message if one is here, without waiting.

        Raises:
            ParentGoneError: at end of file.
        """
        while not self._pending:
            readable, _, _ = select.select([self._socket], [], [], 0)
            if not readable:
                return None
            self._read()
        return self._pending.pop(0)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_SIZE)
        except OSError as error:
            raise ParentGoneError from error
        if not data:
            raise ParentGoneError
        self._pending += [decode_message(frame) for frame in self._decoder.feed(data)]
