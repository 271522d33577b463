"""The py-libp2p host beyond the contract: ports, leaving, restarts, keepalive, relays, LAN."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import LastSeenCache
from libp2p.tools.anyio_service.trio_manager import TrioManager
from multiaddr import Multiaddr

from p2p.errors import PortInUseError, TransportError
from p2p.host import Verdict
from p2p.ids import PeerId
from p2p.libp2p_host import HostLimits, LibP2PHost, open_host
from p2p.libp2p_relay import STOP
from p2p.memory_host import peer_of_seed
from tests.support.networks import RealNetwork, echo, eventually, settings
from tests.support.raw_peer import attack, dial_tcp, new_identity, sign, upgrader_of

pytestmark = pytest.mark.slow

ECHO = "/test/echo/1"
TOPIC = "test/topic"


def accept_all(_peer: PeerId, _data: bytes) -> Verdict:
    return Verdict.ACCEPT


async def check_echo(host: LibP2PHost, other: LibP2PHost) -> None:
    async with host.open_stream(other.peer, ECHO, timeout_s=5) as stream:
        await stream.send_frame(b"alive", max_size=9)
        assert await stream.receive_frame(max_size=9, timeout_s=5) == b"alive"


# --- opening and leaving ---------------------------------------------------------------------


async def test_port_in_use_is_named() -> None:
    async with open_host(settings("first")) as first:
        listen = first.listening()[0].partition("/p2p/")[0]
        port = listen.rpartition("/")[2]
        with pytest.raises(PortInUseError, match=rf"127\.0\.0\.1/tcp/{port}.*in use"):
            async with open_host(settings("second", listen=listen)):
                pytest.fail("two hosts share a port")


async def test_port_of_any_program_is_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"tcp/{port}"):
            async with open_host(settings("node", listen=f"/ip4/127.0.0.1/tcp/{port}")):
                pytest.fail("opened")


async def test_a_port_is_free_again_after_leaving() -> None:
    async with open_host(settings("first")) as first:
        listen = first.listening()[0].partition("/p2p/")[0]
    async with open_host(settings("second", listen=listen)) as second:
        assert second.listening()[0].startswith(listen)


def open_sockets() -> int:
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link).startswith("socket:") for link in links if link.is_symlink())


async def test_leaving_closes_sockets_both_ways_and_is_quick() -> None:
    before = open_sockets()
    async with open_host(settings("bob")) as bob, open_host(settings("carol")) as carol:
        bob.set_handler(ECHO, echo)
        with_two = open_sockets()
        async with open_host(settings("alice")) as alice:
            await alice.connect(bob.listening()[0], timeout_s=5)
            await carol.connect(alice.listening()[0], timeout_s=5)
            await check_echo(alice, bob)
            left_at = trio.current_time()
        assert trio.current_time() - left_at < 3.0
        await eventually(lambda: not bob.connected() and not carol.connected())
        await eventually(lambda: open_sockets() == with_two)
    assert open_sockets() == before


async def test_the_last_message_before_leaving_arrives() -> None:
    async with open_host(settings("bob")) as bob:
        at_bob = await bob.subscribe(TOPIC, accept_all)
        async with open_host(settings("alice")) as alice:
            await alice.subscribe(TOPIC, accept_all)
            await alice.connect(bob.listening()[0], timeout_s=5)
            await RealNetwork().settle(TOPIC, alice, bob)
            await alice.publish(TOPIC, b"goodbye")
        with trio.fail_after(5):
            assert (await at_bob.receive()).data == b"goodbye"


# --- the stack built anew --------------------------------------------------------------------


async def crash(host: LibP2PHost) -> None:
    """Raise inside py-libp2p's services, past every guard."""

    async def boom() -> None:
        raise ZeroDivisionError("escaped")

    assert host._stack is not None
    TrioManager.run_task(host._stack.pubsub.manager, boom)
    await eventually(lambda: host.counts["restarts"] == 1)
    await eventually(lambda: host._stack is not None)


async def test_what_escapes_every_guard_costs_connections_not_the_node() -> None:
    async with open_host(settings("node")) as node, open_host(settings("peer")) as peer:
        node.set_handler(ECHO, echo)
        at_node = await node.subscribe(TOPIC, accept_all)
        await peer.subscribe(TOPIC, accept_all)
        address = node.listening()[0]
        await peer.connect(address, timeout_s=5)
        await crash(node)
        assert node.listening() == (address,)
        await eventually(lambda: not peer.connected())
        await peer.connect(address, timeout_s=5)
        await check_echo(peer, node)
        await RealNetwork().settle(TOPIC, node, peer)
        await peer.publish(TOPIC, b"still here")
        with trio.fail_after(5):
            assert (await at_node.receive()).data == b"still here"


