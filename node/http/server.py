"""Serves the API on loopback, inside the node's own nursery, on hypercorn's trio protocol.

hypercorn's accept loop is not used: it has no limit on connections, sends under a shield (a reader
that takes nothing would hold up the node's stop), and leaves a connection's task waiting for ever
when an answer is given before the body was read. Its `TCPServer`, one connection's protocol, is.
"""

import errno
import logging
import socket
from typing import Final, Protocol

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from node.api import NodeApi
from node.errors import ErrorCode, NodeError
from node.http.connection import Connection
from node.http.guard import Guard
from node.http.limits import (
    BACKLOG,
    HEADER_TIMEOUT_S,
    MAX_CONNECTIONS,
    MAX_HEADER_BYTES,
)
from node.http.replies import error_reply
from node.http.routes import make_app

logger = logging.getLogger(__name__)


def _busy_answer() -> bytes:
    body = error_reply(
        NodeError(ErrorCode.RESOURCE, f"{MAX_CONNECTIONS} connections are open already.")
    ).body
    head = (
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + bytes(body)


_BUSY: Final = _busy_answer()


class UrlStatus(Protocol):
    """Where `nursery.start` hears the URL (`trio.TaskStatus[str]`, whose name stubs differ on)."""

    def started(self, value: str) -> None:
        """Connections are accepted at `value`."""
        ...


async def serve_http(
    api: NodeApi,
    *,
    host: str,
    port: int,
    token: str,
    fallback: bool = False,
    task_status: UrlStatus = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; then every connection is closed at once.

    Args:
        api: the running node.
        host: loopback address to listen on.
        port: TCP port; 0 takes any free one.
        token: what every request but the health checks must carry.
        fallback: take any free port if `port` is taken.
        task_status: told the URL once connections are accepted.

    Raises:
        NodeError: `RESOURCE` if the port is taken.
    """
    listener = _listen(host, port, fallback=fallback)
    actual_port = listener.socket.getsockname()[1]
    server = _Server(ASGIWrapper(Guard(make_app(api), token=token, port=actual_port)))
    task_status.started(f"http://{f'[{host}]' if ':' in host else host}:{actual_port}")
    await server.run(listener)


def _listen(host: str, port: int, *, fallback: bool) -> trio.SocketListener:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    raw = socket.socket(family, socket.SOCK_STREAM)
    try:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            raw.bind((host, port))
        except OSError as error:
            if not (fallback and error.errno == errno.EADDRINUSE):
                raise
            raw.bind((host, 0))
        raw.listen(BACKLOG)
        raw.setblocking(False)
        return trio.SocketListener(trio.socket.from_stdlib_socket(raw))
    except OSError as error:
        raw.close()
        taken = error.errno == errno.EADDRINUSE
        raise NodeError(
            ErrorCode.RESOURCE,
            f"Port {port} of {host} is taken by another program."
            if taken
            else f"The API cannot listen on {host}, port {port}: {error.strerror}.",
            "choose another with --api-port N, or leave it out to take any free one",
        ) from error


class _Server:
    """The connections of one listener."""

    def __init__(self, app: ASGIWrapper) -> None:
        self._app = app
        self._connections: set[Connection] = set()
        self._refused: set[Connection] = set()
        self._context = WorkerContext(None)
        self._config = HypercornConfig()
        self._config.h11_max_incomplete_size = MAX_HEADER_BYTES
        self._config.keep_alive_timeout = HEADER_TIMEOUT_S
        self._config.errorlog = logging.getLogger("node.http.hypercorn")
        self._config.include_server_header = False

    async def run(self, listener: trio.SocketListener) -> None:
        """Accept until cancelled."""
        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(self._abort_all_on_cancel)
            await trio.serve_listeners(self._handle, [listener], handler_nursery=nursery)

    async def _abort_all_on_cancel(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            for connection in self._connections | self._refused:
                connection.abort()  # hypercorn sends under a shield: only this ends it

    async def _handle(self, stream: trio.SocketStream) -> None:
        connection = Connection(stream)
        is_refused = len(self._connections) >= MAX_CONNECTIONS
        if is_refused and len(self._refused) >= MAX_CONNECTIONS:
            connection.abort()  # not even worth an explanation
            return
        group = self._refused if is_refused else self._connections
        group.add(connection)
        try:
            if is_refused:
                await connection.send_all(_BUSY)
            else:
                await self._serve(connection)
            await connection.linger()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client is gone, or the server stops
        except Exception:  # guard around a foreign stack: one connection must not end the node
            logger.exception("an HTTP connection failed inside hypercorn; it is closed")
        finally:
            group.discard(connection)
            connection.abort()

    async def _serve(self, connection: Connection) -> None:
        with connection.scope:
            await TCPServer(self._app, self._config, self._context, ConnectionState({}), connection)
