import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.client import NodeClient
from node.errors import ErrorCode, NodeError
from node.home import ApiFile, Home, prepare, write_api_file
from tests.support.fake_node import CID, MISSING_CID, PEER, FakeNode, served

ASK = {"prompt": "a red boat"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home.at(tmp_path / "home")
    prepare(made)
    return made


@contextmanager
def _answering(raw: bytes, *, then_wait: bool = False) -> Iterator[ApiFile]:
    """A server that answers any one request with `raw`, then closes, or waits for the client."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(raw)
                if then_wait:
                    connection.settimeout(10)
                    connection.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        yield ApiFile(f"http://127.0.0.1:{server.getsockname()[1]}", "t", os.getpid())
        thread.join(10)


def _code(api: ApiFile, timeout_s: float | None = None) -> ErrorCode:
    with pytest.raises(NodeError) as caught:
        NodeClient(api, timeout_s=timeout_s).get("/api/v1/status")
    return caught.value.code


def test_answers_of_a_running_node_arrive(home: Home) -> None:
    with served(FakeNode(), home.data, pid=os.getpid()):
        client = NodeClient.of_home(home)
        assert client.get("/api/v1/status")["peer_id"] == PEER
        assert client.post("/api/v1/stop")["stopping"] is True
        assert client.pid == os.getpid()


def test_events_arrive_in_order(home: Home) -> None:
    with served(FakeNode(), home.data, pid=os.getpid()):
        client = NodeClient.of_home(home)
        with client.stream(f"/api/v1/experts/{CID}/pull") as events:
            kinds = [event["event"] for event in events]
        assert kinds == ["progress", "progress", "progress", "done"]


def test_error_of_the_node_keeps_its_code_and_fix(home: Home) -> None:
    with served(FakeNode(), home.data, pid=os.getpid()):
        with pytest.raises(NodeError) as caught:
            NodeClient.of_home(home).get(f"/api/v1/experts/{MISSING_CID}")
        assert caught.value.code is ErrorCode.NOT_FOUND
        assert caught.value.fix == "paris-node experts find"


def test_error_midway_is_raised_where_the_events_are_read(home: Home) -> None:
    node = FakeNode(late_error=NodeError(ErrorCode.NO_PEERS, "gone", "wait"))
    with served(node, home.data, pid=os.getpid()):
        seen: list[object] = []
        with (
            pytest.raises(NodeError, match="gone") as caught,
            NodeClient.of_home(home).stream("/api/v1/generate", ASK) as events,
        ):
            seen.extend(event["event"] for event in events)
        assert seen == ["route", "progress"]
        assert caught.value.code is ErrorCode.NO_PEERS


def test_stream_that_breaks_off_is_a_failure(home: Home) -> None:
    with served(FakeNode(late_error=RuntimeError("bug")), home.data, pid=os.getpid()):
        with (
            pytest.raises(NodeError, match="in the middle") as caught,
            NodeClient.of_home(home).stream("/api/v1/generate", ASK) as events,
        ):
            list(events)
        assert caught.value.code is ErrorCode.FAILED


@pytest.mark.slow
def test_leaving_a_stream_cancels_the_work_in_the_node(home: Home) -> None:
    node = FakeNode(is_endless=True)
    with served(node, home.data, pid=os.getpid()):
        with NodeClient.of_home(home).stream("/api/v1/generate", ASK) as events:
            next(events)
        deadline = time.monotonic() + 5
        while not node.cancelled and time.monotonic() < deadline:
            time.sleep(0.01)
        assert node.cancelled == 1


def test_callers_own_broken_pipe_is_not_the_nodes(home: Home) -> None:
    def print_to_nobody() -> None:
        with NodeClient.of_home(home).stream("/api/v1/generate", ASK):
            raise BrokenPipeError

    with served(FakeNode(), home.data, pid=os.getpid()), pytest.raises(BrokenPipeError):
        print_to_nobody()


def test_home_without_a_node_says_how_to_start_one(home: Home) -> None:
    with pytest.raises(NodeError) as caught:
        NodeClient.of_home(home)
    assert caught.value.code is ErrorCode.NOT_RUNNING
    assert "paris-node start" in caught.value.fix


def test_dead_node_is_not_running(home: Home) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    write_api_file(home, ApiFile("http://127.0.0.1:4180", "t", process.pid))
    with pytest.raises(NodeError) as caught:
        NodeClient.of_home(home)
    assert caught.value.code is ErrorCode.NOT_RUNNING


def test_refused_connection_is_not_running() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert _code(ApiFile(f"http://127.0.0.1:{port}", "t", os.getpid())) is ErrorCode.NOT_RUNNING


def test_node_of_another_home_on_our_port_is_not_ours(home: Home) -> None:
    with served(FakeNode(), home.data, pid=os.getpid()) as api:
        other = ApiFile(api.url, "another token", api.pid)
        assert _code(other) is ErrorCode.NOT_RUNNING


@pytest.mark.parametrize(
    "url",
    ["http://192.168.1.7:4180", "https://127.0.0.1:4180", "http://127.0.0.1", "http://evil:4180",
     "ftp://127.0.0.1:1", "", "http://127.0.0.1:99999", "http://[::1", "http://127.0.0.1:x"],
)  # fmt: skip
def test_token_never_leaves_the_machine(url: str) -> None:
    assert _code(ApiFile(url, "t", os.getpid())) is ErrorCode.FAILED


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<html></h",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n<html></h",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 500 Bad\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_answer_of_another_program_is_a_sentence(raw: bytes) -> None:
    with _answering(raw) as api:
        assert _code(api) is ErrorCode.FAILED


def test_silence_ends_at_the_persons_deadline() -> None:
    with _answering(b"", then_wait=True) as api:
        begun = time.monotonic()
        assert _code(api, timeout_s=0.05) is ErrorCode.TIMEOUT
        assert time.monotonic() - begun < 2


def test_deadline_is_for_the_whole_stream_not_for_each_event(home: Home) -> None:
    with served(FakeNode(is_endless=True), home.data, pid=os.getpid()):
        client = NodeClient.of_home(home, timeout_s=0.15)
        with (
            pytest.raises(NodeError, match=r"--timeout 0\.15 s") as caught,
            client.stream("/api/v1/generate", ASK) as events,
        ):
            for _ in events:
                pass
        assert caught.value.code is ErrorCode.TIMEOUT


def test_silence_without_a_deadline_ends_at_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.client.DEFAULT_TIMEOUT_S", 0.05)
    with _answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", then_wait=True) as api:
        assert _code(api) is ErrorCode.TIMEOUT


def test_stream_waits_for_each_event_as_long_as_its_caller_knows_it_may_take(home: Home) -> None:
    with served(FakeNode(is_endless=True, is_silent=True), home.data, pid=os.getpid()):
        with (
            pytest.raises(NodeError, match=r"said nothing for 0\.1 s") as caught,
            NodeClient.of_home(home).stream("/api/v1/generate", ASK, silence_s=0.1) as events,
        ):
            for _ in events:
                pass
        assert caught.value.code is ErrorCode.TIMEOUT
