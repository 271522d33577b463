"""Whose offer is looked into next: fair between owners, at the node's pace, in bounded memory."""

import math

from hypothesis import given
from hypothesis import strategies as st

from node.offer_queue import (
    BURST,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    MOST_PUT_OFF,
    PER_OWNER,
    QUEUE,
    RATE_PER_S,
    OfferQueue,
    PutOff,
    Waiting,
)
from p2p.ids import ClusterId, PeerId
from p2p.lora_records import OfferRef
from tests.support.lora_offers import offer_ref
from tests.support.people import alice, bob, carol, cid

NOW = 1000.0


def owner(number: int) -> PeerId:
    return PeerId(f"owner {number}")


def waiting(who: PeerId, number: int = 0) -> Waiting:
    return Waiting(who, offer_ref(number), ClusterId(0))


def waiting_for(ref: OfferRef) -> Waiting:
    return Waiting(alice.peer, ref, ClusterId(0))


def taken(queue: OfferQueue, now: float = NOW) -> list[Waiting]:
    """All that may be taken now."""
    found = []
    while isinstance(item := queue.take(now), Waiting):
        found.append(item)
    return found


def filled(owners: int, each: int = 1) -> OfferQueue:
    queue = OfferQueue()
    for number in range(owners):
        for place in range(each):
            queue.add(waiting(owner(number), place))
    return queue


def everything(queue: OfferQueue) -> list[Waiting]:
    """All that waits, in the order in which it is taken."""
    found: list[Waiting] = []
    for second in range(QUEUE):
        found += taken(queue, NOW + second)
    return found


def test_nothing_waits_for_ever() -> None:
    assert OfferQueue().take(NOW) == math.inf
    assert len(OfferQueue()) == 0


def test_owners_take_turns_whoever_came_first() -> None:
    queue = OfferQueue()
    for item in (waiting(alice.peer, 0), waiting(alice.peer, 1), waiting(alice.peer, 2)):
        assert queue.add(item)
    assert queue.add(waiting(bob.peer, 3))
    assert queue.add(waiting(carol.peer, 4))
    order = [(item.owner, item.ref) for item in taken(queue)]
    turns = (alice, bob, carol, alice, alice)
    assert [who for who, _ in order] == [person.peer for person in turns]
    assert [ref for _, ref in order] == [offer_ref(n) for n in (0, 3, 4, 1, 2)]


def test_offer_that_waits_already_is_not_added_again() -> None:
    queue = OfferQueue()
    assert queue.add(waiting(alice.peer))
    assert not queue.add(waiting(alice.peer))
    assert not queue.add(waiting_for(OfferRef(offer_ref().offer, cid("x"), cid("y"))))
    assert queue.dropped == 0  # nothing was lost
    assert queue.add(waiting(bob.peer))  # another's word on it is another matter
    assert len(queue) == 2


def test_an_owner_has_a_few_places_and_no_more() -> None:
    queue = OfferQueue()
    added = [queue.add(waiting(alice.peer, n)) for n in range(PER_OWNER + 1)]
    assert added == [True] * PER_OWNER + [False]
    assert (len(queue), queue.dropped) == (PER_OWNER, 1)
    taken(queue)
    assert queue.add(waiting(alice.peer, PER_OWNER))


def test_full_queue_makes_who_has_most_give_one_up() -> None:
    queue = filled(owners=5, each=PER_OWNER)  # 30
    assert queue.add(waiting(owner(90)))
    assert queue.add(waiting(owner(91)))
    assert (len(queue), queue.dropped) == (QUEUE, 0)
    assert queue.add(waiting(owner(92)))
    assert (len(queue), queue.dropped) == (QUEUE, 1)
    found = [item.owner for item in everything(queue)]
    assert sorted(map(found.count, map(owner, range(5)))) == [5, 6, 6, 6, 6]
    assert all(owner(n) in found for n in (90, 91, 92))


def test_what_is_given_up_is_what_came_last() -> None:
    queue = filled(owners=5, each=PER_OWNER)
    for number in (90, 91, 92):
        queue.add(waiting(owner(number)))
    found = everything(queue)
    for number in range(5):
        mine = [item.ref for item in found if item.owner == owner(number)]
        assert mine == [offer_ref(n) for n in range(len(mine))]


def test_full_queue_of_owners_with_one_each_takes_no_more() -> None:
    queue = filled(owners=QUEUE)
    assert not queue.add(waiting(alice.peer))
    assert (len(queue), queue.dropped) == (QUEUE, 1)
    assert not queue.add(waiting(owner(0), 7))  # nor a second one of anybody
    assert [item.owner for item in everything(queue)] == [owner(n) for n in range(QUEUE)]


