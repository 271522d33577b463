"""Which of others' offers is looked into next: pure, with bounded memory, time as a parameter.

Offers cost this node more than they cost their makers: a download, and native code over each proof.
So each owner has a few places, all owners together not many more, and owners take turns: whoever
sends two hundred waits for itself. The pace is the node's, whatever comes.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from p2p.ids import BlobId, ClusterId, PeerId
from p2p.lora_records import OfferRef

QUEUE: Final = 32
"""Offers that wait, of all owners; the next one makes the owner with most give one up."""
PER_OWNER: Final = 6
"""As many as one advert holds."""
RATE_PER_S: Final = 1.0
BURST: Final = 5.0
FIRST_PAUSE_S: Final = 15.0
"""After an offer could not be had or decided; then twice as long each time."""
LONGEST_PAUSE_S: Final = 960.0
MOST_PUT_OFF: Final = 4096
"""Offers of which that is remembered, the oldest forgotten first."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An offer to be looked into: whose, and for which cluster, as its advert says."""

    owner: PeerId
    ref: OfferRef
    cluster: ClusterId


@dataclass(slots=True)
class OfferQueue:
    """Offers that wait, by owner."""

    dropped: int = 0
    _owners: OrderedDict[PeerId, OrderedDict[BlobId, Waiting]] = field(default_factory=OrderedDict)
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
        mine[item.ref.offer] = item
        return True

    def take(self, now: float, busy: Collection[PeerId] = ()) -> Waiting | float:
        """The next offer; or, if none may be looked into yet, the seconds to wait.

        Args:
            now: seconds of a steady clock.
            busy: owners of which nothing is taken now.

        Returns:
            Infinity if none waits.
        """
        owner = next((one for one in self._owners if one not in busy), None)
        if owner is None:
            return float("inf")
        wait_s = self._pause_s(now)
        if wait_s > 0:
            return wait_s
        self._allowance -= 1.0
        mine = self._owners.pop(owner)
        _, item = mine.popitem(last=False)
        if mine:
            self._owners[owner] = mine  # behind the others
        return item

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


@dataclass(slots=True)
class PutOff:
    """Offers that could not be had or decided: each is left alone for longer and longer.

    Known by owner as well: somebody else's advert must not put off an offer.
    """

    _until: OrderedDict[tuple[PeerId, BlobId], tuple[float, float]] = field(
        default_factory=OrderedDict
    )

    def __len__(self) -> int:
        return len(self._until)

    def note(self, item: Waiting, now: float) -> None:
        """Leave an offer alone from now on, twice as long as the last time.

        Args:
            item: the offer.
            now: seconds of a steady clock.
        """
        key = item.owner, item.ref.offer
        _, last_s = self._until.pop(key, (0.0, FIRST_PAUSE_S / 2))
        pause_s = min(2 * last_s, LONGEST_PAUSE_S)
        self._until[key] = now + pause_s, pause_s
        if len(self._until) > MOST_PUT_OFF:
            self._until.popitem(last=False)

    def is_due(self, item: Waiting, now: float) -> bool:
        """Whether an offer may be looked into."""
        until, _ = self._until.get((item.owner, item.ref.offer), (now, 0.0))
        return now >= until

    def forget(self, item: Waiting) -> None:
        """An offer was decided."""
        self._until.pop((item.owner, item.ref.offer), None)
