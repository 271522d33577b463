"""Who may ask what: the checks every request passes before it reaches a route.

A page in the person's own browser is the attacker here: it can send requests to loopback, so the
Host must be ours (DNS rebinding), an Origin must be ours, and all but the health checks need the
token. Plain ASGI, no I/O of its own.
"""

import hmac
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from node.errors import ErrorCode, NodeError
from node.http.limits import MAX_HEADER_BYTES
from node.http.replies import error_reply

OPEN_PATHS: Final = frozenset({"/livez", "/readyz"})
"""Health checks: say one bit, so they need no token."""


class Guard:
    """Refuses a request that is not from this machine's own programs.

    Args:
        app: what answers the requests that pass.
        token: the bearer token of this node.
        port: the port we listen on, part of every Host we answer to.
    """

    def __init__(self, app: ASGIApp, *, token: str, port: int) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on or answer with the error."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        problem = _too_long(scope) or self._problem(scope["path"], Headers(scope=scope))
        if problem is None:
            await self._app(scope, receive, send)
            return
        status, error = problem
        headers = {"www-authenticate": "Bearer"} if status == 401 else {}
        await error_reply(error, status=status, headers=headers)(scope, receive, send)

    def _problem(self, path: str, headers: Headers) -> tuple[int, NodeError] | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 403, NodeError(
                ErrorCode.REFUSED,
                "The Host header does not name this node.",
                f"ask http://{min(self._hosts)} itself",
            )
        if not self._are_ours(headers.getlist("origin")):
            return 403, NodeError(ErrorCode.REFUSED, "Requests of other web pages are refused.")
        if path not in OPEN_PATHS and not self._knows_token(headers.getlist("authorization")):
            return 401, NodeError(
                ErrorCode.REFUSED,
                "The token is missing or wrong.",
                "send 'Authorization: Bearer TOKEN'; the token is in api.json of the node's home",
            )
        return None

    def _are_ours(self, origins: Iterable[str]) -> bool:
        return all(
            origin.lower().removeprefix("http://") in self._hosts
            and origin.lower().startswith("http://")
            for origin in origins
        )

    def _knows_token(self, authorizations: list[str]) -> bool:
        if len(authorizations) != 1:
            return False
        scheme, _, token = authorizations[0].partition(" ")
        sent = token.strip().encode("utf-8", "replace")
        return scheme.lower() == "bearer" and hmac.compare_digest(sent, self._token)


def _too_long(scope: Scope) -> tuple[int, NodeError] | None:
    """h11 bounds a head that is incomplete; this one arrived whole, in one piece."""
    size = len(scope["raw_path"]) + len(scope["query_string"])
    size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size <= MAX_HEADER_BYTES:
        return None
    message = f"The headers take {size} bytes, the limit is {MAX_HEADER_BYTES}."
    return 431, NodeError(ErrorCode.USAGE, message)
