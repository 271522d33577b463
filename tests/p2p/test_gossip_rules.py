import pytest

from p2p.codec import seal
from p2p.gossip_rules import GossipRules, topic
from p2p.host import Verdict
from p2p.identity import Identity
from p2p.ids import ClusterId, RunId
from p2p.limits import (
    GOSSIP_BURST,
    MAX_CLOCK_SKEW_S,
    MAX_GOSSIP_PER_PEER_PER_S,
    MAX_GOSSIP_SIZE,
    MAX_RECORD_SIZE,
)
from p2p.lora_records import OfferAdvert
from p2p.records import Claim, ExpertAdvert, RouterAdvert, expert_key
from tests.support.lora_offers import offer_advert, offer_ref
from tests.support.people import (
    NOW,
    RUN,
    advert,
    alice,
    bob,
    cid,
    claim,
    person,
    router_advert,
    sealed,
)

ACCEPT, IGNORE, REJECT = Verdict.ACCEPT, Verdict.IGNORE, Verdict.REJECT


def rules(**changes: float) -> GossipRules[ExpertAdvert]:
    return GossipRules(RUN, ExpertAdvert, **changes)  # type: ignore[arg-type]


def verdict_of(
    judge: GossipRules[ExpertAdvert], data: bytes, sender: Identity = alice, now: float = NOW
) -> Verdict:
    return judge.check(sender.peer, data, now)[0]


def test_each_topic_is_of_one_run_and_one_kind() -> None:
    assert topic(RUN, "expert") == rules().topic == f"paris/1/{RUN}/expert"
    assert GossipRules(RUN, Claim).topic == topic(RUN, "claim")
    assert GossipRules(RUN, OfferAdvert).topic == f"paris/1/{RUN}/lora"
    with pytest.raises(ValueError, match="weather"):
        topic(RUN, "weather")


def test_a_record_of_its_owner_is_accepted_on_its_topic_and_no_other() -> None:
    judge = rules()
    verdict, record = judge.check(alice.peer, sealed(advert(3), alice), NOW)
    assert verdict is ACCEPT
    assert record is not None
    assert (record.record, record.owner) == (advert(3), alice.peer)
    others = (claim(), router_advert(), offer_advert(3))
    for other in (sealed(other, alice) for other in others):
        assert verdict_of(rules(), other) is IGNORE  # its key is of another topic
    claims, routers = GossipRules(RUN, Claim), GossipRules(RUN, RouterAdvert)
    assert claims.check(alice.peer, sealed(claim(), alice), NOW)[0] is ACCEPT
    assert routers.check(alice.peer, sealed(router_advert(), alice), NOW)[0] is ACCEPT


def test_an_advert_of_offers_is_gossiped_by_its_owner_newest_first() -> None:
    judge = GossipRules(RUN, OfferAdvert)
    data, newer = sealed(offer_advert(), alice), offer_advert(issued_at=NOW + 1)
    assert judge.check(bob.peer, data, NOW)[0] is IGNORE  # not his to pass on
    verdict, record = judge.check(alice.peer, data, NOW)
    assert verdict is ACCEPT
    assert record is not None
    assert (record.record, record.owner) == (offer_advert(), alice.peer)
    assert judge.check(alice.peer, sealed(newer, alice), NOW)[0] is ACCEPT
    older = offer_advert(offers=(offer_ref(1),), issued_at=NOW + 0.5)
    assert judge.check(alice.peer, sealed(older, alice), NOW)[0] is IGNORE
    assert judge.check(alice.peer, sealed(advert(2), alice), NOW)[0] is IGNORE


def test_the_same_message_again_is_ignored() -> None:
    judge, data = rules(), sealed(advert(), alice)
    assert [verdict_of(judge, data) for _ in range(3)] == [ACCEPT, IGNORE, IGNORE]


def test_bad_bytes_again_are_still_bad() -> None:
    judge = rules()
    assert [verdict_of(judge, b"\xc1") for _ in range(2)] == [REJECT, REJECT]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x91" * 5000,
        sealed(advert(), alice)[:-1],
        sealed(advert(), alice)[:-1] + b"\0",
        bytes(MAX_RECORD_SIZE + 1),
        bytes(MAX_GOSSIP_SIZE + 1),
    ],
)
def test_what_no_honest_node_sends_is_rejected(data: bytes) -> None:
    assert verdict_of(rules(), data) is REJECT


def test_a_record_of_another_run_is_nobody_s_fault() -> None:
    other = RunId(cid("another run"))
    record = ExpertAdvert(other, ClusterId(0), 1, 1, 64, cid("m"), 1, 0.5, False, NOW)
    data = seal(record, alice, key=expert_key(other, ClusterId(0)), expires_at=NOW + 60)
    assert verdict_of(rules(), data) is IGNORE


def test_a_record_that_is_late_is_ignored() -> None:
    data = sealed(advert(), alice, lifetime_s=60)
    assert verdict_of(rules(), data, now=NOW + 60 + MAX_CLOCK_SKEW_S) is IGNORE
    assert verdict_of(rules(), data, now=NOW + 59) is ACCEPT


def test_a_record_from_the_future_is_ignored_and_does_not_silence_the_present() -> None:
    judge = rules()
    ahead = sealed(advert(issued_at=NOW + MAX_CLOCK_SKEW_S + 1), alice)
    assert verdict_of(judge, ahead) is IGNORE
    assert verdict_of(judge, sealed(advert(), alice)) is ACCEPT


def test_an_older_record_of_the_same_owner_is_ignored() -> None:
    judge = rules()
    assert verdict_of(judge, sealed(advert(step=11, issued_at=NOW), alice)) is ACCEPT
    assert verdict_of(judge, sealed(advert(step=10, issued_at=NOW - 1), alice)) is IGNORE
    assert verdict_of(judge, sealed(advert(1, issued_at=NOW - 1), alice)) is ACCEPT
    assert verdict_of(judge, sealed(advert(issued_at=NOW - 1), bob), bob) is ACCEPT


def test_passing_on_another_s_record_neither_counts_nor_silences_its_owner() -> None:
    judge, data = rules(), sealed(advert(), alice)
    assert verdict_of(judge, data, bob) is IGNORE
    assert verdict_of(judge, data, alice) is ACCEPT


def test_a_sender_has_a_burst_and_then_a_rate() -> None:
    judge = rules()
    flood = [
        verdict_of(judge, number.to_bytes(4, "big")) for number in range(int(GOSSIP_BURST) + 5)
    ]
    assert flood == [REJECT] * int(GOSSIP_BURST) + [IGNORE] * 5
    assert verdict_of(judge, sealed(advert(), bob), bob) is ACCEPT  # others are not slowed
    later = NOW + 1.0
    again = [verdict_of(judge, bytes([9, number]), now=later) for number in range(12)]
    refilled = int(MAX_GOSSIP_PER_PEER_PER_S)
    assert again == [REJECT] * refilled + [IGNORE] * (12 - refilled)


def test_a_clock_that_goes_back_gives_no_allowance() -> None:
    judge = rules(burst=1)
    assert verdict_of(judge, b"a") is REJECT
    assert verdict_of(judge, b"b", now=NOW - 1000) is IGNORE


@pytest.mark.slow
def test_memory_is_bounded_whoever_floods() -> None:
    judge = rules(memory=8)
    for number in range(50):
        sender = person(number)
        assert verdict_of(judge, sealed(advert(), sender), sender) is ACCEPT
        verdict_of(judge, number.to_bytes(2, "big"), sender)
    assert len(judge._seen) == len(judge._newest) == len(judge._allowances) == 8
