import itertools
import random
from dataclasses import replace

import pytest

from p2p.claims import (
    ClusterView,
    Fence,
    HeldClaim,
    Hold,
    Idle,
    Me,
    Ownership,
    Progress,
    Publish,
    RefusedBecause,
    Renew,
    Standing,
    Tenures,
    VerifiedCheckpoint,
    Yield,
    YieldBecause,
    decide,
    next_epoch,
    rendezvous,
    resolve,
    resolve_all,
    witness,
)
from p2p.codec import Verified
from p2p.errors import ClaimError, DecodeError
from p2p.identity import Identity
from p2p.ids import ClusterId
from p2p.limits import (
    MAX_CLOCK_SKEW_S,
    MAX_EPOCH,
    MAX_LIVE_CLAIMS_PER_OWNER,
    MAX_OWNERS_PER_KEY,
)
from p2p.records import Claim
from tests.support.people import (
    NOW,
    POLICY,
    RUN,
    advert,
    advertised,
    alice,
    bob,
    carol,
    cid,
    claim,
    person,
    said,
)

ZERO = ClusterId(0)
PEOPLE = {one.peer: one for one in (alice, bob, carol)}


def by_luck(*people: Identity) -> list[Identity]:
    """People in the order in which ties on cluster 0 fall."""
    return sorted(people, key=lambda one: rendezvous(RUN, ZERO, one.peer))


FIRST, SECOND, THIRD = by_luck(alice, bob, carol)


def verified(owner: Identity, samples: int, name: str = "") -> tuple[Progress, dict[str, object]]:
    """Progress that knows a checkpoint of `owner`, and the fields of a claim that shows it."""
    blob = cid(f"checkpoint of {owner.peer} {samples} {name}")
    progress = Progress({blob: VerifiedCheckpoint(owner.peer, samples)})
    return progress, {"samples": samples, "checkpoint": blob}


def owned(
    *claims: Verified[Claim],
    now: float = NOW,
    progress: Progress | None = None,
    highest_epoch: int = 0,
) -> Ownership:
    return resolve(
        ZERO,
        claims,
        now=now,
        policy=POLICY,
        progress=progress or Progress(),
        highest_epoch=highest_epoch,
    )


# --- who owns -------------------------------------------------------------------------------------


def test_a_lone_claim_owns_its_cluster() -> None:
    found = owned(said(claim(), alice))
    assert (found.owner, found.epoch, found.highest_epoch) == (alice.peer, 1, 1)
    assert found.rivals == ()


def test_no_claim_leaves_the_cluster_free_and_the_memory_as_it_was() -> None:
    found = owned(highest_epoch=7)
    assert (found.owner, found.epoch, found.highest_epoch, found.next_epoch) == (None, 7, 7, 8)


def test_every_order_of_the_same_claims_gives_the_same_owner() -> None:
    progress, shown = verified(THIRD, 500)
    claims = [
        said(claim(epoch=2), FIRST),
        said(claim(epoch=5, issued_at=NOW - 50), SECOND),
        said(claim(epoch=3, **shown), THIRD),  # type: ignore[arg-type]
        said(claim(epoch=3, renewal=1, issued_at=NOW + 1, **shown), THIRD),  # type: ignore[arg-type]
        said(claim(epoch=9, is_released=True), person(1)),
        said(claim(epoch=9, renewal=99), person(2)),
    ]
    answers = {
        owned(*order, now=NOW + 2, progress=progress) for order in itertools.permutations(claims)
    }
    assert len(answers) == 1
    assert answers.pop().owner == THIRD.peer


def test_more_verified_progress_wins() -> None:
    progress, shown = verified(THIRD, 500)
    found = owned(said(claim(), FIRST), said(claim(**shown), THIRD), progress=progress)  # type: ignore[arg-type]
    assert found.owner == THIRD.peer
    assert [one.owner for one in found.rivals] == [FIRST.peer]


def test_progress_that_is_only_claimed_counts_for_nothing() -> None:
    boast = said(claim(samples=10**9, checkpoint=cid("nowhere")), THIRD)
    found = owned(said(claim(), FIRST), boast)
    assert found.owner == FIRST.peer
    assert found.unverified == (cid("nowhere"),)


