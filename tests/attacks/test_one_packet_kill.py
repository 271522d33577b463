"""Malformed and hostile input against a live node: it costs the sender, never the node.

After each attack the node's stack was never restarted, the connection of an honest peer still
echoes, and a newcomer gets in.
"""

import secrets
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.pubsub.pb import rpc_pb2

from p2p import limits
from p2p.host import Stream, Verdict
from p2p.ids import PeerId
from p2p.libp2p_host import HostLimits, LibP2PHost, open_host
from tests.support.networks import echo, eventually, settings
from tests.support.raw_peer import FOREIGN, Attacker, attack, dial_tcp, multistream, sign

pytestmark = pytest.mark.slow

ECHO = "/test/echo/1"
TOPIC = "test/topic"


@dataclass(frozen=True, slots=True)
class Scene:
    """A node under attack, and an honest peer connected to it."""

    node: LibP2PHost
    honest: LibP2PHost

    @property
    def address(self) -> str:
        return self.node.listening()[0]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_host(settings("node")) as node, open_host(settings("honest")) as honest:
        node.set_handler(ECHO, echo)
        node.set_handler("/test/fail/1", fail)
        await node.subscribe(TOPIC, explode_on_x)
        await honest.connect(node.listening()[0], timeout_s=5)
        yield Scene(node, honest)
        await check_echo(honest, node)
        async with open_host(settings("newcomer")) as newcomer:
            await newcomer.connect(node.listening()[0], timeout_s=10)
            await check_echo(newcomer, node)
        assert node.counts["restarts"] == 0


async def check_echo(host: LibP2PHost, node: LibP2PHost) -> None:
    async with host.open_stream(node.peer, ECHO, timeout_s=5) as stream:
        await stream.send_frame(b"alive", max_size=9)
        assert await stream.receive_frame(max_size=9, timeout_s=5) == b"alive"


async def fail(stream: Stream) -> None:
    await stream.receive_frame(max_size=9, timeout_s=5)
    raise ZeroDivisionError("a handler with a bug")


def explode_on_x(_peer: PeerId, data: bytes) -> Verdict:
    if data == b"x":
        raise ZeroDivisionError("a validator with a bug")
    return Verdict.ACCEPT


async def refused(scene: Scene, kind: str) -> None:
    """Wait until the node has counted something of a kind: the attack has arrived."""
    await eventually(lambda: any(key.startswith(kind) for key in scene.node.counts))


# --- below the handshake ---------------------------------------------------------------------

RAW_BYTES = {
    "silence": b"",
    "noise": secrets.token_bytes(4096),
    "zeros": bytes(4096),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "huge varint": b"\xff" * 9 + b"\x7f",
    "endless varint": b"\xff" * 4096,
    "huge line": b"\xff\xff\xff\xff\x0f" + b"a" * 4096,
    "invalid utf-8": multistream("/multistream/1.0.0") + b"\x03\xff\xfe\n",
    "unknown security": multistream("/multistream/1.0.0", "/nothing/1"),
    "many unknown": multistream("/multistream/1.0.0", *["/nothing/1"] * 1000),
    "list for ever": multistream("/multistream/1.0.0", *["ls"] * 1000),
    "truncated handshake": multistream("/multistream/1.0.0", "/noise") + b"\x00\x20" + b"e" * 9,
    "garbage handshake": multistream("/multistream/1.0.0", "/noise") + b"\x00\x20" + b"e" * 32,
    "empty handshake": multistream("/multistream/1.0.0", "/noise") + b"\x00\x00",
    "longest handshake": multistream("/multistream/1.0.0", "/noise") + b"\xff\xff" + bytes(65535),
}


@pytest.mark.parametrize("data", RAW_BYTES.values(), ids=RAW_BYTES)
async def test_bytes_instead_of_a_handshake(scene: Scene, data: bytes) -> None:
    sockets = [await dial_tcp(scene.address) for _ in range(3)]
    for socket in sockets:
        with suppress(*FOREIGN):
            await socket.send_all(data)
    await sockets[0].aclose()
    with suppress(*FOREIGN):
        await sockets[1].send_eof()
    await trio.testing.wait_all_tasks_blocked(0.05)
    for socket in sockets[1:]:
        await socket.aclose()


async def test_half_open_sockets_do_not_keep_newcomers_out(scene: Scene) -> None:
    sockets = [await dial_tcp(scene.address) for _ in range(250)]
    await eventually(lambda: scene.node.counts["inbound_evicted"] >= 250 - 16 - 1)
    async with open_host(settings("hurried")) as hurried:
        await hurried.connect(scene.address, timeout_s=5)
        await check_echo(hurried, scene.node)
    for socket in sockets:
        await socket.aclose()


