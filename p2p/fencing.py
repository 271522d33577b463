"""The fencing token at work: (epoch, step) only moves forward, whoever wakes up late.

Pure. A `Fence` is what one reader knows of one cluster; judge again after each reading of claims.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from p2p.claim_rules import Ownership
from p2p.codec import Verified
from p2p.errors import ClaimError
from p2p.ids import ClusterId, PeerId
from p2p.limits import MAX_OWNERS_PER_KEY
from p2p.records import ExpertAdvert


class Standing(Enum):
    """What an advert is to this reader."""

    CURRENT = "of the owner, or of an earlier owner in its time: draw with it, continue from it"
    ORPHAN = "of somebody who does not own the cluster: usable for drawing, never a base"
    STALE = "an old token, or a step back: refused"


@dataclass(frozen=True, slots=True)
class Fence:
    """The newest token one reader has seen granted on one cluster."""

    cluster: ClusterId
    epoch: int = 0
    """From disk after a restart; 0 if nothing was ever granted."""
    owner: PeerId | None = None
    taken_at: float = math.inf
    """When that epoch began, as its claims tell; seconds since the epoch."""
    newest: Mapping[PeerId, tuple[int, int]] = field(default_factory=dict)
    """The last (epoch, step) accepted of each publisher."""

    def raised(self, ownership: Ownership) -> "Fence":
        """This fence after a reading of the claims; it never goes down.

        Raises:
            ClaimError: if the reading is of another cluster.
        """
        if ownership.cluster != self.cluster:
            raise ClaimError(f"fence of cluster {self.cluster}, reading of {ownership.cluster}")
        claim = ownership.claim
        if claim is None or claim.record.epoch < self.epoch:
            return replace(self, epoch=max(self.epoch, ownership.highest_epoch))
        began = claim.record.began_at
        if claim.record.epoch == self.epoch:
            return replace(self, owner=claim.owner, taken_at=min(self.taken_at, began))
        return replace(self, epoch=claim.record.epoch, owner=claim.owner, taken_at=began)

    def judge(self, advert: Verified[ExpertAdvert]) -> Standing:
        """What this advert is now.

        Raises:
            ClaimError: if it is of another cluster.
        """
        record = advert.record
        if record.cluster != self.cluster:
            raise ClaimError(f"fence of cluster {self.cluster}, advert of {record.cluster}")
        if (record.epoch, record.step) < self.newest.get(advert.owner, (0, 0)):
            return Standing.STALE
        if record.is_orphan:
            return Standing.ORPHAN
        if record.epoch < self.epoch:
            return Standing.CURRENT if record.issued_at <= self.taken_at else Standing.STALE
        if self.owner is None or advert.owner == self.owner:
            return Standing.CURRENT
        return Standing.ORPHAN

    def passed(self, advert: Verified[ExpertAdvert]) -> "Fence":
        """This fence after an advert that is not stale: its publisher cannot go back behind it.

        Raises:
            ClaimError: if it is stale.
        """
        if self.judge(advert) is Standing.STALE:
            raise ClaimError(
                f"cluster {self.cluster}: advert of epoch {advert.record.epoch}, step "
                f"{advert.record.step} goes back behind epoch {self.epoch}"
            )
        newest = dict(self.newest)
        newest.pop(advert.owner, None)
        newest[advert.owner] = (advert.record.epoch, advert.record.step)
        while len(newest) > MAX_OWNERS_PER_KEY:
            del newest[next(iter(newest))]
        return replace(self, newest=newest)

    def require_forward(self, peer: PeerId, epoch: int, step: int) -> None:
        """Guard before this node publishes a checkpoint or an advert of its own.

        Raises:
            ClaimError: if a higher epoch was granted, or the step would go back.
        """
        if epoch < self.epoch:
            raise ClaimError(
                f"cluster {self.cluster}: epoch {epoch} is over, {self.epoch} was granted since: "
                "publish as an orphan"
            )
        last = self.newest.get(peer, (0, 0))
        if (epoch, step) < last:
            raise ClaimError(
                f"cluster {self.cluster}: (epoch, step) {(epoch, step)} goes back behind {last}"
            )