def test_showing_another_s_checkpoint_counts_for_nothing() -> None:
    progress, shown = verified(FIRST, 500)
    thief = said(claim(**shown), SECOND)  # type: ignore[arg-type]
    assert progress.credit(thief) == 0
    old = said(claim(), FIRST)  # does not show its newest checkpoint yet
    assert owned(old, thief, progress=progress).owner == FIRST.peer


def test_progress_counts_up_to_what_was_verified_and_to_what_is_claimed() -> None:
    progress, shown = verified(alice, 500)
    assert progress.credit(said(claim(**{**shown, "samples": 900}), alice)) == 500  # type: ignore[arg-type]
    assert progress.credit(said(claim(**{**shown, "samples": 300}), alice)) == 300  # type: ignore[arg-type]
    assert progress.credit(said(claim(), alice)) == 0


def test_ties_fall_to_the_smallest_hash_whatever_the_dates() -> None:
    for early, late in ((FIRST, SECOND), (SECOND, FIRST)):
        found = owned(said(claim(issued_at=NOW - 200), early), said(claim(), late))
        assert found.owner == FIRST.peer


def test_older_claim_survives_backdated_rival() -> None:
    found = owned(said(claim(), FIRST), said(claim(issued_at=NOW - 299), SECOND))
    assert found.owner == FIRST.peer


@pytest.mark.parametrize("bump", [1, 2, 1000, MAX_EPOCH - 1])
def test_a_bumped_epoch_gains_nothing_while_the_incumbent_renews(bump: int) -> None:
    progress, shown = verified(SECOND, 500)
    incumbent = said(claim(epoch=1, **shown), SECOND)  # type: ignore[arg-type]
    usurper = said(claim(epoch=1 + bump), FIRST)  # who would win a tie
    found = owned(incumbent, usurper, progress=progress, highest_epoch=1)
    assert (found.owner, found.highest_epoch) == (SECOND.peer, 1)
    tied = owned(said(claim(), FIRST), said(claim(epoch=1 + bump), SECOND))
    assert tied.owner == FIRST.peer


def test_the_token_never_goes_back() -> None:
    stale = said(claim(epoch=2), alice)
    found = owned(stale, highest_epoch=3)
    assert (found.owner, found.highest_epoch) == (None, 3)
    assert found.refusal_of(alice.peer) is RefusedBecause.STALE
    assert owned(said(claim(epoch=3), alice), highest_epoch=3).owner == alice.peer


def test_a_takeover_bears_a_token_above_every_one_seen() -> None:
    assert owned(highest_epoch=4).next_epoch == 5
    released = said(claim(epoch=6, is_released=True), alice)
    assert owned(released, highest_epoch=4).next_epoch == 7
    forged = said(claim(epoch=MAX_EPOCH), alice)
    assert owned(forged).next_epoch == MAX_EPOCH == next_epoch(MAX_EPOCH)


def test_a_cluster_with_the_last_token_still_changes_hands() -> None:
    again = said(claim(epoch=MAX_EPOCH, issued_at=NOW + 400), bob)
    assert owned(again, now=NOW + 401, highest_epoch=MAX_EPOCH).owner == bob.peer


@pytest.mark.parametrize(
    ("issued_ago_s", "because"),
    [
        (0.0, None),
        (-MAX_CLOCK_SKEW_S, None),
        (-MAX_CLOCK_SKEW_S - 0.1, RefusedBecause.FUTURE),
        (299.9, None),
        (300.0, RefusedBecause.EXPIRED),
    ],
)
def test_a_lease_runs_from_its_issue_to_its_end(
    issued_ago_s: float, because: RefusedBecause | None
) -> None:
    found = owned(said(claim(issued_at=NOW - issued_ago_s), alice))
    assert found.refusal_of(alice.peer) is because
    assert (found.owner == alice.peer) == (because is None)


def test_a_lease_longer_than_the_run_allows_is_refused() -> None:
    assert owned(said(claim(lease_s=300.0), alice)).owner == alice.peer
    found = owned(said(claim(lease_s=300.1), alice))
    assert found.refusal_of(alice.peer) is RefusedBecause.OVERLONG


def test_a_claim_found_under_another_cluster_is_refused() -> None:
    found = owned(said(claim(1), alice))
    assert found.refusal_of(alice.peer) is RefusedBecause.MISPLACED


def test_a_released_claim_frees_the_cluster_at_once() -> None:
    live, gone = said(claim(), alice), said(claim(issued_at=NOW + 1, is_released=True), alice)
    found = owned(live, gone, now=NOW + 2)
    assert found.owner is None
    assert found.refusal_of(alice.peer) is RefusedBecause.RELEASED