async def test_leaving_does_not_wait_for_a_restart_in_progress() -> None:
    async with open_host(settings("node")) as node:

        async def boom() -> None:
            raise ZeroDivisionError

        assert node._stack is not None
        TrioManager.run_task(node._stack.pubsub.manager, boom)
        await eventually(lambda: node._stack is None)
        with pytest.raises(TransportError, match="starting again"):
            await node.publish(TOPIC, b"")
        left_at = trio.current_time()
    assert trio.current_time() - left_at < 1.0


async def test_a_restarted_nodes_messages_are_not_taken_for_old_ones() -> None:
    """Message numbers of the new life must not repeat those of the old one."""
    async with open_host(settings("bob")) as bob:
        at_bob = await bob.subscribe(TOPIC, accept_all)
        for life in (b"first", b"second"):
            async with open_host(settings("alice")) as alice:
                await alice.subscribe(TOPIC, accept_all)
                await alice.connect(bob.listening()[0], timeout_s=5)
                await RealNetwork().settle(TOPIC, alice, bob)
                for number in range(5):
                    await alice.publish(TOPIC, b"%s %d" % (life, number))
                with trio.fail_after(5):
                    received = {(await at_bob.receive()).data for _ in range(5)}
                assert received == {b"%s %d" % (life, number) for number in range(5)}
            await eventually(lambda: not bob.connected())


# --- connections -----------------------------------------------------------------------------


async def test_round_trip_time_is_measured() -> None:
    async with open_host(settings("alice")) as alice, open_host(settings("bob")) as bob:
        await alice.connect(bob.listening()[0], timeout_s=5)
        await eventually(lambda: all(peer.rtt_s for peer in alice.connected() + bob.connected()))
        (seen,) = alice.connected()
        assert seen.rtt_s is not None
        assert 0 < seen.rtt_s < 5


async def test_a_peer_that_answers_no_ping_is_dropped() -> None:
    own = HostLimits(ping_interval_s=0.1, ping_drop_after_s=0.3)
    async with open_host(settings("node", limits=own)) as node:
        target = ID.from_base58(node.peer)
        async with await dial_tcp(node.listening()[0]) as wire:
            upgrader = upgrader_of(new_identity().keys)
            raw = RawConnection(TrioTCPStream(wire), True)
            secured = await upgrader.upgrade_security(raw, True, target)
            await upgrader.upgrade_connection(secured, target)
            await eventually(lambda: len(node.connected()) == 1)
            await eventually(lambda: not node.connected())


async def test_connecting_has_a_deadline() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"
        async with open_host(settings("node")) as node:
            with pytest.raises(TransportError, match="no answer within"):
                await node.connect(
                    f"{address}/p2p/{peer_of_seed(settings('other').seed)}", timeout_s=0.2
                )


async def test_nothing_is_dialled_that_only_peers_named() -> None:
    """py-libp2p keeps addresses that peers claim, and dials them when it is short of peers."""
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.setblocking(False)
        named = Multiaddr(f"/ip4/127.0.0.1/tcp/{trap.getsockname()[1]}")
        async with open_host(settings("node")) as node:
            assert node._stack is not None
            peer = new_identity().peer
            swarm = node._stack.swarm
            swarm.peerstore.add_addrs(peer, [named], 3600)
            await swarm.auto_connector.maybe_connect()
            with pytest.raises(SwarmException):
                await node._stack.host.new_stream(peer, [ECHO])
            await trio.testing.wait_all_tasks_blocked(0.05)
            with pytest.raises(BlockingIOError):
                trap.accept()


async def test_a_validator_cannot_be_skipped_by_an_old_message_number() -> None:
    """py-libp2p remembers verdicts by number for longer than it remembers the messages."""
    judged: list[bytes] = []

    def note(_peer: PeerId, data: bytes) -> Verdict:
        judged.append(data)
        return Verdict.ACCEPT if data == b"good" else Verdict.REJECT

    async with open_host(settings("node")) as node:
        at_node = await node.subscribe(TOPIC, note)
        async with attack(node.listening()[0]) as attacker:
            good = attacker.message(TOPIC, b"good")
            await attacker.rpc(rpc_pb2.RPC(publish=[good]))
            await at_node.receive()
            assert node._stack is not None
            node._stack.pubsub.seen_messages = LastSeenCache(120, 60)  # as two minutes later
            bad = rpc_pb2.Message(
                data=b"bad", topicIDs=[TOPIC], from_id=good.from_id, seqno=good.seqno
            )
            await attacker.rpc(rpc_pb2.RPC(publish=[sign(bad, attacker.identity)]))
            await eventually(lambda: judged == [b"good", b"bad"])
            with pytest.raises(trio.WouldBlock):
                at_node.receive_nowait()


