"""A node nobody can dial, reached through the node it was given: real nodes, real circuit relay."""

from collections.abc import Callable

import pytest

from scripts.local_swarm import LocalNode, wait_for

pytestmark = pytest.mark.slow

FLAGS = ("--relay", "--no-train")


def circuits(node: LocalNode) -> list[str]:
    """Addresses at which a node can be reached through a relay."""
    return [address for address in node.status()["listening"] if "/p2p-circuit/" in address]


def test_a_node_is_reached_through_the_peer_it_was_given(
    swarm: Callable[[str], LocalNode],
) -> None:
    relay, hidden, caller = swarm("relay"), swarm("hidden"), swarm("caller")
    relay.start(run=None, flags=FLAGS)
    hidden.start(run=None, peers=relay.wait_ready()["listening"][:1], flags=FLAGS)
    wanted = hidden.wait_ready()["peer_id"]
    (address,) = wait_for(lambda: circuits(hidden), "a reservation", 30)

    caller.start(run=None, peers=[address], flags=FLAGS)
    caller.wait_ready()

    def reached() -> list[dict[str, object]] | None:
        peers = caller.get("/api/v1/peers")["peers"]
        return [peer for peer in peers if peer["peer_id"] == wanted] or None

    (found,) = wait_for(reached, "the hidden node", 30)
    assert found["direct"] is False