def test_only_the_newest_word_of_an_owner_counts() -> None:
    old, new = said(claim(), alice), said(claim(renewal=1, issued_at=NOW + 100), alice)
    found = owned(new, old, old, now=NOW + 101)
    assert found.claim == new
    assert [one.because for one in found.refused] == [RefusedBecause.SUPERSEDED]
    assert found.refusal_of(alice.peer) is None


@pytest.mark.parametrize(
    ("renewal", "owner"), [(POLICY.patience_renewals, alice), (POLICY.patience_renewals + 1, None)]
)
def test_a_squatter_is_forfeited_after_so_many_renewals_without_progress(
    renewal: int, owner: Identity | None
) -> None:
    found = owned(said(claim(renewal=renewal), alice))
    assert found.owner == (owner.peer if owner else None)


def test_a_squatter_who_lies_about_renewals_is_forfeited_by_those_who_watch() -> None:
    tenures = Tenures()
    for second in range(0, int(POLICY.forfeit_s) + 1, 100):
        seen = [said(claim(epoch=1 + second, issued_at=NOW + second), alice)]
        tenures = tenures.observed(seen, progress=Progress(), now=float(second), policy=POLICY)
    assert tenures.forfeited(now=POLICY.forfeit_s, policy=POLICY) == frozenset()
    out = tenures.forfeited(now=POLICY.forfeit_s + 1, policy=POLICY)
    assert out == {(ZERO, alice.peer)}
    found = owned(said(claim(), alice), progress=Progress(forfeited=out))
    assert found.refusal_of(alice.peer) is RefusedBecause.FORFEITED


def test_newer_verified_progress_begins_a_new_tenure_and_the_same_again_does_not() -> None:
    progress, shown = verified(alice, 500)
    claims = [said(claim(**shown), alice)]  # type: ignore[arg-type]
    tenures = Tenures().observed([said(claim(), alice)], progress=progress, now=0, policy=POLICY)
    tenures = tenures.observed(claims, progress=progress, now=1700, policy=POLICY)
    assert not tenures.forfeited(now=1801, policy=POLICY)
    tenures = tenures.observed(claims, progress=progress, now=3400, policy=POLICY)
    assert tenures.forfeited(now=3501, policy=POLICY)


def test_who_left_long_ago_begins_anew() -> None:
    seen = [said(claim(), alice)]
    tenures = Tenures().observed(seen, progress=Progress(), now=0, policy=POLICY)
    tenures = tenures.observed(seen, progress=Progress(), now=POLICY.forfeit_s + 1, policy=POLICY)
    assert not tenures.forfeited(now=POLICY.forfeit_s + 2, policy=POLICY)
    gone = said(claim(is_released=True), alice)
    assert not Tenures().observed([gone], progress=Progress(), now=0, policy=POLICY).entries


def test_one_key_counts_for_so_many_clusters_and_the_best_of_them() -> None:
    count = MAX_LIVE_CLAIMS_PER_OWNER + 2
    progress, shown = verified(alice, 500)
    last = ClusterId(count - 1)
    claims = {ClusterId(k): [said(claim(k), alice)] for k in range(count - 1)}
    claims[last] = [said(claim(last, **shown), alice)]  # type: ignore[arg-type]
    claims[ZERO].append(said(claim(), bob))
    found = resolve_all(
        claims, now=NOW, policy=POLICY, progress=progress, highest_epochs={ClusterId(1): 1}
    )
    assert sum(one.owner == alice.peer for one in found.values()) <= MAX_LIVE_CLAIMS_PER_OWNER
    assert found[last].owner == alice.peer
    capped = [one for one in found.values() if one.refusal_of(alice.peer) is not None]
    assert {one.refusal_of(alice.peer) for one in capped} == {RefusedBecause.OVER_CAP}
    assert len(capped) == count - MAX_LIVE_CLAIMS_PER_OWNER


@pytest.mark.slow
def test_a_key_with_more_owners_than_are_looked_at_still_has_one_owner() -> None:
    crowd = [said(claim(), person(number)) for number in range(MAX_OWNERS_PER_KEY + 3)]
    found = owned(*crowd)
    assert len(found.rivals) == MAX_OWNERS_PER_KEY - 1
    assert sum(one.because is RefusedBecause.SPAM for one in found.refused) == 3
    random.Random(1).shuffle(crowd)
    assert owned(*crowd) == found


