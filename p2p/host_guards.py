"""What both hosts do alike: budgets, verdicts that cannot raise, bounded subscriptions.

Knows no transport: `p2p.libp2p_host` and `p2p.memory_host` share it so that the rules a test sees
over the memory network are the rules of the real one.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from p2p import limits
from p2p.errors import DecodeError, LimitError
from p2p.host import GossipMessage, TopicValidator, Verdict
from p2p.ids import PeerId, parse_peer_id

logger = logging.getLogger(__name__)


class Budget:
    """A token bucket: `rate_per_s` on average, `burst` at once.

    Time is a parameter, so that the caller's clock (trio's, or a test's) decides.
    """

    def __init__(self, *, rate_per_s: float, burst: float) -> None:
        self._rate = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._updated_at: float | None = None

    def take(self, now: float) -> bool:
        """Take one token at `now` (seconds, monotonic); False when there is none."""
        if self._updated_at is not None:
            earned = (now - self._updated_at) * self._rate
            self._tokens = min(self._burst, self._tokens + max(0.0, earned))
        self._updated_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Budgets:
    """One `Budget` per key, with a bound on the number of keys (the oldest key is forgotten)."""

    def __init__(self, *, rate_per_s: float, burst: float, max_keys: int) -> None:
        self._rate = rate_per_s
        self._burst = burst
        self._max_keys = max_keys
        self._budgets: dict[str, Budget] = {}

    def take(self, key: str, now: float) -> bool:
        """Take one token of `key` at `now`; False when there is none."""
        budget = self._budgets.pop(key, None)
        if budget is None:
            budget = Budget(rate_per_s=self._rate, burst=self._burst)
            while len(self._budgets) >= self._max_keys:
                del self._budgets[next(iter(self._budgets))]
        self._budgets[key] = budget  # last in order: the key used last is forgotten last
        return budget.take(now)


def judge(validator: TopicValidator, sender: PeerId, data: bytes, counts: Counter[str]) -> Verdict:
    """Verdict of a topic's rules that never raises: a validator's own bug is a rejection.

    One of the guards around the foreign stacks: an exception here would end the whole host.
    """
    try:
        verdict = validator(sender, data)
    except Exception:
        counts["validator_errors"] += 1
        if counts["validator_errors"] == 1:
            logger.exception("a topic validator raised; its messages are rejected")
        return Verdict.REJECT
    counts[f"gossip_{verdict.value}"] += 1
    return verdict


class PublishBudget:
    """Size and rate of what we publish ourselves, checked before the network would drop it."""

    def __init__(self) -> None:
        self._rate = Budgets(
            rate_per_s=limits.MAX_GOSSIP_PER_PEER_PER_S,
            burst=limits.MAX_GOSSIP_PER_PEER_PER_S,
            max_keys=limits.MAX_GOSSIP_TOPICS,
        )

    def check(self, topic: str, data: bytes, now: float) -> None:
        """Let one message through.

        Raises:
            LimitError: if `data` is too large, or too many were published on this topic.
        """
        if len(data) > limits.MAX_GOSSIP_SIZE:
            raise LimitError(
                f"gossip: got {len(data)} bytes, the limit is {limits.MAX_GOSSIP_SIZE}"
            )
        if not self._rate.take(topic, now):
            raise LimitError(
                f"gossip on {topic!r}: more than {limits.MAX_GOSSIP_PER_PEER_PER_S:g} "
                "messages per second; publish later"
            )


@dataclass(frozen=True, slots=True)
class Subscription:
    """One joined topic: its rules, and the bounded channel its messages go to."""

    topic: str
    validator: TopicValidator
    channel: trio.MemorySendChannel[GossipMessage]

    def deliver(self, message: GossipMessage, counts: Counter[str]) -> bool:
        """Put a message on the channel; the newest is dropped when it is full.

        Returns:
            False if the reader closed its end: the topic is to be left.
        """
        try:
            self.channel.send_nowait(message)
        except trio.WouldBlock:
            counts["gossip_dropped"] += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True


def open_subscription(
    topic: str, validator: TopicValidator
) -> tuple[Subscription, trio.MemoryReceiveChannel[GossipMessage]]:
    """A subscription and the end its reader holds."""
    send, receive = trio.open_memory_channel[GossipMessage](limits.GOSSIP_CHANNEL_SIZE)
    return Subscription(topic, validator, send), receive


def split_address(address: str) -> tuple[str, PeerId]:
    """The transport part and the peer id of a multiaddr that ends in `/p2p/<id>`.

    Raises:
        DecodeError: if it does not end so.
    """
    transport, mark, peer = address.rpartition("/p2p/")
    if not mark or not transport.startswith("/"):
        raise DecodeError(f"address: got {address[:200]!r}, expected '/ip4/.../tcp/.../p2p/<id>'")
    return transport, parse_peer_id(peer)


@asynccontextmanager
async def open_plain_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose single error comes out as itself, not inside an `ExceptionGroup`.

    For context managers that are given to callers: their block's own error must pass unchanged.
    """
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        error = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
    if error is not None:
        raise error
