"""Two machines on one network, played by two network namespaces of this one."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0


def ip(*arguments: str) -> None:
    """Run `ip`, which must succeed."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def two_machines() -> Iterator[tuple[str, str]]:
    """Names of two namespaces joined by one cable, each with an address and nothing else."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = (f"paris-{os.getpid()}-a", f"paris-{os.getpid()}-b")
    cables = (f"pa{os.getpid()}", f"pb{os.getpid()}")
    made: list[str] = []
    try:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
            made.append(name)
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for number, (name, cable) in enumerate(zip(names, cables, strict=True), start=1):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "address", "add", f"192.0.2.{number}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "route", "add", "default", "dev", cable)
        yield names
    finally:
        for name in made:
            ip("netns", "delete", name)


def paris_node(machine: str, home: Path, *arguments: str) -> list[str]:
    """The command line of a `paris-node` on one of the machines."""
    inside = ["ip", "netns", "exec", machine, sys.executable, "-m", "node"]
    return [*inside, "--home", str(home), *arguments]


def test_two_machines_on_one_network_find_each_other_with_no_argument(
    two_machines: tuple[str, str], tmp_path: Path
) -> None:
    homes = [tmp_path / machine for machine in two_machines]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for machine, home in zip(two_machines, homes, strict=True):
            with home.with_suffix(".out").open("wb") as output:
                command = paris_node(machine, home, "start", "--no-train")
                started.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
        names = [_peer_id(machine, home) for machine, home in zip(two_machines, homes, strict=True)]
        _wait_for_text(two_machines[0], homes[0], "peers", names[1])
        _wait_for_text(two_machines[1], homes[1], "peers", names[0])
    finally:
        for process in started:
            process.terminate()
        for process in started:
            assert process.wait(20) == 0


def _peer_id(machine: str, home: Path) -> str:
    text = _wait_for_text(machine, home, "status", '"peer_id"')
    return text.partition('"peer_id": "')[2].partition('"')[0]


def _wait_for_text(machine: str, home: Path, verb: str, text: str) -> str:
    """Ask a running node until its answer holds `text`."""
    deadline = time.monotonic() + PATIENCE_S
    said = ""
    while time.monotonic() < deadline:
        command = paris_node(machine, home, verb, "--json")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout
        if text in said:
            return said
        time.sleep(0.5)
    raise AssertionError(f"{verb} never showed {text!r}: {said[-400:]}")