# --- what to do -----------------------------------------------------------------------------------

START = 5_000.0  # the monotonic clock at NOW


def view(
    cluster: int = 0,
    *claims: Verified[Claim],
    samples: int = 0,
    is_complete: bool = False,
    trained_at: float | None = None,
    highest_epoch: int = 0,
    now: float = NOW,
) -> ClusterView:
    found = resolve(
        ClusterId(cluster),
        claims,
        now=now,
        policy=POLICY,
        progress=Progress(),
        highest_epoch=highest_epoch,
    )
    checkpoint = cid(f"best of {cluster}") if samples else None
    return ClusterView(found, checkpoint, samples, is_complete, trained_at)


def held_by_alice(cluster: int = 0, **changes: object) -> tuple[HeldClaim, Verified[Claim]]:
    made = claim(cluster, **changes)  # type: ignore[arg-type]
    return HeldClaim.first(made, at=START), said(made, alice)


def at(seconds: float, *held: HeldClaim, **changes: object) -> Me:
    return Me(alice.peer, START + seconds, held, **changes)  # type: ignore[arg-type]


def act(views: list[ClusterView], me: Me) -> object:
    return decide(views, me, run=RUN, now=NOW + me.monotonic - START, policy=POLICY)


def test_a_free_cluster_is_claimed_from_its_best_checkpoint_with_the_next_token() -> None:
    action = act([view(samples=640, trained_at=NOW - 900, highest_epoch=4)], at(0))
    assert isinstance(action, Publish)
    made = action.claim
    assert (made.epoch, made.renewal, made.samples) == (5, 0, 640)
    assert made.checkpoint == cid("best of 0")
    assert made.expires_at - made.issued_at == POLICY.lease_s


def test_nothing_is_trained_before_the_claim_has_settled() -> None:
    held, mine = held_by_alice()
    early = act([view(0, mine)], at(POLICY.settle_s - 1, held))
    assert early == Hold((), 1.0)
    settled = act([view(0, mine)], at(POLICY.settle_s, held))
    assert settled == Hold((ZERO,), POLICY.renew_s - POLICY.settle_s)


def test_a_reading_begun_before_the_settle_ended_does_not_confirm() -> None:
    held, mine = held_by_alice()
    me = at(POLICY.settle_s + 1, held, read_at=START + POLICY.settle_s - 0.1)
    assert act([view(0, mine)], me) == Hold((), 0.0)


def test_without_a_reading_only_what_was_confirmed_is_trained() -> None:
    held, _ = held_by_alice()
    assert act([], at(10, held)) == Hold((), 0.0)
    action = act([], at(10, held.confirmed()))
    assert action == Hold((ZERO,), POLICY.renew_s - 10)


def test_a_claim_is_renewed_when_due_and_not_before() -> None:
    held, mine = held_by_alice()
    due = POLICY.renew_s
    assert isinstance(act([view(0, mine)], at(due - 1, held)), Hold)
    action = act([view(0, mine, now=NOW + due)], at(due, held))
    assert isinstance(action, Renew)
    assert (action.claim.renewal, action.claim.epoch) == (1, 1)
    assert action.claim.expires_at == NOW + due + POLICY.lease_s
    assert isinstance(act([], at(due, held)), Renew)  # also if nothing can be read


def test_a_renewal_that_shows_a_newer_checkpoint_begins_to_count_anew() -> None:
    made = claim(renewal=5)
    held = HeldClaim.first(made, at=START).with_checkpoint(cid("new"), 640)
    action = act([], at(POLICY.renew_s, held))
    assert isinstance(action, Renew)
    assert (action.claim.renewal, action.claim.checkpoint, action.claim.samples) == (
        0,
        cid("new"),
        640,
    )


def test_a_lease_that_could_not_be_renewed_stops_in_time() -> None:
    held, mine = held_by_alice()
    stop = POLICY.lease_s * POLICY.stop_fraction
    assert isinstance(act([view(0, mine)], at(stop - 1, held)), Renew)
    action = act([view(0, mine)], at(stop, held))
    assert isinstance(action, Yield)
    assert (action.because, action.is_orphan) == (YieldBecause.LAPSED, True)
    assert action.release is not None
    assert action.release.is_released


