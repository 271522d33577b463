"""Which of others' offers is looked into next: pure, with bounded memory, time as a parameter.

Offers cost this node more than they cost their makers: a download, and native code over each proof.
So each owner has a few places, all owners together not many more, and owners take turns: whoever
sends two hundred waits for itself. The pace is the node's, whatever comes.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from p2p.ids import BlobId, PeerId
from p2p.lora_records import OfferRef

QUEUE: Final = 32
"""Offers that wait, of all owners; the next one makes the owner with most give one up."""
PER_OWNER: Final = 6
"""As many as one advert holds."""
RATE_PER_S: Final = 1.0
BURST: Final = 5.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """An offer to be looked into, and whose it is."""

    owner: PeerId
    ref: OfferRef


@dataclass(slots=True)
class OfferQueue:
    """Offers that wait, by owner."""

    dropped: int = 0
    _owners: OrderedDict[PeerId, OrderedDict[BlobId, OfferRef]] = field(default_factory=OrderedDict)
    _allowance: float = BURST
    _filled_at: float | None = None

    def __len__(self) -> int:
        return sum(map(len, self._owners.values()))

    def add(self, item: Waiting) -> bool:
        """Let an offer wait; False if there is no place for it, or it waits already."""
        mine = self._owners.setdefault(item.owner, OrderedDict())
        if item.ref.offer in mine:
            return False
        if len(mine) >= PER_OWNER or not self._make_room(len(mine)):
            self.dropped += 1
            self._forget_empty(item.owner)
            return False
        mine[item.ref.offer] = item.ref
        return True

    def take(self, now: float) -> Waiting | float:
        """The next offer; or, if none may be looked into yet, the seconds to wait.

        Args:
            now: seconds of a steady clock.

        Returns:
            Infinity if none waits.
        """
        if not self._owners:
            return float("inf")
        wait_s = self._pause_s(now)
        if wait_s > 0:
            return wait_s
        self._allowance -= 1.0
        owner, mine = self._owners.popitem(last=False)
        _, ref = mine.popitem(last=False)
        if mine:
            self._owners[owner] = mine  # behind the others
        return Waiting(owner, ref)

    def forget(self, owner: PeerId) -> None:
        """Drop all offers of an owner."""
        self.dropped += len(self._owners.pop(owner, ()))

    def _pause_s(self, now: float) -> float:
        if self._filled_at is not None:
            gained = max(0.0, now - self._filled_at) * RATE_PER_S
            self._allowance = min(BURST, self._allowance + gained)
        self._filled_at = now
        return max(0.0, (1.0 - self._allowance) / RATE_PER_S)

    def _make_room(self, mine: int) -> bool:
        """Whether one more fits, after the longest queue gave up its last if need be."""
        if len(self) < QUEUE:
            return True
        longest = max(self._owners, key=lambda owner: len(self._owners[owner]))
        if len(self._owners[longest]) <= mine + 1:
            return False
        self._owners[longest].popitem()
        self.dropped += 1
        return True

    def _forget_empty(self, owner: PeerId) -> None:
        if not self._owners[owner]:
            del self._owners[owner]
