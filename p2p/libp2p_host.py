"""The `Host` on py-libp2p: TCP, Noise, Yamux and GossipSub on trio, behind guards.

The host outlives its stack: if something in py-libp2p still escapes the guards, the stack is built
anew on the same ports with the same handlers and topics, and the caller's nursery never hears of
it. Connections are lost then; who needs them dials again.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import ifaddr
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

from p2p.errors import DecodeError, PeerError, StreamClosedError, TransportError
from p2p.host import ConnectedPeer, GossipMessage, Stream, StreamHandler, TopicValidator
from p2p.host_guards import Subscription, open_plain_nursery, split_address
from p2p.ids import PeerId, parse_peer_id
from p2p.libp2p_gossip import GuardedPubsub, open_router
from p2p.libp2p_guards import FailureLog, GuardedHost, quiet_libp2p_logs, run_service
from p2p.libp2p_relay import CIRCUIT, STOP, RelayClient, RelayService
from p2p.libp2p_settings import HostLimits, HostSettings
from p2p.libp2p_stream import FOREIGN_ERRORS, LibP2PStream
from p2p.libp2p_transport import (
    Gate,
    GuardedSwarm,
    GuardedTCP,
    GuardedUpgrader,
    bound_yamux_windows,
)

__all__ = ["HostLimits", "HostSettings", "LibP2PHost", "open_host"]

logger = logging.getLogger(__name__)

_LEAVE_TIMEOUT_S = 3.0
_DROP_TIMEOUT_S = 2.0
_FLUSH_TIMEOUT_S = 0.5
_RESTART_MIN_S = 0.2
_RESTART_MAX_S = 30.0
_STABLE_AFTER_S = 60.0
_ANY_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 (compared, not bound)


@dataclass(frozen=True, slots=True)
class _Stack:
    """One life of py-libp2p's services."""

    swarm: GuardedSwarm
    host: GuardedHost
    pubsub: GuardedPubsub
    relay: RelayClient


