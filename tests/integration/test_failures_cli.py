"""What a person sees when something is wrong: message, way out and exit code, through the CLI."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from p2p.ids import blob_id
from scripts.local_swarm import LOOPBACK, LocalNode, wait_for

pytestmark = pytest.mark.slow

UNKNOWN = blob_id(b"no such thing")
START = (
    *("start", "--host-listen", LOOPBACK, "--bulk-listen", LOOPBACK),
    *("--api-port", "0", "--no-lan", "--no-relay", "--no-train"),
)


def paris_node(home: Path, *arguments: str, patience_s: float = 60.0) -> tuple[int, dict[str, Any]]:
    """Exit code, and the last JSON object printed."""
    done = subprocess.run(
        [sys.executable, "-m", "node", "--home", str(home), "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=patience_s,
        check=False,
        env={**os.environ, "PARIS_NODE_JOIN_TIMEOUT_S": "3"},
    )
    lines = done.stdout.strip().splitlines()
    assert lines, done.stderr
    assert "Traceback" not in done.stderr
    answer: dict[str, Any] = json.loads(lines[-1])
    return done.returncode, answer


def says(answer: dict[str, Any], *parts: str) -> bool:
    """Whether the error's message and fix together hold every part."""
    error = answer["error"]
    text = f"{error['message']} {error['fix']}"
    return all(part in text for part in parts)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A loopback port that another program listens on."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A fresh home."""
    return tmp_path / "home"


@pytest.fixture
def running(tmp_path: Path, tiny_run: tuple[str, Path]) -> Iterator[LocalNode]:
    """A node of the tiny run that does not train, alone."""
    run, founder = tiny_run
    node = LocalNode(tmp_path / "alone")
    shutil.copytree(founder, node.home)
    node.home.chmod(0o700)
    node.start(run=run, flags=["--no-train"])
    try:
        node.wait_ready()
        yield node
    finally:
        node.stop()


def test_a_malformed_run_id_is_wrong_usage(home: Path) -> None:
    code, answer = paris_node(home, *START, "--run", "bafkrei-no")
    assert code == 2
    assert answer["error"]["fix"]


def test_an_unknown_run_without_peers_ends_with_no_peers(home: Path) -> None:
    code, answer = paris_node(home, *START, "--run", UNKNOWN)
    assert code == 5
    assert says(answer, UNKNOWN, "no peer could be reached", "--peer")


def test_an_unreachable_bootstrap_for_an_unknown_run_ends_with_no_peers(
    home: Path, running: LocalNode
) -> None:
    address = running.status()["listening"][0]
    running.stop()
    code, answer = paris_node(home, *START, "--run", UNKNOWN, "--peer", address)
    assert code == 5
    assert says(answer, UNKNOWN)


def test_a_run_the_peers_do_not_have_is_named_beside_theirs(home: Path, running: LocalNode) -> None:
    status = running.status()
    code, answer = paris_node(home, *START, "--run", UNKNOWN, "--peer", status["listening"][0])
    assert code == 4
    assert says(answer, UNKNOWN, status["run"])


def test_a_home_belongs_to_one_run(running: LocalNode) -> None:
    bound = running.status()["run"]
    running.stop()
    code, answer = paris_node(running.home, *START, "--run", UNKNOWN)
    assert code == 7
    assert says(answer, bound, UNKNOWN, "--home")


def test_a_bootstrap_that_is_down_is_a_status_and_not_an_error(
    tmp_path: Path, tiny_run: tuple[str, Path], taken_port: int
) -> None:
    run, founder = tiny_run
    node = LocalNode(tmp_path / "lonely")
    shutil.copytree(founder, node.home)
    node.home.chmod(0o700)
    somebody = "12D3KooWBmAwcd4PJNJvfV89HwE48nwkRmAgo8Vy3uQEyNNHBox2"
    peer = f"/ip4/127.0.0.1/tcp/{taken_port}/p2p/{somebody}"
    node.start(run=run, peers=[peer], flags=["--no-train"])
    try:
        node.wait_ready()
        text = wait_for(
            lambda: "retrying in" in (t := str(node.status()["network"])) and t, "status", 40
        )
        assert str(text).startswith("0 peers")
    finally:
        node.stop()


@pytest.mark.parametrize("flag", ["--host-listen", "--bulk-listen"])
def test_a_taken_port_is_named(home: Path, taken_port: int, flag: str) -> None:
    code, answer = paris_node(home, *START, flag, f"/ip4/127.0.0.1/tcp/{taken_port}")
    assert code == 8
    assert says(answer, str(taken_port), "in use")


def test_a_taken_api_port_is_named(home: Path, taken_port: int) -> None:
    code, answer = paris_node(home, *START, "--api-port", str(taken_port))
    assert code == 8
    assert says(answer, str(taken_port), "--api-port")


def test_a_damaged_database_is_named_with_the_way_out(home: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "node.db").write_bytes(b"this was a database" * 400)
    code, answer = paris_node(home, *START)
    assert code == 1
    assert says(answer, "node.db", "mv ")


def test_a_damaged_identity_is_refused_and_kept(home: Path) -> None:
    home.mkdir(mode=0o700)
    key = home / "identity.key"
    key.write_bytes(b"not a key")
    key.chmod(0o600)
    code, answer = paris_node(home, *START)
    assert code == 7
    assert says(answer, "identity.key")
    assert key.read_bytes() == b"not a key"


def test_a_home_that_others_can_read_is_refused(home: Path) -> None:
    home.mkdir(mode=0o755)
    (home / "something").touch()
    home.chmod(0o755)
    code, answer = paris_node(home, *START)
    assert code == 7
    assert says(answer, "chmod 700")


def test_a_full_store_is_a_resource_error_with_numbers(home: Path) -> None:
    code, answer = paris_node(home, *START, "--quota", "1MiB")
    assert code == 8
    assert says(answer, "quota")


def test_a_checkpoint_that_nobody_has_is_not_found(running: LocalNode) -> None:
    code, answer = paris_node(running.home, "experts", "pull", UNKNOWN)
    assert code in (4, 5)
    assert says(answer, UNKNOWN)


def test_a_blob_that_is_no_checkpoint_is_not_found(running: LocalNode) -> None:
    code, answer = paris_node(running.home, "experts", "show", running.status()["run"])
    assert code == 4
    assert says(answer, "not a checkpoint")


def test_drawing_without_experts_or_peers_says_so(running: LocalNode, tmp_path: Path) -> None:
    target = tmp_path / "x.png"
    code, answer = paris_node(running.home, "generate", "a bar", "-o", str(target))
    assert code == 5
    assert says(answer, "expert")
    assert not target.exists()


def test_asking_a_peer_when_there_is_none_says_so(running: LocalNode, tmp_path: Path) -> None:
    code, answer = paris_node(
        running.home, "generate", "a bar", "--where", "peer", "-o", str(tmp_path / "x.png")
    )
    assert code == 5
    assert says(answer, "no peer", "--where local")


def test_a_home_without_a_node_says_how_to_start_one(home: Path) -> None:
    code, answer = paris_node(home, "status")
    assert code == 3
    assert says(answer, "paris-node start")
