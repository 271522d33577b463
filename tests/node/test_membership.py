"""Finding the others: one address, remembered peers, wrong runs, nonsense, and a bootstrap down."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from node.membership import TARGET_PEERS
from p2p.codec import check_envelope, pack
from p2p.errors import TransportError
from p2p.hello import MAX_HELLO_SIZE, MAX_OTHERS, PROTOCOL, Hello
from p2p.host import Stream
from p2p.ids import PeerId, RunId
from p2p.limits import MAX_RECORD_SIZE
from p2p.memory_host import peer_of_seed
from tests.support.people import cid
from tests.support.swarm import MemberNode, MemorySwarm, World, open_nodes, until, world

__all__ = ["world"]


async def say(world: World, node: MemberNode, payload: bytes, *, who: bytes = b"m") -> bytes | None:
    """Open a stream from a stranger, say something, and hear the answer if there is one."""
    from p2p.errors import P2PError

    async with world.network.open_host(who.ljust(32, b"m")) as stranger:
        await stranger.connect(node.context.host.listening()[0], timeout_s=1)
        try:
            async with stranger.open_stream(node.peer, PROTOCOL, timeout_s=1) as stream:
                await stream.send_frame(payload, max_size=1 << 24)
                return await stream.receive_frame(max_size=MAX_HELLO_SIZE, timeout_s=5)
        except P2PError:
            return None


async def test_nodes_meet_through_one_that_both_know(
    world: World, autojump_clock: MockClock
) -> None:
    names = [f"node{number}" for number in range(6)]
    async with open_nodes(world, names) as nodes, trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(node.membership.run)
        await until(lambda: all(len(n.context.host.connected()) == 5 for n in nodes), within_s=90)
        assert all(len(n.swarm.bootstraps) >= 1 for n in nodes)
        nursery.cancel_scope.cancel()


async def test_no_more_connections_are_sought_than_wanted(
    world: World, autojump_clock: MockClock
) -> None:
    names = [f"node{number}" for number in range(TARGET_PEERS + 4)]
    async with open_nodes(world, names) as nodes, trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(node.membership.run)
        await trio.sleep(120)
        outbound = [sum(p.is_outbound for p in n.context.host.connected()) for n in nodes]
        assert max(outbound) <= TARGET_PEERS
        assert all(n.membership.network == "connected" for n in nodes)
        nursery.cancel_scope.cancel()


async def test_bootstrap_that_is_down_is_a_status_and_found_when_it_comes(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.open_node("ben") as absent:
        seed, address = absent.context.identity.seed, absent.context.host.listening()[0]
    async with world.open_node("ada", peers=(address,)) as ada, trio.open_nursery() as nursery:
        nursery.start_soon(ada.membership.run)
        seen = set()
        for _ in range(600):
            seen.add(ada.membership.network)
            await trio.sleep(0.2)
        pauses = {text for text in seen if text.startswith("0 peers, retrying in")}
        assert "0 peers, retrying in 1 s" in pauses
        assert "0 peers, retrying in 30 s" in pauses
        assert len(pauses) == 6  # 1, 2, 4, 8, 16, 30
        world.network._ports = iter([int(address.split("/")[4])])  # type: ignore[assignment]
        async with world.open_node("ben") as ben:
            assert ben.context.identity.seed == seed
            nursery.start_soon(ben.membership.run)
            await until(lambda: ada.membership.network == "connected", within_s=60)
            nursery.cancel_scope.cancel()


async def test_peers_are_remembered_over_a_restart(world: World, autojump_clock: MockClock) -> None:
    async with world.open_node("ben") as ben, trio.open_nursery() as nursery:
        nursery.start_soon(ben.membership.run)
        async with world.open_node("ada", peers=ben.context.host.listening()) as ada:  # noqa: SIM117
            async with trio.open_nursery() as mine:
                mine.start_soon(ada.membership.run)
                await until(ada.membership.met_somebody.is_set, within_s=20)
                mine.cancel_scope.cancel()
        async with world.open_node("ada") as ada:  # no address given this time
            nursery.start_soon(ada.membership.run)
            await until(ada.membership.met_somebody.is_set, within_s=20)
            nursery.cancel_scope.cancel()


async def test_peer_of_another_run_is_named_dropped_and_not_remembered(
    world: World, autojump_clock: MockClock
) -> None:
    other = RunId(cid("another run"))
    async with world.open_node("ben") as ben:
        ben.membership.context = replace(ben.context, run=other)
        async with world.open_node("ada", peers=ben.context.host.listening()) as ada:  # noqa: SIM117
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ben.membership.run)
                nursery.start_soon(ada.membership.run)
                await trio.sleep(60)
                assert ada.membership.other_runs == {ben.peer: other}
                assert ada.context.host.connected() == ()
                assert ada.context.peers.peers() == ()
                assert ada.context.state.known_addresses() == ()
                assert other in ada.membership.network
                assert not ada.membership.met_somebody.is_set()
                nursery.cancel_scope.cancel()


def hello(node: MemberNode, *others: bytes, run: RunId | None = None) -> bytes:
    return pack(Hello(run or node.context.run, node.membership.node_envelope()[0], others))


async def test_hello_is_answered_with_ones_own_record(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        nursery.start_soon(ada.membership.run)
        await trio.sleep(1)
        assert await say(world, ada, hello(ben)) is not None
        assert ada.context.peers.get(ben.peer) is not None
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "nonsense",
    [b"", b"\x00", b"\xc1" * 100, b"\x93\x01\x02\x03", b"x" * (MAX_HELLO_SIZE + 1)],
    ids=["empty", "zero", "reserved", "wrong types", "oversized"],
)
async def test_nonsense_is_dropped_and_the_node_goes_on(
    world: World, autojump_clock: MockClock, nonsense: bytes
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        nursery.start_soon(ada.membership.run)
        await trio.sleep(1)
        assert await say(world, ada, nonsense) is None
        assert await say(world, ada, hello(ben), who=b"n") is not None
        assert ada.context.peers.peers() == (ben.peer,)
        nursery.cancel_scope.cancel()


async def test_forged_and_strangers_records_in_a_hello_are_dropped_the_good_ones_kept(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben", "cem")) as (ada, ben, cem):  # noqa: SIM117
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ada.membership.run)
            await trio.sleep(1)
            good = cem.membership.node_envelope()[0]
            forged = bytearray(good)
            forged[-1] ^= 1
            cem.membership.context = replace(cem.context, run=RunId(cid("other")))
            foreign = cem.membership.node_envelope()[0]
            await say(world, ada, hello(ben, bytes(forged), foreign, good))
            assert set(ada.context.peers.peers()) == {ben.peer, cem.peer}
            nursery.cancel_scope.cancel()


async def test_greeted_peer_that_talks_nonsense_is_no_company(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.network.open_host(b"m" * 32) as stranger:

        async def babble(stream: Stream) -> None:
            await stream.receive_frame(max_size=MAX_HELLO_SIZE, timeout_s=5)
            await stream.send_frame(b"\xc1", max_size=10)

        stranger.set_handler(PROTOCOL, babble)
        async with world.open_node("ada", peers=stranger.listening()) as ada:  # noqa: SIM117
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ada.membership.run)
                await trio.sleep(20)
                assert ada.context.host.connected() == ()
                assert ada.membership.network.startswith("0 peers")
                nursery.cancel_scope.cancel()


async def test_own_record_is_in_the_dht_and_stays_there(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        nursery.start_soon(ada.membership.run)
        await trio.sleep(1500)  # two and a half lifetimes
        await ben.membership._read_node_records()
        assert ben.context.peers.peers() == (ada.peer,)
        nursery.cancel_scope.cancel()


async def test_record_names_the_swarm_child_once_it_is_ready(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        ada.swarm.is_ready = False
        nursery.start_soon(ada.membership.run)
        await trio.sleep(40)
        ada.swarm.is_ready = True
        await trio.sleep(10)
        await ben.membership._read_node_records()
        assert ben.context.peers.bulk_peers([ada.peer])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("length", [80, 190, 256, 257])
async def test_node_record_always_fits_a_dht_value(
    world: World, autojump_clock: MockClock, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.open_node("ada") as ada:
        tail = f"/p2p/{ada.peer}"
        many = tuple(f"/dns4/{'h' * (length - 7 - len(tail))}{n}{tail}" for n in range(9))
        assert {len(address) for address in many} == {length}
        monkeypatch.setattr(type(ada.context.host), "listening", lambda self: many)
        monkeypatch.setattr(MemorySwarm, "addresses", lambda self: many)
        envelope, _ = ada.membership.node_envelope()
        assert len(envelope) <= MAX_RECORD_SIZE


async def test_peers_of_other_runs_are_not_remembered_without_end(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.open_node("ada") as ada:
        said = Hello(RunId(cid("other")), b"", ())
        for number in range(300):
            peer: PeerId = peer_of_seed(number.to_bytes(32, "big"))
            await ada.membership._learn(peer, said)
        assert len(ada.membership.other_runs) == 256


async def test_too_many_records_in_a_hello_are_refused(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.open_node("ada") as ada:
        envelope = ada.membership.node_envelope()[0]
        assert check_envelope(envelope).kind == "NodeRecord"
        Hello(ada.context.run, envelope, (envelope,) * MAX_OTHERS)
        from p2p.errors import DecodeError

        with pytest.raises(DecodeError):
            Hello(ada.context.run, envelope, (envelope,) * (MAX_OTHERS + 1))


async def test_dht_that_is_down_at_the_start_does_not_keep_a_node_alone(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        world.dht.take_down("ben")
        with pytest.raises(TransportError):
            world.dht.table("ben")
        nursery.start_soon(ada.membership.run)
        nursery.start_soon(ben.membership.run)
        await until(lambda: ben.membership.network == "connected", within_s=60)
        assert ben.context.peers.peers() == (ada.peer,)
        nursery.cancel_scope.cancel()
