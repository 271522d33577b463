"""What a swarm child is told at its start, and what its node says of it.

Plain values and pure functions: neither processes nor hivemind.
"""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from p2p.dht import frames
from p2p.dht.frames import Message
from p2p.errors import DecodeError


@dataclass(frozen=True, slots=True)
class DhtSettings:
    """How one swarm child is run."""

    seed: bytes = field(repr=False)
    """32 bytes: the child's own Ed25519 seed (`Identity.dht_seed()`), never the root's."""
    private_dir: Path
    """Ours alone: sockets and the identity file live in a folder made in here while it runs."""
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    blob_root: Path | None = None
    """The blob store that is served to others and filled by `pull`; None serves nothing."""
    log_path: Path | None = None
    """Where the child's own log goes; None inherits stderr."""
    max_upload_bytes_per_s: float | None = None
    max_download_bytes_per_s: float | None = None
    has_port_mapping: bool = True
    """Ask the router for a port (UPnP, NAT-PMP)."""
    has_auto_relay: bool = False
    """Look for relays when nobody can reach us; bootstraps are trusted as relays."""
    rejoin_s: float = 40.0
    """Seconds between two calls on the bootstraps and the last known peers (+-25 %)."""
    probe_s: float = 10.0
    """Seconds between two probes of p2pd."""

    def __post_init__(self) -> None:
        """Check the seed.

        Raises:
            ValueError: if it is not 32 bytes.
        """
        if len(self.seed) != 32:
            raise ValueError(f"seed: got {len(self.seed)} bytes, expected 32")


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """The part of `DhtSettings` that the child needs, as it travels in the first frame."""

    seed: bytes = field(repr=False)
    runtime_dir: Path
    listen: tuple[str, ...]
    announce: tuple[str, ...]
    bootstrap: tuple[str, ...]
    blob_root: Path | None
    max_upload_bytes_per_s: float | None
    max_download_bytes_per_s: float | None
    has_port_mapping: bool
    has_auto_relay: bool
    rejoin_s: float
    probe_s: float

    @classmethod
    def of(
        cls,
        settings: DhtSettings,
        *,
        runtime_dir: Path,
        listen: tuple[str, ...],
        bootstrap: tuple[str, ...],
    ) -> "ChildSettings":
        """Settings of one start: its folder, the ports of the last start, the peers known now."""
        return cls(
            seed=settings.seed,
            runtime_dir=runtime_dir,
            listen=listen,
            announce=settings.announce,
            bootstrap=bootstrap,
            blob_root=settings.blob_root,
            max_upload_bytes_per_s=settings.max_upload_bytes_per_s,
            max_download_bytes_per_s=settings.max_download_bytes_per_s,
            has_port_mapping=settings.has_port_mapping,
            has_auto_relay=settings.has_auto_relay,
            rejoin_s=settings.rejoin_s,
            probe_s=settings.probe_s,
        )

    def to_message(self) -> Message:
        """The first frame."""
        return {
            "seed": self.seed,
            "runtime_dir": str(self.runtime_dir),
            "listen": list(self.listen),
            "announce": list(self.announce),
            "bootstrap": list(self.bootstrap),
            "blob_root": None if self.blob_root is None else str(self.blob_root),
            "max_upload_bytes_per_s": self.max_upload_bytes_per_s,
            "max_download_bytes_per_s": self.max_download_bytes_per_s,
            "has_port_mapping": self.has_port_mapping,
            "has_auto_relay": self.has_auto_relay,
            "rejoin_s": self.rejoin_s,
            "probe_s": self.probe_s,
        }

    @classmethod
    def from_message(cls, message: Message) -> "ChildSettings":
        """Read the first frame.

        Raises:
            DecodeError: if a field is missing or of another type.
        """
        seed = frames.data(message, "seed")
        if len(seed) != 32:
            raise DecodeError(f"child settings: seed: got {len(seed)} bytes, expected 32")
        root = frames.optional_text(message, "blob_root")
        return cls(
            seed=seed,
            runtime_dir=Path(frames.text(message, "runtime_dir")),
            listen=frames.texts(message, "listen"),
            announce=frames.texts(message, "announce"),
            bootstrap=frames.texts(message, "bootstrap"),
            blob_root=None if root is None else Path(root),
            max_upload_bytes_per_s=frames.optional_number(message, "max_upload_bytes_per_s"),
            max_download_bytes_per_s=frames.optional_number(message, "max_download_bytes_per_s"),
            has_port_mapping=frames.flag(message, "has_port_mapping"),
            has_auto_relay=frames.flag(message, "has_auto_relay"),
            rejoin_s=frames.number(message, "rejoin_s"),
            probe_s=frames.number(message, "probe_s"),
        )


class DhtState(Enum):
    """How the swarm child is doing."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    BROKEN = "broken"
    """It keeps failing: calls fail at once, and it is tried again once a minute."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class DhtStatus:
    """A look at the swarm child."""

    state: DhtState
    restarts: int
    """Children started after the first."""
    last_error: str | None
    """Why the last child ended, in a sentence; None if none has."""


def pin_ports(listen: tuple[str, ...], addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Replace port 0 in `listen` by the port in use, so that a restart keeps the address.

    Args:
        listen: multiaddrs as configured, `/ip4/.../tcp/0`.
        addresses: multiaddrs as the running child reports them.
    """
    ports: dict[tuple[str, ...], str] = {}
    for address in addresses:
        parts = address.split("/")
        if len(parts) > 4 and parts[4].isdigit():
            _, family, host, transport, port, *_ = parts
            ports.setdefault((family, host, transport), port)
            ports.setdefault((family, transport), port)
    return tuple(_pin(address, ports) for address in listen)


def _pin(address: str, ports: dict[tuple[str, ...], str]) -> str:
    parts = address.split("/")
    if len(parts) > 4 and parts[4] == "0":
        _, family, host, transport, *_ = parts
        same_family = ports.get((family, transport), "0")
        parts[4] = ports.get((family, host, transport), same_family)
    return "/".join(parts)
