"""Claiming clusters and having them trained: the loop around `p2p.claims.decide`.

It alone touches the clocks, the DHT and the training jobs; what to do next is decided by a pure
function over what was read. If the DHT is down, it still stops what it may no longer train.
"""

import logging
import random
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

import trio

from node.board import Board
from node.catalog import Catalog
from node.clock import now_s
from node.context import NodeContext
from node.publishing import Publisher
from node.training_job import TrainingJob
from p2p.claims import (
    ClusterView,
    HeldClaim,
    Hold,
    Idle,
    Me,
    Publish,
    Renew,
    Yield,
    YieldBecause,
    decide,
    next_epoch,
    witness,
)
from p2p.codec import Verified, open_signed, seal
from p2p.errors import TransportError
from p2p.ids import ClusterId
from p2p.records import Claim, RunManifest, claim_key

logger = logging.getLogger(__name__)

_JITTER: Final = 0.15
_CATALOG_AGE_S: Final = 10.0
"""Adverts come by gossip as well: the DHT need not be asked at every round."""
_READ_PATIENCE_S: Final = 5.0
"""At least, for reading all claims; a run with longer leases waits a renewal."""
_REST_LEASES: Final = 1.0
"""A cluster given up is left to others for this many leases."""


@dataclass(slots=True)
class _Job:
    """A training in its own cancel scope, which ends with the lease whatever the loop waits for."""

    training: TrainingJob
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)

    def hold_until(self, moment: float) -> None:
        """Let it train until then, on trio's clock."""
        self.scope.deadline = self.training.lapses_at = moment


