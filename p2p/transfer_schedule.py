"""Who is asked for which blob next: a pull from several providers as pure bookkeeping.

Blobs are handed out a few at a time, in proportion to how fast each provider turned out to be, so a
slow one never holds much. When nothing is left to hand out, an idle provider may be asked for what
a much slower one still owes (at most two copies of a blob on the way): the last blobs come at the
speed of the fastest. Knows no sockets; time is a parameter (seconds of one monotonic clock).
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from p2p.ids import BlobId
from p2p.limits import CHUNK_SIZE

MIN_WINDOW: Final = 2
"""Blobs a provider owes at once, at least: one on the wire and one to follow without a pause."""
MAX_WINDOW: Final = 16
"""And at most: 16 MiB hide 80 ms of round trip at 200 MB/s, and are cheap to lose."""
WINDOW_S: Final = 0.5
"""Within that, what a provider delivers in half a second."""
MAX_OVERTAKEN: Final = 4
"""Blobs an idle provider takes over at once."""
OVERTAKE_FACTOR: Final = 2.0
OVERTAKE_MIN_S: Final = 0.25
"""Overtaking must save this much, and half of the time, to be worth a second copy."""
_PACE_WEIGHT: Final = 0.3
"""Weight of the newest blob in a provider's mean pace."""
_PACE_MIN_SIZE: Final = 64 * 1024
"""A small blob takes a round trip, which says nothing of how long a large one takes."""


@dataclass(slots=True)
class _Provider:
    owes: dict[BlobId, None] = field(default_factory=dict)
    """In the order asked, which is the order of the answers."""
    lacks: set[BlobId] = field(default_factory=set)
    s_per_byte: float | None = None
    """Mean of times, not of speeds: one stall is noticed at once, trust comes back slowly."""
    last_at: float = 0.0
    """When it last delivered, or was asked while it owed nothing."""


