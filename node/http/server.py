"""Serves the API on loopback, inside the node's own nursery."""

import errno
import logging
import socket
from typing import Final, Protocol

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig

from node.api import NodeApi
from node.errors import ErrorCode, NodeError
from node.http.connection import Connection
from node.http.guard import Guard
from node.http.limits import (
    BACKLOG,
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
    async with listener:
        await trio.serve_listeners(server.handle, [listener])


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
        self._open = 0
        self._refused = 0
        self._config = HypercornConfig()
        self._config.h11_max_incomplete_size = MAX_HEADER_BYTES
        self._config.errorlog = logging.getLogger("node.http.hypercorn")
        self._config.include_server_header = False

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection, if there is room for it."""
        connection = Connection(stream, self._app, self._config)
        try:
            if self._open < MAX_CONNECTIONS:
                await self._serve(connection)
            elif self._refused < MAX_CONNECTIONS:  # beyond these, not even an explanation
                await self._refuse(connection)
        except trio.BrokenResourceError:
            pass  # the client is gone
        except Exception:  # guard around a foreign stack: one connection must not end the node
            logger.exception("an HTTP connection failed inside hypercorn; it is closed")
        finally:
            stream.socket.close()

    async def _serve(self, connection: Connection) -> None:
        self._open += 1
        try:
            await connection.serve()
            await connection.close()
        finally:
            self._open -= 1

    async def _refuse(self, connection: Connection) -> None:
        self._refused += 1
        try:
            await connection.refuse(_BUSY)
            await connection.close()
        finally:
            self._refused -= 1