def test_a_process_that_slept_past_its_lease_stops_and_says_nothing_more() -> None:
    held, _ = held_by_alice()
    theirs = said(claim(epoch=2, issued_at=NOW + 310), bob)
    slept = at(2 * POLICY.lease_s, held)
    action = act([view(0, theirs, now=NOW + 600, highest_epoch=2)], slept)
    assert action == Yield(ZERO, YieldBecause.LAPSED, None)


def test_a_loser_yields_and_never_renews() -> None:
    winner, loser = by_luck(alice, bob)
    mine, theirs = said(claim(), loser), said(claim(), winner)
    held = HeldClaim.first(claim(), at=START)
    for seconds in (0.0, POLICY.settle_s, POLICY.renew_s, POLICY.renew_s + 50):
        me = Me(loser.peer, START + seconds, (held,))
        action = act([view(0, mine, theirs)], me)
        assert isinstance(action, Yield)
        assert (action.because, action.is_orphan) == (YieldBecause.LOST, True)
        assert action.release is not None
        assert said(action.release, loser).record.is_released


def test_a_winner_raises_its_token_above_a_live_rival_s() -> None:
    winner, loser = by_luck(alice, bob)
    mine, theirs = said(claim(epoch=3), winner), said(claim(epoch=7), loser)
    held = HeldClaim.first(claim(epoch=3), at=START)
    early = act([view(0, mine, theirs)], Me(winner.peer, START + 1, (held,)))
    assert isinstance(early, Hold)
    action = act([view(0, mine, theirs)], Me(winner.peer, START + POLICY.settle_s, (held,)))
    assert isinstance(action, Renew)
    assert (action.claim.epoch, action.claim.renewal) == (8, 0)


def test_a_raised_token_begins_when_it_was_raised() -> None:
    winner, loser = by_luck(alice, bob)
    old = claim(epoch=3, taken_at=NOW - 50)
    held = HeldClaim.first(old, at=START)
    rivals = view(0, said(old, winner), said(claim(epoch=7), loser))
    action = act([rivals], Me(winner.peer, START + POLICY.settle_s, (held,)))
    assert isinstance(action, Renew)
    assert action.claim.began_at == action.claim.issued_at > old.began_at


def test_the_same_token_on_a_rival_is_no_reason_to_raise() -> None:
    winner, loser = by_luck(alice, bob)
    mine, theirs = said(claim(epoch=3), winner), said(claim(epoch=3), loser)
    held = HeldClaim.first(claim(epoch=3), at=START)
    assert isinstance(act([view(0, mine, theirs)], Me(winner.peer, START + 10, (held,))), Hold)


def test_a_record_that_vanished_is_written_again() -> None:
    held, _ = held_by_alice()
    action = act([view(0)], at(POLICY.settle_s + 1, held))
    assert isinstance(action, Renew)
    assert (action.claim.epoch, action.claim.renewal) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "progress", "because"),
    [
        ({"renewal": POLICY.patience_renewals + 1}, Progress(), YieldBecause.STALLED),
        ({}, Progress(forfeited=frozenset({(ZERO, alice.peer)})), YieldBecause.STALLED),
        ({"issued_at": NOW - 400}, Progress(), YieldBecause.LAPSED),
    ],
)
def test_an_owner_whose_claim_no_longer_counts_yields(
    changes: dict[str, object], progress: Progress, because: YieldBecause
) -> None:
    held, mine = held_by_alice(**changes)  # type: ignore[arg-type]
    found = ClusterView(owned(mine, progress=progress), None, 0, False, None)
    action = act([found], at(10, held))
    assert isinstance(action, Yield)
    assert action.because is because


def test_a_claim_behind_the_remembered_token_is_given_up() -> None:
    held, mine = held_by_alice(epoch=2)
    action = act([view(0, mine, highest_epoch=3)], at(10, held))
    assert isinstance(action, Yield)
    assert action.because is YieldBecause.LOST


def test_a_complete_cluster_is_released_and_another_is_taken() -> None:
    held, mine = held_by_alice()
    views = [view(0, mine, samples=96_000, is_complete=True, trained_at=NOW), view(1)]
    action = act(views, at(10, held))
    assert isinstance(action, Yield)
    assert (action.because, action.is_orphan) == (YieldBecause.COMPLETE, False)
    assert action.release is not None
    then = act(views, at(11))
    assert isinstance(then, Publish)
    assert then.claim.cluster == 1


