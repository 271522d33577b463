"""Who may ask the local API: token, Host, Origin, method, path."""

import pytest

from tests.support.fake_node import CID, FakeNode
from tests.support.http_served import TOKEN, parse, read_all, running


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
            assert parse(await read_all(stream))[0] == 401


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
