"""One connection: hypercorn's HTTP/1.1 protocol, driven under our own bounds.

hypercorn's own driver (`hypercorn.trio.tcp_server`) is not used: it shields its sends, so that a
reader that takes nothing holds up the node's stop; it waits out the idle timeout of a client that
has left; it never ends a connection whose body nobody read; and it speaks HTTP/2, which nothing on
loopback needs.
"""

import contextlib
import math
import socket
from typing import TYPE_CHECKING, Final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from node.http.limits import HEADER_TIMEOUT_S, WRITE_TIMEOUT_S

if TYPE_CHECKING:
    import h11

_READ_BYTES: Final = 64 * 1024
_LINGER_S: Final = 1.0
_LINGER_BYTES: Final = 4 * 1024 * 1024
"""What a client may still send after its answer; enough that a refused upload reads why."""


class Connection:
    """One accepted connection.

    Args:
        stream: the connection.
        app: what answers its requests.
        config: hypercorn's.
    """

    def __init__(
        self, stream: trio.SocketStream, app: ASGIWrapper, config: HypercornConfig
    ) -> None:
        self._stream = stream
        self._app = app
        self._config = config
        self._work = trio.CancelScope()
        self._idle = trio.CancelScope()
        self._headers_due = trio.current_time() + HEADER_TIMEOUT_S
        self._sending = trio.Lock()

    async def serve(self) -> None:
        """Answer requests until either side has had enough; the work for a client ends with it."""
        with self._work:
            async with TaskGroup() as tasks:
                protocol = _Http1(
                    self._app,
                    self._config,
                    WorkerContext(None),
                    tasks,
                    ConnectionState({}),
                    False,  # TLS
                    None,  # the client's address: always this machine's
                    None,
                    self._on_event,
                )
                while data := await self._receive():
                    await protocol.handle(RawData(data))
                self._work.cancel()

    async def refuse(self, answer: bytes) -> None:
        """Send one canned answer."""
        with trio.move_on_after(WRITE_TIMEOUT_S):
            await self._stream.send_all(answer)

    async def close(self) -> None:
        """Close, giving the client a moment to read its answer.

        Closing over bytes that nobody read would reset the connection and lose the answer.
        """
        with contextlib.suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_WR)
        seen = 0
        try:
            with trio.move_on_after(_LINGER_S), contextlib.suppress(trio.BrokenResourceError):
                while seen < _LINGER_BYTES and (
                    data := await self._stream.receive_some(_READ_BYTES)
                ):
                    seen += len(data)
        finally:
            self._stream.socket.close()

    async def _receive(self) -> bytes:
        """The next bytes; empty when the client left, or let us wait too long for a request."""
        data = b""
        with (
            trio.CancelScope(deadline=self._headers_due) as self._idle,
            contextlib.suppress(trio.BrokenResourceError),
        ):
            data = bytes(await self._stream.receive_some(_READ_BYTES))
        return data

    async def _on_event(self, event: Event) -> None:
        """What hypercorn wants done."""
        if isinstance(event, RawData):
            await self._send(event.data)
        elif isinstance(event, Closed):
            self._work.cancel()
        elif isinstance(event, Updated):
            self._headers_due = trio.current_time() + HEADER_TIMEOUT_S if event.idle else math.inf
            self._idle.deadline = self._headers_due

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            with trio.move_on_after(WRITE_TIMEOUT_S) as patience:
                try:
                    await self._stream.send_all(data)
                except trio.BrokenResourceError:
                    self._work.cancel()
        if patience.cancelled_caught:  # the reader takes nothing
            self._work.cancel()


class _Http1(H11Protocol):  # type: ignore[misc]  # hypercorn has no types
    async def _check_protocol(self, event: "h11.Request") -> None:
        """Never switch to HTTP/2: a client that asks is answered in HTTP/1.1."""
