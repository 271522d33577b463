"""A hostile peer: talks to a live node at the level of TCP, Noise, Yamux or a protocol's stream.

Built on unguarded py-libp2p parts where a handshake must be right for the attack to begin.
"""

import secrets
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux import yamux
from libp2p.transport.upgrader import TransportUpgrader
from libp2p.utils import encode_varint_prefixed

FOREIGN = (BaseLibp2pError, OSError, EOFError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What an attack may run into when the node hangs up on it."""


def endpoint(address: str) -> tuple[str, int]:
    """Host and port of `/ip4/<ip>/tcp/<port>/...`."""
    parts = address.split("/")
    return parts[2], int(parts[4])


async def dial_tcp(address: str) -> trio.SocketStream:
    """A bare socket to the node."""
    host, port = endpoint(address)
    return await trio.open_tcp_stream(host, port)


def multistream(*lines: str) -> bytes:
    """Lines as multistream-select frames."""
    return b"".join(encode_varint_prefixed(line.encode() + b"\n") for line in lines)


@dataclass(frozen=True, slots=True)
class Identity:
    """A key pair and the peer id that belongs to it."""

    keys: Any
    peer: Any


def new_identity() -> Identity:
    """A fresh identity."""
    keys = create_new_key_pair(secrets.token_bytes(32))
    return Identity(keys, ID.from_pubkey(keys.public_key))


@dataclass(slots=True)
class Attacker:
    """An authenticated connection to the node under attack."""

    identity: Identity
    target: Any
    secured: Any
    muxed: Any

    async def stream(self, protocol: str) -> Any:
        """A stream with its protocol negotiated."""
        stream = await self.muxed.open_stream()
        await MultiselectClient().select_one_of([protocol], MultiselectCommunicator(stream), 5)
        return stream

    async def raw_stream(self, data: bytes) -> Any:
        """A stream on which the first bytes are ours to choose."""
        stream = await self.muxed.open_stream()
        await stream.write(data)
        return stream

    async def frame(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """One yamux header of any content."""
        header = struct.pack("!BBHII", 0, kind, flags, stream_id, length)
        await self.secured.write(header)

    async def rpc(self, *rpcs: Any, protocol: str = "/meshsub/1.1.0") -> None:
        """Send gossip RPCs on a fresh stream."""
        stream = await self.stream(protocol)
        for rpc in rpcs:
            await stream.write(encode_varint_prefixed(rpc.SerializeToString()))

    def message(self, topic: str, data: bytes) -> Any:
        """A gossip message that is signed as it should be."""
        message = rpc_pb2.Message(
            data=data,
            topicIDs=[topic],
            from_id=self.identity.peer.to_bytes(),
            seqno=secrets.token_bytes(8),
        )
        return sign(message, self.identity)


def sign(message: Any, identity: Identity) -> Any:
    """Sign a gossip message with a key, whoever it says it is from."""
    signed = PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString()
    message.signature = identity.keys.private_key.sign(signed)
    message.key = identity.keys.public_key.serialize()
    return message


def upgrader_of(keys: Any, noise: Any = None) -> TransportUpgrader:
    """Noise and Yamux as py-libp2p ships them."""
    noise = noise or NoiseTransport(keys, noise_privkey=create_new_x25519_key_pair().private_key)
    return TransportUpgrader({NOISE: noise}, {yamux.PROTOCOL_ID: yamux.Yamux})


@asynccontextmanager
async def attack(
    address: str, *, answer: Callable[[Any], Any] | None = None
) -> AsyncIterator[Attacker]:
    """Connect with a valid handshake and run the muxer until the block is left.

    Args:
        address: of the node.
        answer: handles the streams the node opens to us (identify, gossip); by default they wait.
    """
    identity = new_identity()
    target = ID.from_base58(address.rpartition("/p2p/")[2])
    socket = await dial_tcp(address)
    raw = RawConnection(TrioTCPStream(socket), True)
    upgrader = upgrader_of(identity.keys)
    secured = await upgrader.upgrade_security(raw, True, target)
    muxed = await upgrader.upgrade_connection(secured, target)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        nursery.start_soon(_answer_all, muxed, answer)
        await muxed.event_started.wait()
        try:
            with suppress(*FOREIGN):
                yield Attacker(identity, target, secured, muxed)
        finally:
            nursery.cancel_scope.cancel()
            socket.socket.close()


async def _answer_all(muxed: Any, answer: Callable[[Any], Any] | None) -> None:
    with suppress(*FOREIGN):
        while True:
            stream = await muxed.accept_stream()
            if answer is not None:
                with suppress(*FOREIGN):
                    await answer(stream)
