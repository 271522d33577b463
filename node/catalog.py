"""What the network says about each cluster's expert: opened adverts, fenced, the best one first.

Truth is the DHT, read again now and then; gossip only makes it fresher. An advert under an epoch
older than one already seen cannot replace what is known, so that an owner that was paused while
another took over overwrites nothing.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from node.clock import now_s
from node.context import NodeContext
from node.providers import find_providers
from p2p.codec import Verified, open_signed
from p2p.errors import PeerError, TransportError
from p2p.ids import ClusterId, PeerId
from p2p.limits import MAX_OWNERS_PER_KEY
from p2p.records import ExpertAdvert, RouterAdvert, RunManifest, expert_key, router_key

logger = logging.getLogger(__name__)

Advert = Verified[ExpertAdvert]
_AT_ONCE = 8
"""DHT keys read at a time."""


@dataclass(slots=True)
class Catalog:
    """Adverts of one run, by cluster and owner."""

    context: NodeContext
    manifest: RunManifest
    _adverts: dict[ClusterId, dict[PeerId, Advert]] = field(default_factory=dict)
    _summaries: dict[ClusterId, Verified[RouterAdvert]] = field(default_factory=dict)
    refused: int = 0
    """Adverts dropped: badly signed, of another run, or under a token that was superseded."""

    def clusters(self) -> tuple[ClusterId, ...]:
        """0..K-1."""
        return tuple(ClusterId(cluster) for cluster in range(self.manifest.clusters))

    def adverts(self, cluster: ClusterId) -> tuple[Advert, ...]:
        """Live adverts of a cluster, the best first: epoch, then samples, then owner."""
        now = now_s()
        live = [
            advert
            for advert in self._adverts.get(cluster, {}).values()
            if advert.expires_at is not None and advert.expires_at > now
        ]
        return tuple(sorted(live, key=_rank, reverse=True))

    def best(self, cluster: ClusterId) -> Advert | None:
        """The advert of the expert to draw with and to continue from."""
        adverts = self.adverts(cluster)
        return adverts[0] if adverts else None

    def summary(self, cluster: ClusterId) -> Verified[RouterAdvert] | None:
        """The newest routing summary of a cluster."""
        return self._summaries.get(cluster)

    def is_complete(self, cluster: ClusterId) -> bool:
        """Whether somebody advertises the whole budget."""
        best = self.best(cluster)
        return best is not None and best.record.samples >= self.manifest.budget_samples

    def coverage(self) -> float:
        """Part of the clusters that have an expert."""
        return sum(self.best(cluster) is not None for cluster in self.clusters()) / max(
            1, self.manifest.clusters
        )

    def add(self, advert: Advert) -> bool:
        """Take an opened advert; says whether it changed anything."""
        record = advert.record
        if record.run != self.context.run or not 0 <= record.cluster < self.manifest.clusters:
            self.refused += 1
            return False
        known = self._adverts.setdefault(record.cluster, {})
        previous = known.get(advert.owner)
        if previous is not None and previous.record.manifest == record.manifest:
            if previous.record.issued_at < record.issued_at:
                known[advert.owner] = advert
            return False
        if self._is_fenced_off(advert, previous):
            self.refused += 1
            logger.warning(
                "advert of %s for cluster %d refused: epoch %d was superseded",
                *(advert.owner, record.cluster, record.epoch),
            )
            return False
        known[advert.owner] = advert
        return True

    def _is_fenced_off(self, advert: Advert, previous: Advert | None) -> bool:
        """Whether an advert comes under a token that another owner has since taken over."""
        record = advert.record
        highest = self.context.state.highest_epoch(self.context.run, record.cluster)
        if record.epoch >= highest:
            return previous is not None and _rank(advert) < _rank(previous)
        if record.is_orphan:
            return False
        others = self._adverts.get(record.cluster, {})
        return previous is not None or any(_rank(other) > _rank(advert) for other in others.values())

    async def refresh(self, clusters: Iterable[ClusterId] | None = None) -> None:
        """Read adverts and summaries of some clusters, or all, from the DHT.

        Raises:
            TransportError: if the DHT can't be reached.
        """
        limiter = trio.CapacityLimiter(_AT_ONCE)
        failures: list[TransportError] = []

        async def read(cluster: ClusterId) -> None:
            async with limiter:
                try:
                    await self._read_adverts(cluster)
                    await self._read_summaries(cluster)
                except TransportError as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for cluster in self.clusters() if clusters is None else clusters:
                nursery.start_soon(read, cluster)
        if failures:
            raise failures[0]

    async def _read_adverts(self, cluster: ClusterId) -> None:
        key = expert_key(self.context.run, cluster)
        for stored in (await self.context.swarm.get(key))[:MAX_OWNERS_PER_KEY]:
            try:
                self.add(open_signed(ExpertAdvert, stored.value, key=key, now=now_s()))
            except PeerError as error:
                self.refused += 1
                logger.info("advert dropped: %s", error)

    async def _read_summaries(self, cluster: ClusterId) -> None:
        key = router_key(self.context.run, cluster)
        for stored in (await self.context.swarm.get(key))[:MAX_OWNERS_PER_KEY]:
            try:
                advert = open_signed(RouterAdvert, stored.value, key=key, now=now_s())
            except PeerError as error:
                logger.info("summary advert dropped: %s", error)
                continue
            known = self._summaries.get(cluster)
            if known is None or advert.record.epoch >= known.record.epoch:
                self._summaries[cluster] = advert

    async def replicas(self, advert: Advert) -> int:
        """How many nodes say they hold an advert's checkpoint."""
        holders = await find_providers(
            self.context.swarm, self.context.run, advert.record.manifest
        )
        return len({*holders, advert.owner})


def _rank(advert: Advert) -> tuple[bool, int, int, str]:
    record = advert.record
    return (not record.is_orphan, record.epoch, record.samples, advert.owner)