async def test_slow_handshakes_are_cut() -> None:
    """One byte at a time is not progress: the upgrade has a deadline."""
    own = HostLimits(upgrade_timeout_s=1)
    async with open_host(settings("node", limits=own)) as node:
        socket = await dial_tcp(node.listening()[0])
        with trio.fail_after(10), suppress(*FOREIGN):
            for byte in multistream("/multistream/1.0.0") * 100:
                await socket.send_all(bytes((byte,)))
                with trio.move_on_after(0.1):
                    while await socket.receive_some():
                        pass
                    break
        await eventually(lambda: node.counts["inbound_failed"] == 1)
        await socket.aclose()


async def test_connections_that_come_and_go_give_their_place_back() -> None:
    """py-libp2p keeps an inbound place for ever: the node would be deaf after the limit."""
    own = HostLimits(max_inbound=4)
    async with open_host(settings("node", limits=own)) as node:
        for _ in range(10):
            async with attack(node.listening()[0]):
                pass
            await eventually(lambda: not node.connected())
        assert node.counts["inbound_refused_full"] == 0


async def test_more_connections_than_the_limit_are_refused() -> None:
    own = HostLimits(max_inbound=4)
    async with open_host(settings("node", limits=own)) as node, AsyncExitStack() as others:
        for _ in range(4):
            await others.enter_async_context(attack(node.listening()[0]))
        await eventually(lambda: len(node.connected()) == 4)
        socket = await dial_tcp(node.listening()[0])
        with trio.fail_after(5):
            assert await socket.receive_some() == b""
        assert node.counts["inbound_refused_full"] == 1
        await socket.aclose()


# --- in the muxer ----------------------------------------------------------------------------

MiB = 2**20


async def _oversized_frame(attacker: Attacker) -> None:
    await attacker.frame(0, 1, 1, 0xFFFFFFFF)


async def _unknown_frames(attacker: Attacker) -> None:
    for kind in range(4, 256, 25):
        await attacker.frame(kind, 0xFFFF, kind, 0)


async def _go_away_and_stay(attacker: Attacker) -> None:
    await attacker.frame(3, 0, 0, 77)
    await attacker.frame(0, 1, 1, 0)


async def _streams_nobody_opened(attacker: Attacker) -> None:
    for stream_id in (0, 2, 7, 2**32 - 1):
        await attacker.frame(0, 0, stream_id, 0)
        await attacker.frame(1, 8, stream_id, 2**32 - 1)


async def _half_a_frame(attacker: Attacker) -> None:
    await attacker.secured.write(struct.pack("!BBHII", 0, 0, 1, 1, 100) + b"half")


async def _ping_flood(attacker: Attacker) -> None:
    for number in range(2000):
        await attacker.frame(2, 1, 0, number)


async def _reset_storm(attacker: Attacker) -> None:
    for number in range(500):
        await attacker.frame(1, 1, 2 * number + 1, 0)
        await attacker.frame(1, 8, 2 * number + 1, 0)


async def _garbage_after_noise(attacker: Attacker) -> None:
    await attacker.secured.write(secrets.token_bytes(4096))


async def _ruined_cipher(attacker: Attacker) -> None:
    raw = attacker.secured.conn.read_writer.read_write_closer
    await raw.write(b"\x00\x40" + secrets.token_bytes(64))


MUXER = (
    _oversized_frame,
    _unknown_frames,
    _go_away_and_stay,
    _streams_nobody_opened,
    _half_a_frame,
    _ping_flood,
    _reset_storm,
    _garbage_after_noise,
    _ruined_cipher,
)


@pytest.mark.parametrize("assault", MUXER)
async def test_hostile_muxer(scene: Scene, assault: Callable[[Attacker], Awaitable[None]]) -> None:
    async with attack(scene.address) as attacker:
        await assault(attacker)
        await trio.testing.wait_all_tasks_blocked(0.05)


async def test_streams_that_say_nothing_are_bounded(scene: Scene) -> None:
    async with attack(scene.address) as attacker:
        for number in range(200):
            await attacker.frame(1, 1, 2 * number + 1, 0)
        await eventually(
            lambda: scene.node.counts["streams_refused"] >= 200 - limits.MAX_STREAMS_PER_PEER - 1
        )


