"""Who owns what, as this node reads it: claims from the DHT, resolved, with progress it verified.

Reading is separate from acting, since a node that does not train wants to know as well.
"""

import logging
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from node.catalog import Catalog
from node.clock import now_s
from node.context import NodeContext
from node.errors import NodeError
from p2p.claims import ClusterView, Ownership, Progress, Tenures, VerifiedCheckpoint, resolve_all
from p2p.codec import Verified, open_signed
from p2p.errors import PeerError, StorageError, TransportError
from p2p.ids import BlobId, ClusterId
from p2p.limits import MAX_OWNERS_PER_KEY
from p2p.records import Claim, claim_key

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 8
_MOST_BASES: Final = 3
"""Checkpoints of a cluster that are looked at: the best, and what is left if it is gone."""
_VERIFY_PATIENCE_S: Final = 5.0
"""For fetching manifests within one reading; what is not here by then counts next time."""


@dataclass(slots=True)
class Board:
    """One node's reading of all claims of its run."""

    context: NodeContext
    catalog: Catalog
    ownerships: dict[ClusterId, Ownership] = field(default_factory=dict)
    """The last reading; empty before the first."""
    refused: int = 0
    """Records under claim keys that could not be opened."""
    _progress: Progress = field(default_factory=Progress)
    _tenures: Tenures = field(default_factory=Tenures)

    async def read(self, own: tuple[Verified[Claim], ...] = ()) -> None:
        """Read every claim and resolve them.

        Args:
            own: our last claims, which count whether or not the DHT returned them.

        Raises:
            TransportError: if the DHT can't be reached.
        """
        claims = await self._claims()
        for claim in own:
            claims[claim.record.cluster].append(claim)
        self._resolve(claims)
        unverified = [
            (blob, cluster)
            for cluster, ownership in self.ownerships.items()
            for blob in ownership.unverified
        ]
        unverified += [
            (base.record.manifest, cluster)
            for cluster in self.catalog.clusters()
            for base in self.catalog.bases(cluster)[:_MOST_BASES]
            if base.record.manifest not in self._progress.checkpoints
        ]
        if unverified:
            await self._verify_all(unverified)
            self._resolve(claims)

    def views(self) -> tuple[ClusterView, ...]:
        """Every cluster of the last reading, for `p2p.claims.decide`."""
        return tuple(self._view(ownership) for ownership in self.ownerships.values())

    def _view(self, ownership: Ownership) -> ClusterView:
        verified = self._progress.checkpoints
        bases = self.catalog.bases(ownership.cluster)
        base = next((one for one in bases if one.record.manifest in verified), None)
        if base is None:
            return ClusterView(ownership, None, 0, is_complete=False, last_trained_at=None)
        samples = self._progress.checkpoints[base.record.manifest].samples
        return ClusterView(
            ownership,
            base.record.manifest,
            samples,
            is_complete=samples >= self.catalog.manifest.budget_samples,
            last_trained_at=base.record.issued_at,
        )

    async def _claims(self) -> defaultdict[ClusterId, list[Verified[Claim]]]:
        found: defaultdict[ClusterId, list[Verified[Claim]]] = defaultdict(list)
        limiter = trio.CapacityLimiter(_AT_ONCE)
        failures: list[TransportError] = []

        async def read(cluster: ClusterId) -> None:
            async with limiter:
                try:
                    found[cluster] = await self._read_cluster(cluster)
                except TransportError as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for cluster in self.catalog.clusters():
                nursery.start_soon(read, cluster)
        if failures:
            raise failures[0]
        return found

    async def _read_cluster(self, cluster: ClusterId) -> list[Verified[Claim]]:
        key = claim_key(self.context.run, cluster)
        claims = []
        for stored in (await self.context.swarm.get(key))[:MAX_OWNERS_PER_KEY]:
            try:
                claims.append(open_signed(Claim, stored.value, key=key, now=now_s()))
            except PeerError as error:
                self.refused += 1
                logger.info("claim dropped: %s", error)
        return claims

    def _resolve(self, claims: defaultdict[ClusterId, list[Verified[Claim]]]) -> None:
        """Resolve, and remember epochs on disk before anybody acts on them."""
        context, policy = self.context, self.catalog.manifest.claim_policy
        clusters = self.catalog.clusters()
        monotonic = trio.current_time()
        live = [claim for found in claims.values() for claim in found]
        self._tenures = self._tenures.observed(
            live, progress=self._progress, now=monotonic, policy=policy
        )
        forfeited = self._tenures.forfeited(now=monotonic, policy=policy)
        self._progress = replace(self._progress, forfeited=forfeited)
        self.ownerships = resolve_all(
            {cluster: claims[cluster] for cluster in clusters},
            now=now_s(),
            policy=policy,
            progress=self._progress,
            highest_epochs={k: context.state.highest_epoch(context.run, k) for k in clusters},
        )
        for cluster, ownership in self.ownerships.items():
            if ownership.highest_epoch > context.state.highest_epoch(context.run, cluster):
                context.state.raise_epoch(context.run, cluster, ownership.highest_epoch)
            self.catalog.note_ownership(ownership)

    async def _verify_all(self, unverified: list[tuple[BlobId, ClusterId]]) -> None:
        """Side by side: one that nobody gives must not hold up the others."""
        limiter = trio.CapacityLimiter(_AT_ONCE)

        async def verify(blob: BlobId, cluster: ClusterId) -> None:
            async with limiter:
                await self._verify(blob, cluster)

        with trio.move_on_after(_VERIFY_PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for blob, cluster in dict.fromkeys(unverified):
                    nursery.start_soon(verify, blob, cluster)

    async def _verify(self, blob: BlobId, cluster: ClusterId) -> None:
        """Fetch a checkpoint's manifest: progress counts when somebody can give it."""
        ownership = self.ownerships[cluster]
        hints = () if ownership.owner is None else (ownership.owner,)
        try:
            manifest = await self.context.fetcher.manifest(blob, hints=hints)
        except (NodeError, PeerError, StorageError, TransportError) as error:
            logger.info("checkpoint %s of cluster %d not verified: %s", blob, cluster, error)
            return
        record = manifest.record
        if record.run != self.context.run or record.cluster != cluster:
            logger.warning("checkpoint %s is not of cluster %d of this run", blob, cluster)
            return
        found = VerifiedCheckpoint(manifest.owner, record.samples)
        checkpoints = {**self._progress.checkpoints, blob: found}
        self._progress = replace(self._progress, checkpoints=checkpoints)
