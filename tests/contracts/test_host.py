"""What every `Host` promises: run against py-libp2p on loopback and against memory."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from p2p import limits
from p2p.errors import LimitError, PeerError, StreamClosedError, TransportError
from p2p.host import GossipMessage, Host, Stream, Verdict
from p2p.ids import PeerId
from p2p.memory_host import peer_of_seed
from tests.support.networks import FakeNetwork, RealNetwork, echo, eventually, settings

ECHO = "/test/echo/1"
TOPIC = "test/topic"


@pytest.fixture(params=[FakeNetwork, pytest.param(RealNetwork, marks=pytest.mark.slow)])
def network(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
async def pair(network: Any) -> AsyncIterator[tuple[Host, Host]]:
    """Alice, connected to Bob, who echoes."""
    async with network.open("alice") as alice, network.open("bob") as bob:
        bob.set_handler(ECHO, echo)
        await alice.connect(bob.listening()[0], timeout_s=5)
        await eventually(lambda: len(bob.connected()) == 1)
        yield alice, bob


def accept_all(_peer: PeerId, _data: bytes) -> Verdict:
    return Verdict.ACCEPT


def by_first_byte(_peer: PeerId, data: bytes) -> Verdict:
    if data.startswith(b"!"):
        raise ZeroDivisionError("a validator with a bug")
    return {b"a": Verdict.ACCEPT, b"i": Verdict.IGNORE}.get(data[:1], Verdict.REJECT)


async def collect(channel: trio.MemoryReceiveChannel[GossipMessage], last: bytes) -> list[bytes]:
    """Messages up to and with `last`."""
    found: list[bytes] = []
    with trio.fail_after(10):
        while last not in found:
            found.append((await channel.receive()).data)
    return found


async def test_peer_id_is_the_root_keys(network: Any) -> None:
    async with network.open("alice") as alice:
        assert alice.peer == peer_of_seed(settings("alice").seed)
        assert all(a.endswith(f"/p2p/{alice.peer}") for a in alice.listening())


async def test_connection_is_listed_on_both_sides(pair: tuple[Host, Host]) -> None:
    alice, bob = pair
    (seen_by_alice,) = alice.connected()
    (seen_by_bob,) = bob.connected()
    assert (seen_by_alice.peer, seen_by_alice.is_outbound) == (bob.peer, True)
    assert (seen_by_bob.peer, seen_by_bob.is_outbound) == (alice.peer, False)
    assert not seen_by_alice.is_relayed
    assert bob.listening()[0].startswith(seen_by_alice.address)


async def test_connecting_again_keeps_the_one_connection(pair: tuple[Host, Host]) -> None:
    alice, bob = pair
    assert await alice.connect(bob.listening()[0], timeout_s=5) == bob.peer
    assert len(alice.connected()) == len(bob.connected()) == 1


async def test_another_key_behind_the_address_is_refused(network: Any) -> None:
    async with network.open("alice") as alice, network.open("bob") as bob:
        wrong = bob.listening()[0].replace(bob.peer, peer_of_seed(settings("carol").seed))
        with pytest.raises(TransportError):
            await alice.connect(wrong, timeout_s=5)
        assert not alice.connected()
        await eventually(lambda: not bob.connected())


async def test_dialling_nobody_fails_with_the_address(network: Any) -> None:
    async with network.open("alice") as alice:
        address = f"/ip4/127.0.0.1/tcp/9/p2p/{peer_of_seed(settings('bob').seed)}"
        with pytest.raises(TransportError, match=re.escape("/ip4/127.0.0.1/tcp/9")):
            await alice.connect(address, timeout_s=5)


@pytest.mark.parametrize(
    "address",
    ["", "localhost:4001", "/ip4/127.0.0.1/tcp/4001", "/ip4/127.0.0.1/tcp/4001/p2p/QmNotAKey"],
)
async def test_malformed_address_is_a_transport_error(network: Any, address: str) -> None:
    async with network.open("alice") as alice:
        with pytest.raises(TransportError):
            await alice.connect(address, timeout_s=5)


async def test_a_node_does_not_dial_itself(network: Any) -> None:
    async with network.open("alice") as alice:
        with pytest.raises(TransportError):
            await alice.connect(alice.listening()[0], timeout_s=5)


async def test_frames_of_any_size_come_back_whole_and_in_order(pair: tuple[Host, Host]) -> None:
    alice, bob = pair
    async with alice.open_stream(bob.peer, ECHO, timeout_s=5) as stream:
        assert stream.peer == bob.peer
        for frame in (b"", b"x", bytes(range(256)) * 300, b"y" * 2**20):
            await stream.send_frame(frame, max_size=2**20)
            assert await stream.receive_frame(max_size=2**20, timeout_s=10) == frame
        await stream.send_frame(b"one", max_size=3)
        await stream.send_frame(b"two", max_size=3)
        assert await stream.receive_frame(max_size=3, timeout_s=10) == b"one"
        assert await stream.receive_frame(max_size=3, timeout_s=10) == b"two"


async def test_handler_knows_who_opened_the_stream(pair: tuple[Host, Host]) -> None:
    alice, bob = pair

    async def tell(stream: Stream) -> None:
        await stream.send_frame(stream.peer.encode(), max_size=100)

    bob.set_handler("/test/tell/1", tell)
    async with alice.open_stream(bob.peer, "/test/tell/1", timeout_s=5) as stream:
        assert await stream.receive_frame(max_size=100, timeout_s=5) == alice.peer.encode()
        with pytest.raises(StreamClosedError):
            await stream.receive_frame(max_size=100, timeout_s=5)


async def test_sending_too_much_is_refused_here_and_harms_nothing(pair: tuple[Host, Host]) -> None:
    alice, bob = pair
    async with alice.open_stream(bob.peer, ECHO, timeout_s=5) as stream:
        with pytest.raises(LimitError):
            await stream.send_frame(b"1234", max_size=3)
        await stream.send_frame(b"123", max_size=3)
        assert await stream.receive_frame(max_size=3, timeout_s=5) == b"123"


async def test_receiving_too_much_drops_the_stream(pair: tuple[Host, Host]) -> None:
    alice, bob = pair
    outcomes: list[Exception] = []

    async def take_little(stream: Stream) -> None:
        try:
            await stream.receive_frame(max_size=3, timeout_s=5)
        except LimitError as error:
            outcomes.append(error)

    bob.set_handler("/test/little/1", take_little)
    async with alice.open_stream(bob.peer, "/test/little/1", timeout_s=5) as stream:
        await stream.send_frame(b"1234", max_size=4)
        with pytest.raises(StreamClosedError):
            await stream.receive_frame(max_size=3, timeout_s=5)
    assert len(outcomes) == 1


async def test_a_late_frame_is_the_peers_fault_and_may_still_come(pair: tuple[Host, Host]) -> None:
    alice, bob = pair
    async with alice.open_stream(bob.peer, ECHO, timeout_s=5) as stream:
        with pytest.raises(PeerError) as caught:
            await stream.receive_frame(max_size=9, timeout_s=0.05)
        assert not isinstance(caught.value, StreamClosedError)
        await stream.send_frame(b"now", max_size=9)
        assert await stream.receive_frame(max_size=9, timeout_s=5) == b"now"


async def test_closing_ends_only_our_direction(pair: tuple[Host, Host]) -> None:
    alice, bob = pair

    async def count(stream: Stream) -> None:
        frames = 0
        try:
            while True:
                await stream.receive_frame(max_size=9, timeout_s=5)
                frames += 1
        except StreamClosedError:
            await stream.send_frame(str(frames).encode(), max_size=9)

    bob.set_handler("/test/count/1", count)
    async with alice.open_stream(bob.peer, "/test/count/1", timeout_s=5) as stream:
        await stream.send_frame(b"one", max_size=9)
        await stream.send_frame(b"two", max_size=9)
        await stream.close()
        await stream.close()
        with pytest.raises(StreamClosedError):
            await stream.send_frame(b"three", max_size=9)
        assert await stream.receive_frame(max_size=9, timeout_s=5) == b"2"


@pytest.mark.parametrize("how", ["reset", "error"])
async def test_dropping_a_stream_is_seen_at_the_other_end(
    pair: tuple[Host, Host], how: str
) -> None:
    alice, bob = pair
    dropped = trio.Event()

    async def wait(stream: Stream) -> None:
        try:
            await stream.receive_frame(max_size=9, timeout_s=5)
        except StreamClosedError:
            dropped.set()

    bob.set_handler("/test/wait/1", wait)
    if how == "reset":
        async with alice.open_stream(bob.peer, "/test/wait/1", timeout_s=5) as stream:
            await stream.reset()
            await stream.reset()
    else:
        with pytest.raises(ZeroDivisionError):
            async with alice.open_stream(bob.peer, "/test/wait/1", timeout_s=5):
                raise ZeroDivisionError
    with trio.fail_after(5):
        await dropped.wait()


async def test_a_raising_handler_costs_its_stream_and_nothing_else(
    pair: tuple[Host, Host],
) -> None:
    alice, bob = pair

    async def fail(stream: Stream) -> None:
        await stream.receive_frame(max_size=9, timeout_s=5)
        raise ZeroDivisionError("a handler with a bug")

    bob.set_handler("/test/fail/1", fail)
    async with alice.open_stream(bob.peer, "/test/fail/1", timeout_s=5) as stream:
        await stream.send_frame(b"x", max_size=9)
        with pytest.raises(StreamClosedError):
            await stream.receive_frame(max_size=9, timeout_s=5)
    async with alice.open_stream(bob.peer, ECHO, timeout_s=5) as stream:
        await stream.send_frame(b"alive", max_size=9)
        assert await stream.receive_frame(max_size=9, timeout_s=5) == b"alive"


async def test_protocol_nobody_serves(pair: tuple[Host, Host]) -> None:
    alice, bob = pair
    with pytest.raises(TransportError, match="/test/none/1"):
        async with alice.open_stream(bob.peer, "/test/none/1", timeout_s=5):
            pytest.fail("opened")


async def test_stream_to_a_stranger(network: Any) -> None:
    async with network.open("alice") as alice, network.open("bob") as bob:
        bob.set_handler(ECHO, echo)
        with pytest.raises(TransportError, match="not connected"):
            async with alice.open_stream(bob.peer, ECHO, timeout_s=5):
                pytest.fail("opened")


async def test_streams_per_peer_are_bounded_and_given_back(pair: tuple[Host, Host]) -> None:
    alice, bob = pair
    async with AsyncExitStack() as streams:
        # py-libp2p's own gossip and identify streams count too
        for _ in range(limits.MAX_STREAMS_PER_PEER - 2):
            await streams.enter_async_context(alice.open_stream(bob.peer, ECHO, timeout_s=5))
        with pytest.raises(TransportError):  # noqa: PT012 (any of the three)
            for _ in range(3):
                await streams.enter_async_context(alice.open_stream(bob.peer, ECHO, timeout_s=5))
    for _ in range(3):
        async with alice.open_stream(bob.peer, ECHO, timeout_s=5) as stream:
            await stream.send_frame(b"again", max_size=9)
            assert await stream.receive_frame(max_size=9, timeout_s=5) == b"again"


async def test_disconnecting_ends_streams_and_can_be_undone(pair: tuple[Host, Host]) -> None:
    alice, bob = pair
    async with alice.open_stream(bob.peer, ECHO, timeout_s=5) as stream:
        await bob.disconnect(alice.peer)
        with pytest.raises(StreamClosedError):
            await stream.receive_frame(max_size=9, timeout_s=5)
    await eventually(lambda: not alice.connected() and not bob.connected())
    await alice.connect(bob.listening()[0], timeout_s=5)
    async with alice.open_stream(bob.peer, ECHO, timeout_s=5) as stream:
        await stream.send_frame(b"back", max_size=9)
        assert await stream.receive_frame(max_size=9, timeout_s=5) == b"back"


async def test_gossip_spreads_what_each_node_accepts(network: Any) -> None:
    """A line alice - bob - carol: what Bob does not accept never reaches Carol."""
    async with (
        network.open("alice") as alice,
        network.open("bob") as bob,
        network.open("carol") as carol,
    ):
        await alice.connect(bob.listening()[0], timeout_s=5)
        await carol.connect(bob.listening()[0], timeout_s=5)
        at_alice = await alice.subscribe(TOPIC, by_first_byte)
        at_bob = await bob.subscribe(TOPIC, by_first_byte)
        seen_by_carol: list[bytes] = []

        def note(_peer: PeerId, data: bytes) -> Verdict:
            seen_by_carol.append(data)
            return Verdict.ACCEPT

        at_carol = await carol.subscribe(TOPIC, note)
        await network.settle(TOPIC, alice, bob, carol)
        for data in (b"a1", b"ignored", b"rejected", b"!bug", b"a2"):
            await alice.publish(TOPIC, data)
        assert sorted(await collect(at_bob, b"a2")) == [b"a1", b"a2"]
        with trio.fail_after(10):
            messages = [await at_carol.receive(), await at_carol.receive()]
        assert {message.data for message in messages} == {b"a1", b"a2"} == set(seen_by_carol)
        assert {message.sender for message in messages} == {alice.peer}
        await carol.publish(TOPIC, b"a3")
        assert await collect(at_alice, b"a3") == [b"a3"]


async def test_gossip_of_exactly_the_limit_passes_and_more_raises(
    network: Any, pair: tuple[Host, Host]
) -> None:
    alice, bob = pair
    at_bob = await bob.subscribe(TOPIC, accept_all)
    await alice.subscribe(TOPIC, accept_all)
    await network.settle(TOPIC, alice, bob)
    await alice.publish(TOPIC, b"x" * limits.MAX_GOSSIP_SIZE)
    with pytest.raises(LimitError, match="16385"):
        await alice.publish(TOPIC, b"x" * (limits.MAX_GOSSIP_SIZE + 1))
    with trio.fail_after(10):
        assert len((await at_bob.receive()).data) == limits.MAX_GOSSIP_SIZE


async def test_publishing_too_fast_raises(network: Any) -> None:
    async with network.open("alice") as alice:
        for _ in range(int(limits.MAX_GOSSIP_PER_PEER_PER_S)):
            await alice.publish(TOPIC, b"x")
        with pytest.raises(LimitError, match="per second"):
            await alice.publish(TOPIC, b"x")
        await alice.publish("another/topic", b"x")


async def test_a_topic_has_one_subscriber_at_a_time(pair: tuple[Host, Host]) -> None:
    alice, _ = pair
    await alice.subscribe(TOPIC, accept_all)
    with pytest.raises(ValueError, match="already subscribed"):
        await alice.subscribe(TOPIC, accept_all)


async def test_a_subscription_ends_with_its_host(network: Any) -> None:
    async with network.open("alice") as alice:
        channel = await alice.subscribe(TOPIC, accept_all)
    with trio.fail_after(5), pytest.raises(trio.EndOfChannel):
        await channel.receive()


async def test_a_topic_can_be_left_by_closing_and_joined_again(pair: tuple[Host, Host]) -> None:
    alice, bob = pair
    (await bob.subscribe(TOPIC, accept_all)).close()
    await alice.subscribe(TOPIC, accept_all)

    async def rejoin() -> bool:
        await alice.publish(TOPIC, b"x")
        try:
            await bob.subscribe(TOPIC, accept_all)
        except ValueError:
            return False
        return True

    with trio.fail_after(10):
        while not await rejoin():  # noqa: ASYNC110
            await trio.sleep(0.2)


async def test_error_of_the_block_comes_out_unchanged(network: Any) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        async with network.open("alice"):
            raise ZeroDivisionError
    assert type(caught.value) is ZeroDivisionError


async def test_cancelling_the_block_is_clean(network: Any) -> None:
    async with network.open("bob") as bob:
        bob.set_handler(ECHO, echo)
        with trio.move_on_after(0.2) as scope:
            async with network.open("alice") as alice:
                await alice.connect(bob.listening()[0], timeout_s=5)
                async with alice.open_stream(bob.peer, ECHO, timeout_s=5) as stream:
                    await stream.receive_frame(max_size=9, timeout_s=30)
        assert scope.cancelled_caught
        await eventually(lambda: not bob.connected())
