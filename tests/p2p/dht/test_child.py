"""The child program at its door: what it loads, and a socket that is not a node's."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2p.dht.child import EXIT_BAD_SOCKET, EXIT_CLEAN
from p2p.dht.frames import Message, MessageDecoder, pack_message
from p2p.dht.settings import ChildSettings

pytestmark = pytest.mark.slow


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after one statement."""
    program = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    return {name.partition(".")[0] for name in json.loads(output)}


def test_client_loads_neither_network_stack_nor_torch() -> None:
    loaded = modules_after("import p2p.dht.client, p2p.dht.memory")
    assert loaded.isdisjoint({"hivemind", "libp2p", "torch", "google"})


def test_child_loads_hivemind_without_torch() -> None:
    loaded = modules_after("import p2p.dht.child")
    assert "hivemind" in loaded
    assert loaded.isdisjoint({"torch", "libp2p", "transformers"})


def start_child() -> tuple["subprocess.Popen[bytes]", socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        child = subprocess.Popen(
            [sys.executable, "-m", "p2p.dht.child", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.DEVNULL,
        )
    ours.settimeout(30)
    return child, ours


def settings_for(folder: Path) -> ChildSettings:
    return ChildSettings(
        seed=bytes([5]) * 32,
        runtime_dir=folder,
        listen=("/ip4/127.0.0.1/tcp/0",),
        announce=(),
        bootstrap=(),
        blob_root=None,
        max_upload_bytes_per_s=None,
        max_download_bytes_per_s=None,
        has_port_mapping=False,
        has_auto_relay=False,
        rejoin_s=40.0,
        probe_s=10.0,
    )


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", EXIT_CLEAN),
        (b"\xff\xff\xff\xff", EXIT_BAD_SOCKET),
        (b"GET / HTTP/1.1\r\n\r\n", EXIT_BAD_SOCKET),
        (pack_message({"seed": b"short"}), EXIT_BAD_SOCKET),
    ],
)
def test_first_frame_that_is_no_settings_ends_it(sent: bytes, code: int) -> None:
    child, ours = start_child()
    with ours:
        ours.sendall(sent)
        ours.shutdown(socket.SHUT_WR)
        assert child.wait(timeout=30) == code


def receive_until(ours: socket.socket, decoder: MessageDecoder, field: str) -> Message:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for message in decoder.feed(ours.recv(65536)):
            if field in message:
                return message
    raise AssertionError(f"no message with {field!r} came")


def test_requests_are_answered_and_garbage_ends_it(tmp_path: Path) -> None:
    runtime = Path("/tmp") / f"paris-test-{time.monotonic_ns()}"
    runtime.mkdir(mode=0o700)
    child, ours = start_child()
    with ours:
        decoder = MessageDecoder()
        ours.sendall(pack_message(settings_for(runtime).to_message()))
        assert receive_until(ours, decoder, "event")["event"] == "ready"
        ours.sendall(pack_message({"id": 1, "op": "ping"}))
        assert receive_until(ours, decoder, "ok") == {"id": 1, "ok": {}}
        ours.sendall(pack_message({"id": 2, "op": "fly"}))
        assert receive_until(ours, decoder, "error")["error"] == "usage"
        ours.sendall(pack_message({"id": 3, "op": "put", "key": 7}))
        assert receive_until(ours, decoder, "error")["error"] == "invalid"
        ours.sendall(b"\x00\x00\x00\x03abc")
        assert child.wait(timeout=10) == EXIT_BAD_SOCKET
    assert not runtime.exists(), "it takes its folder with it"
