"""An owner that slept, lapsed or restarted: its late word changes nothing, its work is kept."""

import trio
from trio.testing import MockClock

from node.publishing import Saved
from node.workers.link import Message
from p2p.codec import Verified, open_signed, seal
from p2p.gossip_rules import topic
from p2p.ids import BlobId, ClusterId
from p2p.records import ExpertAdvert, expert_key
from tests.support.swarm import (
    BUDGET,
    POLICY,
    MemberNode,
    World,
    open_nodes,
    saved_folder,
    until,
    wall,
    world,
)

__all__ = ["world"]

LEASE_S = POLICY.lease_s
NAMES = ("ada", "ben", "cem", "dia")
ZERO = ClusterId(0)


async def test_paused_owners_late_checkpoint_is_refused_by_every_node(
    world: World, autojump_clock: MockClock
) -> None:
    """An owner slept through two leases; others went on; it says its old word again."""
    world.clusters = 1
    async with open_nodes(world, NAMES) as (ada, *others), trio.open_nursery() as nursery:
        nursery.start_soon(ada.run)
        await until(lambda: bool(ada.events("published")), within_s=60)
        world.dht.partition(["ada"])  # as good as paused for the others
        world.network.partition([ada.peer], [node.peer for node in others])
        for node in others:
            nursery.start_soon(node.run)
        heirs = list(others)
        await until(lambda: any(n.events("published") for n in heirs), within_s=4 * LEASE_S)
        heir = next(node for node in heirs if node.events("published"))
        assert heir.events("published")[0]["epoch"] == 2
        await trio.sleep(LEASE_S)
        world.network.heal()
        best = {node.name: node.catalog.base(ZERO) for node in others}
        refused = {node.name: node.catalog.refused for node in others}
        late = _late_advert(ada, epoch=1, samples=BUDGET)
        assert all(node.catalog.add(late) is False for node in others)
        for node in others:
            assert node.catalog.refused == refused[node.name] + 1
            base = node.catalog.base(ZERO)
            assert base is not None
            assert base.owner == heir.peer == best[node.name].owner  # type: ignore[union-attr]
        nursery.cancel_scope.cancel()


async def test_late_gossip_and_dht_record_of_an_old_token_change_nothing(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters = 1
    async with open_nodes(world, ("ada", "ben", "cem")) as (ada, ben, cem):  # noqa: SIM117
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ada.run)
            await until(lambda: bool(ada.events("published")), within_s=60)
            await world.kill(ada)
            nursery.start_soon(ben.run)
            nursery.start_soon(cem.run)
            await until(
                lambda: any(n.events("published") for n in (ben, cem)), within_s=LEASE_S + 120
            )
            await trio.sleep(15)
            world.dht.bring_up("ada")
            await ada.context.host.connect(ben.context.host.listening()[0], timeout_s=1)
            late = _late_advert(ada, epoch=1, samples=BUDGET)
            key = expert_key(ada.context.run, ZERO)
            public_key = ada.context.identity.public_key
            assert await ada.swarm.put(key, public_key, late.envelope, late.expires_at or 0.0)
            await ada.context.host.publish(topic(ada.context.run, "expert"), late.envelope)
            await trio.sleep(30)
            for node in (ben, cem):
                base = node.catalog.base(ZERO)
                assert base is not None
                assert base.owner != ada.peer
                assert not node.catalog.is_complete(ZERO)
            nursery.cancel_scope.cancel()


def _late_advert(node: MemberNode, *, epoch: int, samples: int) -> Verified[ExpertAdvert]:
    context = node.context
    advert = ExpertAdvert(
        run=context.run,
        cluster=ZERO,
        epoch=epoch,
        step=samples,
        samples=samples,
        manifest=context.blobs.put(b"late work"),
        size=1,
        loss=0.1,
        is_orphan=False,
        issued_at=wall(),
    )
    key = expert_key(context.run, ZERO)
    envelope = seal(advert, context.identity, key=key, expires_at=wall() + 3600)
    return open_signed(ExpertAdvert, envelope, key=key, now=wall())