async def test_a_peer_that_ignores_its_window_is_cut_off(scene: Scene) -> None:
    """py-libp2p only warns, and buffers without end."""
    async with attack(scene.address) as attacker:
        stream = await attacker.stream("/test/silent/1")
        del stream
    received = trio.Event()

    async def never_read(stream: Stream) -> None:
        received.set()
        await trio.sleep_forever()

    scene.node.set_handler("/test/silent/1", never_read)
    async with attack(scene.address) as attacker:
        stream = await attacker.stream("/test/silent/1")
        await received.wait()
        with trio.fail_after(20), suppress(*FOREIGN):
            for _ in range(2 * limits.MAX_BUFFERED_PER_CONNECTION // MiB):
                for _ in range(MiB // 60_000):
                    header = struct.pack("!BBHII", 0, 0, 0, stream.stream_id, 60_000)
                    await attacker.secured.write(header + bytes(60_000))
            pytest.fail("the node took twice what it may buffer")
    await eventually(lambda: len(scene.node.connected()) == 1)


# --- in the protocols ------------------------------------------------------------------------

FIRST_BYTES = {
    "noise": secrets.token_bytes(2048),
    "huge varint": b"\xff" * 9 + b"\x7f",
    "invalid utf-8": multistream("/multistream/1.0.0") + b"\x03\xff\xfe\n",
    "list for ever": multistream("/multistream/1.0.0", *["ls"] * 300),
    "no newline": b"\x05abcde",
}


@pytest.mark.parametrize("data", FIRST_BYTES.values(), ids=FIRST_BYTES)
async def test_garbage_instead_of_a_protocol(scene: Scene, data: bytes) -> None:
    async with attack(scene.address) as attacker:
        for _ in range(5):
            await attacker.raw_stream(data)
        await trio.testing.wait_all_tasks_blocked(0.05)


GARBAGE = {
    "not protobuf": b"\x0b" + b"\xff" * 11,
    "truncated protobuf": b"\x04\x12\x7f\x0a\x01",
    "wrong wire types": b"\x06\x08\x01\x10\x01\x18\x01",
    "huge varint": b"\xff" * 9 + b"\x01",
    "endless varint": b"\xff" * 64,
    "2 GiB announced": b"\xff\xff\xff\xff\x07" + bytes(1000),
    "empty": b"\x00" * 64,
    "one byte": b"\x7f",
}
PROTOCOLS = (
    "/meshsub/1.1.0",
    "/ipfs/id/1.0.0",
    "/ipfs/id/push/1.0.0",
    "/ipfs/ping/1.0.0",
    ECHO,
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_garbage_in_a_protocol(scene: Scene, protocol: str) -> None:
    async with attack(scene.address) as attacker:
        for data in GARBAGE.values():
            stream = await attacker.stream(protocol)
            with suppress(*FOREIGN):
                await stream.write(data)
                await stream.close()
        await trio.testing.wait_all_tasks_blocked(0.05)


@pytest.mark.parametrize(
    "protocol", [f"/meshsub/{v}" for v in ("1.0.0", "1.2.0", "1.3.0")] + ["/floodsub/1.0.0"]
)
async def test_garbage_on_gossip_versions_not_served(scene: Scene, protocol: str) -> None:
    async with attack(scene.address) as attacker:
        for data in GARBAGE.values():
            await attacker.raw_stream(multistream("/multistream/1.0.0", protocol) + data)
        await trio.testing.wait_all_tasks_blocked(0.05)


async def test_garbage_in_answer_to_what_the_node_asks(scene: Scene) -> None:
    """The node opens identify and gossip streams to whoever connects."""
    answered = 0

    async def answer(stream: Any) -> None:
        nonlocal answered
        await stream.write(
            multistream("/multistream/1.0.0", "/ipfs/id/1.0.0") + GARBAGE["not protobuf"]
        )
        answered += 1

    async with attack(scene.address, answer=answer):
        await eventually(lambda: answered >= 1)
        await trio.testing.wait_all_tasks_blocked(0.05)


def _no_signature(attacker: Attacker) -> Any:
    message = attacker.message(TOPIC, b"data")
    message.ClearField("signature")
    return message


def _bad_signature(attacker: Attacker) -> Any:
    message = attacker.message(TOPIC, b"data")
    message.data = b"other"
    return message


def _malformed_key(attacker: Attacker) -> Any:
    message = attacker.message(TOPIC, b"data")
    message.from_id = b"\x12\x20" + bytes(32)
    message.key = b"\xff" * 7
    return message


def _malformed_author(attacker: Attacker) -> Any:
    message = attacker.message(TOPIC, b"data")
    message.from_id = b"\xff"
    return sign(message, attacker.identity)


def _no_author(attacker: Attacker) -> Any:
    message = attacker.message(TOPIC, b"data")
    message.ClearField("from_id")
    return message


def _the_nodes_own_name(attacker: Attacker) -> Any:
    message = attacker.message(TOPIC, b"data")
    message.from_id = attacker.target.to_bytes()
    return message


def _two_topics(attacker: Attacker) -> Any:
    message = rpc_pb2.Message(
        data=b"data",
        topicIDs=[TOPIC] * 200,
        from_id=attacker.identity.peer.to_bytes(),
        seqno=b"12345678",
    )
    return sign(message, attacker.identity)


def _too_large(attacker: Attacker) -> Any:
    return attacker.message(TOPIC, bytes(limits.MAX_GOSSIP_SIZE + 1))


def _explosive(attacker: Attacker) -> Any:
    return attacker.message(TOPIC, b"x")


MESSAGES = (
    _no_signature,
    _bad_signature,
    _malformed_key,
    _malformed_author,
    _no_author,
    _the_nodes_own_name,
    _two_topics,
    _too_large,
    _explosive,
)


@pytest.mark.parametrize("make", MESSAGES)
async def test_hostile_gossip_message(scene: Scene, make: Callable[[Attacker], Any]) -> None:
    async with attack(scene.address) as attacker:
        await attacker.rpc(rpc_pb2.RPC(publish=[make(attacker)]))
        await trio.testing.wait_all_tasks_blocked(0.05)
    assert scene.node.counts["gossip_accept"] == 0


async def test_flood_of_good_messages_is_cut_to_the_budget(scene: Scene) -> None:
    async with attack(scene.address) as attacker:
        messages = [attacker.message(TOPIC, b"flood %d" % number) for number in range(1000)]
        await attacker.rpc(rpc_pb2.RPC(publish=messages))
        await refused(scene, "gossip_refused_rate")
        await trio.testing.wait_all_tasks_blocked(0.05)
    assert 0 < scene.node.counts["gossip_accept"] < 300  # 40 at once, and 20 a second


def _control(**fields: Any) -> Any:
    return rpc_pb2.RPC(control=rpc_pb2.ControlMessage(**fields))


CONTROLS = {
    "ids that are not hex": _control(
        ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=[b"zz", b"\xc3\xa9", b""])],
        iwant=[rpc_pb2.ControlIWant(messageIDs=[b"zz", b"a"])],
    ),
    "20,000 wants": _control(
        iwant=[rpc_pb2.ControlIWant(messageIDs=[b"00" * 8] * 20_000)],
    ),
    "2,000 grafts": _control(graft=[rpc_pb2.ControlGraft(topicID=f"t{n}") for n in range(2000)]),
    "prune with peers": _control(
        prune=[
            rpc_pb2.ControlPrune(
                topicID=TOPIC,
                peers=[rpc_pb2.PeerInfo(peerID=b"\xff" * 5, signedPeerRecord=b"\xff" * 99)] * 99,
                backoff=2**63,
            )
        ]
    ),
    "signed record": rpc_pb2.RPC(senderRecord=b"\xff" * 999),
    "5,001 topics": rpc_pb2.RPC(
        subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"{n}") for n in range(5001)]
    ),
    "200 topics": rpc_pb2.RPC(
        subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"{n}") for n in range(200)]
    ),
}


