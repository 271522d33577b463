"""What only the in-memory network can do; what every host does stands in tests/contracts."""

import pytest
import trio

from p2p.errors import StreamClosedError, TransportError
from p2p.host import Stream, Verdict
from p2p.ids import PeerId
from p2p.memory_host import MemoryNetwork

ALICE, BOB, CAROL = (name * 32 for name in (b"a", b"b", b"c"))
TOPIC = "topic"


def accept(_peer: PeerId, _data: bytes) -> Verdict:
    return Verdict.ACCEPT


async def wait(_stream: Stream) -> None:
    await trio.sleep_forever()


async def test_partition_cuts_links_and_streams_until_healed() -> None:
    network = MemoryNetwork()
    async with network.open_host(ALICE) as alice, network.open_host(BOB) as bob:
        bob.set_handler("/wait", wait)
        await alice.connect(bob.listening()[0], timeout_s=1)
        async with alice.open_stream(bob.peer, "/wait", timeout_s=1) as stream:
            network.partition({alice.peer}, {bob.peer})
            with pytest.raises(StreamClosedError):
                await stream.receive_frame(max_size=1, timeout_s=1)
        assert not alice.connected()
        with pytest.raises(TransportError):
            await alice.connect(bob.listening()[0], timeout_s=1)
        network.heal()
        assert await alice.connect(bob.listening()[0], timeout_s=1) == bob.peer


async def test_partition_keeps_links_within_a_group() -> None:
    network = MemoryNetwork()
    async with (
        network.open_host(ALICE) as alice,
        network.open_host(BOB) as bob,
        network.open_host(CAROL) as carol,
    ):
        await alice.connect(bob.listening()[0], timeout_s=1)
        await alice.connect(carol.listening()[0], timeout_s=1)
        network.partition({alice.peer, bob.peer}, {carol.peer})
        assert [connected.peer for connected in alice.connected()] == [bob.peer]


async def test_manual_network_carries_one_message_over_one_link_at_a_time() -> None:
    network = MemoryNetwork(manual=True)
    async with (
        network.open_host(ALICE) as alice,
        network.open_host(BOB) as bob,
        network.open_host(CAROL) as carol,
    ):
        await alice.connect(bob.listening()[0], timeout_s=1)
        await bob.connect(carol.listening()[0], timeout_s=1)
        at_bob = await bob.subscribe(TOPIC, accept)
        at_carol = await carol.subscribe(TOPIC, accept)
        await alice.publish(TOPIC, b"news")
        with pytest.raises(trio.WouldBlock):
            at_bob.receive_nowait()
        assert network.deliver_next()
        assert at_bob.receive_nowait().data == b"news"
        with pytest.raises(trio.WouldBlock):
            at_carol.receive_nowait()
        while network.deliver_next():
            pass
        assert at_carol.receive_nowait().sender == alice.peer
        assert network.pending == 0


async def test_message_on_a_link_that_is_cut_is_lost() -> None:
    network = MemoryNetwork(manual=True)
    async with network.open_host(ALICE) as alice, network.open_host(BOB) as bob:
        await alice.connect(bob.listening()[0], timeout_s=1)
        at_bob = await bob.subscribe(TOPIC, accept)
        await alice.publish(TOPIC, b"lost")
        await alice.disconnect(bob.peer)
        assert network.deliver_next()
        with pytest.raises(trio.WouldBlock):
            at_bob.receive_nowait()


async def test_one_key_is_one_host() -> None:
    network = MemoryNetwork()
    async with network.open_host(ALICE):
        with pytest.raises(TransportError, match="already open"):
            async with network.open_host(ALICE):
                pytest.fail("opened")
    async with network.open_host(ALICE) as again:
        assert not again.connected()
