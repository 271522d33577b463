"""The local API's table: what a program of this machine may ask, and what nobody may."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from io import BytesIO
from typing import Any

import pytest
import trio

from node.errors import ErrorCode, NodeError
from node.http import serve_http
from node.http.limits import (
    BODY_TIMEOUT_S,
    HEADER_TIMEOUT_S,
    MAX_BODY_BYTES,
    MAX_CONNECTIONS,
    MAX_HEADER_BYTES,
    WRITE_TIMEOUT_S,
)
from tests.support.fake_node import CID, MISSING_CID, OTHER_PEER, PEER, FakeNode

TOKEN = "the-token-of-this-test"
ASK = {"prompt": "a red boat"}


class Served:
    """A node served on a port, and the ways to talk to it."""

    def __init__(self, node: FakeNode, url: str, scope: trio.CancelScope) -> None:
        self.node = node
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.scope = scope

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    def head(self, method: str, path: str, **headers: str | None) -> bytes:
        """A request's head; a header given as None is left out."""
        given = {"Host": f"127.0.0.1:{self.port}", "Authorization": f"Bearer {TOKEN}"}
        lines = [f"{method} {path} HTTP/1.1"]
        for name, value in {
            **given,
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }.items():
            if value is not None:
                lines.append(f"{name}: {value}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    async def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str | None
    ) -> tuple[int, Any]:
        """One request on a connection of its own; status and the parsed answer."""
        if body is not None:
            headers["Content-Length"] = str(len(body))
        async with await self.connect() as stream:
            await stream.send_all(self.head(method, path, Connection="close", **headers))
            if body:
                await stream.send_all(body)
            return _parse(await _read_all(stream))


async def _read_all(stream: trio.SocketStream) -> bytes:
    data = b""
    while piece := await stream.receive_some(65536):
        data += piece
    return data


class _Canned:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> BytesIO:
        return BytesIO(self._data)


def _parse(raw: bytes) -> tuple[int, Any]:
    response = HTTPResponse(_Canned(raw))  # type: ignore[arg-type]  # all it needs of a socket
    response.begin()
    lines = [json.loads(line) for line in response.read().splitlines()]
    is_stream = response.headers["content-type"] == "application/x-ndjson"
    return response.status, lines if is_stream else lines[0] if lines else None


@asynccontextmanager
async def running(node: FakeNode | None = None) -> AsyncIterator[Served]:
    actual = node or FakeNode()
    async with trio.open_nursery() as nursery:
        serve = partial(serve_http, actual, host="127.0.0.1", port=0, token=TOKEN)
        url = await nursery.start(serve)
        yield Served(actual, url, nursery.cancel_scope)
        nursery.cancel_scope.cancel()


# --- who may ask -------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["status", "peers", "clusters", "experts", f"experts/{CID}"])
async def test_right_token_reads_everything(path: str) -> None:
    async with running() as served:
        status, answer = await served.ask("GET", f"/api/v1/{path}")
        assert (status, answer["schema"]) == (200, 1)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}",
     TOKEN, "Bearer \xe9\xff"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/v1/status"), ("POST", "/api/v1/stop"), ("GET", "/nowhere"),
     ("POST", "/livez/../api/v1/stop")],
)  # fmt: skip
async def test_wrong_token_reads_and_does_nothing(
    authorization: str | None, method: str, path: str
) -> None:
    async with running() as served:
        status, answer = await served.ask(method, path, Authorization=authorization)
        assert (status, answer["error"]["code"]) == (401, "refused")
        assert not served.node.is_stopped


async def test_two_tokens_are_none() -> None:
    async with running() as served:
        head = served.head("GET", "/api/v1/status", Connection="close").replace(
            b"\r\n\r\n", b"\r\nAuthorization: Bearer x\r\n\r\n"
        )
        async with await served.connect() as stream:
            await stream.send_all(head)
            assert _parse(await _read_all(stream))[0] == 401


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_health_needs_no_token_but_the_right_host(path: str) -> None:
    async with running() as served:
        assert (await served.ask("GET", path, Authorization=None))[0] == 200
        assert (await served.ask("GET", path, Host="evil.example"))[0] == 403


