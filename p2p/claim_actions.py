"""What a decision about clusters is made from, and what it can be: values only (`p2p.claims`)."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

from p2p.claim_rules import Ownership
from p2p.ids import BlobId, ClusterId, PeerId
from p2p.records import Claim


@dataclass(frozen=True, slots=True)
class ClusterView:
    """One cluster as this node sees it now."""

    ownership: Ownership
    checkpoint: BlobId | None
    """The best verified checkpoint to continue from, whoever made it."""
    samples: int
    """What that checkpoint has seen; 0 without one."""
    is_complete: bool
    """Whether `samples` has reached the run's budget."""
    last_trained_at: float | None
    """When that checkpoint was made, seconds since the epoch; None if never trained."""

    @property
    def cluster(self) -> ClusterId:
        """Its number."""
        return self.ownership.cluster


@dataclass(frozen=True, slots=True)
class HeldClaim:
    """A claim this node has written, with its times on the *monotonic* clock, in seconds."""

    claim: Claim
    """As last stored."""
    started_at: float
    """Before the first put."""
    renewed_at: float
    """Before the last put that was stored."""
    checkpoint: BlobId | None
    """The newest checkpoint to show: what we published, or at first what we continue from."""
    samples: int
    is_confirmed: bool = False
    """Whether a reading after the settle showed it as ours."""

    @classmethod
    def first(cls, claim: Claim, *, at: float) -> "HeldClaim":
        """After a `Publish` was stored; `at` was read before the put."""
        return cls(claim, at, at, claim.checkpoint, claim.samples)

    def renewed(self, claim: Claim, *, at: float) -> "HeldClaim":
        """After a `Renew` was stored; `at` was read before the put."""
        return replace(self, claim=claim, renewed_at=at)

    def confirmed(self) -> "HeldClaim":
        """After `Hold.train` named it."""
        return replace(self, is_confirmed=True)

    def with_checkpoint(self, checkpoint: BlobId, samples: int) -> "HeldClaim":
        """After a newer checkpoint was published; the next renewal shows it."""
        return replace(self, checkpoint=checkpoint, samples=samples)


@dataclass(frozen=True, slots=True)
class Me:
    """This node, for one decision."""

    peer: PeerId
    monotonic: float
    """The monotonic clock now, in seconds: a paused process must notice that it slept."""
    held: tuple[HeldClaim, ...] = ()
    capacity: int = 1
    """How many clusters this machine can train at once; 0 to give everything up."""
    resting: frozenset[ClusterId] = frozenset()
    """Clusters not to be claimed now, for instance given up a moment ago."""
    read_at: float | None = None
    """The monotonic clock before the reading began; None: just now."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Train these and nothing else; look again in a while."""

    train: tuple[ClusterId, ...]
    again_in_s: float


@dataclass(frozen=True, slots=True)
class Renew:
    """Put this newer form of a claim we hold."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Publish:
    """Put this first claim on a free cluster, settle, read back."""

    claim: Claim


class YieldBecause(Enum):
    """Why a cluster is given up."""

    LOST = "another node owns it"
    LAPSED = "the lease could not be renewed in time"
    STALLED = "no newer checkpoint for too many renewals"
    COMPLETE = "the expert is complete"
    SURPLUS = "more clusters than this machine should hold"


@dataclass(frozen=True, slots=True)
class Yield:
    """Stop training a cluster."""

    cluster: ClusterId
    because: YieldBecause
    release: Claim | None
    """To be put, so that others need not wait for the lease to end; None if it already has."""

    @property
    def is_orphan(self) -> bool:
        """Whether what was trained since the last checkpoint may only be published as an orphan."""
        return self.because in {YieldBecause.LOST, YieldBecause.LAPSED, YieldBecause.STALLED}


@dataclass(frozen=True, slots=True)
class Idle:
    """Hold nothing; look again in a while."""

    reason: str
    again_in_s: float


Action: TypeAlias = Hold | Renew | Publish | Yield | Idle
