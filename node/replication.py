"""Keeping other people's checkpoints alive: an owner may be gone a second after it published.

Each checkpoint is pulled by the few nodes that rendezvous hashing picks for its cluster among the
nodes known, so that nobody decides and everybody agrees, roughly; one copy too many does no harm.
"""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import trio

from node.catalog import Advert, Catalog
from node.context import NodeContext
from node.errors import NodeError
from node.keeping import drop_older, expert_label
from node.providers import announce_roots
from p2p.errors import PeerError, StorageError, TransportError
from p2p.ids import BlobId, ClusterId, PeerId, RunId

logger = logging.getLogger(__name__)

REPLICAS: Final = 2
"""Copies beside the owner's: three in all, as churn tests ask for."""
_LOOK_S: Final = 10.0


def chosen_holders(
    run: RunId, cluster: ClusterId, owner: PeerId, peers: Iterable[PeerId]
) -> tuple[PeerId, ...]:
    """Who, beside the owner, should hold a cluster's newest checkpoint."""

    def score(peer: PeerId) -> bytes:
        return hashlib.sha256(f"{run}/{cluster}/{peer}".encode()).digest()

    candidates = {peer for peer in peers if peer != owner}
    return tuple(sorted(candidates, key=score)[:REPLICAS])


@dataclass(slots=True)
class Replicator:
    """Pulls the checkpoints this node was chosen to hold."""

    context: NodeContext
    catalog: Catalog
    wake: trio.Event = field(default_factory=trio.Event)
    """Set when an advert came by gossip: no need to wait for the next look."""
    _held: set[BlobId] = field(default_factory=set)

    async def run(self) -> None:
        """Look for what to hold, until cancelled."""
        while True:
            with trio.move_on_after(_LOOK_S):
                await self.wake.wait()
            self.wake = trio.Event()  # what comes while we pull wakes us again
            for cluster in self.catalog.clusters():
                advert = self.catalog.best(cluster)
                if advert is not None and self._is_ours_to_hold(advert):
                    await self._pull(advert)

    def _is_ours_to_hold(self, advert: Advert) -> bool:
        context = self.context
        me = context.identity.peer
        if advert.owner == me or advert.record.manifest in self._held:
            return False
        known = (me, *context.peers.peers())
        return me in chosen_holders(context.run, advert.record.cluster, advert.owner, known)

    async def _pull(self, advert: Advert) -> None:
        context, record = self.context, advert.record
        label = expert_label(record.cluster, record.samples)
        try:
            await context.fetcher.checkpoint(record.manifest, label=label, hints=(advert.owner,))
            drop_older(context.blobs, record.cluster, newest=record.manifest)
            self._held.add(record.manifest)
            roots = [pin.root for pin in context.blobs.pins()]
            await announce_roots(context.swarm, context.identity, context.run, roots)
        except (NodeError, PeerError, StorageError, TransportError) as error:
            logger.info("replica of cluster %d not pulled yet: %s", record.cluster, error)
            return
        context.journal.write(
            "replicated", cluster=record.cluster, samples=record.samples, cid=record.manifest
        )