async def test_node_without_a_run_is_alive_but_not_ready() -> None:
    node = FakeNode()
    whole = node.status()
    node.status = lambda: {**whole, "run": None}  # type: ignore[method-assign]
    async with running(node) as served:
        assert (await served.ask("GET", "/livez"))[0] == 200
        assert await served.ask("GET", "/readyz") == (503, {"schema": 1, "ready": False})


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "LOCALHOST:{}", "[::1]:{}"])
async def test_our_own_hosts_are_answered(host: str) -> None:
    async with running() as served:
        assert (await served.ask("GET", "/api/v1/status", Host=host.format(served.port)))[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{}", "127.0.0.1", "localhost", "127.0.0.1:1", "127.0.0.1:{}0",
     "127.0.0.2:{}", "localhost.evil.example:{}", "127.0.0.1:{}@evil.example", "", "::1:{}"],
)  # fmt: skip
async def test_rebound_host_is_refused_even_with_the_token(host: str) -> None:
    async with running() as served:
        status, answer = await served.ask("GET", "/api/v1/status", Host=host.format(served.port))
        assert (status, answer["error"]["code"]) == (403, "refused")


@pytest.mark.parametrize("origin", ["http://127.0.0.1:{}", "http://localhost:{}"])
async def test_our_own_page_may_ask(origin: str) -> None:
    async with running() as served:
        status, _ = await served.ask("POST", "/api/v1/stop", Origin=origin.format(served.port))
        assert status == 202
        assert served.node.is_stopped


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{}", "127.0.0.1:{}",
     "http://127.0.0.1:{}.evil.example", "file://", ""],
)  # fmt: skip
async def test_another_page_may_not_even_with_the_token(origin: str) -> None:
    async with running() as served:
        status, _ = await served.ask("POST", "/api/v1/stop", Origin=origin.format(served.port))
        assert status == 403
        assert not served.node.is_stopped


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/v1/status"), ("GET", "/api/v1/generate"), ("GET", "/api/v1/stop"),
     ("GET", f"/api/v1/experts/{CID}/pull"), ("DELETE", "/api/v1/peers"),
     ("OPTIONS", "/api/v1/generate"), ("TRACE", "/livez")],
)  # fmt: skip
async def test_wrong_method_is_405(method: str, path: str) -> None:
    async with running() as served:
        status, answer = await served.ask(method, path)
        assert (status, answer["error"]["code"]) == (405, "usage")
        assert not served.node.is_stopped
        assert not served.node.requests


@pytest.mark.parametrize("path", ["/", "/api/v1", "/api/v1/nothing", "/api/v1/experts/a/b/c"])
async def test_unknown_path_is_404_in_json(path: str) -> None:
    async with running() as served:
        status, answer = await served.ask("GET", path)
        assert (status, answer["error"]["code"]) == (404, "not_found")


# --- what is asked -----------------------------------------------------------------------------
async def test_unsaid_fields_get_their_defaults() -> None:
    async with running() as served:
        assert (await served.ask("POST", "/api/v1/generate", json.dumps(ASK).encode()))[0] == 200
        assert served.node.requests == [
            {"prompt": "a red boat", "n": 1, "seed": None, "strategy": "sticky", "sampler": "ab2",
             "steps": 10, "guidance": 4.0, "where": "auto", "peer": None}
        ]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b"{}", b'{"prompt": NaN}', b"[" * 100_000,
     b'{"prompt": "x", "guidance": Infinity}'],
)  # fmt: skip
async def test_body_that_is_no_request_is_400(body: bytes) -> None:
    async with running() as served:
        status, answer = await served.ask("POST", "/api/v1/generate", body)
        assert (status, answer["error"]["code"]) == (400, "usage")
        assert not served.node.requests


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("prompt", "x" * 1024, "x" * 1025),
        ("prompt", "é" * 512, "é" * 513),
        ("prompt", "x", "  "),
        ("prompt", "x", "\ud800"),
        ("prompt", "x", ["x"]),
        ("n", 1, 0),
        ("n", 16, 17),
        ("n", 2, True),
        ("n", 2, 2.0),
        ("seed", 0, -1),
        ("seed", 2**63 - 1, 2**63),
        ("strategy", "top2", "top3"),
        ("sampler", "euler", "heun"),
        ("sampler", "ab2", ["ab2"]),
        ("steps", 1, 0),
        ("steps", 100, 101),
        ("guidance", 0, -0.1),
        ("guidance", 30.0, 30.1),
        ("guidance", 1, "1"),
        ("guidance", 2.5, True),
        ("where", "local", "cloud"),
        ("peer", PEER, PEER[:-1]),
        ("peer", None, "x" * 5000),
        ("where", "auto", 7),
    ],
)
async def test_field_is_taken_up_to_its_limit_and_refused_beyond(
    field: str, good: object, bad: object
) -> None:
    async with running() as served:
        body = json.dumps({**ASK, field: good}).encode()
        assert (await served.ask("POST", "/api/v1/generate", body))[0] == 200
        body = json.dumps({**ASK, field: bad}).encode()
        status, answer = await served.ask("POST", "/api/v1/generate", body)
        assert (status, answer["error"]["code"]) == (400, "usage")
        assert field in answer["error"]["message"]
        assert len(served.node.requests) == 1