class LibP2PHost:
    """See `p2p.host.Host`; made by `open_host`."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._key_pair = create_new_key_pair(settings.seed)
        self._peer = parse_peer_id(str(ID.from_pubkey(self._key_pair.public_key)))
        self._handlers: dict[str, StreamHandler] = {}
        self._listen = settings.listen
        self._subscriptions: tuple[Subscription, ...] = ()
        self._stack: _Stack | None = None
        self._leaving = trio.Event()
        self._left = trio.Event()
        self._life = trio.CancelScope(shield=True)
        self.counts: Counter[str] = Counter()
        """What was refused, dropped or contained so far, by kind."""
        self._failures = FailureLog(self.counts)

    @property
    def peer(self) -> PeerId:
        """Our own peer id."""
        return self._peer

    def listening(self) -> tuple[str, ...]:
        """Multiaddrs others can dial, each ending in `/p2p/<our id>`."""
        addresses = _dialable(self._listen)
        if self._stack is not None:
            addresses += self._stack.relay.addresses()
        return tuple(f"{address}/p2p/{self._peer}" for address in addresses)

    def connected(self) -> tuple[ConnectedPeer, ...]:
        """Live connections now; a peer connected twice is named once."""
        if self._stack is None:
            return ()
        found: dict[PeerId, ConnectedPeer] = {}
        for connection in self._stack.swarm.get_connections():
            if not connection.is_closed:
                described = _describe(connection)
                found.setdefault(described.peer, described)
        return tuple(found.values())

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Serve a protocol. The handler runs in its own task; an error it lets out resets."""
        self._handlers[protocol] = handler
        if self._stack is not None:
            self._stack.host.set_stream_handler(protocol, self._serve(protocol))

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        """Dial a multiaddr that ends in `/p2p/<id>`. Raises `TransportError` with the reason."""
        try:
            transport, peer = split_address(address)
            relay = transport.removesuffix(CIRCUIT) if transport.endswith(CIRCUIT) else None
            target = Multiaddr(transport)
        except (DecodeError, ValueError) as error:
            raise TransportError(f"cannot dial {address[:200]!r}: {error}") from error
        if peer == self._peer:
            raise TransportError(f"cannot dial {address}: that is this node")
        stack = self._running()
        if any(connected.peer == peer for connected in self.connected()):
            return peer
        with trio.move_on_after(timeout_s):
            try:
                if relay is None:
                    await stack.swarm.dial_addr(target, ID.from_base58(peer))
                else:
                    await self.connect(relay, timeout_s=timeout_s)
                    await stack.relay.dial(relay, ID.from_base58(peer))
            except FOREIGN_ERRORS as error:
                raise TransportError(f"cannot reach {address}: {_root_cause(error)}") from error
            return peer
        raise TransportError(f"cannot reach {address}: no answer within {timeout_s:g} s")

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to a peer."""
        if self._stack is not None:
            await _drop(self._stack.swarm.get_connections(ID.from_base58(peer)))

    @asynccontextmanager
    async def open_stream(
        self, peer: PeerId, protocol: str, *, timeout_s: float
    ) -> AsyncIterator[Stream]:
        """A new stream, closed on leaving (reset if left by an error). Raises `TransportError`."""
        stream = await self._dial_stream(peer, protocol, timeout_s)
        try:
            yield stream
        except BaseException:
            with trio.CancelScope(shield=True):
                await stream.reset()
            raise
        await stream.finish()

    async def subscribe(
        self, topic: str, validator: TopicValidator
    ) -> trio.MemoryReceiveChannel[GossipMessage]:
        """Join a topic; accepted messages of others arrive on a bounded channel."""
        return await self._running().pubsub.join(topic, validator)

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip `data`. Raises `LimitError` if it is too large or too soon."""
        await self._running().pubsub.publish_checked(topic, data)

    async def run(
        self,
        *,
        task_status: Any = trio.TASK_STATUS_IGNORED,  # noqa: ANN401 (trio exports no type)
    ) -> None:
        """Keep a stack running until `leave`; `open_host` calls it.

        Shielded, so that a cancelled caller still leaves in order: peers are told by closed
        sockets, and nothing is cut in the middle of a frame.

        Raises:
            TransportError: if the first stack cannot listen where it should.
        """
        with self._life:
            try:
                await self._run_stacks(task_status)
            finally:
                self._left.set()

    async def leave(self) -> None:
        """Stop; returns when sockets are closed and tasks have ended, or after 3 s."""
        self._leaving.set()
        with trio.CancelScope(deadline=trio.current_time() + _LEAVE_TIMEOUT_S, shield=True):
            await self._left.wait()
        self._life.cancel()

    async def _run_stacks(self, task_status: Any) -> None:  # noqa: ANN401
        delay_s = _RESTART_MIN_S
        is_started = False
        while not self._leaving.is_set():
            started_at = trio.current_time()
            try:
                async with self._open_stack():
                    if not is_started:
                        is_started = True
                        task_status.started()
                    await self._leaving.wait()
            except Exception as error:  # noqa: BLE001 (the last line: the node must not end)
                if not is_started:
                    raise _single(error) from None
                self._failures.note("stack", error)
                self.counts["restarts"] += 1
                logger.warning("py-libp2p failed; starting it again in %.1f s", delay_s)
            if trio.current_time() - started_at > _STABLE_AFTER_S:
                delay_s = _RESTART_MIN_S
            with trio.move_on_after(delay_s):
                await self._leaving.wait()
            delay_s = min(2 * delay_s, _RESTART_MAX_S)

    def _running(self) -> _Stack:
        if self._stack is None:
            raise TransportError("the network part is starting again; try later")
        return self._stack

    async def _dial_stream(self, peer: PeerId, protocol: str, timeout_s: float) -> LibP2PStream:
        stack = self._running()
        if not any(connected.peer == peer for connected in self.connected()):
            raise TransportError(f"cannot open {protocol}: not connected to {peer}")
        with trio.move_on_after(timeout_s):
            try:
                stream = await stack.host.new_stream(ID.from_base58(peer), [protocol])
            except FOREIGN_ERRORS as error:
                raise TransportError(
                    f"cannot open {protocol} to {peer}: {_root_cause(error)}"
                ) from error
            return LibP2PStream(stream, self._settings.limits, is_inbound=False)
        raise TransportError(f"cannot open {protocol} to {peer}: no answer in {timeout_s:g} s")

    def _serve(self, protocol: str) -> Callable[[Any], Awaitable[None]]:
        """Our handler as py-libp2p wants it: it never raises."""

        async def serve(foreign_stream: Any) -> None:  # noqa: ANN401
            stream = LibP2PStream(foreign_stream, self._settings.limits, is_inbound=True)
            try:
                await self._handlers[protocol](stream)
            except StreamClosedError:
                await stream.reset()  # how most streams end
            except PeerError as error:
                self.counts["handler_peer_errors"] += 1
                logger.info("%s: stream of %s dropped: %s", protocol, stream.peer, error)
                await stream.reset()
            except Exception:
                self.counts["handler_errors"] += 1
                logger.exception("%s: the handler failed; its stream is reset", protocol)
                await stream.reset()
            else:
                await stream.finish()

        return serve

    @asynccontextmanager
    async def _open_stack(self) -> AsyncIterator[None]:
        """Build the services, listen, and take up handlers and topics again."""
        transport = GuardedTCP(Gate(self._settings.limits, self.counts))
        try:
            listen = [await transport.bind(address) for address in self._listen]
            stack = self._build(transport)
            async with AsyncExitStack() as services:
                own_services = [stack.swarm, stack.pubsub, stack.pubsub.router]
                if self._settings.relay_service:
                    own_services.append(RelayService(stack.host))
                for service in own_services:
                    await services.enter_async_context(run_service(service, self._failures))
                await stack.swarm.listen(*map(Multiaddr, listen))
                await stack.pubsub.wait_until_ready()
                for protocol in self._handlers:
                    stack.host.set_stream_handler(protocol, self._serve(protocol))
                for subscription in self._subscriptions:
                    await stack.pubsub.rejoin(subscription)
                for relay in self._settings.relays:
                    stack.host.set_stream_handler(STOP, stack.relay.serve_stop)
                    stack.swarm.manager.run_task(stack.relay.keep_reserved, relay)
                self._listen = tuple(listen)
                self._stack = stack
                try:
                    yield
                    await stack.pubsub.flush(_FLUSH_TIMEOUT_S)
                finally:
                    self._stack = None
                    self._subscriptions = stack.pubsub.subscriptions()
                    for connection in stack.swarm.get_connections():
                        connection.muxed_conn.abort()
        finally:
            transport.close_all()

    def _build(self, transport: GuardedTCP) -> _Stack:
        own = self._settings.limits
        noise = NoiseTransport(
            self._key_pair, noise_privkey=create_new_x25519_key_pair().private_key
        )
        peer_store = PeerStore()
        peer_store.add_key_pair(ID.from_base58(self._peer), self._key_pair)
        swarm = GuardedSwarm(
            ID.from_base58(self._peer),
            peer_store,
            GuardedUpgrader({NOISE_PROTOCOL_ID: noise}, own),
            [transport],
            RetryConfig(max_retries=0),  # who dials decides when to dial again
            ConnectionConfig(
                max_connections=own.max_connections,
                min_connections=0,  # nor does py-libp2p dial by itself
                low_watermark=0,
                high_watermark=own.max_connections,
                max_connections_per_peer=2,  # two nodes that dial each other at once
                inbound_upgrade_timeout=own.upgrade_timeout_s,
                outbound_upgrade_timeout=own.upgrade_timeout_s,
                inbound_stream_protocol_negotiation_timeout=own.upgrade_timeout_s,
                outbound_stream_protocol_negotiation_timeout=own.upgrade_timeout_s,
            ),
        )
        host = GuardedHost(swarm, host_limits=own, counts=self.counts)
        pubsub = GuardedPubsub(host, open_router(), counts=self.counts)
        return _Stack(swarm, host, pubsub, RelayClient(swarm, host, self._settings.relays))


