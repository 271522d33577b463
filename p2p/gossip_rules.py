"""What a topic lets through: accept, ignore or reject, decided by a pure core with bounded memory.

Gossip is a hint that something is new; the truth is in the DHT. A topic carries one kind of sealed
record, exactly as it would lie in the DHT, gossiped by its owner. Cheap checks come first: rate,
size, seen before; then form and signature. Time is a parameter.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, TypeVar

from p2p.codec import Verified, check_envelope, open_signed
from p2p.errors import ExpiredError, PeerError
from p2p.host import Verdict
from p2p.ids import PeerId, RunId
from p2p.limits import (
    GOSSIP_BURST,
    GOSSIP_MEMORY,
    MAX_CLOCK_SKEW_S,
    MAX_GOSSIP_PER_PEER_PER_S,
    MAX_GOSSIP_SIZE,
)
from p2p.lora_records import OfferAdvert
from p2p.records import KEY_PREFIX, Claim, ExpertAdvert, RouterAdvert

R = TypeVar("R", Claim, ExpertAdvert, RouterAdvert, OfferAdvert)
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class GossipTopic(StrEnum):
    """The topics of a run, each with its one kind of record."""

    CLAIM = "claim"
    EXPERT = "expert"
    ROUTER = "router"
    LORA = "lora"


_TOPIC_OF: Final[dict[type, GossipTopic]] = {
    Claim: GossipTopic.CLAIM,
    ExpertAdvert: GossipTopic.EXPERT,
    RouterAdvert: GossipTopic.ROUTER,
    OfferAdvert: GossipTopic.LORA,
}


def topic(run: RunId, name: str) -> str:
    """The topic's name on the wire, such as `paris/1/bafkrei.../expert`.

    Raises:
        ValueError: if there is no such topic.
    """
    return f"{KEY_PREFIX}/{run}/{GossipTopic(name)}"


class GossipRules(Generic[R]):
    """The rules of one topic of one run, with what they remember of the last messages.

    Args:
        run: the run whose topic this is.
        kind: the record it carries, such as `ExpertAdvert`.
        memory: how many messages and senders are remembered, the oldest forgotten first.
        rate_per_s: messages a sender may send for long.
        burst: messages a sender may send at once.
    """

    def __init__(
        self,
        run: RunId,
        kind: type[R],
        *,
        memory: int = GOSSIP_MEMORY,
        rate_per_s: float = MAX_GOSSIP_PER_PEER_PER_S,
        burst: float = GOSSIP_BURST,
    ) -> None:
        self.topic = topic(run, _TOPIC_OF[kind])
        self._kind: type[R] = kind
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._seen: _Recent[bytes, Verdict] = _Recent(memory)
        self._newest: _Recent[tuple[PeerId, str], float] = _Recent(memory)
        self._allowances: _Recent[PeerId, _Allowance] = _Recent(memory)

    def check(self, sender: PeerId, data: bytes, now: float) -> tuple[Verdict, Verified[R] | None]:
        """Judge one message; never raises, whatever the bytes.

        Args:
            sender: who signed the message at the pubsub layer.
            data: the sealed record.
            now: seconds since the epoch.

        Returns:
            ACCEPT and the record; IGNORE for what is late, repeated, too fast, passed on by
            somebody else, or of another run; REJECT for what no honest node sends.
        """
        if not self._allow(sender, now):
            return Verdict.IGNORE, None
        if len(data) > MAX_GOSSIP_SIZE:
            return Verdict.REJECT, None
        digest = hashlib.sha256(data).digest()
        known = self._seen.get(digest)
        if known is not None:
            return known, None
        verdict, record = self._judge(sender, data, now)
        if verdict is Verdict.ACCEPT:
            self._seen.put(digest, Verdict.IGNORE)
        elif verdict is Verdict.REJECT:
            self._seen.put(digest, Verdict.REJECT)
        return verdict, record  # what is ignored is not remembered: the owner may yet send it

    def _allow(self, sender: PeerId, now: float) -> bool:
        """Take one message from the sender's allowance, which refills with time."""
        allowance = self._allowances.get(sender) or _Allowance(self._burst, now)
        elapsed_s = max(0.0, now - allowance.at)
        left = min(self._burst, allowance.left + elapsed_s * self._rate_per_s)
        is_allowed = left >= 1.0
        self._allowances.put(sender, _Allowance(left - 1.0 if is_allowed else left, now))
        return is_allowed

    def _judge(self, sender: PeerId, data: bytes, now: float) -> tuple[Verdict, Verified[R] | None]:
        try:
            key = check_envelope(data).key
            if not key.startswith(f"{self.topic}/"):
                return Verdict.IGNORE, None
            record = open_signed(self._kind, data, key=key, now=now)
        except ExpiredError:
            return Verdict.IGNORE, None
        except PeerError:
            return Verdict.REJECT, None
        issued_at = record.record.issued_at
        if record.owner != sender or issued_at > now + MAX_CLOCK_SKEW_S:
            return Verdict.IGNORE, None
        newest = self._newest.get((record.owner, key))
        if newest is not None and issued_at <= newest:
            return Verdict.IGNORE, None
        self._newest.put((record.owner, key), issued_at)
        return Verdict.ACCEPT, record


@dataclass(frozen=True, slots=True)
class _Allowance:
    left: float
    at: float


class _Recent(Generic[K, V]):
    """A dict of bounded size that forgets what was put longest ago."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: K) -> V | None:
        return self._items.get(key)

    def put(self, key: K, value: V) -> None:
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._size:
            self._items.popitem(last=False)