def test_a_node_that_leaves_gives_up_everything() -> None:
    held, mine = held_by_alice()
    action = act([view(0, mine), view(1)], at(10, held, capacity=0))
    assert isinstance(action, Yield)
    assert (action.because, action.is_orphan) == (YieldBecause.SURPLUS, False)
    assert act([view(1)], at(10, capacity=0)) == Idle("this node does not train", POLICY.renew_s)


def test_no_more_is_claimed_than_the_machine_and_the_cap_allow() -> None:
    held, mine = held_by_alice()
    assert isinstance(act([view(0, mine), view(1)], at(10, held)), Hold)
    second = act([view(0, mine), view(1)], at(10, held, capacity=99))
    assert isinstance(second, Publish)
    other, also_mine = held_by_alice(1)
    full = at(10, held, other, capacity=99)
    assert isinstance(act([view(0, mine), view(1, also_mine), view(2)], full), Hold)


def test_owned_complete_and_resting_clusters_are_never_claimed() -> None:
    views = [
        view(0, said(claim(0), bob)),
        view(1, samples=9, is_complete=True, trained_at=NOW),
        view(2),
    ]
    action = act(views, at(0, resting=frozenset({ClusterId(2)})))
    assert action == Idle("the free clusters were given up a moment ago", POLICY.renew_s)
    assert isinstance(act(views, at(0)), Publish)


def test_an_idle_node_looks_again_when_the_first_lease_ends() -> None:
    soon = view(0, said(claim(0, issued_at=NOW - 280), bob))
    late = view(1, said(claim(1), carol))
    assert act([soon, late], at(0)) == Idle("every unfinished cluster has an owner", 20.0)
    done = [view(k, samples=9, is_complete=True, trained_at=NOW) for k in range(2)]
    assert act(done, at(0)) == Idle("every cluster is complete", POLICY.renew_s)
    assert act([], at(0)) == Idle("no cluster could be read", POLICY.settle_s)


def test_the_never_trained_come_first_and_then_the_stalest() -> None:
    old = view(0, samples=1, trained_at=NOW - 5000)
    older = view(1, samples=1, trained_at=NOW - 9000)
    never = view(2)
    chosen = []
    left = [old, older, never]
    while left:
        action = act(left, at(0))
        assert isinstance(action, Publish)
        chosen.append(action.claim.cluster)
        left = [one for one in left if one.cluster != action.claim.cluster]
    assert chosen == [2, 1, 0]


def test_a_crowd_spreads_over_clusters_that_are_alike() -> None:
    views = [view(k, samples=1, trained_at=NOW - 1000 - k) for k in range(8)]
    first = set()
    for number in range(40):
        action = act(views, replace(at(0), peer=person(number).peer))
        assert isinstance(action, Publish)
        first.add(action.claim.cluster)
    assert len(first) >= 6


def test_after_a_restart_our_own_live_claim_is_taken_up_with_the_next_token() -> None:
    mine = said(claim(1, epoch=3), alice)
    action = act([view(0), view(1, mine)], at(0))
    assert isinstance(action, Publish)
    assert (action.claim.cluster, action.claim.epoch) == (1, 4)


def test_who_alone_remembers_a_token_bears_witness_and_the_owner_raises_its_own() -> None:
    mine = said(claim(epoch=3), bob)
    behind = [view(0, mine, highest_epoch=4)]
    told = witness(behind, at(0, capacity=0), run=RUN, now=NOW, policy=POLICY)
    assert told is not None
    assert (told.epoch, told.is_released) == (4, True)
    record = said(told, alice)
    held = HeldClaim.first(mine.record, at=START)
    action = act([view(0, mine, record)], Me(bob.peer, START + 10, (held,)))
    assert isinstance(action, Renew)
    assert action.claim.epoch == 5
    again = [view(0, mine, record, highest_epoch=4)]
    assert witness(again, at(0, capacity=0), run=RUN, now=NOW, policy=POLICY) is None
    assert witness([view(0, mine)], at(0), run=RUN, now=NOW, policy=POLICY) is None


# --- fencing --------------------------------------------------------------------------------------


