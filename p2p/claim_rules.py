"""Who owns a cluster: one pure function over the claims found, the same answer for every reader.

No clock, no I/O, no randomness. A DHT cannot give mutual exclusion, so a claim is an advisory lease
and correctness never depends on it; what matters is that readers agree. Therefore nothing that a
peer can raise at will decides: neither dates, nor renewal counts, nor the epoch.

A claim *counts* if it lies in its place, its lease is running, it is not released, it does not go
back behind the highest epoch this reader has seen granted, and it is neither stalled nor forfeited.
Among those that count, the owner has the most verified progress; ties fall to the smallest hash of
(run, cluster, peer), which is also how nodes choose (`rendezvous`): a crowd spreads and stays so.

The epoch is a fencing token and only that. A rival who bumps it while the incumbent renews gains
nothing; a winner who sees a live record with a higher token raises its own above it (`p2p.claims`),
so that a reader on the other side of a healed partition, who remembers that token, agrees again;
a reader who alone remembers one says so by a released claim that bears it (`p2p.claims.witness`).
(Rejected: "highest epoch wins" lets anybody steal; "a bump over a live claim is ignored" leaves two
halves of a healed partition with two owners for good; the epoch in the tie-break can be ground.)

Not solved: keys ground for the tie-break, and checkpoints copied and signed again by a thief.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from p2p.codec import Verified
from p2p.ids import BlobId, ClusterId, PeerId, RunId
from p2p.limits import MAX_CLOCK_SKEW_S, MAX_EPOCH, MAX_LIVE_CLAIMS_PER_OWNER, MAX_OWNERS_PER_KEY
from p2p.records import Claim, ClaimPolicy, claim_key

_LEASE_TOLERANCE_S = 1e-3  # issued + lease - issued is not the lease exactly, in doubles


class RefusedBecause(Enum):
    """Why a claim does not count."""

    MISPLACED = "found under another cluster's key"
    FUTURE = "issued in the future"
    EXPIRED = "its lease is over"
    OVERLONG = "its lease is longer than the run allows"
    SUPERSEDED = "its owner has written a newer one"
    RELEASED = "its owner gave the cluster up"
    STALE = "its epoch is behind one already granted"
    STALLED = "renewed too often without a newer checkpoint"
    FORFEITED = "held too long without verified progress"
    OVER_CAP = "its owner holds as many clusters as one key may"
    SPAM = "more owners under one key than are looked at"


@dataclass(frozen=True, slots=True)
class Refused:
    """A claim that does not count, and why."""

    claim: Verified[Claim]
    because: RefusedBecause


@dataclass(frozen=True, slots=True)
class VerifiedCheckpoint:
    """A checkpoint this node fetched the manifest of, and found good and retrievable."""

    owner: PeerId
    """Who sealed the manifest."""
    samples: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What this node has verified itself: the only progress that counts."""

    checkpoints: Mapping[BlobId, VerifiedCheckpoint] = field(default_factory=dict)
    """By the CID of the sealed manifest."""
    forfeited: frozenset[tuple[ClusterId, PeerId]] = frozenset()
    """From `p2p.tenure`: owners that held a cluster too long without progress."""

    def credit(self, claim: Verified[Claim]) -> int:
        """Samples that count for a claim: verified, and sealed by the claim's own owner.

        A rival could otherwise show the incumbent's newest checkpoint before the incumbent does.
        """
        checkpoint = claim.record.checkpoint
        verified = None if checkpoint is None else self.checkpoints.get(checkpoint)
        if verified is None or verified.owner != claim.owner:
            return 0
        return min(verified.samples, claim.record.samples)


