"""What to do next about clusters: one pure function, `decide`, that a thin loop calls.

The loop (`node.claiming`), which alone knows the DHT, the clocks and the disk:

    1. read     for each cluster: RecordStore.get -> open_signed(Claim); drop and count the bad
                ones; add my own last record of each cluster I hold or gave up
    2. resolve  resolve_all(...) -> Ownership per cluster; store its highest_epoch on disk *before*
                acting on it; fetch the manifests in `unverified`, feed `Tenures`
    3. decide   decide(views, me, run=..., now=..., policy=...) -> one Action; repeat until it waits
    4. act      Publish: put the claim; if stored, hold it (`HeldClaim.first`), sleep settle_s, to 1
                Renew:   put the claim; if stored, `held.renewed(...)`; if not, to 1 in a moment
                Yield:   stop training it at a step boundary; put `release` if there is one; what
                         was trained and not published is an orphan if `is_orphan`; let it rest
                         (`Me.resting`) unless it is complete
                Hold:    train exactly the clusters in `train`, mark them `held.confirmed()`; wait
                         again_in_s (plus jitter); to 1
                Idle:    wait again_in_s; to 1
                before either wait, put what `witness(...)` returns, if anything; it holds nothing

`Hold.train` names a cluster only after the claim was written, `settle_s` have passed and a reading
begun after that shows it as ours: the settle phase. If reading fails, call decide with no views: it
renews what is due and yields what has lapsed on the monotonic clock, and claims nothing new.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from p2p.claim_actions import (
    Action,
    ClusterView,
    HeldClaim,
    Hold,
    Idle,
    Me,
    Publish,
    Renew,
    Yield,
    YieldBecause,
)
from p2p.claim_rules import (
    Ownership,
    Progress,
    Refused,
    RefusedBecause,
    VerifiedCheckpoint,
    next_epoch,
    rendezvous,
    resolve,
    resolve_all,
)
from p2p.fencing import Fence, Standing
from p2p.ids import ClusterId, RunId
from p2p.limits import MAX_LIVE_CLAIMS_PER_OWNER
from p2p.records import Claim, ClaimPolicy
from p2p.tenure import Tenure, Tenures

__all__ = [
    "Action",
    "ClusterView",
    "Fence",
    "HeldClaim",
    "Hold",
    "Idle",
    "Me",
    "Ownership",
    "Progress",
    "Publish",
    "Refused",
    "RefusedBecause",
    "Renew",
    "Standing",
    "Tenure",
    "Tenures",
    "VerifiedCheckpoint",
    "Yield",
    "YieldBecause",
    "decide",
    "next_epoch",
    "rendezvous",
    "resolve",
    "resolve_all",
    "witness",
]

_YIELD_WHEN_REFUSED: Final = {
    RefusedBecause.STALLED: YieldBecause.STALLED,
    RefusedBecause.FORFEITED: YieldBecause.STALLED,
    RefusedBecause.EXPIRED: YieldBecause.LAPSED,
    RefusedBecause.OVER_CAP: YieldBecause.SURPLUS,
}


def decide(
    views: Sequence[ClusterView], me: Me, *, run: RunId, now: float, policy: ClaimPolicy
) -> Action:
    """The most urgent thing to do: yield, then renew, then claim, then wait.

    Args:
        views: every cluster that could be read, in any order.
        me: this node and what it holds.
        run: the run's id.
        now: seconds since the epoch.
        policy: the run's.
    """
    by_cluster = {view.cluster: view for view in views}
    for held in me.held:
        because = _reason_to_yield(held, by_cluster.get(held.claim.cluster), me, policy)
        if because is not None:
            return _yield(held, because, me, now, policy)
    capacity = min(me.capacity, MAX_LIVE_CLAIMS_PER_OWNER)
    if len(me.held) > capacity:
        return _yield(me.held[-1], YieldBecause.SURPLUS, me, now, policy)
    for held in me.held:
        renewal = _renewal(held, by_cluster.get(held.claim.cluster), me, now, policy)
        if renewal is not None:
            return Renew(renewal)
    if len(me.held) < capacity:
        chosen = _choose(views, me, run, now, policy)
        if chosen is not None:
            return Publish(_first_claim(chosen, run, now, policy))
    return _hold(by_cluster, me, policy) if me.held else _idle(views, me, now, policy)


def witness(
    views: Sequence[ClusterView], me: Me, *, run: RunId, now: float, policy: ClaimPolicy
) -> Claim | None:
    """A released claim to put because only we remember a token that no live record bears.

    After a partition an owner may go on with a token behind one that the other side granted to
    somebody who has left since; then it counts with some readers and not with others, and cannot
    know. Seeing ours it raises its own, and all agree again. Arguments as for `decide`.
    """
    held = {one.claim.cluster for one in me.held}
    for view in views:
        ownership = view.ownership
        live = [one for one in ownership.refused if one.because is not RefusedBecause.EXPIRED]
        is_behind = any(one.because is RefusedBecause.STALE for one in live)
        is_told = ownership.claim is not None or any(
            one.claim.record.epoch >= ownership.highest_epoch for one in live
        )
        if is_behind and not is_told and view.cluster not in held:
            return Claim(
                run=run,
                cluster=view.cluster,
                epoch=ownership.highest_epoch,
                renewal=0,
                samples=0,
                checkpoint=None,
                issued_at=now,
                expires_at=now + policy.lease_s,
                is_released=True,
            )
    return None


def _reason_to_yield(
    held: HeldClaim, view: ClusterView | None, me: Me, policy: ClaimPolicy
) -> YieldBecause | None:
    if me.monotonic - held.renewed_at >= policy.stop_fraction * policy.lease_s:
        return YieldBecause.LAPSED
    if view is None:
        return None
    if view.ownership.owner not in (None, me.peer):
        return YieldBecause.LOST
    refusal = view.ownership.refusal_of(me.peer) if view.ownership.owner is None else None
    if refusal is not None:
        return _YIELD_WHEN_REFUSED.get(refusal, YieldBecause.LOST)
    return YieldBecause.COMPLETE if view.is_complete else None


def _yield(
    held: HeldClaim, because: YieldBecause, me: Me, now: float, policy: ClaimPolicy
) -> Yield:
    is_over = me.monotonic - held.renewed_at >= policy.lease_s
    release = replace(held.claim, issued_at=now, expires_at=now + policy.lease_s, is_released=True)
    return Yield(held.claim.cluster, because, None if is_over else release)


def _renewal(
    held: HeldClaim, view: ClusterView | None, me: Me, now: float, policy: ClaimPolicy
) -> Claim | None:
    """The claim to put now, if any.

    Due by time, or early (but not within a settle of the last one) because no reader sees ours, or
    because a live record bears a higher token than ours.
    """
    since_s = me.monotonic - held.renewed_at
    epoch, is_early = held.claim.epoch, False
    if view is not None and view.ownership.next_epoch > next_epoch(epoch):
        epoch, is_early = view.ownership.next_epoch, True
    if view is not None and view.ownership.owner is None:
        is_early = True
    is_due = since_s >= policy.renew_s
    if not (is_due or (is_early and since_s >= policy.settle_s)):
        return None
    is_newer = held.samples > held.claim.samples
    return replace(
        held.claim,
        epoch=epoch,
        renewal=0 if is_newer else held.claim.renewal + int(is_due),
        samples=held.samples,
        checkpoint=held.checkpoint,
        issued_at=now,
        expires_at=now + policy.lease_s,
        taken_at=held.claim.began_at if epoch == held.claim.epoch else None,
    )


def _choose(
    views: Sequence[ClusterView], me: Me, run: RunId, now: float, policy: ClaimPolicy
) -> ClusterView | None:
    """The cluster to claim: never trained, then the stalest by whole leases, then rendezvous.

    Whole leases, because to the second there would be one stalest cluster and a crowd would meet
    there. Before all: a cluster that is still ours although we do not hold it, after a restart; it
    is taken anew with the next token, since what the last life published is not remembered.
    """

    def order(view: ClusterView) -> tuple[bool, bool, float, bytes]:
        trained_at = view.last_trained_at
        age = 0 if trained_at is None else max(0, now - trained_at) // policy.lease_s
        return (
            view.ownership.owner is None,
            trained_at is not None,
            -age,
            rendezvous(run, view.cluster, me.peer),
        )

    held = {one.claim.cluster for one in me.held}
    free = [
        view
        for view in views
        if view.ownership.owner in (None, me.peer)
        and not view.is_complete
        and view.cluster not in me.resting
        and view.cluster not in held
    ]
    return min(free, key=order, default=None)


def _first_claim(view: ClusterView, run: RunId, now: float, policy: ClaimPolicy) -> Claim:
    return Claim(
        run=run,
        cluster=view.cluster,
        epoch=view.ownership.next_epoch,
        renewal=0,
        samples=view.samples,
        checkpoint=view.checkpoint,
        issued_at=now,
        expires_at=now + policy.lease_s,
    )


def _hold(by_cluster: Mapping[ClusterId, ClusterView], me: Me, policy: ClaimPolicy) -> Hold:
    read_at = me.monotonic if me.read_at is None else me.read_at
    train: list[ClusterId] = []
    waits: list[float] = []
    for held in me.held:
        view = by_cluster.get(held.claim.cluster)
        if view is None:
            is_ours = held.is_confirmed
        else:
            is_settled = read_at - held.started_at >= policy.settle_s
            is_ours = is_settled and view.ownership.owner == me.peer
        if is_ours:
            train.append(held.claim.cluster)
        else:
            waits.append(max(0.0, held.started_at + policy.settle_s - me.monotonic))
        waits.append(held.renewed_at + policy.renew_s - me.monotonic)
    return Hold(tuple(train), max(0.0, min(waits)))


def _idle(views: Sequence[ClusterView], me: Me, now: float, policy: ClaimPolicy) -> Idle:
    """Say why there is nothing to claim, and when that may change."""
    if me.capacity <= 0:
        return Idle("this node does not train", policy.renew_s)
    if not views:
        return Idle("no cluster could be read", policy.settle_s)
    if all(view.is_complete for view in views):
        return Idle("every cluster is complete", policy.renew_s)
    ends = [
        view.ownership.claim.record.expires_at - now
        for view in views
        if view.ownership.claim is not None and not view.is_complete
    ]
    wait_s = max(policy.settle_s, min([*ends, policy.renew_s]))
    if any(view.ownership.owner in (None, me.peer) and not view.is_complete for view in views):
        return Idle("the free clusters were given up a moment ago", wait_s)
    return Idle("every unfinished cluster has an owner", wait_s)
