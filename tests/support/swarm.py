"""A swarm in one process: real services over an in-memory network, DHT and bulk transport.

Time is trio's mock clock: `virtual_time` makes the wall clock follow it and runs threads inline, so
that a test of hours takes a second and is the same every time. Trainers are a fake program that
speaks the real worker protocol; every file, blob, signature and database is real.
"""

import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
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
from node.fetching import Fetcher
from node.home import prepare
from node.journal import Journal
from node.keeping import keep, keep_folder
from node.membership import Membership
from node.peerbook import PeerBook
from node.publishing import Publisher
from node.replication import Replicator
from node.state import open_state
from node.supervise import Supervisor
from node.watching import Watching
from p2p.blobs import BlobStore
from p2p.codec import pack
from p2p.dht.memory import MemoryDht
from p2p.file_sets import FileEntry, FileSet
from p2p.identity import Identity
from p2p.ids import BlobId, ClusterId, PeerId, RunId
from p2p.memory_host import MemoryNetwork
from p2p.records import ClaimPolicy, RunManifest
from tests.support.fake_trainer import BUDGET, SAVE_EVERY, FakeTrainer, TrainerFarm
from tests.support.memory_swarm import STALL_S, BulkHub, MemorySwarm

EPOCH_S = 1_800_000_000.0
POLICY = ClaimPolicy(lease_s=30.0, renew_s=8.0, settle_s=1.0, patience_renewals=1000)


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
    "STALL_S",
    "BulkHub",
    "FakeTrainer",
    "MemberNode",
    "MemorySwarm",
    "TrainerFarm",
    "World",
    "assemble",
    "open_nodes",
    "running",
    "saved_folder",
    "until",
    "virtual_time",
    "wall",
    "world",
]