@dataclass(frozen=True, slots=True)
class Ownership:
    """What one reader makes of the claims on one cluster now."""

    cluster: ClusterId
    claim: Verified[Claim] | None
    """The winning claim; None if the cluster is free."""
    rivals: tuple[Verified[Claim], ...]
    """Claims that count and lost, the best first."""
    refused: tuple[Refused, ...]
    highest_epoch: int
    """To be remembered on disk: the highest token this reader has seen granted."""
    top_epoch: int
    """The highest token on any well-dated record given, counting or not; 0 without one."""
    unverified: tuple[BlobId, ...]
    """Checkpoints that live claims show and `Progress` does not know: worth fetching."""

    @property
    def next_epoch(self) -> int:
        """The token of a takeover: above every one granted or live. Saturates at `MAX_EPOCH`."""
        return next_epoch(max(self.highest_epoch, self.top_epoch))

    @property
    def owner(self) -> PeerId | None:
        """Whose the cluster is."""
        return None if self.claim is None else self.claim.owner

    @property
    def epoch(self) -> int:
        """The owner's token; the highest granted one if the cluster is free."""
        return self.highest_epoch if self.claim is None else self.claim.record.epoch

    def refusal_of(self, peer: PeerId) -> RefusedBecause | None:
        """Why the claim of `peer` does not count; None if it counts or there is none."""
        found = [refused.because for refused in self.refused if refused.claim.owner == peer]
        newest = [because for because in found if because is not RefusedBecause.SUPERSEDED]
        return newest[0] if newest else None


def rendezvous(run: RunId, cluster: ClusterId, peer: PeerId) -> bytes:
    """32 bytes that order peers for a cluster, and clusters for a peer: the smallest is first."""
    return hashlib.sha256(f"paris-claim/{run}/{cluster}/{peer}".encode()).digest()


def resolve(
    cluster: ClusterId,
    claims: Iterable[Verified[Claim]],
    *,
    now: float,
    policy: ClaimPolicy,
    progress: Progress,
    highest_epoch: int,
) -> Ownership:
    """The owner of one cluster.

    Does not know the owner's other clusters: `resolve_all` applies the cap per key.

    Args:
        cluster: whose claims these are.
        claims: every claim found, in any order, duplicates welcome. A node that holds a claim adds
            its own last one, whether or not the DHT returned it.
        now: seconds since the epoch.
        policy: the run's.
        progress: what this node has verified.
        highest_epoch: what the last `Ownership.highest_epoch` said; 0 at first.
    """
    counting, refused = _screen(
        cluster, claims, now=now, policy=policy, progress=progress, highest_epoch=highest_epoch
    )
    return _rank(cluster, counting, refused, progress, highest_epoch)


def resolve_all(
    claims: Mapping[ClusterId, Iterable[Verified[Claim]]],
    *,
    now: float,
    policy: ClaimPolicy,
    progress: Progress,
    highest_epochs: Mapping[ClusterId, int],
) -> dict[ClusterId, Ownership]:
    """The owner of each cluster, with at most `MAX_LIVE_CLAIMS_PER_OWNER` counted per key."""
    screened = {
        cluster: _screen(
            cluster,
            found,
            now=now,
            policy=policy,
            progress=progress,
            highest_epoch=highest_epochs.get(cluster, 0),
        )
        for cluster, found in claims.items()
    }
    by_owner: dict[PeerId, list[Verified[Claim]]] = defaultdict(list)
    for counting, _ in screened.values():
        for claim in counting:
            by_owner[claim.owner].append(claim)
    surplus = {
        (claim.owner, claim.record.cluster)
        for held in by_owner.values()
        for claim in sorted(held, key=lambda one: _order(one, progress))[MAX_LIVE_CLAIMS_PER_OWNER:]
    }
    owned: dict[ClusterId, Ownership] = {}
    for cluster, (counting, refused) in screened.items():
        kept = [claim for claim in counting if (claim.owner, cluster) not in surplus]
        capped = [
            Refused(claim, RefusedBecause.OVER_CAP)
            for claim in counting
            if (claim.owner, cluster) in surplus
        ]
        owned[cluster] = _rank(
            cluster, kept, [*refused, *capped], progress, highest_epochs.get(cluster, 0)
        )
    return owned


