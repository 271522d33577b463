"""Claims under churn: tokens go forward, losers stop, and after healing all agree.

T6 of the reliability plan: 500 examples of 50 steps when PARIS_NIGHTLY is set.
"""

import os
import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from p2p.claims import Hold, Idle, Publish, Renew, Yield, YieldBecause
from p2p.ids import ClusterId
from p2p.limits import MAX_LIVE_CLAIMS_PER_OWNER
from p2p.records import Claim
from tests.support.claim_swarm import BUDGET, POLICY, SimNode, Swarm
from tests.support.people import NOW

NODES = 4
indices = st.integers(0, NODES - 1)


class Claiming(RuleBasedStateMachine):
    """Four nodes, two or three clusters, and everything that goes wrong between them."""

    def __init__(self) -> None:
        super().__init__()
        self.swarm = Swarm(NODES, 1)
        self.floor: dict[tuple[int, ClusterId], int] = {}

    @initialize(clusters=st.integers(1, 3), skews=st.lists(st.integers(-2, 2), min_size=NODES))
    def begin(self, clusters: int, skews: list[int]) -> None:
        self.swarm = Swarm(NODES, clusters)
        for node, skew in zip(self.swarm.nodes, skews, strict=False):
            node.skew_s = skew

    @rule(index=indices)
    def step(self, index: int) -> None:
        """One round of one node's loop, and what must hold of any single round."""
        node = self.swarm.nodes[index]
        if not node.is_up:
            return
        before = dict(node.highest)
        owned = self.swarm.step(node)
        for action in node.actions:
            self._check_action(index, action, before)
        for cluster in node.training:
            assert owned[cluster].owner == node.identity.peer, "trains what it does not own"
            settled_s = self.swarm.time - node.held[cluster].started_at
            assert settled_s >= POLICY.settle_s, "trains before its claim settled"
        published = {one.claim.cluster for one in node.actions if isinstance(one, Publish)}
        for cluster in node.held.keys() - published:
            assert owned[cluster].owner in {None, node.identity.peer}, "holds what it lost"
        assert len(node.held) <= MAX_LIVE_CLAIMS_PER_OWNER

    def _check_action(self, index: int, action: object, before: dict[ClusterId, int]) -> None:
        node = self.swarm.nodes[index]
        match action:
            case Publish(claim):
                self._check_token(index, claim)
                assert claim.epoch > before.get(claim.cluster, 0), "a takeover without a new token"
                assert node.best.get(claim.cluster, (None, 0, 0))[1] < BUDGET, (
                    "claims a complete one"
                )
            case Renew(claim):
                self._check_token(index, claim)
                ours = [one for one in node.actions if isinstance(one, Yield)]
                assert claim.cluster not in {one.cluster for one in ours}, "renews after losing"
                renewed_s = claim.issued_at - NOW - node.skew_s
                assert renewed_s == pytest.approx(self.swarm.time)
            case Yield(cluster, because, release):
                assert cluster not in node.held
                assert release is None or release.is_released
                assert because is not YieldBecause.SURPLUS
            case Hold() | Idle():
                assert action is node.actions[-1]

    def _check_token(self, index: int, claim: Claim) -> None:
        key = (index, claim.cluster)
        assert claim.epoch >= self.floor.get(key, 0), "its own token went back"
        self.floor[key] = claim.epoch

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 5.0, 9.0, 24.0, 31.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.swarm.time += seconds

    @rule(rounds=st.sampled_from([2, 8, 20]))
    def live(self, rounds: int) -> None:
        """Everybody goes on for a while, each island by itself."""
        for _ in range(rounds):
            self.swarm.time += POLICY.settle_s * 2
            self.swarm.deliver_all()
            for node in self.swarm.nodes:
                self.step(node.index)

    @rule()
    def deliver_all(self) -> None:
        self.swarm.deliver_all()

    @precondition(lambda self: self.swarm.waiting)
    @rule(data=st.data())
    def deliver_one_out_of_order(self, data: st.DataObject) -> None:
        position = data.draw(st.integers(0, len(self.swarm.waiting) - 1))
        self.swarm.deliver(self.swarm.waiting.pop(position))

    @precondition(lambda self: self.swarm.waiting)
    @rule(data=st.data())
    def deliver_one_and_keep_it(self, data: st.DataObject) -> None:
        position = data.draw(st.integers(0, len(self.swarm.waiting) - 1))
        self.swarm.deliver(self.swarm.waiting[position])

    @precondition(lambda self: self.swarm.waiting)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.swarm.waiting.pop(data.draw(st.integers(0, len(self.swarm.waiting) - 1)))

    @rule(index=indices, more=st.sampled_from([100, 200, 700]))
    def publish_checkpoint(self, index: int, more: int) -> None:
        node = self.swarm.nodes[index]
        for cluster in node.training:
            self.swarm.publish_checkpoint(node, cluster, more)

    @rule(index=indices)
    def crash(self, index: int) -> None:
        self.swarm.crash(self.swarm.nodes[index])

    @rule(index=indices)
    def restart(self, index: int) -> None:
        self.swarm.nodes[index].is_up = True

    @rule(index=indices, skew=st.floats(-2, 2))
    def skew_a_clock(self, index: int, skew: float) -> None:
        self.swarm.nodes[index].skew_s = skew

    @rule(islands=st.lists(st.integers(0, 2), min_size=NODES, max_size=NODES))
    def part(self, islands: list[int]) -> None:
        self.swarm.island = dict(enumerate(islands))

    @rule()
    def heal_and_agree(self) -> None:
        self._agree()

    @invariant()
    def the_order_of_records_does_not_matter(self) -> None:
        node = self.swarm.nodes[int(self.swarm.time) % NODES]
        straight = self.swarm.read(node)
        records = list(node.view.items())
        random.Random(len(records)).shuffle(records)
        node.view = dict(records)
        assert self.swarm.read(node) == straight

    @invariant()
    def what_a_node_remembers_never_goes_down(self) -> None:
        for node in self.swarm.nodes:
            for cluster, epoch in node.highest.items():
                key = (-1 - node.index, cluster)
                assert epoch >= self.floor.get(key, 0)
                self.floor[key] = epoch

    def _agree(self) -> None:
        """After healing: one owner for all readers, and nobody else trains it."""
        self.swarm.settle()
        alive = [node for node in self.swarm.nodes if node.is_up]
        readings = [self.swarm.read(node, now=NOW + self.swarm.time) for node in alive]
        for cluster in self.swarm.clusters:
            assert len({reading[cluster].owner for reading in readings}) <= 1
            trainers = [node for node in alive if cluster in node.training]
            assert len(trainers) <= 1
            for node in trainers:
                assert readings[0][cluster].owner == node.identity.peer
        best = self.swarm.nodes[0].best
        idle = [node for node in alive if not node.held and not node.resting]
        for cluster in self.swarm.clusters:
            is_open = best.get(cluster, (None, 0, 0))[1] < BUDGET
            assert not (is_open and idle and readings[0][cluster].owner is None), "left unclaimed"

    def teardown(self) -> None:
        self._agree()


