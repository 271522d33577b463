"""The records one replica holds: pure rules over a dict, bounded in number. No network, no codec.

Each owner has one slot under each key. The record that expires later stays, so that an owner's old
record cannot come back after a renewal; storing the same record again is fine (owners republish).
Full means that newcomers are refused: nothing that is alive is ever pushed out by somebody else.

hivemind's own `TimedStorage` fails at both (a *rejected* store evicts the live record, and a full
one drops whatever expires first), which is why the child keeps its records here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from p2p.limits import MAX_OWNERS_PER_KEY

MAX_RECORDS: Final = 65_536
"""All records of a replica: 2 KiB each at most, so under 150 MB of memory."""
_SWEEP_AFTER_PUTS: Final = 1_024


@dataclass(frozen=True, slots=True)
class Slot:
    """One owner's record under one key."""

    value: bytes
    expires_at: float


class RecordTable:
    """Signed values by key and owner; the caller has checked the envelopes.

    Args:
        clock: seconds since the epoch.
        max_records: records in all before newcomers are refused.
        max_owners: owners under one key before newcomers are refused.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        max_records: int = MAX_RECORDS,
        max_owners: int = MAX_OWNERS_PER_KEY,
    ) -> None:
        self._clock = clock
        self._max_records = max_records
        self._max_owners = max_owners
        self._slots: dict[bytes, dict[bytes, Slot]] = {}
        self._count = 0
        self._puts_since_sweep = 0

    def __len__(self) -> int:
        """Records held, counting those that expired since the last sweep."""
        return self._count

    def put(self, key: bytes, owner: bytes, value: bytes, expires_at: float) -> bool:
        """Keep a record unless it is expired, older than the one held, or there is no room.

        Returns:
            Whether the table now holds this very record.
        """
        now = self._clock()
        if not expires_at > now:  # written so that NaN is refused too
            return False
        owners = self._live(key, now)
        held = owners.get(owner)
        if held is not None:
            if held.expires_at >= expires_at:
                return held.expires_at == expires_at and held.value == value
        elif len(owners) >= self._max_owners or not self._has_room(now):
            return False
        else:
            self._count += 1
        self._slots.setdefault(key, owners)[owner] = Slot(value, expires_at)
        return True

    def get(self, key: bytes) -> dict[bytes, Slot]:
        """Live records under `key`, by owner. The dict is the caller's."""
        return dict(self._live(key, self._clock()))

    def __iter__(self) -> Iterator[bytes]:
        """Keys that may hold live records, as they were at the call."""
        return iter(tuple(self._slots))

    def _live(self, key: bytes, now: float) -> dict[bytes, Slot]:
        """The owners under `key` after dropping what expired; a new dict if there is none."""
        owners = self._slots.get(key)
        if owners is None:
            return {}
        expired = [owner for owner, slot in owners.items() if slot.expires_at <= now]
        for owner in expired:
            del owners[owner]
        self._count -= len(expired)
        if not owners:
            del self._slots[key]
        return owners

    def _has_room(self, now: float) -> bool:
        """Whether one more record fits, sweeping (not at every call) when it seems not to."""
        self._puts_since_sweep += 1
        is_full = self._count >= self._max_records
        if self._puts_since_sweep >= _SWEEP_AFTER_PUTS or is_full:
            self._puts_since_sweep = 0
            for key in tuple(self._slots):
                self._live(key, now)
        return self._count < self._max_records