@pytest.mark.parametrize("extra", [{"size": 1}, {"peer": OTHER_PEER, "where": "local"}])
async def test_unknown_or_contradicting_fields_are_refused(extra: dict[str, object]) -> None:
    async with running() as served:
        body = json.dumps({**ASK, **extra}).encode()
        assert (await served.ask("POST", "/api/v1/generate", body))[0] == 400


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"experts/{CID}", 200),
        (f"experts/{MISSING_CID}", 404),
        ("experts/nothing", 400),
        ("experts/..%2f..%2fetc", 404),
        (f"experts/{CID.upper()}", 400),
        ("experts?cluster=3", 200),
        ("experts?cluster=1023", 200),
        ("experts?cluster=1024", 400),
        ("experts?cluster=-1", 400),
        ("experts?cluster=" + "9" * 5000, 400),
        ("experts?cluster=%D9%A3", 400),
        ("experts?cluster=", 400),
    ],
)
async def test_path_and_query_are_checked(path: str, status: int) -> None:
    async with running() as served:
        assert (await served.ask("GET", f"/api/v1/{path}"))[0] == status


async def test_cluster_narrows_the_search() -> None:
    async with running() as served:
        assert len((await served.ask("GET", "/api/v1/experts?cluster=3"))[1]["experts"]) == 1
        assert not (await served.ask("GET", "/api/v1/experts?cluster=4"))[1]["experts"]


async def test_body_of_the_largest_size_is_read_and_one_byte_more_is_not() -> None:
    body = json.dumps(ASK).encode()
    async with running() as served:
        largest = body.ljust(MAX_BODY_BYTES)
        assert (await served.ask("POST", "/api/v1/generate", largest))[0] == 200
        status, answer = await served.ask("POST", "/api/v1/generate", largest + b" ")
        assert (status, answer["error"]["code"]) == (413, "usage")


@pytest.mark.parametrize(("size", "status"), [(MAX_BODY_BYTES, 200), (MAX_BODY_BYTES + 1, 413)])
async def test_body_of_unannounced_size_is_counted(size: int, status: int) -> None:
    body = json.dumps(ASK).encode().ljust(size)
    async with running() as served, await served.connect() as stream:
        head = served.head(
            "POST", "/api/v1/generate", Transfer_Encoding="chunked", Connection="close"
        )
        await stream.send_all(head + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
        assert _parse(await _read_all(stream))[0] == status


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 400, "0x10"])
async def test_length_that_is_no_number_is_refused(length: str) -> None:
    async with running() as served, await served.connect() as stream:
        await stream.send_all(served.head("POST", "/api/v1/generate", Content_Length=length))
        status = (await _read_all(stream)).split(b" ", 2)[1]
        assert status in (b"400", b"413")
        assert not served.node.requests


@pytest.mark.parametrize(
    ("size", "is_answered"), [(MAX_HEADER_BYTES - 400, True), (MAX_HEADER_BYTES + 100, False)]
)
async def test_headers_are_bounded(size: int, is_answered: bool) -> None:
    async with running() as served, await served.connect() as stream:
        head = served.head("GET", "/api/v1/status", Connection="close", X_Filler="x" * size)
        await stream.send_all(head)
        status = (await _read_all(stream)).split(b" ", 2)[1]
        assert status == (b"200" if is_answered else b"431")


# --- time and number; clocks that jump cannot wait on real sockets, so limits are made small ----
@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.http.routes.BODY_TIMEOUT_S", 0.05)
    monkeypatch.setattr("node.http.connection.HEADER_TIMEOUT_S", 0.05)
    monkeypatch.setattr("node.http.connection.WRITE_TIMEOUT_S", 0.05)


def test_the_limits_of_time_are_the_designs() -> None:
    assert (HEADER_TIMEOUT_S, BODY_TIMEOUT_S, WRITE_TIMEOUT_S) == (10.0, 10.0, 10.0)
    assert (MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_CONNECTIONS) == (2**20, 2**14, 32)


