"""One life of py-libp2p's services: how they are put together, run, and left."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

from p2p.host import ConnectedPeer
from p2p.ids import PeerId, parse_peer_id
from p2p.libp2p_gossip import GuardedPubsub, open_router
from p2p.libp2p_guards import FailureLog, GuardedHost, run_service
from p2p.libp2p_muxer import GuardedSwarm, GuardedUpgrader
from p2p.libp2p_relay import STOP, RelayClient, RelayService
from p2p.libp2p_settings import HostSettings
from p2p.libp2p_transport import GuardedTCP

_DROP_TIMEOUT_S = 2.0
_FLUSH_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True)
class Stack:
    """The services, and what is asked of them together."""

    swarm: GuardedSwarm
    host: GuardedHost
    pubsub: GuardedPubsub
    relay: RelayClient

    def connected(self) -> tuple[ConnectedPeer, ...]:
        """Live connections; a peer connected twice is named once."""
        found: dict[PeerId, ConnectedPeer] = {}
        for connection in self.swarm.get_connections():
            if not connection.is_closed:
                described = _describe(connection)
                found.setdefault(described.peer, described)
        return tuple(found.values())

    async def drop(self, peer: Any) -> None:  # noqa: ANN401
        """Cut a peer's connections, and wait until py-libp2p has cleaned up (bounded)."""
        connections = self.swarm.get_connections(peer)
        for connection in connections:
            connection.muxed_conn.abort()
        with trio.move_on_after(_DROP_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(connection.close)
                    nursery.start_soon(connection.muxed_conn.event_closed.wait)


def build_stack(
    settings: HostSettings,
    key_pair: Any,  # noqa: ANN401
    transport: GuardedTCP,
    counts: Counter[str],
) -> Stack:
    """Put the services together; nothing runs yet."""
    own = settings.limits
    peer = ID.from_pubkey(key_pair.public_key)
    noise = NoiseTransport(key_pair, noise_privkey=create_new_x25519_key_pair().private_key)
    peer_store = PeerStore()
    peer_store.add_key_pair(peer, key_pair)
    swarm = GuardedSwarm(
        peer,
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
    host = GuardedHost(swarm, host_limits=own, counts=counts)
    pubsub = GuardedPubsub(host, open_router(), counts=counts)
    return Stack(swarm, host, pubsub, RelayClient(swarm, host, settings.relays))


@asynccontextmanager
async def run_stack(
    stack: Stack, settings: HostSettings, listen: list[str], failures: FailureLog
) -> AsyncIterator[None]:
    """Run the services on addresses that are bound; cut every connection on leaving."""
    async with AsyncExitStack() as services:
        wanted = [stack.swarm, stack.pubsub, stack.pubsub.router]
        if settings.relay_service:
            wanted.append(RelayService(stack.host))
        for service in wanted:
            await services.enter_async_context(run_service(service, failures))
        await stack.swarm.listen(*map(Multiaddr, listen))
        await stack.pubsub.wait_until_ready()
        for relay in settings.relays:
            stack.host.set_stream_handler(STOP, stack.relay.serve_stop)
            stack.swarm.manager.run_task(stack.relay.keep_reserved, relay)
        try:
            yield
            await stack.pubsub.flush(_FLUSH_TIMEOUT_S)
        finally:
            for connection in stack.swarm.get_connections():
                connection.muxed_conn.abort()


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