async def test_owner_that_wakes_up_publishes_an_orphan_at_most_and_yields(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters = 1
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        nursery.start_soon(ada.run)
        await until(lambda: bool(ada.events("published")), within_s=60)
        (job,) = ada.claiming.trainings()
        ada.swarm.hangs = True  # its loop stands still in a call, and its clock runs on
        await trio.sleep(LEASE_S)
        nursery.start_soon(ben.run)
        await until(lambda: bool(ben.events("published")), within_s=2 * LEASE_S + 30)
        ada.swarm.hangs = False
        await until(lambda: ada.clusters == (), within_s=LEASE_S)
        await job._publish(_news(world, 950))  # said while asleep, heard before all else
        await trio.sleep(30)
        await _publish_late(world, ada, 960)
        await trio.sleep(30)
        late = {
            one.manifest: one.is_orphan
            for one in ada.context.state.published(ada.context.run)
            if one.samples >= 950
        }
        assert late
        assert all(late.values())
        for node in (ada, ben):
            base = node.catalog.base(ZERO)
            assert base is not None
            assert base.record.manifest not in late
        nursery.cancel_scope.cancel()


def _news(world: World, samples: int) -> Message:
    folder = saved_folder(world.folder, samples)
    return {
        "kind": "saved",
        "path": str(folder),
        "step": samples // 10,
        "samples": samples,
        "loss": 0.1,
    }


async def _publish_late(world: World, node: MemberNode, samples: int) -> BlobId:
    folder = saved_folder(world.folder, samples)
    return await node.publisher.checkpoint(
        Saved(ZERO, 1, folder, samples // 10, samples, 0.1, None, is_orphan=False)
    )


async def test_newcomer_takes_over_with_a_higher_token_than_the_checkpoints(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters = 1
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        nursery.start_soon(ada.run)
        await until(lambda: bool(ada.events("published")), within_s=60)
        await world.kill(ada)
        await trio.sleep(2 * LEASE_S)  # its claims are gone from the DHT, its advert is not
        nursery.start_soon(ben.run)
        await until(lambda: bool(ben.clusters), within_s=60)
        assert ben.claiming.held()[0].claim.epoch == 2
        nursery.cancel_scope.cancel()


async def test_lapsed_owners_orphan_does_not_hide_its_base(
    world: World, autojump_clock: MockClock
) -> None:
    """The DHT was away for a lease; what was trained since must not hide what was before."""
    world.clusters = 1
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        nursery.start_soon(ada.run)
        await until(lambda: bool(ada.events("published")), within_s=60)
        await trio.sleep(7)
        world.dht.take_down("ada")
        await until(lambda: bool(ada.events("yielded")), within_s=LEASE_S + 5)
        assert ada.events("published")[-1]["orphan"]
        world.dht.bring_up("ada")
        await trio.sleep(8)
        await ben.catalog.refresh()
        await ben.board.read()
        base = ben.catalog.base(ZERO)
        assert base is not None
        assert not base.record.is_orphan
        nursery.cancel_scope.cancel()


async def test_fence_survives_a_restart(world: World, autojump_clock: MockClock) -> None:
    """A node that was restarted when nobody claims any more still refuses the old token."""
    world.clusters, world.farm.samples_per_s = 1, 50.0
    async with open_nodes(world, ("ada", "ben")) as (ada, ben):
        async with trio.open_nursery() as nursery:
            world.farm.samples_per_s = 10.0
            nursery.start_soon(ada.run)
            await until(lambda: bool(ada.events("published")), within_s=60)
            await world.kill(ada)
            world.farm.samples_per_s = 50.0
            nursery.start_soon(ben.run)
            await until(lambda: ben.catalog.is_complete(ZERO), within_s=300)
            nursery.cancel_scope.cancel()
        await trio.sleep(2 * LEASE_S)  # no claim is alive any more
        late = _late_advert(ada, epoch=1, samples=BUDGET)
        reborn = type(ben.catalog)(ben.context, ben.catalog.manifest)
        assert reborn.add(late) is False
        assert reborn.refused == 1
