"""A whole swarm in one process: claims, takeovers, replicas, and a paused owner that wakes up."""

import trio
from trio.testing import MockClock

from tests.support.swarm import BUDGET, POLICY, MemberNode, World, open_nodes, running, until, world

__all__ = ["world"]

LEASE_S, RENEW_S = POLICY.lease_s, POLICY.renew_s
NAMES = ("ada", "ben", "cem", "dia")


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


async def test_four_nodes_converge_to_one_owner_each(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, NAMES) as nodes, running(*nodes):
        took_s = await until(lambda: owned_once(world, nodes), within_s=2 * LEASE_S)
        assert took_s < 2 * LEASE_S
        for _ in range(100):
            await trio.sleep(0.5)
            assert all(len(node.clusters) <= 1 for node in nodes)
