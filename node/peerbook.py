"""Which nodes of the run are known, and how to reach each half of them. No I/O.

Holds only opened records: an address in here was signed by the peer it belongs to.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from p2p.codec import Verified
from p2p.ids import PeerId
from p2p.records import NodeRecord
from p2p.transfer import BulkPeer

_MAX_PEERS: Final = 1024
"""Nodes kept in memory; a larger swarm is reached through the DHT, not known by heart."""


def bulk_peer(record: NodeRecord) -> BulkPeer | None:
    """The swarm child a node record names, or None if it names none that can be dialled."""
    by_id: dict[str, list[str]] = {}
    for address in record.bulk_addresses:
        head, separator, child = address.rpartition("/p2p/")
        if separator and head and child:
            by_id.setdefault(child, []).append(address)
    if not by_id:
        return None
    child, addresses = next(iter(by_id.items()))
    return BulkPeer(peer_id=child, addresses=tuple(addresses))


@dataclass(slots=True)
class PeerBook:
    """Known nodes by peer id, the newest record of each."""

    me: PeerId
    _records: dict[PeerId, Verified[NodeRecord]] = field(default_factory=dict)

    def add(self, record: Verified[NodeRecord]) -> bool:
        """Keep a record unless it is ours or older than the one we have; says if it is new."""
        known = self._records.get(record.owner)
        if record.owner == self.me:
            return False
        if known is not None and known.record.issued_at >= record.record.issued_at:
            return False
        self._records.pop(record.owner, None)
        self._records[record.owner] = record
        while len(self._records) > _MAX_PEERS:
            del self._records[next(iter(self._records))]
        return known is None

    def forget_expired(self, now: float) -> None:
        """Drop records whose time is over."""
        for peer, record in list(self._records.items()):
            if record.expires_at is not None and record.expires_at <= now:
                del self._records[peer]

    def get(self, peer: PeerId) -> NodeRecord | None:
        """The newest record of a peer."""
        found = self._records.get(peer)
        return found.record if found else None

    def peers(self) -> tuple[PeerId, ...]:
        """Everybody known but us, the newest last."""
        return tuple(self._records)

    def newest_envelopes(self, limit: int) -> tuple[bytes, ...]:
        """Sealed records to pass on, the newest first."""
        return tuple(record.envelope for record in list(self._records.values())[::-1][:limit])

    def bulk_peers(self, peers: Iterable[PeerId]) -> tuple[BulkPeer, ...]:
        """Swarm children of some peers, in their order; those unknown are left out."""
        found = (self.get(peer) for peer in dict.fromkeys(peers))
        children = (bulk_peer(record) for record in found if record is not None)
        return tuple(child for child in children if child is not None)
