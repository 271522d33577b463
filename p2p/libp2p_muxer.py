"""Noise and Yamux of py-libp2p, with the deadlines and bounds they lack.

- `GuardedYamux` never leaves half a frame on the wire, bounds what a peer makes us buffer, and
  drops a silent peer.
- `GuardedUpgrader` offers and accepts Noise and Yamux only.
- `GuardedSwarm` gives an inbound slot back when its connection ends (py-libp2p keeps it for ever).
"""
# mypy: disable-error-code="misc"

import struct
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux import yamux
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from p2p import limits
from p2p.libp2p_settings import HostLimits

_PING_HEADER = (0, yamux.TYPE_PING, yamux.FLAG_SYN, 0)


class GuardedYamux(yamux.Yamux):
    """A Yamux connection with deadlines and a memory bound."""

    _ping_id: int

    def __init__(
        self,
        secured_conn: Any,  # noqa: ANN401
        peer_id: Any,  # noqa: ANN401
        *,
        host_limits: HostLimits,
        on_close: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(secured_conn, peer_id, secured_conn.is_initiator, on_close)
        self._limits = host_limits

    def abort(self) -> None:
        """Cut the socket at once: blocked reads and writes end, and cleaning up follows."""
        raw = getattr(self.secured_conn, "raw_connection", None)
        stream = getattr(raw, "stream", None)
        if isinstance(stream, TrioTCPStream):
            try:
                stream.stream.socket.shutdown(trio.socket.SHUT_RDWR)
            except OSError:
                return  # closed already
        elif self._nursery is not None:  # a relayed connection has no socket of its own
            self._nursery.cancel_scope.cancel()

    async def _write_frame(self, data: bytes) -> None:
        """Write one frame, whole or not at all.

        A cancelled write would leave half a frame on the wire and so ruin every other stream of
        the connection; hence the shield, and the deadline that ends a stalled connection.
        """
        async with self._write_lock:
            with trio.CancelScope(shield=True) as scope:
                scope.deadline = trio.current_time() + self._limits.write_stall_timeout_s
                await self.secured_conn.write(data)
            if scope.cancelled_caught:
                self.abort()
                raise ConnectionClosedError("the peer reads too slowly", transport="tcp")
        await trio.lowlevel.checkpoint()

    async def _read_data_body(self, length: int) -> bytes:
        held = sum(map(len, self.stream_buffers.values()))
        if held + length > limits.MAX_BUFFERED_PER_CONNECTION:
            raise trio.TooSlowError  # Yamux closes the connection on this error alone
        return bytes(await super()._read_data_body(length))

    async def _measure_rtt_loop(self) -> None:
        """Ping for as long as the connection lives; a peer that stays silent is cut off."""
        answered_at = trio.current_time()
        while not self.event_shutting_down.is_set():
            self._ping_id = (self._ping_id + 1) % 2**32
            self._ping_event = trio.Event()
            self._ping_sent_time = trio.current_time()
            try:
                await self._write_frame(
                    struct.pack(yamux.YAMUX_HEADER_FORMAT, *_PING_HEADER, self._ping_id)
                )
            except BaseLibp2pError:
                self.abort()
                return
            with trio.move_on_after(self._limits.ping_interval_s):
                await self._ping_event.wait()
                answered_at = trio.current_time()
                await self.event_shutting_down.wait()
            if trio.current_time() - answered_at >= self._limits.ping_drop_after_s:
                self.abort()
                return


class _YamuxOnly(MuxerMultistream):
    def __init__(self, host_limits: HostLimits) -> None:
        super().__init__({yamux.PROTOCOL_ID: GuardedYamux}, int(host_limits.upgrade_timeout_s))
        self._limits = host_limits

    async def new_conn(self, conn: Any, peer_id: Any) -> Any:  # noqa: ANN401
        protocol, _ = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)

        async def on_close() -> None:
            """Replaced by the swarm's own hook."""

        muxed = GuardedYamux(conn, peer_id, host_limits=self._limits, on_close=on_close)
        return self._annotate_connection(muxed, conn, protocol)


class GuardedUpgrader(TransportUpgrader):
    """Noise, then Yamux; nothing else is offered or accepted."""

    def __init__(self, security: dict[str, Any], host_limits: HostLimits) -> None:
        timeout_s = int(host_limits.upgrade_timeout_s)
        super().__init__(security, {yamux.PROTOCOL_ID: GuardedYamux}, timeout_s)
        self.muxer_multistream = _YamuxOnly(host_limits)

    async def upgrade_security(  # noqa: D102
        self,
        raw_conn: Any,  # noqa: ANN401
        is_initiator: bool,
        peer_id: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        secured = await super().upgrade_security(raw_conn, is_initiator, peer_id)
        secured.raw_connection = raw_conn
        return secured


class GuardedSwarm(Swarm):
    """A swarm that frees an inbound slot when its connection ends, and dials only when told to."""

    async def dial_peer(self, peer_id: Any) -> list[Any]:  # noqa: ANN401
        """Refuse: this dials addresses that peers named; our own dials use `dial_addr`.

        Called by py-libp2p for streams to strangers, peer exchange, and its auto-connector, which
        is active even when all watermarks are 0.
        """
        raise SwarmException(f"not connected to {peer_id}")

    async def _handle_inbound_connection(
        self,
        read_write_closer: Any,  # noqa: ANN401
        maddr: Multiaddr,
    ) -> None:
        muxed = await self.upgrade_inbound_raw_conn(RawConnection(read_write_closer, False), maddr)
        read_write_closer.gate_slot.is_pending = False
        await muxed.event_closed.wait()


def bound_yamux_windows() -> None:
    """Keep receive windows at 1 MiB: 16 MiB times 32 streams times 64 peers is no bound at all."""
    yamux.MAX_WINDOW_SIZE = limits.MAX_STREAM_WINDOW
