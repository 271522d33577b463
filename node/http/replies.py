"""JSON answers, JSON errors, and streams of JSON lines that stop when the listener leaves."""

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Final, cast

import trio
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.api import SCHEMA, Json
from node.errors import ErrorCode, NodeError

logger = logging.getLogger(__name__)

_STATUS: Final[Mapping[ErrorCode, int]] = {
    ErrorCode.FAILED: 500,
    ErrorCode.USAGE: 400,
    ErrorCode.NOT_RUNNING: 503,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.NO_PEERS: 503,
    ErrorCode.VERIFICATION_FAILED: 502,
    ErrorCode.REFUSED: 403,
    ErrorCode.RESOURCE: 507,
    ErrorCode.TIMEOUT: 504,
    ErrorCode.INTERRUPTED: 503,
}


def json_reply(
    value: Mapping[str, object], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """One JSON object; never cached, never sniffed."""
    return Response(
        json.dumps(value).encode() + b"\n",
        status,
        {"cache-control": "no-store", "x-content-type-options": "nosniff", **(headers or {})},
        "application/json",
    )


def error_json(error: NodeError) -> Json:
    """{schema, error: {code, message, fix}}: the body of every failure."""
    return {"schema": SCHEMA, "error": error.to_json()}


def error_reply(
    error: NodeError, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The failure as an answer, by default with the status that its code means."""
    return json_reply(error_json(error), status=status or _STATUS[error.code], headers=headers)


class Afterwards:
    """An answer, then an action: also if the client left without waiting for the answer.

    Starlette's background tasks are not used: they are skipped when the client leaves first.
    """

    def __init__(self, reply: ASGIApp, action: Callable[[], None]) -> None:
        self._reply = reply
        self._action = action

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, then act."""
        try:
            await self._reply(scope, receive, send)
        finally:
            self._action()


class EventStream:
    """Answers with one JSON object a line, as the events come.

    A failure before the first event has its own status; a later one is the last line,
    {event: "error", schema, error}. When the listener leaves, the events' source is cancelled.
    """

    def __init__(self, events: AsyncIterator[Json]) -> None:
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the source and send what it says."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
            await self._send_all(scope, receive, send)
            nursery.cancel_scope.cancel()

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_started = False
        failure: NodeError | None = None
        try:
            # every source is an async generator; `aclosing` runs its clean-up here and now
            async with aclosing(cast("_Closable", self._events)) as events:
                async for event in events:
                    if not is_started:
                        await send(_START)
                        is_started = True
                    await send(_line(event))
        except* NodeError as group:  # also one that left a nursery of the source
            failure = _first(group)
        if failure is not None and not is_started:
            await error_reply(failure)(scope, receive, send)
            return
        if not is_started:
            await send(_START)
        if failure is not None:
            await send(_line({"event": "error", **error_json(failure)}))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _first(group: BaseExceptionGroup[NodeError]) -> NodeError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


class _Closable(AsyncIterator[Json]):
    async def aclose(self) -> None: ...


_START: Final[Message] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"application/x-ndjson"),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ],
}


def _line(event: Mapping[str, object]) -> Message:
    body = json.dumps(event).encode() + b"\n"
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _cancel_on_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    logger.info("the client left before the answer was whole; its work is cancelled")
    scope.cancel()
