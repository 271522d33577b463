"""What a drawing is made of: the newest experts, and for an adapter exactly the one it is for."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from node.asking import Asking
from node.drawing import Drawing, DrawOrder
from node.errors import ErrorCode, NodeError
from node.keeping import PULLED, keep_checkpoint
from node.lora_choice import ChosenLora
from node.lora_shelf import find_on_shelf
from node.lora_use import use
from node.publishing import Saved
from node.serving import Serving
from node.workers.link import Message
from p2p.blobs import blobs_of
from p2p.codec import BLOB_KEY, open_signed, seal
from p2p.errors import QuotaError
from p2p.file_sets import FileEntry
from p2p.ids import BlobId, ClusterId, RunId
from p2p.records import CheckpointManifest
from p2p.routing import Routing
from tests.node.test_fetching import acquaint, announce
from tests.support.people import cid
from tests.support.shelf import id_of, put_on_shelf
from tests.support.swarm import MemberNode, World, open_nodes, saved_folder, wall, world

__all__ = ["world"]

ZERO = ClusterId(0)
ORDER = DrawOrder("a boat", 1, 7, Routing(), "ab2", 5, 4.0)
PNG = b"\x89PNG\r\n\x1a\n and so on"


@dataclass
class FakeStudio:
    """Keeps its orders, and draws one picture of each."""

    orders: list[Message] = field(default_factory=list)

    async def draw(self, order: Message) -> AsyncGenerator[Message]:
        await trio.lowlevel.checkpoint()
        self.orders.append(order)
        yield {"kind": "image", "index": 0, "png": PNG, "shares": {"0": 1.0}}


@dataclass
class Scene:
    """Ada, who draws, and Ben, who published two experts of cluster 0."""

    ada: MemberNode
    ben: MemberNode
    older: BlobId
    newer: BlobId
    studio: FakeStudio = field(default_factory=FakeStudio)

    def drawing(self, node: MemberNode | None = None) -> Drawing:
        member = node or self.ada
        return Drawing(member.context, member.catalog, self.studio)  # type: ignore[arg-type]

    def chunks(self, checkpoint: BlobId) -> set[BlobId]:
        return chunks_of(self.ben, checkpoint)

    def pulled(self) -> set[BlobId]:
        """Every blob that anybody asked for in bulk."""
        return {blob for pull in self.ada.swarm.hub.pulls for blob in pull}


def chunks_of(node: MemberNode, checkpoint: BlobId) -> set[BlobId]:
    envelope = node.context.blobs.get(checkpoint)
    manifest = open_signed(CheckpointManifest, envelope, key=BLOB_KEY, now=0.0).record
    return {blob for blob, _ in blobs_of(manifest.files)}


def lora(base: BlobId, *, cluster: int = 0, scale: float = 0.5) -> ChosenLora:
    return ChosenLora(id_of("dark"), Path("/loras/dark"), ClusterId(cluster), base, scale)


async def publish(world: World, node: MemberNode, samples: int) -> BlobId:
    folder = saved_folder(world.folder, samples)
    saved = Saved(ZERO, 1, folder, samples // 10, samples, 0.5, None, is_orphan=False)
    return await node.publisher.checkpoint(saved)


def strange(node: MemberNode, *, run: RunId | None = None, cluster: int = 0) -> BlobId:
    """A checkpoint that a node holds and nobody advertises."""
    entry = FileEntry("model.safetensors", 7, (node.context.blobs.put(b"strange"),))
    manifest = CheckpointManifest(
        run=run or node.context.run,
        cluster=ClusterId(cluster),
        epoch=1,
        step=10,
        samples=100,
        loss=0.5,
        parent=None,
        files=(entry,),
        created_at=wall(),
    )
    envelope = seal(manifest, node.context.identity, key=BLOB_KEY, expires_at=None)
    return keep_checkpoint(node.context.blobs, envelope, ClusterId(9), 100, (entry,))


@asynccontextmanager
async def scene(world: World) -> AsyncIterator[Scene]:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        acquaint(ada, ben)
        acquaint(ben, ada)
        older, newer = [await publish(world, ben, samples) for samples in (100, 200)]
        nursery.start_soon(ben.publisher.run)
        await trio.sleep(1)
        await announce(ben, older, newer)
        yield Scene(ada, ben, older, newer)
        nursery.cancel_scope.cancel()


async def test_without_adapters_the_newest_expert_draws(
    world: World, autojump_clock: MockClock
) -> None:
    async with scene(world) as found:
        drawing = found.drawing()
        materials = await drawing.materials()
        assert materials.experts[ZERO].cid == found.newer
        assert materials.experts[ZERO].owner == found.ben.peer
        async with aclosing(drawing.draw(ORDER, materials)) as news:
            assert [message["kind"] async for message in news] == ["image"]
        (order,) = found.studio.orders
        assert order["loras"] == {}


async def test_adapter_is_drawn_with_on_its_base_though_a_newer_expert_is_advertised(
    world: World, autojump_clock: MockClock
) -> None:
    async with scene(world) as found:
        drawing = found.drawing()
        materials = await drawing.materials([lora(found.older)])
        here = materials.experts[ZERO]
        assert (here.cid, here.owner) == (found.older, found.ben.peer)
        assert (here.folder / "model.safetensors").read_bytes() == b"100 "
        assert not found.pulled() & found.chunks(found.newer)
        async with aclosing(drawing.draw(ORDER, materials)) as news:
            assert [message["kind"] async for message in news] == ["image"]
        (order,) = found.studio.orders
        assert order["experts"] == {"0": str(here.folder)}
        assert order["loras"] == {"0": ["/loras/dark", 0.5]}


async def test_base_of_an_adapter_is_kept_when_newer_experts_come(
    world: World, autojump_clock: MockClock
) -> None:
    async with scene(world) as found:
        await found.drawing().materials([lora(found.older)])
        pins = {pin.root: pin.label for pin in found.ada.context.blobs.pins()}
        assert pins[found.older] == PULLED


def assert_refused(error: NodeError, base: BlobId, ours: str) -> None:
    assert error.code is ErrorCode.REFUSED
    assert base in error.message
    assert ours in error.message
    assert "--no-lora" in error.fix


async def test_adapter_of_another_run_is_refused_naming_both_before_any_weights_are_fetched(
    world: World, autojump_clock: MockClock
) -> None:
    async with scene(world) as found:
        other = RunId(cid("another run"))
        base = strange(found.ben, run=other)
        await announce(found.ben, base)
        with pytest.raises(NodeError, match=f"of run {other}") as caught:
            await found.drawing().materials([lora(base)])
        assert_refused(caught.value, base, found.newer)
        assert found.pulled() == {base}


async def test_one_refused_adapter_of_two_stops_before_the_weights_of_the_other(
    world: World, autojump_clock: MockClock
) -> None:
    async with scene(world) as found:
        base = strange(found.ben, run=RunId(cid("another run")), cluster=1)
        await announce(found.ben, base)
        with pytest.raises(NodeError, match="of run"):
            await found.drawing().materials([lora(found.older), lora(base, cluster=1)])
        assert found.pulled() == {base, found.older}


async def test_base_that_nobody_has_is_refused_naming_both(
    world: World, autojump_clock: MockClock
) -> None:
    async with scene(world) as found:
        base = cid("lost checkpoint")
        with pytest.raises(NodeError) as caught:
            await found.drawing().materials([lora(base)])
        assert_refused(caught.value, base, found.newer)
        assert f"experts pull {base}" in caught.value.fix


async def test_base_whose_weights_have_gone_is_refused_before_other_weights_are_fetched(
    world: World, autojump_clock: MockClock
) -> None:
    async with scene(world) as found:
        for chunk in found.chunks(found.older):
            (found.ben.context.blobs.root / "chunks" / chunk).unlink()
        with pytest.raises(NodeError) as caught:
            await found.drawing().materials([lora(found.older)])
        assert_refused(caught.value, found.older, found.newer)
        assert not found.pulled() & found.chunks(found.newer)


async def test_base_of_a_cluster_without_an_expert_says_so(
    world: World, autojump_clock: MockClock
) -> None:
    async with scene(world) as found:
        base = cid("lost checkpoint")
        with pytest.raises(NodeError) as caught:
            await found.drawing().materials([lora(base, cluster=2)])
        assert_refused(caught.value, base, "with nothing")


@pytest.mark.parametrize(("said", "real"), [(0, 1), (1, 0), (4, 4), (9, 9)])
async def test_adapter_for_another_cluster_than_its_base_is_refused(
    world: World, autojump_clock: MockClock, said: int, real: int
) -> None:
    """Or for one that the run, of four, does not have."""
    async with scene(world) as found:
        base = strange(found.ben, cluster=real)
        await announce(found.ben, base)
        with pytest.raises(NodeError, match=f"expert of cluster {real}, and this run has 4") as got:
            await found.drawing().materials([lora(base, cluster=said)])
        assert got.value.code is ErrorCode.REFUSED
        assert found.pulled() == {base}


async def test_cid_of_something_else_is_refused(world: World, autojump_clock: MockClock) -> None:
    async with scene(world) as found:
        base = found.ben.context.blobs.put(b"no checkpoint")
        await announce(found.ben, base)
        with pytest.raises(NodeError) as caught:
            await found.drawing().materials([lora(base)])
        assert_refused(caught.value, base, found.newer)


async def test_disk_that_is_full_is_not_the_adapters_fault(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(world) as found:

        def full(*_: object) -> None:
            raise QuotaError("the store is full")

        monkeypatch.setattr(type(found.ada.context.blobs), "reserve", full)
        with pytest.raises(QuotaError):
            await found.drawing().materials([lora(found.older)])


async def test_peer_that_asks_never_gets_the_adapters_in_use_here(
    world: World, autojump_clock: MockClock
) -> None:
    async with scene(world) as found, trio.open_nursery() as nursery:
        home = found.ben.context.config.paths
        put_on_shelf(home, "dark", base={"cluster": 0, "cid": found.older})
        use(home, find_on_shelf(home, "dark"), 1.0)
        serving = Serving(found.ben.context, found.drawing(found.ben))
        nursery.start_soon(serving.run)
        await trio.lowlevel.checkpoint()
        async with aclosing(Asking(found.ada.context).draw(ORDER, found.ben.peer)) as answers:
            (answer,) = [each async for each in answers]
        (order,) = found.studio.orders
        assert order["loras"] == {}
        assert answer.receipt.record.experts == ((0, found.newer, 1.0),)  # type: ignore[union-attr]
        nursery.cancel_scope.cancel()