@dataclass(slots=True)
class Claiming:
    """This node's claims, and the jobs that train what it holds."""

    context: NodeContext
    manifest: RunManifest
    catalog: Catalog
    board: Board
    publisher: Publisher
    reason: str = ""
    """Why nothing is held, for people; empty while not known."""
    first_round: trio.Event = field(default_factory=trio.Event)
    """Set once it is known what this node holds, or why nothing."""
    _held: dict[ClusterId, HeldClaim] = field(default_factory=dict)
    _sealed: dict[ClusterId, Verified[Claim]] = field(default_factory=dict)
    _resting: dict[ClusterId, float] = field(default_factory=dict)
    _jobs: dict[ClusterId, _Job] = field(default_factory=dict)

    def held(self) -> tuple[HeldClaim, ...]:
        """Claims this node has written and not given up."""
        return tuple(self._held.values())

    def trainings(self) -> tuple[TrainingJob, ...]:
        """Jobs under way."""
        return tuple(job.training for job in self._jobs.values())

    async def run(self) -> None:
        """Claim, renew, yield and train until cancelled; then release what is held."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    pause_s = await self._round(nursery)
                    if self._held or self.reason:
                        self.first_round.set()
                    await trio.sleep(pause_s)
        finally:
            with trio.move_on_after(1.0) as scope:
                scope.shield = True
                await self._release_all()
            for memory in (self._held, self._sealed, self._jobs):
                memory.clear()  # it may be run again

    async def _round(self, nursery: trio.Nursery) -> float:
        """Read, then decide and act until there is nothing to do; seconds until the next round."""
        read_at = trio.current_time()
        views = await self._read()
        self._note_published()
        while True:
            me, policy = self._me(read_at), self.manifest.claim_policy
            action = decide(views, me, run=self.context.run, now=now_s(), policy=policy)
            match action:
                case Publish():
                    return await self._publish(action.claim)
                case Renew():
                    if not await self._renew(action.claim):
                        return policy.settle_s
                case Yield():
                    await self._yield(action)
                case Hold():
                    for cluster in action.train:
                        self._held[cluster] = self._held[cluster].confirmed()
                        self._ensure_training(nursery, cluster)
                    await self._witness(views, me)
                    return self._pause(action.again_in_s)
                case Idle():
                    self.reason = action.reason
                    await self._witness(views, me)
                    return self._pause(action.again_in_s)
                case _:
                    assert_never(action)

    async def _read(self) -> tuple[ClusterView, ...]:
        """Every cluster, or nothing if the DHT is down or too slow for a renewal in time."""
        patience_s = max(self.manifest.claim_policy.renew_s, _READ_PATIENCE_S)
        try:
            with trio.fail_after(patience_s):
                await self.catalog.refresh(max_age_s=_CATALOG_AGE_S)
                await self.board.read(tuple(self._sealed.values()))
        except TransportError as error:
            logger.warning("claims not read: %s", error)
            return ()
        except trio.TooSlowError:
            logger.warning("claims not read within %.0f s", patience_s)
            return ()
        return self.board.views()

    async def _witness(self, views: tuple[ClusterView, ...], me: Me) -> None:
        """Tell of a token that only we remember; see `p2p.claims.witness`."""
        policy = self.manifest.claim_policy
        claim = witness(views, me, run=self.context.run, now=now_s(), policy=policy)
        if claim is not None:
            await self._put(claim)
            self._sealed.pop(claim.cluster, None)

    def _me(self, read_at: float) -> Me:
        monotonic = trio.current_time()
        self._resting = {k: until for k, until in self._resting.items() if until > monotonic}
        return Me(
            peer=self.context.identity.peer,
            monotonic=monotonic,
            held=self.held(),
            capacity=self.context.config.capacity,
            resting=frozenset(self._resting),
            read_at=read_at,
        )

    def _pause(self, seconds: float) -> float:
        """A pause that looks at least once in half a renewal, with jitter so that nodes spread."""
        policy = self.manifest.claim_policy
        bounded = max(policy.settle_s / 2, min(seconds, policy.renew_s / 2))
        return bounded * random.uniform(1 - _JITTER, 1)

    async def _publish(self, claim: Claim) -> float:
        """Write a first claim; after the settle time the next round sees whether it is ours.

        Its token is also above that of what we continue from: the claims of an owner that is long
        gone have expired, and it may yet wake up.
        """
        tokens = [next_epoch(base.record.epoch) for base in self.catalog.bases(claim.cluster)]
        claim = replace(claim, epoch=max([claim.epoch, *tokens]))
        at = trio.current_time()
        if not await self._put(claim):
            return self.manifest.claim_policy.settle_s
        self._held[claim.cluster] = HeldClaim.first(claim, at=at)
        self.context.journal.write(
            "claimed", cluster=claim.cluster, epoch=claim.epoch, samples=claim.samples
        )
        return self.manifest.claim_policy.settle_s

    async def _renew(self, claim: Claim) -> bool:
        at = trio.current_time()
        if not await self._put(claim):
            return False
        held = self._held[claim.cluster]
        self._held[claim.cluster] = held.renewed(claim, at=at)
        job = self._jobs.get(claim.cluster)
        if job is not None:
            job.training.epoch = claim.epoch
            job.hold_until(self._lapses_at(claim.cluster))
        return True

    def _lapses_at(self, cluster: ClusterId) -> float:
        """When a claim must not be trained under any more, on trio's clock."""
        policy = self.manifest.claim_policy
        return self._held[cluster].renewed_at + policy.stop_fraction * policy.lease_s

    async def _yield(self, action: Yield) -> None:
        """Stop training at a step boundary, publish what there is, give the cluster back."""
        cluster = action.cluster
        job = self._jobs.get(cluster)
        if job is not None:
            job.training.lost_claim = action.is_orphan
            job.scope.cancel()
            await job.ended.wait()
            del self._jobs[cluster]
        held = self._held.pop(cluster)
        self._sealed.pop(cluster, None)
        if action.release is not None:
            await self._put(action.release)
            self._sealed.pop(cluster, None)
        if action.because is not YieldBecause.COMPLETE:
            rest_s = _REST_LEASES * self.manifest.claim_policy.lease_s
            self._resting[cluster] = trio.current_time() + rest_s
        self.context.journal.write(
            "completed" if action.because is YieldBecause.COMPLETE else "yielded",
            cluster=cluster,
            epoch=held.claim.epoch,
            why=action.because.value,
        )

    async def _release_all(self) -> None:
        for held in self.held():
            now = now_s()
            lease_s = self.manifest.claim_policy.lease_s
            await self._put(
                replace(held.claim, issued_at=now, expires_at=now + lease_s, is_released=True)
            )

    async def _put(self, claim: Claim) -> bool:
        """Seal and store a claim; False if the DHT would not take it now."""
        context = self.context
        key = claim_key(context.run, claim.cluster)
        envelope = seal(claim, context.identity, key=key, expires_at=claim.expires_at)
        try:
            is_stored = await context.swarm.put(
                key, context.identity.public_key, envelope, claim.expires_at
            )
        except TransportError as error:
            logger.warning("claim on cluster %d not stored: %s", claim.cluster, error)
            return False
        if is_stored:
            self._sealed[claim.cluster] = open_signed(Claim, envelope, key=key, now=now_s())
        return is_stored

    def _ensure_training(self, nursery: trio.Nursery, cluster: ClusterId) -> None:
        known = self._jobs.get(cluster)
        if known is not None and not known.ended.is_set():
            return
        training = TrainingJob(
            self.context,
            self.manifest,
            self.catalog,
            self.publisher,
            cluster,
            self._held[cluster].claim.epoch,
        )
        job = self._jobs[cluster] = _Job(training)
        job.hold_until(self._lapses_at(cluster))
        nursery.start_soon(self._train, job)

    async def _train(self, job: _Job) -> None:
        try:
            with job.scope:
                await job.training.run()
                await trio.sleep_forever()  # held until `decide` sees it complete, and yields
        finally:
            job.ended.set()

    def _note_published(self) -> None:
        """Show our newest checkpoints at the next renewal."""
        for item in self.context.state.published(self.context.run):
            held = self._held.get(item.cluster)
            if held is not None and item.samples > held.samples and not item.is_orphan:
                self._held[item.cluster] = held.with_checkpoint(item.manifest, item.samples)
