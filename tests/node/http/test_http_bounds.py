"""What the local API survives: slow, many, rude and departing clients.

A clock that jumps cannot wait on real sockets, so the limits of time are made small instead.
"""

import json

import pytest
import trio

from node.http.limits import (
    BODY_TIMEOUT_S,
    HEADER_TIMEOUT_S,
    MAX_BODY_BYTES,
    MAX_CONNECTIONS,
    MAX_HEADER_BYTES,
    WRITE_TIMEOUT_S,
)
from tests.support.fake_node import FakeNode
from tests.support.http_served import ASK, parse, read_all, running


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
        with trio.fail_after(5):
            status, answer = parse(await read_all(stream))
        assert (status, answer["error"]["code"]) == (408, "timeout")


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize("sent", [b"", b"GET /livez HT"])
async def test_slow_header_is_cut_off(sent: bytes) -> None:
    async with running() as served, await served.connect() as stream:
        await stream.send_all(sent)
        with trio.fail_after(5):
            assert await read_all(stream) == b""


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


@pytest.mark.parametrize("is_silent", [False, True])
async def test_client_that_leaves_cancels_the_work(is_silent: bool) -> None:
    node = FakeNode(is_endless=True, is_silent=is_silent)
    async with running(node) as served:
        body = json.dumps(ASK).encode()
        stream = await served.connect()
        head = served.head("POST", "/api/v1/generate", Content_Length=str(len(body)))
        await stream.send_all(head + body)
        seen = b""
        while b'"step": 10' not in seen:
            seen += await stream.receive_some(1000)
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


async def test_client_that_offers_http_2_is_answered_in_http_1() -> None:
    async with running() as served, await served.connect() as stream:
        head = served.head(
            "GET", "/livez", Connection="Upgrade, HTTP2-Settings", Upgrade="h2c",
            HTTP2_Settings="AAMAAABkAAQAAP__",
        )  # fmt: skip
        await stream.send_all(head)
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 200 ")


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
                assert b" 200 " not in await read_all(stream)
        assert (await served.ask("GET", "/livez"))[0] == 200
