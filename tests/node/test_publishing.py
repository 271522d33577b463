"""Publishing, training jobs, replicas: what fails around training neither stops nor loses it."""

import pytest
import trio
from trio.testing import MockClock

from node.journal import Journal
from node.publishing import Saved
from node.replication import REPLICAS, chosen_holders
from p2p.errors import StorageError
from p2p.ids import BlobId, ClusterId
from p2p.records import router_key
from tests.node.test_fetching import acquaint
from tests.support.people import RUN, alice, person
from tests.support.swarm import (
    BUDGET,
    MemberNode,
    World,
    open_nodes,
    running,
    saved_folder,
    until,
    world,
)

__all__ = ["world"]

ZERO = ClusterId(0)


async def publish(world: World, node: MemberNode, samples: int) -> BlobId:
    folder = saved_folder(world.folder, samples)
    return await node.publisher.checkpoint(
        Saved(ZERO, 1, folder, samples // 10, samples, 0.5, None, is_orphan=False)
    )


def best(node: MemberNode) -> BlobId | None:
    advert = node.catalog.best(ZERO)
    return None if advert is None else advert.record.manifest


async def test_checkpoint_published_while_the_dht_is_down_is_advertised_after(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        nursery.start_soon(ada.publisher.run)
        world.dht.take_down("ada")
        root = await publish(world, ada, 100)
        await trio.sleep(60)
        world.dht.bring_up("ada")
        await trio.sleep(6)
        await ben.catalog.refresh()
        assert best(ben) == root
        nursery.cancel_scope.cancel()


async def test_published_is_advertised_again_after_a_restart(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.open_node("ada") as ada:
        root = await publish(world, ada, 100)  # and dies before a word of it
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        nursery.start_soon(ada.publisher.run)
        await trio.sleep(1)
        await ben.catalog.refresh()
        assert best(ben) == root
        nursery.cancel_scope.cancel()


async def test_advert_and_summary_outlive_their_first_hour(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        nursery.start_soon(ada.publisher.run)
        root = await publish(world, ada, 100)
        summary = world.folder / "summary.safetensors"
        summary.write_bytes(b"summary")
        await ada.publisher.summary(ZERO, 1, summary)
        await trio.sleep(3 * 3600)
        await ben.catalog.refresh()
        assert best(ben) == root
        assert ben.catalog.summaries(ZERO)
        assert await ben.swarm.get(router_key(ben.context.run, ZERO))
        nursery.cancel_scope.cancel()


async def test_gossip_that_fails_does_not_keep_the_advert_from_the_dht(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from p2p.errors import LimitError

    async def refuse(self: object, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        raise LimitError("too soon")

    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        monkeypatch.setattr(type(ada.context.host), "publish", refuse)
        nursery.start_soon(ada.publisher.run)
        root = await publish(world, ada, 100)
        await trio.sleep(1)
        await ben.catalog.refresh()
        assert best(ben) == root
        nursery.cancel_scope.cancel()


async def test_two_checkpoints_are_kept(world: World, autojump_clock: MockClock) -> None:
    async with world.open_node("ada") as ada:
        roots = [await publish(world, ada, samples) for samples in (100, 200, 300)]
        pinned = {pin.root for pin in ada.context.blobs.pins()}
        assert [root in pinned for root in roots] == [False, True, True]


async def test_training_goes_on_to_the_end_in_a_full_store(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters, world.farm.samples_per_s = 1, 50.0
    async with open_nodes(world, ("ada",)) as (ada,):
        blobs = ada.context.blobs

        def full(*_: object, **__: object) -> None:
            raise StorageError("the disk is full")

        blobs.add_files = full  # type: ignore[method-assign, assignment]
        async with running(ada):
            await until(lambda: bool(ada.claiming.trainings()), within_s=60)
            (job,) = ada.claiming.trainings()
            await until(lambda: job.progress.samples == BUDGET, within_s=120)
            await trio.sleep(3)  # its last save
            assert "full" in job.progress.note
            assert len(world.farm.orders) == 1  # the trainer was never started again


async def test_trainer_that_dies_is_started_again_from_its_own_state(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters = 1
    async with open_nodes(world, ("ada",)) as (ada,), running(ada):
        world.farm.die_after_messages = 30
        await until(lambda: len(world.farm.orders) == 3, within_s=200)
        assert [order["start_from"] for order in world.farm.orders] == [None] * 3
        starts = [event["samples"] for event in ada.events("training")]
        assert starts == sorted(set(starts))
        assert len(ada.events("trainer_failed")) == 2


async def test_journal_on_a_full_disk_costs_a_line_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    Journal(folder, "me").write("event")  # a folder can't be appended to
    assert "event event not written" in caplog.text


async def test_chosen_holders_agree_whoever_asks() -> None:
    peers = [person(number).peer for number in range(20)]
    chosen = chosen_holders(RUN, ZERO, alice.peer, peers)
    assert chosen == chosen_holders(RUN, ZERO, alice.peer, [*reversed(peers), alice.peer])
    assert len(chosen) == REPLICAS
    assert alice.peer not in chosen


async def test_most_chosen_holders_stay_when_one_leaves() -> None:
    peers = [person(number).peer for number in range(20)]
    for cluster in map(ClusterId, range(10)):
        chosen = chosen_holders(RUN, cluster, alice.peer, peers)
        rest = [peer for peer in peers if peer != chosen[0]]
        assert chosen[1] in chosen_holders(RUN, cluster, alice.peer, rest)


async def test_news_during_a_pull_wakes_the_replicator_again(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        acquaint(ada, ben)
        nursery.start_soon(ben.publisher.run)
        nursery.start_soon(ada.replicator.run)
        await publish(world, ben, 100)
        await trio.sleep(1)
        await ada.catalog.refresh()
        world.hub.gate = trio.Event()
        ada.replicator.wake.set()
        await trio.sleep(1)  # it pulls the first one
        await publish(world, ben, 200)
        await trio.sleep(1)
        await ada.catalog.refresh()
        ada.replicator.wake.set()
        world.hub.gate.set()
        world.hub.gate = None
        started = trio.current_time()
        await until(lambda: len(ada.events("replicated")) == 2, within_s=30, step_s=0.1)
        assert trio.current_time() - started < 5
        nursery.cancel_scope.cancel()
