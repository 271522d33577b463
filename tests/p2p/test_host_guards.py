from collections import Counter

import pytest

from p2p import limits
from p2p.errors import DecodeError, LimitError
from p2p.host import GossipMessage, Verdict
from p2p.host_guards import (
    Budget,
    Budgets,
    PublishBudget,
    judge,
    open_plain_nursery,
    open_subscription,
    split_address,
)
from p2p.ids import PeerId
from p2p.memory_host import peer_of_seed

PEER = peer_of_seed(b"p" * 32)


def test_budget_gives_the_burst_and_then_the_rate() -> None:
    budget = Budget(rate_per_s=2, burst=3)
    assert [budget.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert not budget.take(10.4)
    assert budget.take(10.5)
    assert not budget.take(10.5)


def test_budget_saves_up_no_more_than_the_burst() -> None:
    budget = Budget(rate_per_s=1, burst=2)
    budget.take(0.0)
    assert [budget.take(1000.0) for _ in range(3)] == [True, True, False]


def test_budget_does_not_earn_from_a_clock_that_goes_back() -> None:
    budget = Budget(rate_per_s=1, burst=1)
    assert budget.take(100.0)
    assert not budget.take(0.0)
    assert not budget.take(0.5)


def test_budgets_are_apart_and_their_number_is_bounded() -> None:
    budgets = Budgets(rate_per_s=1, burst=1, max_keys=2)
    assert budgets.take("a", 0.0)
    assert not budgets.take("a", 0.0)
    assert budgets.take("b", 0.0)
    assert not budgets.take("a", 0.0), "used last, so remembered"
    assert budgets.take("c", 0.0)
    assert budgets.take("b", 0.0), "the key not used for longest was forgotten"


def test_publishing_is_bounded_per_topic_at_the_limit() -> None:
    budget = PublishBudget()
    for _ in range(int(limits.MAX_GOSSIP_PER_PEER_PER_S)):
        budget.check("a", b"", 0.0)
    with pytest.raises(LimitError, match="per second"):
        budget.check("a", b"", 0.0)
    budget.check("b", bytes(limits.MAX_GOSSIP_SIZE), 0.0)
    with pytest.raises(LimitError, match="16385 bytes"):
        budget.check("b", bytes(limits.MAX_GOSSIP_SIZE + 1), 0.0)
    budget.check("a", b"", 0.1)


def test_a_validators_bug_is_a_rejection_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()

    def broken(_peer: PeerId, _data: bytes) -> Verdict:
        raise ZeroDivisionError

    for _ in range(3):
        assert judge(broken, PEER, b"", counts) is Verdict.REJECT
    assert counts["validator_errors"] == 3
    assert len(caplog.records) == 1


@pytest.mark.parametrize("verdict", Verdict)
def test_verdicts_pass_through_and_are_counted(verdict: Verdict) -> None:
    counts: Counter[str] = Counter()
    assert judge(lambda _peer, _data: verdict, PEER, b"", counts) is verdict
    assert counts == {f"gossip_{verdict.value}": 1}


def test_a_full_channel_drops_the_newest_and_counts_it() -> None:
    counts: Counter[str] = Counter()
    subscription, channel = open_subscription("t", lambda _peer, _data: Verdict.ACCEPT)
    messages = [
        GossipMessage("t", PEER, str(n).encode()) for n in range(limits.GOSSIP_CHANNEL_SIZE + 1)
    ]
    assert all(subscription.deliver(message, counts) for message in messages)
    assert counts == {"gossip_dropped": 1}
    received = [channel.receive_nowait() for _ in range(limits.GOSSIP_CHANNEL_SIZE)]
    assert received == messages[:-1]


def test_a_reader_that_left_ends_the_subscription() -> None:
    subscription, channel = open_subscription("t", lambda _peer, _data: Verdict.ACCEPT)
    channel.close()
    assert not subscription.deliver(GossipMessage("t", PEER, b""), Counter())


def test_address_is_split_at_its_last_peer_id() -> None:
    relay = peer_of_seed(b"r" * 32)
    address = f"/ip4/1.2.3.4/tcp/1/p2p/{relay}/p2p-circuit/p2p/{PEER}"
    assert split_address(address) == (f"/ip4/1.2.3.4/tcp/1/p2p/{relay}/p2p-circuit", PEER)


@pytest.mark.parametrize("address", ["", "/p2p/", f"/p2p/{PEER}", "/ip4/1.2.3.4/tcp/1", "x/p2p/y"])
def test_address_without_its_parts_is_refused(address: str) -> None:
    with pytest.raises(DecodeError):
        split_address(address)


async def test_plain_nursery_lets_a_single_error_out_as_itself() -> None:
    original = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError) as caught:
        async with open_plain_nursery():
            raise original
    assert caught.value is original
