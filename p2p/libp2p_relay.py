"""Circuit relay v2: be reached through another node, reach others, or carry for them.

The client half (RESERVE, CONNECT, STOP) is written here on py-libp2p's messages: its own transport
reserves anew for every dial, and its STOP handler lets any peer open a side door past the inbound
gate. The relay half is py-libp2p's protocol with one fix. A relayed connection is a full one: Noise
and Yamux end to end, so a relay sees only ciphertext.
Source: github.com/libp2p/specs/blob/master/relay/circuit-v2.md.
"""
# mypy: disable-error-code="misc"

import time
from typing import Any, Final

import trio
from libp2p.abc import ConnectionType
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, Status, StopMessage
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID, STOP_PROTOCOL_ID, CircuitV2Protocol
from libp2p.relay.circuit_v2.resources import RelayLimits
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from multiaddr import Multiaddr

from p2p import limits
from p2p.errors import DecodeError, PeerError, TransportError
from p2p.host_guards import split_address
from p2p.libp2p_stream import FOREIGN_ERRORS

CIRCUIT: Final = "/p2p-circuit"
STOP: Final = STOP_PROTOCOL_ID

_RENEW_AT: Final = 0.8
_RETRY_S: Final = 30.0
_CHECK_S: Final = 5.0
RELAY_LIMITS: Final = RelayLimits(
    duration=3600,  # s; a request and its reply take minutes at most
    data=256 * limits.MIB,  # a relay is for requests and gossip; blobs find another way
    max_circuit_conns=16,
    max_reservations=64,
    reservation_ttl=3600,
)
"""What one node carries for others, when it offers to."""


class RelayService(CircuitV2Protocol):
    """Carries streams between others. A peer reserves for itself only."""

    def __init__(self, host: Any) -> None:  # noqa: ANN401
        super().__init__(host, limits=RELAY_LIMITS, allow_hop=True)

    async def _handle_reserve(self, stream: Any, msg: Any) -> None:  # noqa: ANN401
        """Reserve for the peer that Noise authenticated, not for the one the message names."""
        msg.ClearField("peer")
        await super()._handle_reserve(stream, msg)

    async def _handle_stop_stream(self, stream: Any) -> None:  # noqa: ANN401
        """Refuse: `RelayClient` answers those of our own relays."""
        await stream.reset()


class RelayClient:
    """Dials through relays, and accepts what our own relays bring.

    Args:
        swarm: upgrades the relayed bytes to a connection.
        host: opens streams to relays.
        relays: multiaddrs of the relays we want to be reachable through.
    """

    def __init__(self, swarm: Any, host: Any, relays: tuple[str, ...]) -> None:  # noqa: ANN401
        self._swarm = swarm
        self._host = host
        self._relays = relays
        self._trusted = {split_address(relay)[1] for relay in relays}
        self._reserved_until: dict[str, float] = {}

    def addresses(self) -> tuple[str, ...]:
        """Addresses we can be reached at through relays, without our own id."""
        now = time.time()
        return tuple(
            f"{relay}{CIRCUIT}"
            for relay, until in self._reserved_until.items()
            if until > now and self._swarm.get_connections(_id_of(relay))
        )

    async def dial(self, relay: str, peer: Any) -> None:  # noqa: ANN401
        """Connect to a peer through a relay there is a connection to.

        Raises:
            TransportError: if the relay refuses.
        """
        stream = await self._host.new_stream(_id_of(relay), [PROTOCOL_ID])
        try:
            await self._ask(
                stream, HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=peer.to_bytes()))
            )
            address = Multiaddr(f"{relay}{CIRCUIT}")
            raw = RawConnection(stream, True, ConnectionType.RELAYED, [address])
            connection = await self._swarm.upgrade_outbound_raw_conn(raw, peer)
        except BaseException:
            with trio.CancelScope(shield=True):
                await stream.reset()
            raise
        connection.set_transport_info([address], ConnectionType.RELAYED)

    async def keep_reserved(self, relay: str) -> None:
        """Stay reachable through a relay for ever: connect, reserve, renew, retry."""
        while True:
            try:
                await self._reserve(relay)
            except (*FOREIGN_ERRORS, TransportError, PeerError):
                await trio.sleep(_RETRY_S)
                continue
            renew_at = time.time() + _RENEW_AT * (self._reserved_until[relay] - time.time())
            while time.time() < renew_at and self._swarm.get_connections(_id_of(relay)):  # noqa: ASYNC110
                await trio.sleep(_CHECK_S)

    async def serve_stop(self, stream: Any) -> None:  # noqa: ANN401
        """A relay brings somebody: answer, and run the connection until it ends."""
        relay = stream.muxed_conn.peer_id
        if str(relay) not in self._trusted:
            raise PeerError(f"{relay} is not a relay of ours")
        with trio.fail_after(limits.FIRST_BYTE_TIMEOUT_S):
            message = await read_delimited_msg(stream, StopMessage)
        if message.type != StopMessage.CONNECT:
            raise DecodeError(f"STOP message: got type {message.type}, expected CONNECT")
        await write_delimited_msg(stream, StopMessage(type=StopMessage.STATUS, status=Status.OK))
        address = Multiaddr(f"/p2p/{relay}{CIRCUIT}")
        raw = RawConnection(stream, False, ConnectionType.RELAYED, [address])
        muxed = await self._swarm.upgrade_inbound_raw_conn(raw, address)
        for connection in self._swarm.get_connections(muxed.peer_id):
            if connection.muxed_conn is muxed:
                connection.set_transport_info([address], ConnectionType.RELAYED)
        await muxed.event_closed.wait()

    async def _reserve(self, relay: str) -> None:
        transport, _ = split_address(relay)
        peer = _id_of(relay)
        if not self._swarm.get_connections(peer):
            with trio.fail_after(limits.DIAL_TIMEOUT_S):
                await self._swarm.dial_addr(Multiaddr(transport), peer)
        stream = await self._host.new_stream(peer, [PROTOCOL_ID])
        try:
            reply = await self._ask(stream, HopMessage(type=HopMessage.RESERVE))
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()
        self._reserved_until[relay] = float(reply.reservation.expire)

    async def _ask(self, stream: Any, message: Any) -> Any:  # noqa: ANN401
        """One HOP exchange; any status but OK is a refusal."""
        with trio.move_on_after(limits.DIAL_TIMEOUT_S):
            await write_delimited_msg(stream, message)
            reply = await read_delimited_msg(stream, HopMessage)
            if reply.status != Status.OK:
                raise TransportError(f"the relay refused with status {reply.status}")
            return reply
        raise TransportError("the relay did not answer")


def _id_of(relay: str) -> Any:  # noqa: ANN401
    return ID.from_base58(split_address(relay)[1])
