"""A swarm in one process: real services over an in-memory network, DHT and bulk transport.

Time is trio's mock clock: `virtual_time` makes the wall clock follow it and runs threads inline, so
that a test of hours takes a second and is the same every time. Trainers are a fake program that
speaks the real worker protocol; every file, blob, signature and database is real.
"""

import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

import node.clock
import node.training_job
from node.board import Board
from node.catalog import Catalog
from node.claiming import Claiming
from node.config import Config
from node.context import NodeContext
from node.fetching import Fetcher, ProgressHook
from node.home import prepare
from node.journal import Journal
from node.keeping import keep, keep_folder
from node.membership import Membership
from node.peerbook import PeerBook
from node.publishing import Publisher
from node.replication import Replicator
from node.state import open_state
from node.supervise import Supervisor, WorkerDiedError
from node.watching import Watching
from node.workers.link import Message
from p2p import blob_files
from p2p.blobs import BlobStore
from p2p.codec import pack
from p2p.dht.memory import MemoryDht, MemoryRecordStore
from p2p.dht.port import StoredRecord
from p2p.errors import DecodeError, StorageError, TransportError
from p2p.identity import Identity
from p2p.ids import BlobId, ClusterId, PeerId, RunId
from p2p.limits import DHT_CALL_TIMEOUT_S
from p2p.memory_host import MemoryNetwork
from p2p.records import ClaimPolicy, FileSet, RunManifest
from p2p.transfer import BulkPeer, PullProgress, PullResult, check_blob

EPOCH_S = 1_800_000_000.0
POLICY = ClaimPolicy(lease_s=30.0, renew_s=8.0, settle_s=1.0, patience_renewals=1000)
BUDGET = 1000
SAVE_EVERY = 100
STALL_S = 10.0
"""After which the bulk transport gives a silent provider up, as the real one does."""