def test_a_paused_owner_that_wakes_cannot_publish_with_its_old_token() -> None:
    fence = Fence(ZERO).raised(owned(said(claim(), alice)))
    before = advertised(advert(epoch=1, step=10, issued_at=NOW + 50), alice)
    assert fence.judge(before) is Standing.CURRENT
    fence = fence.passed(before)
    takeover = owned(said(claim(epoch=2, issued_at=NOW + 310), bob), now=NOW + 311, highest_epoch=1)
    fence = fence.raised(takeover)
    woke = advertised(advert(epoch=1, step=11, issued_at=NOW + 600), alice)
    assert fence.judge(woke) is Standing.STALE
    with pytest.raises(ClaimError, match="goes back"):
        fence.passed(woke)
    with pytest.raises(ClaimError, match="orphan"):
        fence.require_forward(alice.peer, 1, 11)
    assert fence.judge(before) is Standing.CURRENT  # what it made in its time stays the base
    as_orphan = advertised(advert(epoch=1, step=11, issued_at=NOW + 600, is_orphan=True), alice)
    assert fence.judge(as_orphan) is Standing.ORPHAN
    fence.require_forward(bob.peer, 2, 1)


def test_a_renewal_keeps_when_the_epoch_began() -> None:
    first = claim(epoch=2)
    held = HeldClaim.first(first, at=0.0)
    later = Me(alice.peer, monotonic=POLICY.renew_s, held=(held,))
    renewed = decide((), later, run=RUN, now=NOW + POLICY.renew_s, policy=POLICY)
    assert isinstance(renewed, Renew)
    assert renewed.claim.began_at == NOW < renewed.claim.issued_at


def test_an_epoch_cannot_begin_after_its_claim() -> None:
    assert claim(taken_at=NOW).began_at == NOW
    with pytest.raises(DecodeError, match="began after"):
        claim(taken_at=NOW + 1)


def test_a_reader_that_comes_late_knows_when_the_takeover_was() -> None:
    renewed = said(claim(epoch=2, renewal=0, issued_at=NOW + 600, taken_at=NOW + 300), bob)
    late = Fence(ZERO).raised(owned(renewed, now=NOW + 601))
    assert late.taken_at == NOW + 300
    woke = advertised(advert(epoch=1, step=11, issued_at=NOW + 400), alice)
    assert late.judge(woke) is Standing.STALE


def test_a_fence_never_goes_down() -> None:
    high = Fence(ZERO, epoch=5, owner=bob.peer, taken_at=NOW)
    low = owned(said(claim(epoch=2), alice))
    assert high.raised(low).epoch == 5
    assert high.raised(owned(highest_epoch=6)).epoch == 6


def test_nobody_steps_back_behind_what_it_published() -> None:
    fence = Fence(ZERO).passed(advertised(advert(epoch=2, step=50), alice))
    assert fence.judge(advertised(advert(epoch=2, step=49), alice)) is Standing.STALE
    assert fence.judge(advertised(advert(epoch=1, step=99), alice)) is Standing.STALE
    assert fence.judge(advertised(advert(epoch=2, step=50), alice)) is Standing.CURRENT
    assert fence.judge(advertised(advert(epoch=3, step=1), alice)) is Standing.CURRENT
    assert fence.judge(advertised(advert(epoch=2, step=1), bob)) is Standing.CURRENT
    with pytest.raises(ClaimError, match="goes back"):
        fence.require_forward(alice.peer, 2, 49)
    fence.require_forward(alice.peer, 2, 51)


@pytest.mark.parametrize("epoch", [3, 4, MAX_EPOCH])
def test_an_advert_of_who_does_not_own_the_cluster_is_an_orphan(epoch: int) -> None:
    fence = Fence(ZERO).raised(owned(said(claim(epoch=3), alice)))
    assert fence.judge(advertised(advert(epoch=epoch), bob)) is Standing.ORPHAN
    assert fence.judge(advertised(advert(epoch=epoch), alice)) is Standing.CURRENT


@pytest.mark.slow
def test_a_fence_forgets_the_oldest_publishers_not_the_newest() -> None:
    fence = Fence(ZERO)
    for number in range(MAX_OWNERS_PER_KEY + 5):
        fence = fence.passed(advertised(advert(step=5), person(number)))
    assert len(fence.newest) == MAX_OWNERS_PER_KEY
    assert person(0).peer not in fence.newest
    assert person(MAX_OWNERS_PER_KEY + 4).peer in fence.newest


def test_fences_of_clusters_are_not_mixed_up() -> None:
    with pytest.raises(ClaimError):
        Fence(ClusterId(1)).judge(advertised(advert(0), alice))
    with pytest.raises(ClaimError):
        Fence(ClusterId(1)).raised(owned())
