"""Envelopes honest and not, DHT nodes on loopback, and a hostile hivemind node."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import trio

from p2p.codec import ENVELOPE_VERSION, SIGNING_TAG
from p2p.dht.client import DhtClient, open_dht
from p2p.dht.settings import DhtSettings
from p2p.identity import Identity
from p2p.ids import peer_public_key
from p2p.msgpack_guard import encode_plain

T = TypeVar("T")

ALICE, BOB, CAROL, MALLORY = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3, 66))
KEY = "paris/1/test/claim/0"


@dataclass(frozen=True)
class Sealed:
    """Arguments of `RecordStore.put`."""

    key: str
    subkey: bytes
    value: bytes
    expires_at: float


def sealed(
    owner: Identity,
    key: str = KEY,
    *,
    note: str = "",
    expires_at: float | None = None,
    life_s: float = 60.0,
) -> Sealed:
    """A valid envelope with a record of no known kind (the DHT does not look inside)."""
    until = time.time() + life_s if expires_at is None else expires_at
    return Sealed(key, owner.public_key, envelope(owner, key, until, note=note), until)


def envelope(owner: Identity, key: str, expires_at: float, *, note: str = "") -> bytes:
    """An envelope signed by `owner`, whatever it says."""
    body = encode_plain(
        {
            "e": expires_at,
            "k": key,
            "r": {"note": note},
            "s": owner.public_key,
            "t": "Note",
            "v": ENVELOPE_VERSION,
        }
    )
    return encode_plain([body, owner.sign(SIGNING_TAG + body)])


async def put(store: Any, record: Sealed) -> bool:
    """Put a sealed record."""
    return bool(await store.put(record.key, record.subkey, record.value, record.expires_at))


async def values(store: Any, key: str = KEY) -> set[bytes]:
    """The values a store finds under a key."""
    return {record.value for record in await store.get(key)}


async def eventually(check: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    """Wait until `check` says yes; real processes give no other sign."""
    with trio.fail_after(timeout_s):
        while not await check():  # noqa: ASYNC110
            await trio.sleep(0.05)


def dht_settings(folder: Path, seed: int, **changes: Any) -> DhtSettings:
    """A node on loopback that asks its router for nothing."""
    defaults: dict[str, Any] = {
        "seed": bytes([seed]) * 32,
        "private_dir": folder / f"node-{seed}",
        "listen": ("/ip4/127.0.0.1/tcp/0",),
        "has_port_mapping": False,
        "log_path": folder / f"node-{seed}.log",
    }
    return DhtSettings(**(defaults | changes))


@asynccontextmanager
async def open_nodes(folder: Path, count: int, **changes: Any) -> AsyncIterator[list[DhtClient]]:
    """Nodes that know each other through the first one."""
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(open_dht(dht_settings(folder, 101, **changes)))
        await first.wait_ready(30)
        nodes = [first]
        for number in range(1, count):
            settings = dht_settings(folder, 101 + number, bootstrap=first.addresses(), **changes)
            nodes.append(await stack.enter_async_context(open_dht(settings)))
        for node in nodes:
            await node.wait_ready(30)

        async def all_met() -> bool:
            return min([await node.known_peers() for node in nodes]) >= min(count - 1, 3)

        await eventually(all_met)
        yield nodes


class Portal:
    """A trio loop in a thread of its own, so that many tests share the same running nodes."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Call an async function in the loop and wait for its result."""
        return trio.from_thread.run(function, *arguments, trio_token=self._token)


@contextmanager
def nodes_in_thread(folder: Path, count: int) -> Iterator[tuple[Portal, list[DhtClient]]]:
    """`open_nodes` for tests that are not async and share the nodes."""
    opened: list[tuple[trio.lowlevel.TrioToken, trio.Event, list[DhtClient]]] = []
    failures: list[BaseException] = []
    is_up = threading.Event()

    async def keep_open() -> None:
        async with open_nodes(folder, count) as nodes:
            done = trio.Event()
            opened.append((trio.lowlevel.current_trio_token(), done, nodes))
            is_up.set()
            await done.wait()

    def loop() -> None:
        try:
            trio.run(keep_open)
        except BaseException as error:  # noqa: BLE001  # raised again in the test's thread
            failures.append(error)
            is_up.set()

    thread = threading.Thread(target=loop)
    thread.start()
    is_up.wait()
    try:
        if failures:
            raise failures[0]
        token, done, nodes = opened[0]
        try:
            yield Portal(token), nodes
        finally:
            trio.from_thread.run_sync(done.set, trio_token=token)
    finally:
        thread.join()


class HostileNode:
    """A bare hivemind node in a process of its own that sends whatever it is told to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.peer_id = str(self._receive()["peer"])

    def ask(self, operation: str, **fields: Any) -> Any:
        """Perform one attack; the victim's answer, or the error's text as `{"error": ...}`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": operation, **fields}) + "\n")
        self._process.stdin.flush()
        return self._receive()

    def store(self, victim: str, record: dict[str, Any], *, in_cache: bool = False) -> Any:
        """Send a raw store; whether the victim says that it took the record."""
        fields = {name: x.hex() if isinstance(x, bytes) else x for name, x in record.items()}
        answer = self.ask("store", victim=victim, in_cache=in_cache, **fields)
        return answer.get("stored", answer)

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the hostile node died"
        return json.loads(line)


@contextmanager
def hostile_node(victim: str, *, is_listed: bool = False) -> Iterator[HostileNode]:
    """Start a hostile node that knows one victim by its address.

    Args:
        victim: a multiaddr with `/p2p/<id>`.
        is_listed: whether it takes the DHT id that honest nodes expect of it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.hostile_hivemind", victim, str(int(is_listed))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield HostileNode(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def peer_of(address: str) -> str:
    """The peer id at the end of a multiaddr."""
    peer = address.rpartition("/p2p/")[2]
    peer_public_key(peer)
    return peer


def child_processes(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    children = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = (entry / "stat").read_text()
                if int(status.rpartition(")")[2].split()[1]) == pid:
                    children.append(int(entry.name))
    return children


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
