"""Progress or forfeit: what one reader remembers of how long each owner has shown nothing new.

A squatter can lie about its renewals, but not about what others find when they look. Pure: the
caller brings the clock (a monotonic one serves best) and keeps the value between readings. Only for
nodes that verify the checkpoints they see: who never looks would forfeit everybody.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from p2p.claim_rules import Progress
from p2p.codec import Verified
from p2p.ids import ClusterId, PeerId
from p2p.records import Claim, ClaimPolicy


@dataclass(frozen=True, slots=True)
class Tenure:
    """One owner's time on one cluster, as this reader saw it."""

    since: float
    """When it was first seen, or last showed newer verified progress; seconds."""
    credit: int
    seen_at: float


@dataclass(frozen=True, slots=True)
class Tenures:
    """All tenures one reader knows of."""

    entries: Mapping[tuple[ClusterId, PeerId], Tenure] = field(default_factory=dict)

    def observed(
        self,
        claims: Iterable[Verified[Claim]],
        *,
        progress: Progress,
        now: float,
        policy: ClaimPolicy,
    ) -> "Tenures":
        """This memory after one reading of live claims.

        An owner not seen for `forfeit_s` is forgotten: it left, and may begin anew.
        """
        entries = {
            key: tenure
            for key, tenure in self.entries.items()
            if now - tenure.seen_at <= policy.forfeit_s
        }
        for claim in claims:
            if claim.record.is_released:
                continue
            key = (claim.record.cluster, claim.owner)
            credit = progress.credit(claim)
            known = entries.get(key)
            if known is None or credit > known.credit:
                entries[key] = Tenure(now, credit, now)
            else:
                entries[key] = replace(known, seen_at=now)
        return Tenures(entries)

    def forfeited(self, *, now: float, policy: ClaimPolicy) -> frozenset[tuple[ClusterId, PeerId]]:
        """Who no longer counts, for `Progress.forfeited`."""
        return frozenset(
            key for key, tenure in self.entries.items() if now - tenure.since > policy.forfeit_s
        )