@asynccontextmanager
async def open_host(settings: HostSettings) -> AsyncIterator[LibP2PHost]:
    """Open a host: it listens when the block is entered, and is gone when it is left (< 3 s).

    Raises:
        TransportError: if it cannot listen, naming address and port.
    """
    quiet_libp2p_logs()
    bound_yamux_windows()
    host = LibP2PHost(settings)
    async with open_plain_nursery() as nursery:
        try:
            await nursery.start(host.run)
            yield host
        finally:
            await host.leave()
            nursery.cancel_scope.cancel()


async def _drop(connections: list[Any]) -> None:
    """Cut connections, and wait until py-libp2p has cleaned up after them (bounded)."""
    for connection in connections:
        connection.muxed_conn.abort()
    with trio.move_on_after(_DROP_TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(connection.close)
                nursery.start_soon(connection.muxed_conn.event_closed.wait)


def _describe(connection: Any) -> ConnectedPeer:  # noqa: ANN401
    addresses = connection.get_transport_addresses()
    address = str(addresses[0]) if addresses else ""
    rtt_s = connection.muxed_conn.rtt()
    return ConnectedPeer(
        peer=parse_peer_id(str(connection.muxed_conn.peer_id)),
        address=address,
        is_outbound=bool(connection.muxed_conn.is_initiator),
        is_relayed="/p2p-circuit" in address,
        rtt_s=rtt_s or None,
    )


def _single(error: Exception) -> Exception:
    """The one error inside the groups of the services' nurseries."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _root_cause(error: BaseException) -> str:
    """The innermost reason of a foreign error, for people."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause) or type(cause).__name__


def _dialable(addresses: tuple[str, ...]) -> list[str]:
    """Listen addresses with 0.0.0.0 and :: spelled out as this machine's addresses."""
    found: list[str] = []
    for address in addresses:
        _, family, host, rest = address.split("/", 3)
        hosts = _own_addresses(is_ipv6=family == "ip6") if host in _ANY_ADDRESSES else [host]
        found += [f"/{family}/{own}/{rest}" for own in hosts]
    return found


def _own_addresses(*, is_ipv6: bool) -> list[str]:
    """Addresses of this machine, those that others can reach first, link-local ones left out."""
    found = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            address = ip.ip[0] if ip.is_IPv6 else ip.ip
            if ip.is_IPv6 == is_ipv6 and not str(address).startswith(("fe80", "169.254")):
                found.append(str(address))
    return sorted(found, key=lambda address: address.startswith("127.") or address == "::1")