@pytest.mark.usefixtures("_hasty")
async def test_slow_body_is_408() -> None:
    async with running() as served, await served.connect() as stream:
        head = served.head("POST", "/api/v1/generate", Content_Length="100")
        await stream.send_all(head + b'{"prompt"')
        status, answer = _parse(await _read_all(stream))
        assert (status, answer["error"]["code"]) == (408, "timeout")


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize("sent", [b"", b"GET /livez HT"])
async def test_slow_header_is_cut_off(sent: bytes) -> None:
    async with running() as served, await served.connect() as stream:
        await stream.send_all(sent)
        with trio.fail_after(5):
            assert await _read_all(stream) == b""


@pytest.mark.usefixtures("_hasty")
async def test_answer_that_takes_longer_than_any_read_timeout_goes_on() -> None:
    async with running(FakeNode(is_endless=True)) as served, await served.connect() as stream:
        body = json.dumps(ASK).encode()
        head = served.head("POST", "/api/v1/generate", Content_Length=str(len(body)))
        await stream.send_all(head + body)
        with trio.fail_after(5):
            seen = b""
            begun = trio.current_time()
            while trio.current_time() - begun < 0.2:
                piece = await stream.receive_some(65536)
                assert piece
                seen += piece
        assert seen.count(b'"progress"') > 12


@pytest.mark.usefixtures("_hasty")
async def test_reader_that_takes_nothing_is_dropped_and_its_work_cancelled() -> None:
    node = FakeNode(is_endless=True, event_size=4_000_000)
    async with running(node) as served, await served.connect() as stream:
        body = json.dumps(ASK).encode()
        head = served.head("POST", "/api/v1/generate", Content_Length=str(len(body)))
        await stream.send_all(head + body)
        with trio.fail_after(5):
            await node.ended.wait()
        assert node.cancelled == 1
        assert (await served.ask("GET", "/livez"))[0] == 200


async def test_client_that_leaves_cancels_the_work() -> None:
    node = FakeNode(is_endless=True)
    async with running(node) as served:
        body = json.dumps(ASK).encode()
        stream = await served.connect()
        head = served.head("POST", "/api/v1/generate", Content_Length=str(len(body)))
        await stream.send_all(head + body)
        assert b"200" in await stream.receive_some(1000)
        await stream.aclose()
        with trio.fail_after(5):
            await node.ended.wait()
        assert node.cancelled == 1


async def test_connections_are_bounded_and_a_freed_place_is_given_again() -> None:
    async with running() as served:
        streams = [await served.connect() for _ in range(MAX_CONNECTIONS)]
        await streams[-1].send_all(served.head("GET", "/api/v1/status"))
        assert b" 200 " in await streams[-1].receive_some(100)
        status, answer = await served.ask("GET", "/api/v1/status")
        assert (status, answer["error"]["code"]) == (503, "resource")
        await streams[0].aclose()
        with trio.fail_after(5):
            while (await served.ask("GET", "/api/v1/status"))[0] != 200:  # noqa: ASYNC110
                await trio.sleep(0.01)  # until the server has seen the other end close
        for stream in streams:
            await stream.aclose()


async def test_refused_uploads_do_not_hold_their_connections() -> None:
    async with running() as served:
        body = b"x" * 300_000
        for _ in range(MAX_CONNECTIONS + 4):
            with trio.fail_after(5):
                status, _ = await served.ask("POST", "/api/v1/generate", body, Authorization="no")
            assert status == 401


async def test_stop_is_prompt_while_a_reader_takes_nothing() -> None:
    node = FakeNode(is_endless=True, event_size=4_000_000)
    async with running(node) as served, await served.connect() as stream:
        body = json.dumps(ASK).encode()
        head = served.head("POST", "/api/v1/generate", Content_Length=str(len(body)))
        await stream.send_all(head + body)
        await stream.receive_some(1)
        await trio.sleep(0.05)  # for its buffers to fill
        begun = trio.current_time()
        served.scope.cancel()
    assert trio.current_time() - begun < 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 100,
        b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: !!!\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        b"GET /%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
async def test_no_request_ends_the_server(garbage: bytes) -> None:
    async with running() as served:
        async with await served.connect() as stream:
            await stream.send_all(garbage)
            await stream.send_eof()
            with trio.fail_after(5):
                assert b" 200 " not in await _read_all(stream)
        assert (await served.ask("GET", "/livez"))[0] == 200


