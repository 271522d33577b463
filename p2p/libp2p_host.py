"""The `Host` on py-libp2p: TCP, Noise, Yamux and GossipSub on trio, behind guards.

The host outlives its stack: if something in py-libp2p still escapes the guards, the stack is built
anew on the same ports with the same handlers and topics, and the caller's nursery never hears of
it. Connections are lost then; who needs them dials again.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2p.errors import DecodeError, PeerError, StreamClosedError, TransportError
from p2p.host import ConnectedPeer, GossipMessage, Stream, StreamHandler, TopicValidator
from p2p.host_guards import Subscription, open_plain_nursery, split_address
from p2p.ids import PeerId, parse_peer_id
from p2p.libp2p_addresses import dialable, is_loopback
from p2p.libp2p_discovery import Announcement, announce_and_browse
from p2p.libp2p_guards import FailureLog, quiet_libp2p_logs
from p2p.libp2p_muxer import bound_yamux_windows
from p2p.libp2p_relay import CIRCUIT
from p2p.libp2p_settings import HostLimits, HostSettings
from p2p.libp2p_stack import Stack, build_stack, run_stack
from p2p.libp2p_stream import FOREIGN_ERRORS, LibP2PStream
from p2p.libp2p_transport import Gate, GuardedTCP

__all__ = ["HostLimits", "HostSettings", "LibP2PHost", "open_host"]

logger = logging.getLogger(__name__)

_DIAL_ERRORS: tuple[type[Exception], ...] = (TransportError, *FOREIGN_ERRORS)
_LEAVE_TIMEOUT_S = 3.0
_MAX_DISCOVERED = 64
_RESTART_MIN_S = 0.2
_RESTART_MAX_S = 30.0
_STABLE_AFTER_S = 60.0


class LibP2PHost:
    """See `p2p.host.Host`; made by `open_host`."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._key_pair = create_new_key_pair(settings.seed)
        self._peer = parse_peer_id(str(ID.from_pubkey(self._key_pair.public_key)))
        self._handlers: dict[str, StreamHandler] = {}
        self._listen = settings.listen
        self._subscriptions: tuple[Subscription, ...] = ()
        self._stack: Stack | None = None
        self._discovered_send, self._discovered = trio.open_memory_channel[str](_MAX_DISCOVERED)
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
        addresses = dialable(self._listen)
        if self._stack is not None:
            addresses += self._stack.relay.addresses()
        return tuple(f"{address}/p2p/{self._peer}" for address in addresses)

    def connected(self) -> tuple[ConnectedPeer, ...]:
        """Live connections now; a peer connected twice is named once."""
        if self._stack is None:
            return ()
        return self._stack.connected()

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
            except _DIAL_ERRORS as error:
                raise TransportError(f"cannot reach {address}: {_root_cause(error)}") from error
            return peer
        raise TransportError(f"cannot reach {address}: no answer within {timeout_s:g} s")

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to a peer."""
        if self._stack is not None:
            await self._stack.drop(ID.from_base58(peer))

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
        with trio.CancelScope(shield=True):  # bounded by the write deadline
            await stream.finish()

    async def subscribe(
        self, topic: str, validator: TopicValidator
    ) -> trio.MemoryReceiveChannel[GossipMessage]:
        """Join a topic; accepted messages of others arrive on a channel that ends with the host."""
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
                for subscription in self._subscriptions:
                    subscription.channel.close()
                self._discovered_send.close()
                self._left.set()

    def discovered(self) -> trio.MemoryReceiveChannel[str]:
        """Addresses of nodes of our run that LAN discovery hears of; bounded, newest dropped."""
        return self._discovered

    async def discover(self) -> None:
        """Announce on the LAN and listen, until cancelled; `open_host` calls it."""
        addresses = tuple(a for a in self.listening() if CIRCUIT not in a)
        outside = tuple(a for a in addresses if not is_loopback(a.split("/")[2]))
        announcement = Announcement(self._peer, self._settings.run, outside or addresses)
        await announce_and_browse(announcement, self._discovered_send, self.counts)

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
                    single = _single(error)
                    raise single from single.__cause__
                self._failures.note("stack", error)
                self.counts["restarts"] += 1
                logger.warning("py-libp2p failed; starting it again in %.1f s", delay_s)
            if trio.current_time() - started_at > _STABLE_AFTER_S:
                delay_s = _RESTART_MIN_S
            with trio.move_on_after(delay_s):
                await self._leaving.wait()
            delay_s = min(2 * delay_s, _RESTART_MAX_S)

    def _running(self) -> Stack:
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
            stack = build_stack(self._settings, self._key_pair, transport, self.counts)
            async with run_stack(stack, self._settings, listen, self._failures):
                for protocol in self._handlers:
                    stack.host.set_stream_handler(protocol, self._serve(protocol))
                for subscription in self._subscriptions:
                    await stack.pubsub.rejoin(subscription)
                self._listen = tuple(listen)
                self._stack = stack
                try:
                    yield
                finally:
                    self._stack = None
                    self._subscriptions = stack.pubsub.subscriptions()
        finally:
            transport.close_all()


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
            if settings.lan_discovery:
                nursery.start_soon(host.discover)
            yield host
        finally:
            await host.leave()
            nursery.cancel_scope.cancel()


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