async def test_two_connections_at_once_make_one_gossip_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nodes that dial each other at once: of two streams, messages queued on one were lost."""
    async with open_host(settings("alice")) as alice, open_host(settings("bob")) as bob:
        await alice.connect(bob.listening()[0], timeout_s=5)
        assert alice._stack is not None
        pubsub, peer = alice._stack.pubsub, ID.from_base58(bob.peer)
        await eventually(lambda: peer in pubsub.peers)
        opened = 0
        new_stream = pubsub.host.new_stream

        async def count(*arguments: Any) -> Any:
            nonlocal opened
            opened += 1
            return await new_stream(*arguments)

        monkeypatch.setattr(pubsub.host, "new_stream", count)
        del pubsub.peers[peer]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pubsub._handle_new_peer, peer)
            nursery.start_soon(pubsub._handle_new_peer, peer)
        assert opened == 1
        assert peer in pubsub.peers


async def test_rejected_messages_silence_a_neighbour_but_ignored_ones_do_not() -> None:
    def rules(_peer: PeerId, data: bytes) -> Verdict:
        return {b"r": Verdict.REJECT, b"i": Verdict.IGNORE}.get(data[:1], Verdict.ACCEPT)

    async with open_host(settings("node")) as node:
        at_node = await node.subscribe(TOPIC, rules)
        for verdict, arrives in ((b"i", True), (b"r", False)):
            async with attack(node.listening()[0]) as attacker:
                for number in range(6):
                    await attacker.rpc(
                        rpc_pb2.RPC(publish=[attacker.message(TOPIC, verdict + b"%d" % number)])
                    )
                kind = {b"i": "gossip_ignore", b"r": "gossip_reject"}[verdict]
                await eventually(lambda kind=kind: node.counts[kind] >= 4)  # type: ignore[misc]
                await trio.testing.wait_all_tasks_blocked(0.05)
                await attacker.rpc(rpc_pb2.RPC(publish=[attacker.message(TOPIC, b"good")]))
                with trio.move_on_after(5 if arrives else 0.5) as waited:
                    await at_node.receive()
                assert waited.cancelled_caught != arrives


# --- relays ----------------------------------------------------------------------------------


@asynccontextmanager
async def behind_a_relay() -> AsyncIterator[tuple[LibP2PHost, LibP2PHost]]:
    """A relay, and a node that is reachable through it and echoes."""
    async with open_host(replace(settings("relay"), relay_service=True)) as relay:
        hidden_settings = replace(settings("hidden"), relays=relay.listening())
        async with open_host(hidden_settings) as hidden:
            hidden.set_handler(ECHO, echo)
            await eventually(lambda: len(hidden.listening()) == 2)
            yield relay, hidden


async def test_a_node_is_reached_through_its_relay() -> None:
    async with behind_a_relay() as (relay, hidden), open_host(settings("alice")) as alice:
        through_relay = hidden.listening()[-1]
        assert through_relay == f"{relay.listening()[0]}/p2p-circuit/p2p/{hidden.peer}"
        assert await alice.connect(through_relay, timeout_s=5) == hidden.peer
        await check_echo(alice, hidden)
        seen = {peer.peer: peer for peer in alice.connected()}
        assert seen[hidden.peer].is_relayed
        assert not seen[relay.peer].is_relayed
        assert {peer.peer for peer in hidden.connected()} == {relay.peer, alice.peer}
        await alice.disconnect(hidden.peer)
        await eventually(lambda: {peer.peer for peer in hidden.connected()} == {relay.peer})


async def test_a_relay_cannot_bring_somebody_else() -> None:
    async with behind_a_relay() as (_, hidden), open_host(settings("alice")) as alice:
        stranger = peer_of_seed(settings("stranger").seed)
        with pytest.raises(TransportError):
            await alice.connect(
                hidden.listening()[-1].replace(f"/p2p/{hidden.peer}", f"/p2p/{stranger}"),
                timeout_s=5,
            )
        assert stranger not in {peer.peer for peer in alice.connected()}


async def test_a_node_that_does_not_relay_refuses() -> None:
    async with open_host(settings("plain")) as plain, open_host(settings("alice")) as alice:
        with pytest.raises(TransportError):
            await alice.connect(
                f"{plain.listening()[0]}/p2p-circuit/p2p/{peer_of_seed(settings('x').seed)}",
                timeout_s=5,
            )


async def test_only_our_own_relays_may_bring_connections() -> None:
    """A STOP stream of a stranger would be a door past the inbound gate."""
    async with behind_a_relay() as (_, hidden), attack(hidden.listening()[0]) as attacker:
        await attacker.stream(STOP)
        await eventually(lambda: hidden.counts["stream handler: PeerError"] == 1)


# --- the local network -----------------------------------------------------------------------


async def test_nodes_of_one_run_find_each_other_on_loopback() -> None:
    def lan(name: str, run: str) -> Any:
        return replace(settings(name), lan_discovery=True, run=run)

    async with (
        open_host(lan("alice", "run-1")) as alice,
        open_host(lan("bob", "run-1")) as bob,
        open_host(lan("mallory", "run-2")) as mallory,
    ):
        with trio.fail_after(20):
            assert await alice.discovered().receive() == bob.listening()[0]
            assert await bob.discovered().receive() == alice.listening()[0]
        with pytest.raises(trio.WouldBlock):
            mallory.discovered().receive_nowait()
