"""A whole swarm in one process: claims, takeovers, replicas, and a paused owner that wakes up."""

import trio
from trio.testing import MockClock

from p2p.ids import ClusterId
from tests.support.swarm import (
    POLICY,
    MemberNode,
    World,
    open_nodes,
    running,
    until,
    world,
)

__all__ = ["world"]

LEASE_S = POLICY.lease_s
STOP_S = POLICY.stop_fraction * POLICY.lease_s
NAMES = ("ada", "ben", "cem", "dia")
ZERO = ClusterId(0)


def owned_once(world: World, nodes: list[MemberNode]) -> bool:
    """Whether all readers agree on one owner for each cluster, a different node for each."""
    readings = [world.owners(node) for node in nodes]
    owners = list(readings[0].values())
    return (
        len(owners) == world.clusters
        and None not in owners
        and len(set(owners)) == len(owners)
        and all(reading == readings[0] for reading in readings)
    )


def training(world: World) -> int:
    return len(world.farm.running)


async def test_four_nodes_converge_to_one_owner_each(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, NAMES) as nodes, running(*nodes):
        await until(lambda: owned_once(world, nodes), within_s=LEASE_S)
        for _ in range(100):
            await trio.sleep(0.5)
            assert all(len(node.clusters) <= node.context.config.capacity for node in nodes)
            assert owned_once(world, nodes)


async def test_one_address_is_enough_for_all_to_know_all(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, NAMES) as nodes, running(*nodes):
        await until(
            lambda: all(len(node.context.peers.peers()) == 3 for node in nodes), within_s=60
        )
        assert all(node.membership.network == "connected" for node in nodes)


async def test_dead_owners_cluster_is_claimed_again_and_continued(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters = 1
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), running(ada, ben):
        await until(lambda: owned_once(world, [ada, ben]), within_s=LEASE_S)
        owner = world.nodes[str(world.owners(ada)[ZERO])]
        heir = ben if owner is ada else ada
        await until(lambda: bool(heir.events("replicated")), within_s=60)
        await world.kill(owner)
        took_s = await until(lambda: heir.clusters == (ZERO,), within_s=LEASE_S + 10)
        assert took_s <= LEASE_S + 10
        await until(lambda: bool(heir.events("continues")), within_s=10)
        (continued,) = heir.events("continues")
        assert continued["cid"] in {one["cid"] for one in owner.events("published")}
        assert heir.claiming.held()[0].claim.epoch == 2
        await until(lambda: bool(heir.events("published")), within_s=30)
        first = heir.events("published")[0]
        assert first["samples"] > continued["samples"]
        assert first["parent"] == continued["cid"]