@pytest.mark.parametrize("rpc", CONTROLS.values(), ids=CONTROLS)
async def test_hostile_gossip_control(scene: Scene, rpc: Any) -> None:
    async with attack(scene.address) as attacker:
        await attacker.rpc(rpc, rpc, rpc)
        await trio.testing.wait_all_tasks_blocked(0.05)


async def test_raising_handler_on_request(scene: Scene) -> None:
    async with attack(scene.address) as attacker:
        for _ in range(10):
            stream = await attacker.stream("/test/fail/1")
            await stream.write(b"\x00\x00\x00\x01x")
        await eventually(lambda: scene.node.counts["handler_errors"] == 10)


async def test_frame_longer_than_the_limit_is_refused_by_its_prefix(scene: Scene) -> None:
    async with attack(scene.address) as attacker:
        stream = await attacker.stream(ECHO)
        await stream.write(b"\xff\xff\xff\xff")
        await eventually(lambda: scene.node.counts["handler_peer_errors"] == 1)


async def test_stream_without_a_first_byte_is_dropped() -> None:
    own = HostLimits(first_byte_timeout_s=0.1)
    async with open_host(settings("node", limits=own)) as node:
        node.set_handler(ECHO, echo)
        async with attack(node.listening()[0]) as attacker:
            await attacker.stream(ECHO)
            await eventually(lambda: node.counts["handler_peer_errors"] == 1)


async def test_frame_that_stops_halfway_is_dropped() -> None:
    own = HostLimits(idle_stream_timeout_s=0.1)
    async with open_host(settings("node", limits=own)) as node:
        node.set_handler(ECHO, echo)
        async with attack(node.listening()[0]) as attacker:
            stream = await attacker.stream(ECHO)
            await stream.write(b"\x00\x00\x00\x09half")
            await eventually(lambda: node.counts["handler_peer_errors"] == 1)