def profile() -> settings:
    is_nightly = bool(os.environ.get("PARIS_NIGHTLY"))
    return settings(
        max_examples=500 if is_nightly else 20,
        stateful_step_count=50 if is_nightly else 25,
        deadline=None,
        derandomize=not is_nightly,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.slow
def test_claims_hold_under_churn() -> None:
    run_state_machine_as_test(Claiming, settings=profile())


def live(swarm: Swarm, rounds: int) -> None:
    for _ in range(rounds):
        swarm.time += POLICY.settle_s * 2
        swarm.deliver_all()
        for node in swarm.nodes:
            if node.is_up:
                swarm.step(node)


def owners(swarm: Swarm, *readers: int) -> set[object]:
    now = NOW + swarm.time
    return {swarm.read(swarm.nodes[index], now=now)[ClusterId(0)].owner for index in readers}


def parted_owners(nodes: int = 3) -> tuple[Swarm, SimNode, SimNode]:
    """A swarm cut in two after its cluster was claimed: the incumbent, and who took over beyond."""
    swarm = Swarm(nodes, 1)
    live(swarm, 10)
    (incumbent,) = [node for node in swarm.nodes if node.training]
    swarm.island = {node.index: int(node is not incumbent) for node in swarm.nodes}
    live(swarm, 30)
    taker = next(node for node in swarm.nodes if node.training and node is not incumbent)
    assert incumbent.training
    assert taker.held[ClusterId(0)].claim.epoch > incumbent.held[ClusterId(0)].claim.epoch
    return swarm, incumbent, taker


@pytest.mark.slow
@pytest.mark.parametrize("more_work", ["incumbent", "taker", "neither"])
def test_two_owners_of_a_healed_partition_become_one_within_a_renewal(more_work: str) -> None:
    swarm, incumbent, taker = parted_owners()
    if more_work != "neither":
        worker = incumbent if more_work == "incumbent" else taker
        swarm.publish_checkpoint(worker, ClusterId(0), 100)
        live(swarm, 6)
    highest = max(node.highest[ClusterId(0)] for node in swarm.nodes)
    swarm.heal()
    live(swarm, int(POLICY.renew_s / POLICY.settle_s / 2) + 1)
    swarm.deliver_all()
    assert len(owners(swarm, 0, 1, 2)) == 1
    (left,) = [node for node in (incumbent, taker) if node.training]
    if more_work != "neither":
        assert left is worker
    assert left.held[ClusterId(0)].claim.epoch >= highest


def test_an_owner_behind_a_token_that_only_idle_readers_remember_is_told_of_it() -> None:
    swarm, incumbent, taker = parted_owners()
    swarm.crash(taker)
    swarm.time += 0.5
    (reader,) = [node for node in swarm.nodes if node not in (incumbent, taker)]
    reader.resting = {ClusterId(0): swarm.time + 10_000}  # has no use for the cluster itself
    for _ in range(20):  # the taker's record ends before the halves meet
        swarm.time += POLICY.settle_s * 2
        swarm.deliver_all()
        swarm.step(incumbent)
        swarm.step(reader)
    swarm.heal()
    assert owners(swarm, incumbent.index) != owners(swarm, reader.index)
    live(swarm, 4)
    swarm.deliver_all()
    assert owners(swarm, incumbent.index, reader.index) == {incumbent.identity.peer}
