"""What every service of a running node is given: its parts, put together once by `node.app`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from node.config import Config
from node.fetching import BulkTransport, Fetcher
from node.journal import Journal
from node.peerbook import PeerBook
from node.state import State
from p2p.blobs import BlobStore
from p2p.dht.port import RecordStore
from p2p.host import Host
from p2p.identity import Identity
from p2p.ids import RunId


class Swarm(RecordStore, BulkTransport, Protocol):
    """The swarm child as services see it: records, bulk, and how to enter the DHT."""

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs that others dial for records and blobs; empty until the child is ready."""
        ...

    async def bootstrap(self, addresses: Sequence[str]) -> int:
        """Enter the DHT through some nodes; how many answered."""
        ...

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until calls can be answered. Raises `TransportError`, also if it never can."""
        ...

    async def known_peers(self) -> int:
        """DHT nodes in the routing table."""
        ...


@dataclass(frozen=True, slots=True)
class NodeContext:
    """The parts of one running node."""

    config: Config
    identity: Identity
    run: RunId
    swarm: Swarm
    host: Host
    blobs: BlobStore
    state: State
    peers: PeerBook
    fetcher: Fetcher
    journal: Journal
    folder: Path
    """`runs/<run id>` in the home: what is unpacked, trained and cached for this run."""