# --- what is answered --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.FAILED, 500),
        (ErrorCode.USAGE, 400),
        (ErrorCode.NOT_RUNNING, 503),
        (ErrorCode.NOT_FOUND, 404),
        (ErrorCode.NO_PEERS, 503),
        (ErrorCode.VERIFICATION_FAILED, 502),
        (ErrorCode.REFUSED, 403),
        (ErrorCode.RESOURCE, 507),
        (ErrorCode.TIMEOUT, 504),
        (ErrorCode.INTERRUPTED, 503),
    ],
)
async def test_failure_before_the_first_event_has_its_status(code: ErrorCode, status: int) -> None:
    node = FakeNode(generate_error=NodeError(code, "why", "what to do"))
    async with running(node) as served:
        assert await served.ask("POST", "/api/v1/generate", json.dumps(ASK).encode()) == (
            status,
            {"schema": 1, "error": {"code": code.label, "message": "why", "fix": "what to do"}},
        )


@pytest.mark.parametrize("is_grouped", [False, True])
async def test_failure_midway_is_the_last_event(is_grouped: bool) -> None:
    error: Exception = NodeError(ErrorCode.NO_PEERS, "why", "what")
    node = FakeNode(late_error=ExceptionGroup("a nursery's", [error]) if is_grouped else error)
    async with running(node) as served:
        status, events = await served.ask("POST", "/api/v1/generate", json.dumps(ASK).encode())
        assert status == 200
        assert events[-1] == {
            "event": "error",
            "schema": 1,
            "error": {"code": "no_peers", "message": "why", "fix": "what"},
        }


async def test_bug_in_the_node_is_500_without_its_secrets_and_the_server_lives() -> None:
    node = FakeNode(generate_error=RuntimeError("a secret"))
    async with running(node) as served:
        status, answer = await served.ask("POST", "/api/v1/generate", json.dumps(ASK).encode())
        assert (status, answer["error"]["code"]) == (500, "failed")
        assert "secret" not in json.dumps(answer)
        assert (await served.ask("GET", "/livez"))[0] == 200


async def test_pull_streams_to_its_end_and_missing_cid_is_404() -> None:
    async with running() as served:
        status, events = await served.ask("POST", f"/api/v1/experts/{CID}/pull")
        assert (status, events[-1]["event"]) == (200, "done")
        assert (await served.ask("POST", f"/api/v1/experts/{MISSING_CID}/pull"))[0] == 404


async def test_node_that_stops_at_once_answers_first() -> None:
    async with running() as served:
        served.node.on_stop = served.scope.cancel
        with trio.CancelScope(shield=True), trio.fail_after(5):
            assert (await served.ask("POST", "/api/v1/stop"))[0] == 202
        assert served.scope.cancel_called


async def test_stop_counts_though_its_client_does_not_wait() -> None:
    async with running() as served:
        stopped = trio.Event()
        served.node.on_stop = stopped.set
        async with await served.connect() as stream:
            await stream.send_all(served.head("POST", "/api/v1/stop"))
            await stream.receive_some(1)
        with trio.fail_after(5):
            await stopped.wait()


async def test_one_connection_serves_many_requests() -> None:
    async with running() as served:

        def talk() -> list[int]:
            connection = HTTPConnection("127.0.0.1", served.port, timeout=5)
            statuses = []
            for _ in range(3):
                connection.request(
                    "GET", "/api/v1/status", headers={"Authorization": f"Bearer {TOKEN}"}
                )
                response = connection.getresponse()
                response.read()
                statuses.append(response.status)
            connection.close()
            return statuses

        assert await trio.to_thread.run_sync(talk) == [200, 200, 200]


# --- the port ----------------------------------------------------------------------------------
async def test_taken_port_is_an_error_unless_it_may_fall_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        serve = partial(serve_http, FakeNode(), host="127.0.0.1", port=port, token=TOKEN)
        with pytest.raises(NodeError, match=f"Port {port} .* is taken") as caught:
            await serve()
        assert caught.value.code is ErrorCode.RESOURCE
        assert "--api-port" in caught.value.fix
        async with trio.open_nursery() as nursery:
            url = await nursery.start(partial(serve, fallback=True))
            assert url.startswith("http://127.0.0.1:")
            assert url != f"http://127.0.0.1:{port}"
            nursery.cancel_scope.cancel()


async def test_free_port_is_the_one_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    async with trio.open_nursery() as nursery:
        serve = partial(serve_http, FakeNode(), host="127.0.0.1", port=port, token=TOKEN)
        assert await nursery.start(serve) == f"http://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()
