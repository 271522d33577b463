"""Nodes that offer, prove, verify and buy in one process: real proofs, records, blobs, databases.

Time is real, since proofs are made in child processes; with `PlainProving` in place of those it is
virtual. torch is not: `LinearAdapters` stands for the adapter worker, with a "loss"
that is exactly linear in what an adapter changes, so that the first order prediction can be checked
to the digit. The run's experts have two small layers.
"""

import hashlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

import node.lora_convert
from node.adapter_facts import (
    Claimed,
    DeltaJob,
    DeltaMeasured,
    Measured,
    ModulePairs,
    Place,
    ProbePlan,
    Purchase,
)
from node.adapters import Adapters, Answer
from node.home import Home
from node.lora_asking import LoraAsking
from node.lora_market import LoraMarket
from node.lora_rows import OfferStanding
from node.lora_serving import LoraServing
from node.lora_state import LoraState
from node.offer_board import OfferBoard
from node.offer_draft import Drafting, OfferWish
from node.offers import Offers
from node.proving import Proving
from p2p.codec import BLOB_KEY, seal
from p2p.dht.memory import MemoryDht
from p2p.ids import BlobId, ClusterId, PeerId
from p2p.records import CheckpointManifest
from tests.support.plain_proving import PlainProving
from tests.support.swarm import MemberNode, World
from training.lora.layers import PROBE_FILE, PROBE_WEIGHTS_FILE, ModuleShape
from verification.policy import Policy

LAYERS = (ModuleShape("block.to_q", 64, 64), ModuleShape("block.to_k", 64, 64))
RANK = 2
BASE_LOSS = 1.5
BASE_NORM = 8.0
"""||W|| of each layer, as the stand-in says."""

ANY_SIZE = Policy(least_ratio=0.0)
"""Whoever looks in samples a layer's size once: of two layers that may come out as next to nothing,
where forty average."""

Ints = dict[str, tuple[NDArray[np.int16], NDArray[np.int16]]]


def gradient(layer: str) -> NDArray[np.float64]:
    """dL/d(A B) of a layer [in, out]: rank one, the same for everybody."""
    rng = np.random.default_rng(len(layer) + ord(layer[-1]))
    u, v = rng.integers(-500, 500, 64), rng.integers(-500, 500, 64)
    return np.outer(u, v).astype(np.float64) * 5e-14


def helpful(scale: int = 1, seed: int = 3) -> Ints:
    """An adapter that goes down the gradient, with some noise; entries times `scale`."""
    rng = np.random.default_rng(seed)
    found: Ints = {}
    for layer in LAYERS:
        left, _, right = np.linalg.svd(gradient(layer.name))
        a, b = rng.normal(0, 20, (64, RANK)), rng.normal(0, 20, (RANK, 64))
        a[:, 0] -= 900 * left[:, 0]
        b[0] += 900 * right[0]
        found[layer.name] = ((a * scale).astype(np.int16), b.astype(np.int16))
    return found


def change(ints: Ints) -> float:
    """What an adapter does to the loss, exactly."""
    return float(
        sum(
            np.sum(gradient(name) * (a.astype(float) @ b.astype(float)))
            for name, (a, b) in ints.items()
        )
    )


def raw_of(ints: Ints) -> bytes:
    return b"".join(part.astype("<i2").tobytes() for layer in LAYERS for part in ints[layer.name])


def ints_of(raw: bytes) -> Ints:
    values, found, at = np.frombuffer(raw, "<i2"), {}, 0
    for layer in LAYERS:
        a = values[at : at + 64 * RANK].reshape(64, RANK)
        b = values[at + 64 * RANK : at + 128 * RANK].reshape(RANK, 64)
        found[layer.name] = (a.astype(np.int16), b.astype(np.int16))
        at += 128 * RANK
    return found


