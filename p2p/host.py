"""Ports of the connected half of the network: streams and gossip between peers who know each other.

Two things stand behind them: `p2p.libp2p_host` (py-libp2p on trio) and `p2p.memory_host` (for
tests). Handlers and validators are ours; whatever they raise is the adapter's to contain.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import trio

from p2p.ids import PeerId

StreamHandler = Callable[["Stream"], Awaitable[None]]


class Verdict(Enum):
    """What a topic's rules say of one message."""

    ACCEPT = "accept"
    IGNORE = "ignore"
    """Not forwarded, nobody to blame (a duplicate, a record of another run)."""
    REJECT = "reject"
    """Not forwarded, and the sender's score falls."""


TopicValidator = Callable[[PeerId, bytes], Verdict]


@dataclass(frozen=True, slots=True)
class GossipMessage:
    """One message that the topic's validator accepted. `sender` signed it at the pubsub layer."""

    topic: str
    sender: PeerId
    data: bytes


@dataclass(frozen=True, slots=True)
class ConnectedPeer:
    """A peer there is a live connection to."""

    peer: PeerId
    address: str
    """The remote multiaddr."""
    is_outbound: bool
    is_relayed: bool
    rtt_s: float | None


class Stream(Protocol):
    """One authenticated, ordered byte stream to one peer."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end, as the secure channel proved."""
        ...

    async def send_frame(self, payload: bytes, *, max_size: int) -> None:
        """Send one `p2p.wire` frame. Raises `StreamClosedError` or `LimitError`."""
        ...

    async def receive_frame(self, *, max_size: int, timeout_s: float) -> bytes:
        """Receive one frame. Raises `StreamClosedError`, `LimitError`, or `PeerError` when late."""
        ...

    async def close(self) -> None:
        """Say that no more will be sent; idempotent."""
        ...

    async def reset(self) -> None:
        """Drop the stream at once, both ways; idempotent."""
        ...


class Host(Protocol):
    """A node's presence: it dials, listens, opens streams and gossips."""

    @property
    def peer(self) -> PeerId:
        """Our own peer id."""
        ...

    def listening(self) -> tuple[str, ...]:
        """Multiaddrs others can dial, each ending in `/p2p/<our id>`."""
        ...

    def connected(self) -> tuple[ConnectedPeer, ...]:
        """Live connections now."""
        ...

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Serve a protocol, each stream in its own task; an error let out resets the stream."""
        ...

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        """Dial a multiaddr that ends in `/p2p/<id>`. Raises `TransportError` with the reason."""
        ...

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to a peer."""
        ...

    def open_stream(
        self, peer: PeerId, protocol: str, *, timeout_s: float
    ) -> AbstractAsyncContextManager[Stream]:
        """A new stream, closed on leaving, reset if left by error. Raises `TransportError`."""
        ...

    async def subscribe(
        self, topic: str, validator: TopicValidator
    ) -> trio.MemoryReceiveChannel[GossipMessage]:
        """Join a topic; accepted messages of others come on a bounded channel (newest dropped)."""
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip `data`; never dropped in silence: `LimitError` if it is too large or too soon."""
        ...
