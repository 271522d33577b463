"""What a py-libp2p host is told at its start: identity, addresses, and limits that tests may lower.

Every default comes from `p2p.limits`; a limit can be moved, none can be removed.
"""

from dataclasses import dataclass, field

from p2p import limits


@dataclass(frozen=True, slots=True)
class HostLimits:
    """Limits of one host; counts are per host unless the name says otherwise."""

    max_connections: int = limits.MAX_CONNECTIONS
    max_inbound: int = limits.MAX_INBOUND_CONNECTIONS
    max_pending: int = limits.MAX_PENDING_CONNECTIONS
    max_per_ip: int = limits.MAX_CONNECTIONS_PER_IP
    max_new_per_ip_per_s: float = limits.MAX_NEW_CONNECTIONS_PER_IP_PER_S
    is_loopback_exempt: bool = True
    """Whether 127.0.0.0/8 and ::1 escape the per-address limits (a swarm on one machine)."""
    max_streams_per_peer: int = limits.MAX_STREAMS_PER_PEER
    upgrade_timeout_s: float = limits.UPGRADE_TIMEOUT_S
    first_byte_timeout_s: float = limits.FIRST_BYTE_TIMEOUT_S
    idle_stream_timeout_s: float = limits.IDLE_STREAM_TIMEOUT_S
    write_stall_timeout_s: float = limits.WRITE_STALL_TIMEOUT_S
    ping_interval_s: float = limits.PING_INTERVAL_S
    ping_drop_after_s: float = limits.PING_DROP_AFTER_S


@dataclass(frozen=True, slots=True)
class HostSettings:
    """How to open a host.

    Args:
        seed: 32 bytes, the Ed25519 root key; the host's peer id is `p2p.ids.peer_id` of its
            public key.
        listen: multiaddrs to listen on; port 0 lets the system choose.
        lan_discovery: announce this node on the local network and hear others; confined to
            loopback when every listen address is loopback.
        run: only nodes of the same run are reported by LAN discovery.
        relay_service: let other nodes be reached through this one.
        relays: multiaddrs (ending in `/p2p/<id>`) of relays to be reachable through.
        limits: see `HostLimits`.
    """

    seed: bytes = field(repr=False)
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    lan_discovery: bool = False
    run: str = ""
    relay_service: bool = False
    relays: tuple[str, ...] = ()
    limits: HostLimits = HostLimits()