class Schedule:
    """One pull's bookkeeping. Every blob is in one state: to be asked, owed by 1-2 providers, here.

    Args:
        blobs: (name, size in bytes or `UNKNOWN_SIZE`) of what is wanted, in order, once each.
        peers: who may have them.
    """

    def __init__(self, blobs: Iterable[tuple[BlobId, int]], peers: Iterable[str]) -> None:
        self._sizes = dict(blobs)
        self._wanted = dict.fromkeys(self._sizes)
        self._to_ask = deque(self._sizes)
        self._providers = {peer: _Provider() for peer in peers}

    @property
    def is_complete(self) -> bool:
        """Whether every blob is here."""
        return not self._wanted

    @property
    def is_done(self) -> bool:
        """Whether every blob is here, or nobody is left who might have the rest."""
        return not any(self.is_useful(peer) for peer in self._providers)

    def is_useful(self, peer: str) -> bool:
        """Whether this provider might still give a blob that is wanted."""
        provider = self._providers.get(peer)
        return provider is not None and any(blob not in provider.lacks for blob in self._wanted)

    def missing(self) -> tuple[BlobId, ...]:
        """Blobs that are not here, in the order wanted."""
        return tuple(self._wanted)

    def ask(self, peer: str, now: float) -> tuple[tuple[BlobId, int], ...]:
        """What to ask this provider for now: (name, size) pairs, none if it owes enough."""
        provider = self._providers[peer]
        room = self._window(provider) - len(provider.owes)
        if room * 2 < self._window(provider):
            return ()  # requests in batches: a frame for several blobs
        blobs = self._take(provider, room)
        if not blobs and not provider.owes:
            blobs = self._overtake(provider, now)
        if blobs and not provider.owes:
            provider.last_at = now
        provider.owes.update(dict.fromkeys(blobs))
        return tuple((blob, self._sizes[blob]) for blob in blobs)

    def arrived(self, peer: str, blob: BlobId, size_bytes: int, now: float) -> bool:
        """A verified blob is on disk; False if another provider was faster with it."""
        provider = self._providers[peer]
        provider.owes.pop(blob, None)
        pace = max(now - provider.last_at, 1e-6) / max(size_bytes, _PACE_MIN_SIZE)
        if provider.s_per_byte is not None:
            pace = _PACE_WEIGHT * pace + (1 - _PACE_WEIGHT) * provider.s_per_byte
        provider.s_per_byte, provider.last_at = pace, now
        is_first = blob in self._wanted
        self._wanted.pop(blob, None)
        return is_first

    def refused(self, peer: str, blob: BlobId) -> None:
        """The provider does not have the blob: others may."""
        provider = self._providers[peer]
        provider.owes.pop(blob, None)
        provider.lacks.add(blob)
        self._give_back([blob])

    def released(self, peer: str) -> None:
        """The provider's stream ended: what it owes is to be asked again."""
        owed = list(self._providers[peer].owes)
        self._providers[peer].owes.clear()
        self._give_back(owed)

    def dropped(self, peer: str) -> None:
        """Never ask this provider again."""
        self.released(peer)
        del self._providers[peer]

    def _window(self, provider: _Provider) -> int:
        if provider.s_per_byte is None:
            return MIN_WINDOW
        blobs = int(WINDOW_S / (provider.s_per_byte * CHUNK_SIZE))
        return min(max(blobs, MIN_WINDOW), MAX_WINDOW)

    def _take(self, provider: _Provider, room: int) -> list[BlobId]:
        taken: list[BlobId] = []
        passed: list[BlobId] = []
        while self._to_ask and len(taken) < room:
            blob = self._to_ask.popleft()
            if blob in self._wanted:
                (passed if blob in provider.lacks else taken).append(blob)
        self._to_ask.extendleft(reversed(passed))
        return taken

    def _overtake(self, idle: _Provider, now: float) -> list[BlobId]:
        own_s = CHUNK_SIZE * (idle.s_per_byte or 0.0)
        worth_s = max(OVERTAKE_FACTOR * own_s, own_s + OVERTAKE_MIN_S)
        late: list[tuple[float, BlobId]] = []
        for slow in self._providers.values():
            ahead = 0
            for blob in slow.owes:
                ahead += self._sizes[blob] or CHUNK_SIZE
                if blob not in self._wanted or blob in idle.lacks or self._copies(blob) > 1:
                    continue
                left_s = max(ahead * (slow.s_per_byte or 0.0), now - slow.last_at)
                if left_s >= worth_s:
                    late.append((left_s, blob))
        return [blob for _, blob in sorted(late, reverse=True)[:MAX_OVERTAKEN]]

    def _copies(self, blob: BlobId) -> int:
        return sum(blob in provider.owes for provider in self._providers.values())

    def _give_back(self, blobs: Iterable[BlobId]) -> None:
        """Queue again, in front, those of `blobs` that are wanted and that nobody else owes."""
        again = [blob for blob in blobs if blob in self._wanted and not self._copies(blob)]
        self._to_ask.extendleft(reversed(again))


class Throttle:
    """A cap on bytes per second, shared by all who ask it.

    Args:
        max_bytes_per_s: the cap; None for none.
        burst_s: how much unused time may be made up for at once.
    """

    def __init__(self, max_bytes_per_s: float | None, *, burst_s: float = 0.1) -> None:
        self._rate = max_bytes_per_s
        self._burst_s = burst_s
        self._paid_until = float("-inf")

    def piece_size(self, largest: int) -> int:
        """Bytes to move at once, at most `largest`: a tenth of a second's worth under a cap."""
        return largest if self._rate is None else max(1024, min(largest, int(self._rate / 10)))

    def wait_s(self, size_bytes: int, now: float) -> float:
        """Count `size_bytes` as moved at `now` and say how long to wait before the next."""
        if self._rate is None:
            return 0.0
        start = max(self._paid_until, now - self._burst_s)
        self._paid_until = start + size_bytes / self._rate
        return max(0.0, self._paid_until - now)
