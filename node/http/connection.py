"""One accepted connection, as hypercorn sees a stream, with the bounds that hypercorn lacks."""

import contextlib
import socket
from typing import Final

import trio

from node.http.limits import WRITE_TIMEOUT_S

_LINGER_S: Final = 1.0
_LINGER_BYTES: Final = 4 * 1024 * 1024
"""What a client may still send after its answer; enough that a refused upload reads why."""


class Connection:
    """A stream whose writes have a deadline and whose close ends all work on it.

    hypercorn's `TCPServer` uses the five methods below and `socket`; it takes the lack of a
    `do_handshake` as "not TLS".

    Attributes:
        socket: the trio socket.
        scope: to be entered around everything done for this connection.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.scope = trio.CancelScope()

    async def receive_some(self, max_bytes: int) -> bytes:
        """The next bytes; empty at the end."""
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_all(self, data: bytes) -> None:
        """Send, unless the reader takes nothing for `WRITE_TIMEOUT_S`.

        Raises:
            trio.BrokenResourceError: if it does not, or has gone.
        """
        with trio.move_on_after(WRITE_TIMEOUT_S) as deadline:
            await self._stream.send_all(data)
        if deadline.cancelled_caught:
            self.abort()
            raise trio.BrokenResourceError("the reader takes nothing")

    async def send_eof(self) -> None:
        """Say that nothing more comes."""
        self._shut_down()

    async def aclose(self) -> None:
        """End all work on this connection; `linger` closes it."""
        self.scope.cancel()

    async def linger(self) -> None:
        """Let the client read its answer: closing over unread bytes would reset the connection."""
        self._shut_down()
        seen = 0
        with trio.move_on_after(_LINGER_S), contextlib.suppress(trio.BrokenResourceError):
            while seen < _LINGER_BYTES and (piece := await self._stream.receive_some(65536)):
                seen += len(piece)

    def abort(self) -> None:
        """Close now; whoever reads or writes is woken with an error."""
        self.socket.close()

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
