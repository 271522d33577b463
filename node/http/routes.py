"""The routes: each turns one request into one call of `NodeApi`, and its answer into JSON."""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from node.api import SCHEMA, NodeApi
from node.errors import ErrorCode, NodeError
from node.http.limits import BODY_TIMEOUT_S, MAX_BODY_BYTES
from node.http.offer_requests import parse_look, parse_offer, parse_offer_id, parse_purchase
from node.http.replies import Afterwards, EventStream, error_reply, json_reply
from node.http.requests import parse_cid, parse_cluster, parse_generate

_Endpoint = Callable[[Request], Awaitable[ASGIApp]]


class Routes:
    """The endpoints over one `NodeApi`."""

    def __init__(self, api: NodeApi) -> None:
        self._api = api

    async def livez(self, request: Request) -> ASGIApp:
        """The process answers."""
        return json_reply({"schema": SCHEMA, "live": True})

    async def readyz(self, request: Request) -> ASGIApp:
        """The node is in a run and listens."""
        status = self._api.status()
        is_ready = bool(status.get("run")) and bool(status.get("listening"))
        return json_reply({"schema": SCHEMA, "ready": is_ready}, status=200 if is_ready else 503)

    async def status(self, request: Request) -> ASGIApp:
        """`NodeApi.status`."""
        return json_reply(self._api.status())

    async def peers(self, request: Request) -> ASGIApp:
        """`NodeApi.peers`."""
        return json_reply(self._api.peers())

    async def clusters(self, request: Request) -> ASGIApp:
        """`NodeApi.clusters`."""
        return json_reply(self._api.clusters())

    async def find_experts(self, request: Request) -> ASGIApp:
        """`NodeApi.find_experts`; ?cluster=K narrows it to one."""
        cluster = parse_cluster(request.query_params.get("cluster"))
        return json_reply(await self._api.find_experts(cluster))

    async def show_expert(self, request: Request) -> ASGIApp:
        """`NodeApi.show_expert`."""
        return json_reply(await self._api.show_expert(parse_cid(request.path_params["cid"])))

    async def pull_expert(self, request: Request) -> ASGIApp:
        """`NodeApi.pull_expert`, streamed."""
        await _read_body(request)
        return EventStream(self._api.pull_expert(parse_cid(request.path_params["cid"])))

    async def generate(self, request: Request) -> ASGIApp:
        """`NodeApi.generate`, streamed."""
        return EventStream(self._api.generate(parse_generate(await _read_body(request))))

    async def offers(self, request: Request) -> ASGIApp:
        """`NodeApi.offers`."""
        return json_reply(self._api.offers())

    async def show_offer(self, request: Request) -> ASGIApp:
        """`NodeApi.show_offer`."""
        return json_reply(await self._api.show_offer(_offer_of(request)))

    async def make_offer(self, request: Request) -> ASGIApp:
        """`NodeApi.make_offer`, streamed."""
        return EventStream(self._api.make_offer(parse_offer(await _read_body(request))))

    async def verify_offer(self, request: Request) -> ASGIApp:
        """`NodeApi.verify_offer`, streamed."""
        wish = parse_look(await _read_body(request))
        return EventStream(self._api.verify_offer(_offer_of(request), wish))

    async def buy_offer(self, request: Request) -> ASGIApp:
        """`NodeApi.buy_offer`, streamed."""
        wish = parse_purchase(await _read_body(request))
        return EventStream(self._api.buy_offer(_offer_of(request), wish))

    async def withdraw_offer(self, request: Request) -> ASGIApp:
        """`NodeApi.withdraw_offer`."""
        await _read_body(request)
        return json_reply(self._api.withdraw_offer(_offer_of(request)))

    async def stop(self, request: Request) -> ASGIApp:
        """`NodeApi.stop`."""
        await _read_body(request)
        reply = json_reply({"schema": SCHEMA, "stopping": True}, status=HTTPStatus.ACCEPTED)
        return Afterwards(reply, self._api.stop)  # a node that stops at once would not answer


def make_app(api: NodeApi) -> Starlette:
    """The ASGI application; `node.http.guard` goes around it."""
    routes = Routes(api)
    table: tuple[tuple[str, str, _Endpoint], ...] = (
        ("GET", "/livez", routes.livez),
        ("GET", "/readyz", routes.readyz),
        ("GET", "/api/v1/status", routes.status),
        ("GET", "/api/v1/peers", routes.peers),
        ("GET", "/api/v1/clusters", routes.clusters),
        ("GET", "/api/v1/experts", routes.find_experts),
        ("GET", "/api/v1/experts/{cid}", routes.show_expert),
        ("POST", "/api/v1/experts/{cid}/pull", routes.pull_expert),
        ("POST", "/api/v1/generate", routes.generate),
        ("GET", "/api/v1/offers", routes.offers),
        ("POST", "/api/v1/offers", routes.make_offer),
        ("GET", "/api/v1/offers/{cid}", routes.show_offer),
        ("POST", "/api/v1/offers/{cid}/verify", routes.verify_offer),
        ("POST", "/api/v1/offers/{cid}/buy", routes.buy_offer),
        ("POST", "/api/v1/offers/{cid}/withdraw", routes.withdraw_offer),
        ("POST", "/api/v1/stop", routes.stop),
    )
    return Starlette(
        routes=[Route(path, endpoint, methods=[method]) for method, path, endpoint in table],
        exception_handlers={
            NodeError: _on_node_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_bug,
        },
    )


def _offer_of(request: Request) -> str:
    return parse_offer_id(request.path_params["cid"])


async def _read_body(request: Request) -> bytes:
    """The whole body, within its limits of size and time.

    Raises:
        HTTPException: 413 if it is too long, 408 if it is too slow.
    """
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced[:19]) > MAX_BODY_BYTES:
        raise _too_long()
    body = bytearray()
    has_more = True
    with trio.move_on_after(BODY_TIMEOUT_S) as deadline:
        while has_more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            has_more = message.get("more_body", False)
            if len(body) > MAX_BODY_BYTES:
                raise _too_long()
    if deadline.cancelled_caught:
        raise HTTPException(408, f"The body did not arrive within {BODY_TIMEOUT_S:g} s.")
    return bytes(body)


def _too_long() -> HTTPException:
    return HTTPException(413, f"The body is longer than {MAX_BODY_BYTES} bytes.")


async def _on_node_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, NodeError)  # noqa: S101  # by the table in make_app
    return error_reply(error)


_CODES: Mapping[int, ErrorCode] = {404: ErrorCode.NOT_FOUND, 408: ErrorCode.TIMEOUT}


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # by the table in make_app
    message = error.detail
    if error.status_code == 404:
        message = f"There is no {request.url.path!r:.100} here."
    elif error.status_code == 405:
        message = f"{request.method} is not possible on {request.url.path}."
    code = _CODES.get(error.status_code, ErrorCode.USAGE)
    # the rest of a body we did not read is still on its way: this connection cannot be used again
    headers = {**(error.headers or {}), "connection": "close"}
    return error_reply(NodeError(code, message), status=error.status_code, headers=headers)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return error_reply(NodeError(ErrorCode.INTERRUPTED, "The client left."))


async def _on_bug(request: Request, error: Exception) -> Response:
    return error_reply(
        NodeError(
            ErrorCode.FAILED,
            f"The node failed on this request ({type(error).__name__}); the log has the details.",
            "paris-node logs",
        )
    )
