"""An in-memory `Host`: a whole network in one process and one clock, for tests.

Keeps the promises of `p2p.host` (the same contract tests run against py-libp2p) and adds what only
a made-up network can: partitions, and gossip carried one message at a time.
"""

import itertools
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p import limits
from p2p.errors import DecodeError, PeerError, StreamClosedError, TransportError
from p2p.host import ConnectedPeer, GossipMessage, Stream, StreamHandler, TopicValidator, Verdict
from p2p.host_guards import (
    PublishBudget,
    Subscription,
    judge,
    open_plain_nursery,
    open_subscription,
    split_address,
)
from p2p.ids import PeerId, peer_id
from p2p.memory_stream import MemoryStream, StreamPair

logger = logging.getLogger(__name__)

_FRAMES_IN_FLIGHT = 16


def peer_of_seed(seed: bytes) -> PeerId:
    """Peer id of a 32-byte Ed25519 seed."""
    return peer_id(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())


@dataclass(frozen=True, slots=True)
class _Hop:
    """One gossip message on its way over one link."""

    source: PeerId
    target: PeerId
    message_id: int
    message: GossipMessage


class MemoryNetwork:
    """The hub between memory hosts.

    Args:
        manual: gossip waits until `deliver_next` carries it, one message over one link at a time.
    """

    def __init__(self, *, manual: bool = False) -> None:
        self._manual = manual
        self._hosts: dict[PeerId, MemoryHost] = {}
        self._addresses: dict[str, PeerId] = {}
        self._links: dict[frozenset[PeerId], PeerId] = {}
        self._groups: tuple[frozenset[PeerId], ...] = ()
        self._hops: deque[_Hop] = deque()
        self._ports = itertools.count(1)
        self._message_ids = itertools.count(1)

    @asynccontextmanager
    async def open_host(self, seed: bytes) -> AsyncIterator["MemoryHost"]:
        """A host whose root key is `seed` (32 bytes), listening until the block is left.

        Raises:
            TransportError: if a host with this key is already open.
        """
        peer = peer_of_seed(seed)
        if peer in self._hosts:
            raise TransportError(f"{peer} is already open on this network")
        address = f"/ip4/127.0.0.1/tcp/{next(self._ports)}"
        arrivals, accept = trio.open_memory_channel[MemoryStream](limits.MAX_CONNECTIONS)
        host = MemoryHost(self, peer, address, arrivals)
        self._hosts[peer] = host
        self._addresses[address] = peer
        async with open_plain_nursery() as nursery:
            nursery.start_soon(host.serve, accept)
            try:
                yield host
            finally:
                self.cut(link for link in self._links if peer in link)
                host.close_subscriptions()
                del self._hosts[peer], self._addresses[address]
                nursery.cancel_scope.cancel()

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Split the network: peers reach only peers of their own group; others reach nobody."""
        self._groups = tuple(frozenset(group) for group in groups)
        self.cut(link for link in self._links if not self.can_reach(*link))

    def heal(self) -> None:
        """End a partition. Peers must connect anew, as over a real network."""
        self._groups = ()

    def can_reach(self, first: PeerId, second: PeerId) -> bool:
        """Whether no partition stands between two peers."""
        return not self._groups or any(first in g and second in g for g in self._groups)

    @property
    def pending(self) -> int:
        """Gossip hops not yet carried."""
        return len(self._hops)

    def deliver_next(self) -> bool:
        """Carry the oldest gossip hop; False if there was none."""
        if not self._hops:
            return False
        hop = self._hops.popleft()
        host = self._hosts.get(hop.target)
        if host is not None and frozenset((hop.source, hop.target)) in self._links:
            host.take(hop.source, hop.message_id, hop.message)
        return True

    # What follows is called by the hosts.

    def link(self, dialer: PeerId, address: str) -> PeerId:
        """Connect, or raise `TransportError`."""
        try:
            transport, wanted = split_address(address)
        except DecodeError as error:
            raise TransportError(str(error)) from error
        actual = self._addresses.get(transport)
        if actual is None or not self.can_reach(dialer, actual):
            raise TransportError(f"cannot reach {address}: nobody listens there")
        if actual != wanted or actual == dialer:
            raise TransportError(f"cannot connect to {address}: {actual} answered, not {wanted}")
        self._links.setdefault(frozenset((dialer, actual)), dialer)
        return actual

    def cut(self, links: Iterable[frozenset[PeerId]]) -> None:
        """Drop links and every stream over them."""
        for link in list(links):
            if self._links.pop(link, None) is not None:
                for peer in link & self._hosts.keys():
                    self._hosts[peer].drop_streams(link)

    def links_of(self, peer: PeerId) -> list[tuple["MemoryHost", bool]]:
        """Peers linked to `peer`, and whether `peer` dialled them."""
        return [
            (self._hosts[other], dialer == peer)
            for link, dialer in self._links.items()
            if peer in link
            for other in link - {peer}
        ]

    def host_of(self, peer: PeerId) -> "MemoryHost | None":
        """The open host of a peer."""
        return self._hosts.get(peer)

    def is_linked(self, first: PeerId, second: PeerId) -> bool:
        """Whether two peers are connected now."""
        return frozenset((first, second)) in self._links

    def next_message_id(self) -> int:
        """An id for one published message."""
        return next(self._message_ids)

    def spread(self, host: "MemoryHost", message_id: int, message: GossipMessage) -> None:
        """Queue a message for the subscribed neighbours of `host`."""
        for other, _ in self.links_of(host.peer):
            if other.is_subscribed(message.topic):
                self._hops.append(_Hop(host.peer, other.peer, message_id, message))
        if not self._manual:
            while self.deliver_next():
                pass


class MemoryHost:
    """A host on a `MemoryNetwork`; see `p2p.host.Host`."""

    def __init__(
        self,
        network: MemoryNetwork,
        peer: PeerId,
        address: str,
        arrivals: trio.MemorySendChannel[MemoryStream],
    ) -> None:
        self._network = network
        self._peer = peer
        self._address = address
        self._arrivals = arrivals
        self._handlers: dict[str, StreamHandler] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._pairs: set[StreamPair] = set()
        self._seen: set[int] = set()
        self._publish_budget = PublishBudget()
        self.counts: Counter[str] = Counter()

    @property
    def peer(self) -> PeerId:
        """Our own peer id."""
        return self._peer

    def listening(self) -> tuple[str, ...]:
        """The one address of this host."""
        return (f"{self._address}/p2p/{self._peer}",)

    def connected(self) -> tuple[ConnectedPeer, ...]:
        """Live connections now."""
        return tuple(
            ConnectedPeer(
                peer=other.peer,
                address=other.listening()[0],
                is_outbound=is_outbound,
                is_relayed=False,
                rtt_s=0.0,
            )
            for other, is_outbound in self._network.links_of(self._peer)
        )

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Serve a protocol."""
        self._handlers[protocol] = handler

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        """Dial a multiaddr that ends in `/p2p/<id>`; the timeout is never needed here."""
        del timeout_s
        await trio.lowlevel.checkpoint()
        return self._network.link(self._peer, address)

    async def disconnect(self, peer: PeerId) -> None:
        """Close the connection to a peer."""
        await trio.lowlevel.checkpoint()
        self._network.cut([frozenset((self._peer, peer))])

    @asynccontextmanager
    async def open_stream(
        self, peer: PeerId, protocol: str, *, timeout_s: float
    ) -> AsyncIterator[Stream]:
        """A new stream to a connected peer."""
        del timeout_s
        await trio.lowlevel.checkpoint()
        other = self._network.host_of(peer)
        if other is None or not self._network.is_linked(self._peer, peer):
            raise TransportError(f"cannot open {protocol}: not connected to {peer}")
        pair, stream = other.admit(self._peer, protocol)
        self._pairs.add(pair)
        try:
            yield stream
            await stream.close()
        except BaseException:
            pair.reset()
            raise
        finally:
            stream.abandon()
            self._pairs.discard(pair)

    async def subscribe(
        self, topic: str, validator: TopicValidator
    ) -> trio.MemoryReceiveChannel[GossipMessage]:
        """Join a topic."""
        await trio.lowlevel.checkpoint()
        if topic in self._subscriptions:
            raise ValueError(f"already subscribed to {topic!r}")
        subscription, receive = open_subscription(topic, validator)
        self._subscriptions[topic] = subscription
        return receive

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip `data` to the subscribed neighbours, and through them to theirs."""
        await trio.lowlevel.checkpoint()
        self._publish_budget.check(topic, data, trio.current_time())
        message_id = self._network.next_message_id()
        self._seen.add(message_id)
        self._network.spread(self, message_id, GossipMessage(topic, self._peer, bytes(data)))

    # What follows is called by the network.

    def is_subscribed(self, topic: str) -> bool:
        """Whether this host joined a topic."""
        return topic in self._subscriptions

    def take(self, source: PeerId, message_id: int, message: GossipMessage) -> None:
        """A message arrived from a neighbour: judge, deliver, pass on."""
        subscription = self._subscriptions.get(message.topic)
        if subscription is None or message_id in self._seen:
            return
        self._seen.add(message_id)
        verdict = judge(subscription.validator, message.sender, message.data, self.counts)
        if verdict is Verdict.REJECT:
            self.counts[f"rejected_from_{source}"] += 1
        if verdict is not Verdict.ACCEPT:
            return
        if not subscription.deliver(message, self.counts):
            del self._subscriptions[message.topic]
            return
        self._network.spread(self, message_id, message)

    def admit(self, opener: PeerId, protocol: str) -> tuple[StreamPair, MemoryStream]:
        """Accept a stream: the opener's end of it, and what both ends share."""
        if protocol not in self._handlers:
            raise TransportError(f"{self._peer} does not serve {protocol}")
        if sum(pair.opener == opener for pair in self._pairs) >= limits.MAX_STREAMS_PER_PEER:
            raise TransportError(
                f"{self._peer} refused {protocol}: "
                f"{limits.MAX_STREAMS_PER_PEER} streams are already open"
            )
        pair = StreamPair(opener, self._peer, protocol)
        to_server, server_in = trio.open_memory_channel[bytes](_FRAMES_IN_FLIGHT)
        to_opener, opener_in = trio.open_memory_channel[bytes](_FRAMES_IN_FLIGHT)
        pair.senders += (to_server, to_opener)
        try:
            self._arrivals.send_nowait(MemoryStream(opener, pair, to_opener, server_in))
        except trio.WouldBlock as error:
            raise TransportError(f"{self._peer} refused {protocol}: too busy") from error
        self._pairs.add(pair)
        return pair, MemoryStream(self._peer, pair, to_server, opener_in)

    def close_subscriptions(self) -> None:
        """End the channels of this host's subscriptions."""
        for subscription in self._subscriptions.values():
            subscription.channel.close()

    def drop_streams(self, link: frozenset[PeerId]) -> None:
        """Reset every stream over a link that is gone."""
        for pair in self._pairs:
            if {pair.opener, pair.server} == link:
                pair.reset()

    async def serve(self, accept: trio.MemoryReceiveChannel[MemoryStream]) -> None:
        """Run the handlers of arriving streams, each in its own task, for ever."""
        async with trio.open_nursery() as nursery:
            async for stream in accept:
                nursery.start_soon(self._handle, stream)

    async def _handle(self, stream: MemoryStream) -> None:
        pair = stream._pair
        try:
            await self._handlers[pair.protocol](stream)
            await stream.close()
        except StreamClosedError:
            pair.reset()
        except PeerError as error:
            self.counts["handler_peer_errors"] += 1
            logger.info("%s: stream with %s dropped: %s", pair.protocol, stream.peer, error)
            pair.reset()
        except Exception:
            self.counts["handler_errors"] += 1
            logger.exception("%s: the handler failed; its stream is reset", pair.protocol)
            pair.reset()
        finally:
            stream.abandon()
            self._pairs.discard(pair)
