"""What the local API answers: errors, streams, ports."""

import json
import socket
from functools import partial
from http.client import HTTPConnection

import pytest
import trio

from node.errors import ErrorCode, NodeError
from node.http import serve_http
from tests.support.fake_node import CID, MISSING_CID, FakeNode
from tests.support.http_served import ASK, TOKEN, running


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
