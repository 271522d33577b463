"""Two pure pieces of the client: which records are due to be put again, and when to restart."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from p2p.dht.settings import DhtState

REPUBLISH_FRACTION: Final = 1 / 3
"""Of a record's life: it is put three times in all, so that two lost replicas sets cost nothing."""
_RETRY_S: Final = 15.0
"""After a put that failed."""
YOUNG_S: Final = 2.0
"""A child that ended before it was ready, or this soon after, died of its own."""
MAX_YOUNG_DEATHS: Final = 5
MAX_RESTARTS: Final = 30
RESTART_WINDOW_S: Final = 300.0
BROKEN_RETRY_S: Final = 60.0
_FIRST_DELAY_S: Final = 0.25
_MAX_DELAY_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class OwnRecord:
    """A record we put and keep alive until it expires."""

    key: str
    subkey: bytes
    value: bytes
    expires_at: float


class OwnRecords:
    """Our live records, the latest under each key, and when each is due to be put again."""

    def __init__(self) -> None:
        self._due: dict[tuple[str, bytes], tuple[OwnRecord, float, float]] = {}
        """Record, when it is due, seconds between two puts."""

    def __len__(self) -> int:
        return len(self._due)

    def remember(self, record: OwnRecord, now: float) -> None:
        """Keep a record that is being put now, unless one that expires later is kept already."""
        place = (record.key, record.subkey)
        held = self._due.get(place)
        if held is None or held[0].expires_at <= record.expires_at:
            every_s = max((record.expires_at - now) * REPUBLISH_FRACTION, 1.0)
            self._due[place] = (record, now + every_s, every_s)

    def forget(self, record: OwnRecord) -> None:
        """Drop a record that the replicas have a later one for."""
        place = (record.key, record.subkey)
        held = self._due.get(place)
        if held is not None and held[0] == record:
            del self._due[place]

    def retry(self, record: OwnRecord, now: float) -> None:
        """Put it again soon: it did not reach enough replicas."""
        place = (record.key, record.subkey)
        held = self._due.get(place)
        if held is not None and held[0] == record:
            self._due[place] = (record, now + min(_RETRY_S, held[2]), held[2])

    def make_all_due(self, now: float) -> None:
        """Every record is to be put again: a new child knows none of them."""
        for place, (record, _, every_s) in self._due.items():
            self._due[place] = (record, now, every_s)

    def take_due(self, now: float) -> tuple[OwnRecord, ...]:
        """Records to put now; each is due again after its interval. Expired ones are dropped."""
        self._due = {place: held for place, held in self._due.items() if held[0].expires_at > now}
        due = [held for held in self._due.values() if held[1] <= now]
        for record, _, every_s in due:
            self._due[record.key, record.subkey] = (record, now + every_s, every_s)
        return tuple(record for record, _, _ in due)


class RestartPolicy:
    """When to start the next child: soon, later when it keeps failing, rarely when it is broken."""

    def __init__(self) -> None:
        self._young_deaths = 0
        self._ends: deque[float] = deque(maxlen=MAX_RESTARTS)

    def ended(self, now: float, ready_s: float | None) -> tuple[DhtState, float]:
        """What to be until the next start, and the seconds to wait for it.

        Args:
            now: a monotonic clock.
            ready_s: how long the child was ready; None if it never was.
        """
        is_young = ready_s is None or ready_s < YOUNG_S
        self._young_deaths = self._young_deaths + 1 if is_young else 0
        too_many = len(self._ends) == MAX_RESTARTS and now - self._ends[0] < RESTART_WINDOW_S
        self._ends.append(now)
        if too_many or self._young_deaths >= MAX_YOUNG_DEATHS:
            return DhtState.BROKEN, BROKEN_RETRY_S
        delay_s = _FIRST_DELAY_S * 4.0 ** max(self._young_deaths - 1, 0)
        return DhtState.RESTARTING, min(delay_s, _MAX_DELAY_S)


def newest_first(fresh: Iterable[str], older: Iterable[str], limit: int) -> tuple[str, ...]:
    """Addresses without repeats, `fresh` before `older`, at most `limit`."""
    return tuple(dict.fromkeys((*fresh, *older)))[:limit]