def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make wall time follow trio's (mock) clock, and threads run inline."""

    async def inline(function: Callable[..., Any], *args: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(node.clock, "time", SimpleNamespace(time=wall))
    monkeypatch.setattr(trio.to_thread, "run_sync", inline)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # power cuts are tested elsewhere


def wall() -> float:
    """Seconds since the epoch, by trio's clock."""
    return EPOCH_S + trio.current_time()


# --- bulk --------------------------------------------------------------------------------------
@dataclass
class BulkHub:
    """Whose store is behind which swarm child, and who misbehaves how.

    Attributes:
        stores: blob stores by the child's id.
        faults: "lie" (altered bytes), "stall" (silence), "die" (gone after one blob), "empty".
        pulls: what was asked, one entry per call.
        gate: calls wait here while it is set to an event.
        served: blobs each child gave.
    """

    stores: dict[str, BlobStore] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    pulls: list[tuple[BlobId, ...]] = field(default_factory=list)
    gate: trio.Event | None = None
    served: dict[str, int] = field(default_factory=dict)


@dataclass
class _Outcome:
    """What one pull came to so far."""

    fetched: dict[BlobId, tuple[str, int]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class MemorySwarm:
    """One node's swarm child: records over a `MemoryDht`, bulk over a `BulkHub`."""

    name: str
    records: MemoryRecordStore
    hub: BulkHub
    blobs: BlobStore
    bootstraps: list[tuple[str, ...]] = field(default_factory=list)
    hangs: bool = False
    """Every DHT call takes until its deadline, as a `get` of the real one was seen to do."""
    is_ready: bool = True
    puts: int = 0

    @property
    def child_id(self) -> str:
        return f"child-{self.name}"

    def addresses(self) -> tuple[str, ...]:
        return (f"/ip4/127.0.0.1/tcp/9/p2p/{self.child_id}",) if self.is_ready else ()

    async def put(self, key: str, subkey: bytes, value: bytes, expires_at: float) -> bool:
        self.puts += 1
        await self._hang()
        return await self.records.put(key, subkey, value, expires_at)

    async def get(self, key: str) -> tuple[StoredRecord, ...]:
        await self._hang()
        return await self.records.get(key)

    async def _hang(self) -> None:
        if self.hangs:
            await trio.sleep(DHT_CALL_TIMEOUT_S)
            raise TransportError("the DHT did not answer in time")

    async def bootstrap(self, addresses: Sequence[str]) -> int:
        await trio.lowlevel.checkpoint()
        self.bootstraps.append(tuple(addresses))
        return len(addresses)

    async def wait_ready(self, timeout_s: float) -> None:
        if not self.is_ready:
            await trio.sleep(timeout_s)
            raise TransportError("the swarm child is not ready")
        await trio.lowlevel.checkpoint()

    async def known_peers(self) -> int:
        await trio.lowlevel.checkpoint()
        return len(self.hub.stores) - 1

    async def pull(
        self,
        blobs: Sequence[tuple[BlobId, int]],
        providers: Sequence[BulkPeer],
        on_progress: ProgressHook,
    ) -> PullResult:
        self.hub.pulls.append(tuple(blob for blob, _ in blobs))
        await trio.sleep(0.01)
        if self.hub.gate is not None:
            await self.hub.gate.wait()
        outcome = _Outcome()
        for provider in providers:
            missing = [blob for blob, _ in blobs if blob not in outcome.fetched]
            if missing:
                await self._from(provider.peer_id, missing, outcome)
                on_progress(_progress(len(outcome.fetched), len(blobs)))
        return _result(blobs, outcome)

    async def _from(self, child: str, wanted: list[BlobId], outcome: _Outcome) -> None:
        fault, store = self.hub.faults.get(child), self.hub.stores.get(child)
        if store is None or fault == "stall":
            await trio.sleep(STALL_S)
            outcome.failed.append((child, "no answer"))
            return
        for number, blob in enumerate(wanted):
            if fault == "die" and number == 1:
                outcome.failed.append((child, "went away"))
                return
            if fault == "empty" or not store.has(blob):
                continue
            data = store.get(blob)
            data = data[:-1] + bytes([data[-1] ^ 1]) if fault == "lie" else data
            try:
                check_blob(blob, [data])
            except DecodeError as error:
                outcome.bad.append((child, str(error)))
                return
            blob_files.write_blob(self.blobs.root, blob, [data])
            self.hub.served[child] = self.hub.served.get(child, 0) + 1
            outcome.fetched[blob] = (child, len(data))


def _progress(done: int, total: int) -> PullProgress:
    return PullProgress(done, total, done, total, sources=1)


def _result(blobs: Sequence[tuple[BlobId, int]], outcome: _Outcome) -> PullResult:
    by_peer: dict[str, int] = {}
    for child, size in outcome.fetched.values():
        by_peer[child] = by_peer.get(child, 0) + size
    return PullResult(
        fetched_blobs=len(outcome.fetched),
        fetched_bytes=sum(by_peer.values()),
        present_blobs=0,
        duplicate_bytes=0,
        missing=tuple(blob for blob, _ in blobs if blob not in outcome.fetched),
        bad_peers=tuple(outcome.bad),
        failed_peers=tuple(outcome.failed),
        bytes_by_peer=tuple(by_peer.items()),
        seconds=0.01,
    )


# --- the trainer -------------------------------------------------------------------------------
@dataclass
class TrainerFarm:
    """The fake trainer program: real messages, real folders, samples instead of gradients.

    Attributes:
        samples_per_s: speed, in virtual time.
        running: trainers under way, by the state folder they write to.
        dies: state folders whose trainer dies at its next message.
        orders: every order received.
    """

    samples_per_s: float = 10.0
    running: dict[str, "FakeTrainer"] = field(default_factory=dict)
    orders: list[Message] = field(default_factory=list)
    die_after_messages: int | None = None

    @asynccontextmanager
    async def open_worker(self, module: str, **_: Any) -> AsyncIterator["FakeTrainer"]:
        assert module == "node.workers.trainer"
        trainer = FakeTrainer(self)
        try:
            yield trainer
        finally:
            self.running.pop(trainer.state, None)


@dataclass(eq=False)
class FakeTrainer:
    """One trainer: `start_from` or its own state, whichever is further, then on to the budget."""

    farm: TrainerFarm
    pid: int = 4242
    state: str = ""
    samples: int = 0
    saved_at: int = -1
    is_killed: bool = False
    news: list[Message] = field(default_factory=list)
    sent: int = 0
    _stop: trio.Event = field(default_factory=trio.Event)

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if message["kind"] == "stop":
            self._stop.set()
            return
        self.farm.orders.append(message)
        self.state = str(message["state"])
        self.farm.running[self.state] = self
        starts = [
            Path(self.state),
            *([Path(str(message["start_from"]))] * bool(message["start_from"])),
        ]
        self.samples = max(map(_samples_in, starts))
        summary = Path(self.state).parent / f"summary-{message['cluster']}.safetensors"
        summary.parent.mkdir(parents=True, exist_ok=True)
        summary.write_bytes(f"summary of {message['cluster']}".encode())
        self.news += [
            {"kind": "summary", "path": str(summary)},
            {"kind": "started", "samples": self.samples},
        ]

    async def receive(self) -> Message:
        self.sent += 1
        if self.is_killed:
            raise WorkerDiedError("node.workers.trainer", -9, Path("trainer.log"))
        if self.farm.die_after_messages is not None and self.sent > self.farm.die_after_messages:
            raise WorkerDiedError("node.workers.trainer", -9, Path("trainer.log"))
        if self.news:
            await trio.lowlevel.checkpoint()
            return self.news.pop(0)
        if self.samples >= BUDGET:
            return self._leave()
        with trio.move_on_after(1.0) as second:
            await self._stop.wait()
        if not second.cancelled_caught:
            return self._leave()
        before = self.samples
        self.samples = min(BUDGET, self.samples + int(self.farm.samples_per_s))
        if self.samples // SAVE_EVERY > before // SAVE_EVERY:
            self.news.append(self._save())
        return {
            "kind": "step",
            "step": self.samples // 10,
            "samples": self.samples,
            "loss": 0.5,
            "samples_per_s": self.farm.samples_per_s,
        }

    def kill(self) -> None:
        """As `Worker.kill`: nothing more will come."""
        self.is_killed = True

    def _leave(self) -> Message:
        if self.saved_at != self.samples:
            self.news.append({"kind": "done"})
            return self._save()
        return {"kind": "done"}

    def _save(self) -> Message:
        folder = Path(self.state) / f"step-{self.samples}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(f"{self.samples} {self.state}".encode())
        (Path(self.state) / "model.safetensors").write_bytes(f"{self.samples}".encode())
        self.saved_at = self.samples
        return {
            "kind": "saved",
            "path": str(folder),
            "step": self.samples // 10,
            "samples": self.samples,
            "loss": 0.5,
        }


def _samples_in(folder: Path) -> int:
    model = folder / "model.safetensors"
    return int(model.read_bytes().split()[0]) if model.exists() else 0


# --- the nodes ---------------------------------------------------------------------------------
@dataclass
class MemberNode:
    """A node's parts as `node.app` would put them together, and a switch to kill it."""

    context: NodeContext
    swarm: MemorySwarm
    membership: Membership
    catalog: Catalog
    board: Board
    publisher: Publisher
    claiming: Claiming
    replicator: Replicator
    watching: Watching
    supervisor: Supervisor = field(default_factory=Supervisor)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def peer(self) -> PeerId:
        return self.context.identity.peer

    @property
    def name(self) -> str:
        return self.swarm.name

    @property
    def clusters(self) -> tuple[ClusterId, ...]:
        return tuple(one.claim.cluster for one in self.claiming.held())

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What the journal says of one kind of event."""
        import json

        path = self.context.config.paths.events_file
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    async def run(self, *names: str) -> None:
        """Run some services, or all that a training node has, until cancelled or killed."""
        services = {
            "membership": self.membership.run,
            "watching": self.watching.run,
            "publishing": self.publisher.run,
            "claiming": self.claiming.run,
            "replication": self.replicator.run,
        }
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    for name in names or services:
                        nursery.start_soon(self.supervisor.run, name, services[name])
        finally:
            self.ended.set()


@dataclass
class World:
    """One network, one DHT, one bulk hub; nodes come and go."""

    folder: Path
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    dht: MemoryDht = field(default_factory=lambda: MemoryDht(clock=wall))
    hub: BulkHub = field(default_factory=BulkHub)
    farm: TrainerFarm = field(default_factory=TrainerFarm)
    clusters: int = 4
    policy: ClaimPolicy = POLICY
    nodes: dict[str, MemberNode] = field(default_factory=dict)

    def manifest(self, blobs: BlobStore) -> RunManifest:
        """The run, its data put into a store."""
        shared = keep_folder(blobs, _folder_of(blobs, "run.json", b"shared"), "shared")
        data = [
            keep_folder(blobs, _folder_of(blobs, "data.bin", f"data {k}".encode()), f"data/{k}")
            for k in range(self.clusters)
        ]
        return RunManifest(
            name="tiny",
            clusters=self.clusters,
            preset="tiny-cpu",
            budget_samples=BUDGET,
            save_samples=SAVE_EVERY,
            shared=shared,
            data=tuple(data),
            claim_policy=self.policy,
        )

    @asynccontextmanager
    async def open_node(self, name: str, **settings: Any) -> AsyncIterator[MemberNode]:
        """A node of this name; the same name again is the same home, as after a restart."""
        identity = Identity.from_seed(name.encode().ljust(32, b"."))
        config = Config(home=self.folder / name, name=name, **settings)
        prepare(config.paths)
        quota = config.quota_bytes
        blobs = BlobStore.open(config.paths.blobs, quota_bytes=quota, floor_bytes=0)
        manifest = self.manifest(blobs)
        run = RunId(blobs.put(pack(manifest)))
        keep(blobs, BlobId(run), "run", ())
        swarm = MemorySwarm(name, self.dht.store(name), self.hub, blobs)
        self.hub.stores[swarm.child_id] = blobs
        with open_state(config.paths.database) as state:
            async with self.network.open_host(identity.seed) as host:
                peers = PeerBook(identity.peer)
                context = NodeContext(
                    config=config,
                    identity=identity,
                    run=run,
                    swarm=swarm,
                    host=host,
                    blobs=blobs,
                    state=state,
                    peers=peers,
                    fetcher=Fetcher(run, blobs, swarm, swarm, peers),
                    journal=Journal(config.paths.events_file, identity.peer),
                    folder=config.paths.runs / run,
                )
                context.folder.mkdir(parents=True, exist_ok=True)
                made = assemble(context, manifest, swarm)
                self.nodes[name] = made
                try:
                    yield made
                finally:
                    del self.nodes[name]
                    self.hub.stores.pop(swarm.child_id, None)

    async def kill(self, node: MemberNode) -> None:
        """End a node as `kill -9` does: nothing is released, nothing is said."""
        self.dht.take_down(node.name)
        self.hub.stores.pop(node.swarm.child_id, None)
        self.network.cut([link for link in list(self.network._links) if node.peer in link])
        node.scope.cancel()
        await node.ended.wait()

    def owners(self, reader: MemberNode) -> dict[ClusterId, str | None]:
        """Who owns each cluster, by name, as one node read it last."""
        names = {one.peer: one.name for one in self.nodes.values()}
        return {
            cluster: None if each.owner is None else names.get(each.owner, each.owner)
            for cluster, each in reader.board.ownerships.items()
        }


def assemble(context: NodeContext, manifest: RunManifest, swarm: MemorySwarm) -> MemberNode:
    """A node's services, wired as in `node.app`."""
    catalog = Catalog(context, manifest)
    board = Board(context, catalog)
    publisher = Publisher(context, catalog)
    replicator = Replicator(context, catalog)
    return MemberNode(
        context=context,
        swarm=swarm,
        membership=Membership(context),
        catalog=catalog,
        board=board,
        publisher=publisher,
        claiming=Claiming(context, manifest, catalog, board, publisher),
        replicator=replicator,
        watching=Watching(context, catalog, board, replicator),
    )


def _folder_of(blobs: BlobStore, name: str, data: bytes) -> FileSet:
    from p2p.records import FileEntry

    return FileSet((FileEntry(name, len(data), (blobs.put(data),)),))


@asynccontextmanager
async def open_nodes(
    world: World, names: Sequence[str], **settings: Any
) -> AsyncIterator[list[MemberNode]]:
    """Several nodes; each but the first is given the first one's address."""
    async with AsyncExitStack() as stack:
        nodes: list[MemberNode] = []
        for name in names:
            peers = nodes[0].context.host.listening() if nodes else ()
            nodes.append(
                await stack.enter_async_context(
                    world.open_node(name, **{"peers": peers, **settings})
                )
            )
        yield nodes


@asynccontextmanager
async def running(*nodes: MemberNode) -> AsyncIterator[trio.Nursery]:
    """Run nodes until the block is left."""
    async with trio.open_nursery() as nursery:
        for each in nodes:
            nursery.start_soon(each.run)
        yield nursery
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], *, within_s: float, step_s: float = 0.25) -> float:
    """Wait, in virtual time, until something holds; seconds waited. Fails after `within_s`."""
    started = trio.current_time()
    while not condition():
        assert trio.current_time() - started <= within_s, f"not within {within_s} s"
        await trio.sleep(step_s)
    return trio.current_time() - started


def saved_folder(world_folder: Path, samples: int, *, tag: str = "") -> Path:
    """A checkpoint folder as a trainer leaves it."""
    folder = world_folder / f"save-{tag}-{samples}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(f"{samples} {tag}".encode())
    return folder


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object) -> World:
    """An empty world under virtual time, with fake trainers.

    The test must ask for `autojump_clock` too: pytest-trio looks for a clock among its arguments.
    """
    virtual_time(monkeypatch)
    random.seed(7)  # jitter
    made = World(tmp_path)
    monkeypatch.setattr(node.training_job, "open_worker", made.farm.open_worker)
    return made


__all__ = [
    "BUDGET",
    "EPOCH_S",
    "POLICY",
    "SAVE_EVERY",
    "BulkHub",
    "FakeTrainer",
    "MemberNode",
    "MemorySwarm",
    "StorageError",
    "TrainerFarm",
    "World",
    "assemble",
    "open_nodes",
    "replace",
    "running",
    "saved_folder",
    "until",
    "virtual_time",
    "wall",
    "world",
]
