"""Which run a home belongs to, and what a person reads when it cannot be had."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from node.errors import ErrorCode, NodeError
from node.joining import choose_run, obtain_manifest
from node.state import State
from p2p.ids import RunId
from tests.support.people import cid
from tests.support.swarm import MemberNode, World, world

__all__ = ["world"]

OTHER = RunId(cid("another run"))


def looking_for(node: MemberNode, run: RunId, *peers: str, timeout_s: int = 5) -> MemberNode:
    """The node as if started with `--run run --peer ...`."""
    config = replace(node.context.config, run=run, peers=peers, join_timeout_s=timeout_s)
    fetcher = node.context.fetcher
    fetcher.run = run
    context = replace(node.context, config=config, run=run)
    node.membership.context = context
    node.context = context
    return node


async def refusal(node: MemberNode) -> NodeError:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.membership.run)
        with pytest.raises(NodeError) as caught:
            await obtain_manifest(node.context, node.membership, lambda text: None)
        nursery.cancel_scope.cancel()
    return caught.value


async def test_unknown_run_without_peers(world: World, autojump_clock: MockClock) -> None:
    async with world.open_node("ada") as ada:
        error = await refusal(looking_for(ada, OTHER))
        assert error.code is ErrorCode.NO_PEERS
        assert str(OTHER) in error.message
        assert "--peer" in error.fix


async def test_peers_of_another_run_are_named(world: World, autojump_clock: MockClock) -> None:
    async with world.open_node("ada") as ada, world.open_node("ben") as ben:
        theirs = ben.context.run
        looking_for(ada, OTHER, *ben.context.host.listening(), timeout_s=60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ben.membership.run)
            error = await refusal(ada)
            nursery.cancel_scope.cancel()
        assert error.code is ErrorCode.NOT_FOUND
        assert theirs in error.message
        assert theirs in error.fix
        assert trio.current_time() < 30  # hopeless: it does not wait for the whole minute


async def test_cid_of_something_else_is_no_run(world: World, autojump_clock: MockClock) -> None:
    async with world.open_node("ada") as ada:
        thing = RunId(ada.context.blobs.put(b"a picture of a boat"))
        error = await refusal(looking_for(ada, thing))
        assert error.code is ErrorCode.VERIFICATION_FAILED
        assert "not a run" in error.message


async def test_cid_of_something_else_fetched_from_a_peer_is_no_run(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.open_node("ada") as ada, world.open_node("ben") as ben:
        thing = RunId(ben.context.blobs.put(b"a picture of a boat"))
        for node in (ada, ben):
            looking_for(node, thing, *ben.context.host.listening())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ben.membership.run)
            error = await refusal(ada)
            nursery.cancel_scope.cancel()
        assert error.code is ErrorCode.VERIFICATION_FAILED


async def test_home_is_bound_only_once_the_run_was_found(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.open_node("ada") as ada:
        real = ada.context.run
        await refusal(looking_for(ada, OTHER))
        assert ada.context.state.run() is None
        looking_for(ada, real)
        manifest = await obtain_manifest(ada.context, ada.membership, lambda text: None)
        assert manifest == ada.catalog.manifest
        assert ada.context.state.run() == real


async def test_home_of_another_run_is_refused(world: World, autojump_clock: MockClock) -> None:
    async with world.open_node("ada") as ada:
        ada.context.state.bind_run(ada.context.run)
        config = replace(ada.context.config, run=OTHER)
        with pytest.raises(NodeError, match="already belongs") as caught:
            choose_run(config, ada.context.state, ada.context.blobs)
        assert caught.value.code is ErrorCode.REFUSED
        assert "--home" in caught.value.fix


async def test_home_remembers_its_run(world: World, autojump_clock: MockClock) -> None:
    async with world.open_node("ada") as ada:
        ada.context.state.bind_run(ada.context.run)
        state: State = ada.context.state
        assert choose_run(ada.context.config, state, ada.context.blobs) == ada.context.run


async def test_run_id_that_is_no_cid_is_a_usage_error(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.open_node("ada") as ada:
        config = replace(ada.context.config, run="fashion")
        with pytest.raises(NodeError, match="not a run id") as caught:
            choose_run(config, ada.context.state, ada.context.blobs)
        assert caught.value.code is ErrorCode.USAGE