@dataclass
class LinearAdapters:
    """The adapter worker's stand-in: a model whose loss is linear in A B.

    Files are read by `trio.to_thread`, not `trio.Path`: virtual time would pass meanwhile.
    """

    ints: Ints = field(default_factory=helpful)
    claims: float | None = None
    """The adapted loss it claims; None for the true one."""
    asked: list[str] = field(default_factory=list)

    async def claim(self, place: Place, lora: Path, out: Path, *, timeout_s: float) -> Claimed:
        await trio.to_thread.run_sync(out.write_bytes, raw_of(self.ints))
        facts = json.loads(await trio.to_thread.run_sync((lora / "lora.json").read_text))
        true = BASE_LOSS + change(self.ints)
        return Claimed(
            base_loss=BASE_LOSS,
            adapted_loss=true if self.claims is None else self.claims,
            float_loss=true,
            rows=4,
            seed=1,
            scaling=1.0,
            rank=RANK,
            alpha=float(RANK),
            targets="attention",
            licence="CC0-1.0",
            base=facts["base"]["cid"],
            sha256=facts["sha256"],
            offer="",
            modules=LAYERS,
        )

    async def pairs(
        self, place: Place, probe: Path, targets: str, pairs: int, *, timeout_s: float
    ) -> ProbePlan:
        modules = []
        for layer in LAYERS:
            left, sigma, right = np.linalg.svd(gradient(layer.name))
            u = np.round(left[:, :pairs].T * 2047 / np.abs(left[:, :pairs]).max())
            v = np.round(right[:pairs] * 2047 / np.abs(right[:pairs]).max())
            unit = np.abs(left[:, :pairs]).max() * np.abs(right[:pairs]).max() / 2047**2
            weights = tuple(float(one * unit) for one in sigma[:pairs])
            modules.append(
                ModulePairs(layer.name, 1.0, BASE_NORM, weights, u.astype("<i2"), v.astype("<i2"))
            )
        return ProbePlan(BASE_LOSS, 4, 1, tuple(modules))

    async def measure(self, place: Place, probe: Path, lora: Path, *, timeout_s: float) -> Measured:
        ints = ints_of(await trio.to_thread.run_sync((lora / "arrays.bin").read_bytes))
        return Measured(BASE_LOSS, BASE_LOSS + change(ints), 4, 1)

    async def keep(
        self, place: Place, purchase: Purchase, folder: Path, *, timeout_s: float
    ) -> str:
        raw = await trio.to_thread.run_sync(purchase.arrays.read_bytes)
        await trio.to_thread.run_sync(folder.mkdir)
        await trio.to_thread.run_sync((folder / "arrays.bin").write_bytes, raw)
        write_lora_json(folder, purchase.cid, raw)
        return hashlib.sha256(raw).hexdigest()

    async def deltas(
        self, place: Place, job: DeltaJob, answer: Answer, *, timeout_s: float
    ) -> DeltaMeasured:
        """tr(X^-1 X A B G^T) through the owner's answers, X = 100 times the unit matrix."""
        total, rows = 0.0, 8 * job.draws
        for layer in LAYERS:
            x = 100 * np.eye(rows, 64, dtype=np.int16)
            data = await answer(layer.name, rows, x.astype("<i2").tobytes())
            deltas = np.frombuffer(data, "<i8").reshape(rows, 64) / 100.0
            total += float(np.sum(deltas * gradient(layer.name)[:rows]))
        return DeltaMeasured(BASE_LOSS, BASE_LOSS + total, rows)


def write_lora_json(folder: Path, base: str, raw: bytes) -> None:
    """The facts that the shelf reads."""
    facts = {
        "sha256": hashlib.sha256(raw).hexdigest(),
        "base": {"cid": base, "cluster": 0, "model_digest": "0" * 64},
    }
    (folder / "lora.json").write_text(json.dumps(facts))


@dataclass
class OfferNode:
    """A node's parts that have to do with offers."""

    member: MemberNode
    adapters: LinearAdapters
    proving: Proving
    offers: Offers
    board: OfferBoard
    serving: LoraServing
    market: LoraMarket

    @property
    def peer(self) -> PeerId:
        return self.member.peer

    @property
    def plain(self) -> PlainProving:
        """What stands for its prover."""
        assert isinstance(self.proving, PlainProving)
        return self.proving

    @property
    def loras(self) -> LoraState:
        return self.member.context.state.loras

    def standing(self, offer: BlobId) -> OfferStanding | None:
        """How far it looked into an offer; None if it never heard of it."""
        seen = self.loras.seen(offer)
        return seen.standing if seen else None

    async def offered(self, base: BlobId, **wish: Any) -> BlobId:
        """Offer its adapter, put on the shelf if it is not there; the offer's id."""
        if not (self.member.context.config.paths.loras / "boots").exists():
            self.shelve(base)
        facts = {"terms": "free", "scalars": 32, "delta_rows": 0, "days": 1.0, **wish}
        done = await last_of(self.offers.make(OfferWish(lora="boots", **facts)))
        return BlobId(done["offer"])

    def shelve(self, base: str, name: str = "boots") -> None:
        """Put the adapter on the shelf."""
        folder = self.member.context.config.paths.loras / name
        folder.mkdir(parents=True)
        write_lora_json(folder, base, raw_of(self.adapters.ints))
        (folder / PROBE_FILE).write_text("{}")
        (folder / PROBE_WEIGHTS_FILE).write_bytes(b"probe")

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for service in (
                self.member.membership.run,
                self.proving.run,
                self.offers.run,
                self.board.run,
                self.serving.run,
            ):
                nursery.start_soon(service)