def _screen(
    cluster: ClusterId,
    claims: Iterable[Verified[Claim]],
    *,
    now: float,
    policy: ClaimPolicy,
    progress: Progress,
    highest_epoch: int,
) -> tuple[list[Verified[Claim]], list[Refused]]:
    """Part the claims that count from those that do not; at most one of each owner counts."""
    newest: dict[PeerId, Verified[Claim]] = {}
    refused: list[Refused] = []
    for claim in {claim.envelope: claim for claim in claims}.values():
        because = _timing(claim, cluster, now, policy)
        known = newest.get(claim.owner)
        if because is not None:
            refused.append(Refused(claim, because))
        elif known is None:
            newest[claim.owner] = claim
        else:
            older, newest[claim.owner] = sorted((known, claim), key=_age)
            refused.append(Refused(older, RefusedBecause.SUPERSEDED))
    counting: list[Verified[Claim]] = []
    for claim in newest.values():
        because = _standing(claim, policy, progress, highest_epoch)
        if because is None:
            counting.append(claim)
        else:
            refused.append(Refused(claim, because))
    counting.sort(key=lambda claim: _order(claim, progress))
    spam = [Refused(claim, RefusedBecause.SPAM) for claim in counting[MAX_OWNERS_PER_KEY:]]
    return counting[:MAX_OWNERS_PER_KEY], refused + spam


def _timing(
    claim: Verified[Claim], cluster: ClusterId, now: float, policy: ClaimPolicy
) -> RefusedBecause | None:
    record = claim.record
    if record.cluster != cluster or claim.key != claim_key(record.run, cluster):
        return RefusedBecause.MISPLACED
    if record.issued_at > now + MAX_CLOCK_SKEW_S:
        return RefusedBecause.FUTURE
    if now >= record.expires_at:
        return RefusedBecause.EXPIRED
    if record.expires_at - record.issued_at > policy.lease_s + _LEASE_TOLERANCE_S:
        return RefusedBecause.OVERLONG
    return None


def _standing(
    claim: Verified[Claim], policy: ClaimPolicy, progress: Progress, highest_epoch: int
) -> RefusedBecause | None:
    record = claim.record
    if record.is_released:
        return RefusedBecause.RELEASED
    if record.epoch < highest_epoch:
        return RefusedBecause.STALE
    if record.renewal > policy.patience_renewals:
        return RefusedBecause.STALLED
    if (record.cluster, claim.owner) in progress.forfeited:
        return RefusedBecause.FORFEITED
    return None


def _rank(
    cluster: ClusterId,
    counting: list[Verified[Claim]],
    refused: list[Refused],
    progress: Progress,
    highest_epoch: int,
) -> Ownership:
    ranked = sorted(counting, key=lambda claim: _order(claim, progress))
    winner = ranked[0] if ranked else None
    highest = highest_epoch if winner is None else max(highest_epoch, winner.record.epoch)
    misdated = {RefusedBecause.MISPLACED, RefusedBecause.FUTURE, RefusedBecause.OVERLONG}
    tokens = [one.claim.record.epoch for one in refused if one.because not in misdated]
    tokens += [claim.record.epoch for claim in ranked]
    shown = [claim.record.checkpoint for claim in ranked]
    return Ownership(
        cluster=cluster,
        claim=winner,
        rivals=tuple(ranked[1:]),
        refused=tuple(sorted(refused, key=lambda one: (one.because.name, one.claim.envelope))),
        highest_epoch=highest,
        top_epoch=max(tokens, default=0),
        unverified=tuple(
            blob for blob in shown if blob is not None and blob not in progress.checkpoints
        ),
    )


def next_epoch(highest: int) -> int:
    """The token after `highest`; the last one repeats."""
    return min(highest + 1, MAX_EPOCH)


def _order(claim: Verified[Claim], progress: Progress) -> tuple[int, bytes]:
    record = claim.record
    return (-progress.credit(claim), rendezvous(record.run, record.cluster, claim.owner))


def _age(claim: Verified[Claim]) -> tuple[float, int, int, bytes]:
    """Orders the claims of *one* owner, whose own dates are its own affair."""
    record = claim.record
    return (record.issued_at, record.epoch, record.renewal, claim.envelope)