async def test_checkpoint_that_died_with_its_owner_does_not_block_the_cluster(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters = 1
    async with open_nodes(world, ("ada", "ben")) as (ada, ben):
        owner, heir = ada, ben
        async with trio.open_nursery() as nursery:
            nursery.start_soon(owner.run)
            await until(lambda: owner.clusters == (ZERO,), within_s=LEASE_S)
            nursery.start_soon(heir.run)
            await until(lambda: bool(heir.events("replicated")), within_s=60)
            kept = heir.events("replicated")[-1]["cid"]
            world.hub.faults[owner.swarm.child_id] = "empty"  # the next one is never copied
            before = len(owner.events("published"))
            await until(lambda: len(owner.events("published")) > before, within_s=30)
            await trio.sleep(2)
            lost = owner.events("published")[-1]["cid"]
            assert lost != kept
            await world.kill(owner)
            await until(lambda: bool(heir.events("continues")), within_s=LEASE_S + 30)
            assert heir.events("continues")[0]["cid"] == kept
            nursery.cancel_scope.cancel()


async def test_cluster_whose_checkpoints_are_all_lost_is_begun_anew(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters = 1
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        nursery.start_soon(ada.run)
        await until(lambda: bool(ada.events("published")), within_s=60)
        await world.kill(ada)
        nursery.start_soon(ben.run)
        await until(lambda: bool(ben.events("published")), within_s=LEASE_S + 120)
        assert ben.events("training")[0]["samples"] == 0
        nursery.cancel_scope.cancel()


async def test_released_cluster_is_claimed_at_once(world: World, autojump_clock: MockClock) -> None:
    world.clusters = 1
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        nursery.start_soon(ada.run)
        await until(lambda: ada.clusters == (ZERO,), within_s=LEASE_S)
        nursery.start_soon(ben.run)
        await trio.sleep(10)
        assert ben.clusters == ()
        ada.scope.cancel()  # leaves in an orderly way
        await ada.ended.wait()
        took_s = await until(lambda: ben.clusters == (ZERO,), within_s=LEASE_S)
        assert took_s <= POLICY.renew_s
        nursery.cancel_scope.cancel()


async def test_complete_clusters_are_never_claimed_again(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters, world.farm.samples_per_s = 2, 50.0
    async with open_nodes(world, ("ada", "ben")) as nodes, running(*nodes):
        await until(
            lambda: all(
                node.catalog.is_complete(k) for node in nodes for k in map(ClusterId, (0, 1))
            ),
            within_s=120,
        )
        await until(lambda: not any(node.clusters for node in nodes), within_s=LEASE_S)
        claimed = sum(len(node.events("claimed")) for node in nodes)
        await trio.sleep(3 * LEASE_S)
        assert sum(len(node.events("claimed")) for node in nodes) == claimed
        assert sum(len(node.events("completed")) for node in nodes) == 2
        assert nodes[0].claiming.reason == "every cluster is complete"


async def test_one_node_trains_all_clusters_one_after_the_other(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters, world.farm.samples_per_s = 3, 50.0
    async with open_nodes(world, ("ada",)) as (ada,), running(ada):
        await until(lambda: ada.catalog.coverage() == 1.0, within_s=300)
        assert {one["cluster"] for one in ada.events("claimed")} == {0, 1, 2}


async def test_training_stops_when_the_dht_is_down_and_resumes_after(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters = 1
    async with open_nodes(world, ("ada",)) as (ada,), running(ada):
        await until(lambda: training(world) == 1, within_s=LEASE_S)
        world.dht.take_down("ada")
        took_s = await until(lambda: training(world) == 0, within_s=STOP_S + 1)
        assert took_s >= STOP_S - POLICY.renew_s - 1
        world.dht.bring_up("ada")
        await until(lambda: training(world) == 1, within_s=2 * LEASE_S + 10)


async def test_cluster_given_up_is_left_to_others_for_a_lease(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters = 1
    async with open_nodes(world, ("ada",)) as (ada,), running(ada):
        await until(lambda: training(world) == 1, within_s=LEASE_S)
        world.dht.take_down("ada")
        await until(lambda: bool(ada.events("yielded")), within_s=LEASE_S)
        world.dht.bring_up("ada")
        waited_s = await until(lambda: bool(ada.clusters), within_s=2 * LEASE_S)
        assert waited_s >= LEASE_S - 1


async def test_claiming_that_failed_begins_anew_and_trains_again(
    world: World, autojump_clock: MockClock
) -> None:
    """A bug in one round must not leave a claim held that nobody trains."""
    world.clusters = 1
    async with open_nodes(world, ("ada",)) as (ada,), running(ada):
        await until(lambda: training(world) == 1, within_s=LEASE_S)
        health = ada.supervisor.health["claiming"]
        ada.claiming.publisher = None  # type: ignore[assignment]
        for job in ada.claiming.trainings():
            job.publisher = None  # type: ignore[assignment]
        await until(lambda: health.failures == 1, within_s=60)
        ada.claiming.publisher = ada.publisher
        await until(lambda: training(world) == 1, within_s=LEASE_S / 2)
        assert ada.clusters == (ZERO,)


async def test_training_stops_in_time_while_a_dht_call_hangs(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters = 1
    async with open_nodes(world, ("ada",)) as (ada,), running(ada):
        await until(lambda: training(world) == 1, within_s=LEASE_S)
        held = ada.claiming.held()[0]
        ada.swarm.hangs = True
        await until(lambda: training(world) == 0, within_s=STOP_S + 1, step_s=0.1)
        renewed = [one for one in ada.claiming.held() if one.renewed_at > held.renewed_at]
        last = renewed[0].renewed_at if renewed else held.renewed_at
        assert trio.current_time() <= last + STOP_S + 0.5


async def test_partition_heals_to_one_owner(world: World, autojump_clock: MockClock) -> None:
    world.clusters = 1
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), running(ada, ben):
        await until(lambda: owned_once(world, [ada, ben]), within_s=LEASE_S)
        world.dht.partition(["ada"], ["ben"])
        world.network.partition([ada.peer], [ben.peer])
        await until(lambda: bool(ada.clusters and ben.clusters), within_s=2 * LEASE_S + 10)
        world.network.heal()
        world.dht.heal()
        await until(
            lambda: len(ada.clusters) + len(ben.clusters) == 1 and owned_once(world, [ada, ben]),
            within_s=30,
        )


async def test_killed_owners_checkpoint_can_still_be_fetched(
    world: World, autojump_clock: MockClock
) -> None:
    world.clusters = 1
    async with open_nodes(world, (*NAMES, "eva"), train=True) as nodes:
        *first, eva = nodes
        async with trio.open_nursery() as nursery:
            for node in first:
                nursery.start_soon(node.run)
            await until(lambda: sum(bool(n.events("replicated")) for n in first) == 2, within_s=90)
            owner = next(node for node in first if node.clusters)
            cid = owner.events("published")[0]["cid"]
            await world.kill(owner)
            nursery.start_soon(eva.run, "membership")
            await until(lambda: len(eva.context.peers.peers()) >= 3, within_s=60)
            manifest = await eva.context.fetcher.checkpoint(cid, label="pulled")
            assert manifest.owner == owner.peer
            nursery.cancel_scope.cancel()