@dataclass
class OfferWorld:
    """Nodes of one run, and a checkpoint that all know of."""

    world: World
    nodes: dict[str, OfferNode] = field(default_factory=dict)
    base: BlobId = field(init=False)
    is_plain: bool = False
    """Whether proofs are those of `PlainProving`."""

    @asynccontextmanager
    async def running(self, name: str) -> AsyncIterator[OfferNode]:
        """One more node, which has the base; the same name again is the same home."""
        others = [each.member.context.host.listening()[0] for each in self.nodes.values()]
        async with self.world.open_node(name, peers=tuple(others[:1])) as member:
            first, blobs = next(iter(self.nodes.values())), member.context.blobs
            blobs.pin(blobs.put(first.member.context.blobs.get(self.base)), "expert/0/16", ())
            node = self.nodes[name] = self.assembled(member)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.run)
                yield node
                nursery.cancel_scope.cancel()
            del self.nodes[name]

    async def acquainted(self) -> None:
        """Wait until every node has heard of every other."""
        nodes = self.nodes.values()
        others = len(nodes) - 1
        await seen_within(
            lambda: all(len(node.member.context.peers.peers()) >= others for node in nodes)
        )

    def assembled(self, member: MemberNode) -> OfferNode:
        """A node's parts, with the proving of this world."""
        proving = cast("Proving", PlainProving()) if self.is_plain else None
        return assembled(member, proving)

    def publish(self, owner: OfferNode, cluster: int = 0) -> BlobId:
        """A checkpoint of nothing, as a signed manifest that everybody finds at `owner`."""
        context = owner.member.context
        manifest = CheckpointManifest(
            run=context.run,
            cluster=ClusterId(cluster),
            epoch=1,
            step=1,
            samples=16,
            loss=1.0,
            parent=None,
            files=(),
            created_at=time.time(),
        )
        cid = context.blobs.put(seal(manifest, context.identity, key=BLOB_KEY, expires_at=None))
        context.blobs.pin(cid, "expert/0/16", ())
        return cid


def assembled(member: MemberNode, proving: Proving | None = None) -> OfferNode:
    """The services, wired as in `node.app`."""
    context, adapters = member.context, LinearAdapters()
    proving = proving or Proving(context.config.paths)
    as_real = cast("Adapters", adapters)
    drafting = Drafting(context, member.catalog, as_real, proving)
    offers = Offers(context, drafting, proving)
    board = OfferBoard(context, member.catalog, proving, ANY_SIZE)
    return OfferNode(
        member=member,
        adapters=adapters,
        proving=proving,
        offers=offers,
        board=board,
        serving=LoraServing(context, offers, proving),
        market=LoraMarket(context, board, as_real, proving, LoraAsking(context)),
    )


@asynccontextmanager
async def offer_world(
    folder: Path, *names: str, plain: World | None = None
) -> AsyncIterator[OfferWorld]:
    """Running nodes that know each other; the first one's checkpoint is the base.

    Args:
        folder: of their homes.
        names: theirs.
        plain: a world under virtual time, for nodes with `PlainProving`.
    """
    found = OfferWorld(
        plain or World(folder, dht=MemoryDht(clock=time.time)), is_plain=plain is not None
    )
    world = found.world
    async with AsyncExitStack() as stack:
        first: tuple[str, ...] = ()
        for name in names:
            member = await stack.enter_async_context(world.open_node(name, peers=first))
            first = first or member.context.host.listening()
            found.nodes[name] = found.assembled(member)
        found.base = found.publish(found.nodes[names[0]])
        async with trio.open_nursery() as nursery:
            for each in found.nodes.values():
                nursery.start_soon(each.run)
            yield found
            nursery.cancel_scope.cancel()


async def last_of(events: AsyncGenerator[dict[str, Any]]) -> dict[str, Any]:
    """The last event of a stream."""
    found: dict[str, Any] = {}
    async with aclosing(events):
        async for event in events:
            found = event
    return found


async def seen_within(condition: Callable[[], Any], within_s: float = 60.0) -> Any:
    """What a condition gives as soon as it gives something true."""
    with trio.fail_after(within_s):
        while not (found := condition()):  # noqa: ASYNC110  any state of any node
            await trio.sleep(0.05)
    return found


@pytest.fixture(scope="session")
def shared_circuits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of derived keys for all homes: they are the same in each."""
    return tmp_path_factory.mktemp("circuits")


@pytest.fixture
def two_layers(monkeypatch: pytest.MonkeyPatch, shared_circuits: Path) -> None:
    """Experts of two small layers, whatever preset the run has; keys derived once."""
    monkeypatch.setattr(node.lora_convert, "adaptable_layers", lambda preset, targets: LAYERS)
    monkeypatch.setattr(Home, "circuits", property(lambda home: shared_circuits))


@pytest.fixture
def small_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts of two small layers, whatever preset the run has."""
    monkeypatch.setattr(node.lora_convert, "adaptable_layers", lambda preset, targets: LAYERS)
