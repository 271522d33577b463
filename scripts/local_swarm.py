"""Real nodes on this machine, as separate processes on loopback: started, asked, killed, stopped.

For the demo, the benchmarks and the swarm tests. Each node has a home, ports and a log of its own;
nothing here reaches into a node but through its API and its command line.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from node.client import NodeClient
from node.errors import NodeError
from node.home import Home

T = TypeVar("T")
LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
START_PATIENCE_S: Final = 120.0
STOP_PATIENCE_S: Final = 10.0
_POLL_S: Final = 0.25


class SwarmError(Exception):
    """A node of the swarm did not do what it should; the message says where to look."""


def cli(*arguments: str, home: Path | None = None, timeout_s: float = 300.0) -> dict[str, Any]:
    """Run one `paris-node --json` command and return its answer.

    Raises:
        SwarmError: if it failed, with what it said.
    """
    command = [sys.executable, "-m", "node"]
    if home is not None:
        command += ["--home", str(home)]
    done = subprocess.run(
        [*command, "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = lines[-1] if lines else done.stderr.strip()[-400:]
        raise SwarmError(f"paris-node {' '.join(arguments)}: exit {done.returncode}: {said}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


@dataclass(slots=True)
class LocalNode:
    """One node process."""

    home: Path
    process: subprocess.Popen[bytes] | None = None
    _client: NodeClient | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Its folder's name: how the swarm's owner calls it."""
        return self.home.name

    def start(
        self, *, run: str | None, peers: Sequence[str] = (), flags: Sequence[str] = ()
    ) -> None:
        """Start the process; returns at once."""
        self.home.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "node", "--home", str(self.home), "start"]
        command += ["--host-listen", LOOPBACK, "--bulk-listen", LOOPBACK]
        command += ["--api-port", "0", "--no-lan", "--no-relay", *flags]
        if run is not None:
            command += ["--run", run]
        for peer in peers:
            command += ["--peer", peer]
        log = self.home.with_suffix(".out")
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._client = None

    def client(self) -> NodeClient:
        """Its API, once it answers."""
        if self._client is None:
            self._client = NodeClient.of_home(Home.at(self.home))
        return self._client

    def get(self, path: str) -> dict[str, Any]:
        """GET a path of its API."""
        return self.client().get(path)

    def status(self) -> dict[str, Any]:
        """Its status."""
        return self.get("/api/v1/status")

    def events(self) -> list[dict[str, Any]]:
        """Its journal so far."""
        path = Home.at(self.home).events_file
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line]

    def wait_ready(self) -> dict[str, Any]:
        """Wait until its API answers, and return its status."""
        return wait_for(self._try_status, f"{self.name} to answer", START_PATIENCE_S)

    def _try_status(self) -> dict[str, Any] | None:
        if self.process is not None and self.process.poll() is not None:
            said = self.home.with_suffix(".out").read_text()[-600:]
            raise SwarmError(f"{self.name} ended with status {self.process.returncode}: {said}")
        try:
            return self.status()
        except NodeError:
            self._client = None
            return None

    def kill(self) -> None:
        """SIGKILL: no goodbye, nothing saved."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> None:
        """SIGTERM, if it runs; returns at once."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> float:
        """SIGTERM, and wait; seconds it took. SIGKILL if it will not."""
        begun = time.monotonic()
        if self.process is not None:
            self.terminate()
            try:
                self.process.wait(STOP_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill()
        return time.monotonic() - begun


def wait_for(
    probe: Callable[[], T | None], what: str, patience_s: float, *, poll_s: float = _POLL_S
) -> T:
    """Poll until `probe` gives something true.

    Raises:
        SwarmError: if it does not in time.
    """
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(poll_s)
    raise SwarmError(f"waited {patience_s:g} s for {what}")


@contextmanager
def local_swarm(folder: Path) -> Iterator[Callable[[str], LocalNode]]:
    """Nodes by name under one folder; all of them are stopped at the end, whatever happens."""
    nodes: dict[str, LocalNode] = {}

    def node(name: str) -> LocalNode:
        return nodes.setdefault(name, LocalNode(folder / name))

    try:
        yield node
    finally:
        running = [each for each in nodes.values() if each.process is not None]
        for each in running:
            each.terminate()
        for each in running:
            each.stop()
