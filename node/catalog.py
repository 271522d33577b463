"""What the network says about each cluster's expert: opened adverts, fenced, the best one first.

Truth is the DHT, read again now and then; gossip only makes it fresher. An advert under an epoch
older than one already seen cannot replace what is known, so that an owner that was paused while
another took over overwrites nothing.
"""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from node.clock import now_s
from node.context import NodeContext
from node.providers import find_providers
from p2p.claims import Fence, Ownership, Standing
from p2p.codec import Verified, open_signed
from p2p.errors import PeerError, TransportError
from p2p.ids import ClusterId, PeerId
from p2p.limits import MAX_OWNERS_PER_KEY
from p2p.records import ExpertAdvert, RouterAdvert, RunManifest, expert_key, router_key

logger = logging.getLogger(__name__)

Advert = Verified[ExpertAdvert]
_AT_ONCE: Final = 8
"""DHT keys read at a time."""
_MOST_OVERSHOOT: Final = 65_536
"""A budget ends with a whole batch: a claim of more samples than this beyond it is a lie."""


@dataclass(slots=True)
class Catalog:
    """Adverts of one run, by cluster and owner."""

    context: NodeContext
    manifest: RunManifest
    _adverts: dict[ClusterId, dict[PeerId, Advert]] = field(default_factory=dict)
    _earlier: dict[ClusterId, dict[PeerId, Advert]] = field(default_factory=dict)
    """What each owner advertised before: its newest may have died with it."""
    _summaries: dict[ClusterId, dict[PeerId, Verified[RouterAdvert]]] = field(default_factory=dict)
    _fences: dict[ClusterId, Fence] = field(default_factory=dict)
    _refreshed_at: float = -math.inf
    refused: int = 0
    """Adverts dropped: badly signed, of another run, or under a token that was superseded."""

    def clusters(self) -> tuple[ClusterId, ...]:
        """0..K-1."""
        return tuple(ClusterId(cluster) for cluster in range(self.manifest.clusters))

    def adverts(self, cluster: ClusterId) -> tuple[Advert, ...]:
        """Live adverts of a cluster, the best first: the owners' own, by samples seen."""
        now = now_s()
        fence = self.fence(cluster)
        live = [
            (fence.judge(advert) is Standing.CURRENT, advert)
            for advert in self._adverts.get(cluster, {}).values()
            if advert.expires_at is not None and advert.expires_at > now
        ]
        live.sort(key=lambda item: (item[0], *_progress(item[1])), reverse=True)
        return tuple(advert for _, advert in live)

    def best(self, cluster: ClusterId) -> Advert | None:
        """The advert of the expert to draw with: the owner's, or else an orphan's."""
        adverts = self.adverts(cluster)
        return adverts[0] if adverts else None

    def base(self, cluster: ClusterId) -> Advert | None:
        """The advert to continue training from: never an orphan's."""
        best = self.best(cluster)
        if best is None or self.fence(cluster).judge(best) is not Standing.CURRENT:
            return None
        return best

    def bases(self, cluster: ClusterId) -> tuple[Advert, ...]:
        """All adverts to continue training from, the best first, then what they replaced."""
        fence = self.fence(cluster)
        newest = [one for one in self.adverts(cluster) if fence.judge(one) is Standing.CURRENT]
        now, timeless = now_s(), replace(fence, newest={})
        earlier = [
            one
            for one in self._earlier.get(cluster, {}).values()
            if (one.expires_at or 0.0) > now and timeless.judge(one) is Standing.CURRENT
        ]
        return (*newest, *sorted(earlier, key=_progress, reverse=True))

    def summaries(self, cluster: ClusterId) -> tuple[Verified[RouterAdvert], ...]:
        """Live routing summaries of a cluster, the best first: of whom its best experts are.

        Epochs decide only among those: anybody can write a high one into a record of its own.
        """
        now = now_s()
        owners = [advert.owner for advert in self.adverts(cluster)]
        live = [
            summary
            for summary in self._summaries.get(cluster, {}).values()
            if summary.expires_at is not None and summary.expires_at > now
        ]

        def order(summary: Verified[RouterAdvert]) -> tuple[int, int]:
            rank = owners.index(summary.owner) if summary.owner in owners else len(owners)
            return (rank, -summary.record.epoch)

        return tuple(sorted(live, key=order))

    def is_complete(self, cluster: ClusterId) -> bool:
        """Whether an owner advertises the whole budget."""
        best = self.base(cluster)
        return best is not None and best.record.samples >= self.manifest.budget_samples

    def coverage(self) -> float:
        """Part of the clusters that have an expert."""
        return sum(self.best(cluster) is not None for cluster in self.clusters()) / max(
            1, self.manifest.clusters
        )

    def fence(self, cluster: ClusterId) -> Fence:
        """The newest fencing token this node has seen granted on a cluster."""
        found = self._fences.get(cluster)
        if found is None:
            epoch, owner, taken_at = self.context.state.granted(self.context.run, cluster)
            found = self._fences[cluster] = Fence(cluster, epoch, owner, taken_at)
        return found

    def note_ownership(self, ownership: Ownership) -> None:
        """Raise a cluster's fence after a reading of its claims, on disk first."""
        before = self.fence(ownership.cluster)
        after = before.raised(ownership)
        grant = (after.epoch, after.owner, after.taken_at)
        if grant != (before.epoch, before.owner, before.taken_at):
            self.context.state.save_grant(self.context.run, ownership.cluster, *grant)
        self._fences[ownership.cluster] = after

    def add(self, advert: Advert) -> bool:
        """Take an opened advert; says whether it told of a checkpoint not known before."""
        record = advert.record
        is_possible = (
            record.run == self.context.run
            and 0 <= record.cluster < self.manifest.clusters
            and record.samples <= self.manifest.budget_samples + _MOST_OVERSHOOT
        )
        if not is_possible or self.fence(record.cluster).judge(advert) is Standing.STALE:
            self.refused += 1
            logger.info("advert of %s for cluster %d refused", advert.owner, record.cluster)
            return False
        self._fences[record.cluster] = self.fence(record.cluster).passed(advert)
        known = self._adverts.setdefault(record.cluster, {})
        previous = known.get(advert.owner)
        is_news = previous is None or previous.record.manifest != record.manifest
        if previous is None or _age(previous) < _age(advert):
            if previous is not None and is_news:
                self._earlier.setdefault(record.cluster, {})[advert.owner] = previous
            known[advert.owner] = advert
            self._forget_some(record.cluster)
        return is_news

    def _forget_some(self, cluster: ClusterId) -> None:
        """Beyond as many adverts as one key is read for, drop strangers', the oldest first."""
        known, fence = self._adverts[cluster], self.fence(cluster)

        def order(owner: PeerId) -> tuple[bool, float]:
            advert = known[owner]
            return (fence.judge(advert) is Standing.CURRENT, advert.expires_at or 0.0)

        while len(known) > MAX_OWNERS_PER_KEY:
            dropped = min(known, key=order)
            del known[dropped]
            self._earlier.get(cluster, {}).pop(dropped, None)

    async def refresh(
        self, clusters: Iterable[ClusterId] | None = None, *, max_age_s: float = 0.0
    ) -> None:
        """Read adverts and summaries of some clusters, or all, from the DHT.

        Args:
            clusters: None for all of them.
            max_age_s: do nothing if all were read that recently.

        Raises:
            TransportError: if the DHT can't be reached.
        """
        if clusters is None and trio.current_time() - self._refreshed_at < max_age_s:
            return
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
        if clusters is None:
            self._refreshed_at = trio.current_time()

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
                self.refused += 1
                logger.info("summary advert dropped: %s", error)
                continue
            known = self._summaries.setdefault(cluster, {})
            previous = known.get(advert.owner)
            if previous is None or previous.record.issued_at < advert.record.issued_at:
                known[advert.owner] = advert

    async def replicas(self, advert: Advert) -> int:
        """How many nodes say they hold an advert's checkpoint."""
        holders = await find_providers(self.context.swarm, self.context.run, advert.record.manifest)
        return len({*holders, advert.owner})


def _age(advert: Advert) -> tuple[float, float]:
    """A renewed advert keeps its date and lives longer."""
    return (advert.record.issued_at, advert.expires_at or 0.0)


def _progress(advert: Advert) -> tuple[int, int, str]:
    record = advert.record
    return (record.samples, record.epoch, advert.owner)