def test_one_more_of_ones_own_never_takes_the_place_of_an_equals() -> None:
    queue = filled(owners=16, each=2)
    assert not queue.add(waiting(owner(3), 2))
    assert queue.add(waiting(owner(90)))


def test_pace_is_a_burst_and_then_one_a_second() -> None:
    queue = filled(owners=30)
    assert len(taken(queue)) == BURST
    assert queue.take(NOW) == 1 / RATE_PER_S
    assert len(taken(queue, NOW + 0.99)) == 0
    assert len(taken(queue, NOW + 1.0)) == 1
    assert len(taken(queue, NOW + 4.0)) == 3


def test_pause_saves_up_no_more_than_a_burst() -> None:
    queue = filled(owners=30)
    taken(queue)
    assert len(taken(queue, NOW + 3600)) == BURST


def test_clock_that_goes_back_gives_nothing_away() -> None:
    queue = filled(owners=30)
    taken(queue)
    assert len(taken(queue, NOW - 3600)) == 0
    assert len(taken(queue, NOW - 3600 + 2)) == 2


def test_pause_told_is_long_enough() -> None:
    queue = filled(owners=30)
    taken(queue)
    wait_s = queue.take(NOW + 0.3)
    assert isinstance(wait_s, float)
    assert len(taken(queue, NOW + 0.3 + wait_s + 1e-9)) == 1


def test_busy_owners_are_passed_over_and_keep_their_places() -> None:
    queue = OfferQueue()
    for item in (waiting(alice.peer, 0), waiting(alice.peer, 1), waiting(bob.peer, 2)):
        queue.add(item)
    assert queue.take(NOW, {alice.peer}) == waiting(bob.peer, 2)
    assert queue.take(NOW, {alice.peer}) == math.inf
    assert queue.take(NOW) == waiting(alice.peer, 0)


def test_forgotten_owner_has_nothing_left_and_others_all() -> None:
    queue = filled(owners=3, each=2)
    queue.forget(owner(1))
    queue.forget(owner(77))
    assert (len(queue), queue.dropped) == (4, 2)
    assert owner(1) not in {item.owner for item in everything(queue)}
    assert queue.add(waiting(owner(1)))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9), st.booleans()), max_size=300))
def test_whatever_comes_memory_is_bounded_and_nothing_comes_twice(
    steps: list[tuple[int, int, bool]],
) -> None:
    queue, now, inside = OfferQueue(), NOW, 0
    for number, place, is_take in steps:
        before = queue.dropped
        if is_take:
            now += 1.0
            inside -= isinstance(queue.take(now), Waiting)
        elif queue.add(waiting(owner(number), place)):
            inside += 1 - (queue.dropped - before)
        assert len(queue) == inside <= QUEUE
        assert all(0 < len(mine) <= PER_OWNER for mine in queue._owners.values())


def test_what_could_not_be_had_is_left_alone_for_longer_each_time() -> None:
    put_off, item, now = PutOff(), waiting(alice.peer), NOW
    assert put_off.is_due(item, now)
    for pause_s in (FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S):
        put_off.note(item, now)
        assert not put_off.is_due(item, now + pause_s - 0.1)
        now += pause_s
        assert put_off.is_due(item, now)
    for _ in range(20):
        put_off.note(item, now)
    assert put_off.is_due(item, now + LONGEST_PAUSE_S)
    assert not put_off.is_due(item, now + LONGEST_PAUSE_S - 0.1)


def test_an_offer_is_put_off_by_its_owners_adverts_alone_and_whatever_else_they_name() -> None:
    put_off = PutOff()
    put_off.note(waiting(bob.peer), NOW)
    assert put_off.is_due(waiting(alice.peer), NOW)
    other_proofs = OfferRef(offer_ref().offer, cid("x"), cid("y"))
    assert not put_off.is_due(Waiting(bob.peer, other_proofs, ClusterId(0)), NOW)


def test_decided_offer_is_put_off_no_more() -> None:
    put_off, item = PutOff(), waiting(alice.peer)
    put_off.note(item, NOW)
    put_off.forget(item)
    put_off.forget(item)
    assert put_off.is_due(item, NOW)
    assert len(put_off) == 0


def test_put_off_offers_are_forgotten_the_oldest_first() -> None:
    put_off = PutOff()
    items = [waiting(owner(n)) for n in range(MOST_PUT_OFF + 1)]
    for item in items[:-1]:
        put_off.note(item, NOW)
    assert not put_off.is_due(items[0], NOW)
    put_off.note(items[-1], NOW)
    assert len(put_off) == MOST_PUT_OFF
    assert put_off.is_due(items[0], NOW)
    assert not put_off.is_due(items[1], NOW)
