"""Republishing and restarting, as pure rules."""

import pytest

from p2p.dht.settings import DhtState, pin_ports
from p2p.dht.upkeep import (
    BROKEN_RETRY_S,
    MAX_RESTARTS,
    MAX_YOUNG_DEATHS,
    RESTART_WINDOW_S,
    OwnRecord,
    OwnRecords,
    RestartPolicy,
    newest_first,
)
from p2p.errors import PortInUseError


def record(value: bytes = b"v", *, expires_at: float = 300.0) -> OwnRecord:
    return OwnRecord("key", b"owner", value, expires_at)


def test_record_is_put_again_after_each_third_of_its_life() -> None:
    own = OwnRecords()
    own.remember(record(), now=0.0)
    puts = [now for now in range(400) if own.take_due(float(now))]
    assert puts == [100, 200]
    assert len(own) == 0, "expired records are dropped"


def test_renewal_takes_the_place_of_the_record_before() -> None:
    own = OwnRecords()
    own.remember(record(b"old"), now=0.0)
    own.remember(record(b"new", expires_at=360.0), now=60.0)
    own.remember(record(b"replayed", expires_at=310.0), now=61.0)
    assert own.take_due(100.0) == ()
    assert own.take_due(160.0) == (record(b"new", expires_at=360.0),)


def test_new_child_is_given_every_live_record() -> None:
    own = OwnRecords()
    own.remember(record(), now=0.0)
    own.remember(OwnRecord("other", b"owner", b"v", 20.0), now=0.0)
    own.make_all_due(30.0)
    assert own.take_due(30.0) == (record(),)
    assert own.take_due(31.0) == ()


def test_record_that_reached_too_few_is_put_again_soon() -> None:
    own = OwnRecords()
    own.remember(record(), now=0.0)
    own.retry(record(), now=0.0)
    assert own.take_due(14.9) == ()
    assert own.take_due(15.0) == (record(),)


def test_superseded_record_is_forgotten_but_not_its_successor() -> None:
    own = OwnRecords()
    own.remember(record(b"new"), now=0.0)
    own.forget(record(b"old"))
    assert len(own) == 1
    own.forget(record(b"new"))
    assert len(own) == 0


def test_child_that_dies_young_is_started_later_each_time_and_then_rarely() -> None:
    policy = RestartPolicy()
    plans = [policy.ended(float(number), None) for number in range(MAX_YOUNG_DEATHS)]
    assert [delay for _, delay in plans] == [0.25, 1.0, 4.0, 15.0, BROKEN_RETRY_S]
    assert [state for state, _ in plans[:-1]] == [DhtState.RESTARTING] * (MAX_YOUNG_DEATHS - 1)
    assert plans[-1][0] is DhtState.BROKEN


def test_child_that_served_is_started_at_once_and_clears_the_count() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_YOUNG_DEATHS - 1):
        policy.ended(0.0, 0.1)
    assert policy.ended(1.0, 2.5) == (DhtState.RESTARTING, 0.25)
    assert policy.ended(2.0, None) == (DhtState.RESTARTING, 0.25)


@pytest.mark.parametrize(
    ("every_s", "state"),
    [
        (RESTART_WINDOW_S / MAX_RESTARTS * 0.9, DhtState.BROKEN),
        (RESTART_WINDOW_S / MAX_RESTARTS * 1.1, DhtState.RESTARTING),
    ],
)
def test_crash_loop_of_children_that_serve_is_broken_too(every_s: float, state: DhtState) -> None:
    policy = RestartPolicy()
    for number in range(MAX_RESTARTS):
        assert policy.ended(number * every_s, 5.0)[0] is DhtState.RESTARTING
    assert policy.ended(MAX_RESTARTS * every_s, 5.0)[0] is state


def test_ports_stay_the_same_over_a_restart() -> None:
    listen = (
        "/ip4/0.0.0.0/tcp/0",
        "/ip4/0.0.0.0/udp/0/quic-v1",
        "/ip6/::/tcp/0",
        "/ip4/1.2.3.4/tcp/9",
    )
    running = (
        "/ip4/127.0.0.1/tcp/4001/p2p/x",
        "/ip4/10.0.0.2/tcp/4001/p2p/x",
        "/ip4/127.0.0.1/udp/4002/quic-v1/p2p/x",
    )
    assert pin_ports(listen, running) == (
        "/ip4/0.0.0.0/tcp/4001",
        "/ip4/0.0.0.0/udp/4002/quic-v1",
        "/ip6/::/tcp/0",
        "/ip4/1.2.3.4/tcp/9",
    )


def test_two_addresses_keep_their_own_ports() -> None:
    listen = ("/ip4/127.0.0.1/tcp/0", "/ip4/10.0.0.2/tcp/0")
    running = ("/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.2/tcp/2")
    assert pin_ports(listen, running) == running


def test_taken_port_is_told_apart() -> None:
    assert PortInUseError("/ip4/0.0.0.0/tcp/4001").port == 4001
    assert PortInUseError("/dns4/x").port is None


def test_newest_addresses_come_first_and_only_once() -> None:
    assert newest_first(["c", "a"], ["a", "b"], limit=3) == ("c", "a", "b")
    assert newest_first(["c", "a"], ["a", "b"], limit=2) == ("c", "a")
