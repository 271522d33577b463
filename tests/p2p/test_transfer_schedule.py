"""Who is asked for what: shares by pace, overtaking, refusals, losses; and caps on bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.ids import BlobId, blob_id
from p2p.limits import CHUNK_SIZE, MIB
from p2p.transfer_schedule import (
    MAX_OVERTAKEN,
    MAX_WINDOW,
    MIN_WINDOW,
    OVERTAKE_MIN_S,
    Schedule,
    Throttle,
)


def _blobs(count: int) -> list[tuple[BlobId, int]]:
    return [(blob_id(number.to_bytes(2, "big")), CHUNK_SIZE) for number in range(count)]


def _names(asked: tuple[tuple[BlobId, int], ...]) -> list[BlobId]:
    return [blob for blob, _ in asked]


def test_new_provider_is_trusted_with_little_and_a_fast_one_with_more() -> None:
    schedule = Schedule(_blobs(100), ["a"])
    first = schedule.ask("a", 0.0)
    assert len(first) == MIN_WINDOW
    for number, (blob, size) in enumerate(first):
        schedule.arrived("a", blob, size, 0.01 * (number + 1))
    assert len(schedule.ask("a", 0.02)) == MAX_WINDOW


def test_slow_provider_keeps_the_smallest_window() -> None:
    schedule = Schedule(_blobs(100), ["a"])
    now = 0.0
    for _ in range(5):
        for blob, size in schedule.ask("a", now):
            now += 3.0
            schedule.arrived("a", blob, size, now)
    assert len(schedule.ask("a", now)) == MIN_WINDOW


def test_small_blob_does_not_make_its_provider_look_slow() -> None:
    schedule = Schedule([(blob_id(b"small"), 5), *_blobs(100)], ["a"])
    (small, _), (large, size) = schedule.ask("a", 0.0)
    schedule.arrived("a", small, 5, 0.005)
    schedule.arrived("a", large, size, 0.010)
    assert len(schedule.ask("a", 0.010)) > MIN_WINDOW


def test_provider_that_owes_enough_is_not_asked() -> None:
    schedule = Schedule(_blobs(10), ["a"])
    blob, size = schedule.ask("a", 0.0)[0]
    assert schedule.ask("a", 0.0) == ()
    schedule.arrived("a", blob, size, 5.0)
    assert len(schedule.ask("a", 5.0)) == 1


def test_two_providers_are_never_handed_the_same_blob_while_there_is_more() -> None:
    schedule = Schedule(_blobs(4), ["a", "b"])
    asked = _names(schedule.ask("a", 0.0)) + _names(schedule.ask("b", 0.0))
    assert asked == [blob for blob, _ in _blobs(4)]


def test_idle_provider_overtakes_one_that_stalls_but_not_at_once() -> None:
    schedule = Schedule(_blobs(2), ["slow", "idle"])
    owed = _names(schedule.ask("slow", 0.0))
    assert schedule.ask("idle", OVERTAKE_MIN_S / 2) == ()
    assert sorted(_names(schedule.ask("idle", OVERTAKE_MIN_S))) == sorted(owed)


def test_blob_is_never_on_the_way_three_times() -> None:
    schedule = Schedule(_blobs(1), ["a", "b", "c"])
    assert len(schedule.ask("a", 0.0)) == 1
    assert len(schedule.ask("b", 100.0)) == 1
    assert schedule.ask("c", 200.0) == ()
    schedule.released("a")
    assert len(schedule.ask("c", 300.0)) == 1


def test_overtaking_takes_a_few_at_a_time_the_latest_first() -> None:
    schedule = Schedule(_blobs(MIN_WINDOW + MAX_WINDOW), ["slow", "idle"])
    for number, (blob, size) in enumerate(schedule.ask("slow", 0.0)):
        schedule.arrived("slow", blob, size, 0.01 * (number + 1))
    owed = _names(schedule.ask("slow", 0.02))
    assert len(owed) == MAX_WINDOW
    first = _names(schedule.ask("idle", 0.02 + OVERTAKE_MIN_S))
    assert len(first) == MAX_OVERTAKEN
    schedule.arrived("slow", owed[0], CHUNK_SIZE, 5.0)
    schedule.released("idle")
    assert owed[-1] in _names(schedule.ask("idle", 5.0))  # at 0.2 MB/s the last is 75 s away


def test_second_copy_of_a_blob_is_counted_as_a_duplicate() -> None:
    schedule = Schedule(_blobs(1), ["a", "b"])
    ((blob, size),) = schedule.ask("a", 0.0)
    schedule.ask("b", 10.0)
    assert schedule.arrived("b", blob, size, 11.0)
    assert not schedule.arrived("a", blob, size, 12.0)
    assert schedule.is_done


def test_refused_blob_goes_to_another_and_never_back() -> None:
    schedule = Schedule(_blobs(1), ["a", "b"])
    ((blob, _),) = schedule.ask("a", 0.0)
    schedule.refused("a", blob)
    assert not schedule.is_useful("a")
    assert schedule.ask("a", 1.0) == ()
    assert _names(schedule.ask("b", 1.0)) == [blob]
    schedule.refused("b", blob)
    assert schedule.is_done
    assert schedule.missing() == (blob,)


def test_released_blobs_are_asked_first_and_in_order() -> None:
    schedule = Schedule(_blobs(6), ["a", "b"])
    owed = _names(schedule.ask("a", 0.0))
    schedule.released("a")
    assert _names(schedule.ask("b", 0.0)) == owed


def test_dropped_provider_is_never_useful_again() -> None:
    schedule = Schedule(_blobs(3), ["a"])
    schedule.ask("a", 0.0)
    schedule.dropped("a")
    assert schedule.is_done
    assert len(schedule.missing()) == 3


@given(st.data())
def test_whatever_happens_every_blob_arrives_once_or_is_missing(data: st.DataObject) -> None:
    peers = ["a", "b", "c"]
    blobs = _blobs(data.draw(st.integers(1, 12)))
    schedule = Schedule(blobs, peers)
    owed: dict[str, list[BlobId]] = {peer: [] for peer in peers}
    came: list[BlobId] = []
    now = 0.0
    for _ in range(200):
        now += data.draw(st.sampled_from([0.001, 0.3, 20.0]))
        alive = [peer for peer in peers if peer in owed and schedule.is_useful(peer)]
        if not alive:
            break
        peer = data.draw(st.sampled_from(alive))
        owed[peer] += _names(schedule.ask(peer, now))
        if not owed[peer]:
            continue
        what = data.draw(st.sampled_from(["arrive", "arrive", "refuse", "release", "drop"]))
        if what == "arrive":
            blob = owed[peer].pop(0)
            if schedule.arrived(peer, blob, CHUNK_SIZE, now):
                came.append(blob)
        elif what == "refuse":
            schedule.refused(peer, owed[peer].pop(0))
        elif what == "release":
            schedule.released(peer)
            owed[peer].clear()
        else:
            schedule.dropped(peer)
            del owed[peer]
    assert len(came) == len(set(came))
    assert sorted([*came, *schedule.missing()]) == sorted(blob for blob, _ in blobs)
    for useful in owed:
        if schedule.is_useful(useful) and not any(owed.values()):
            assert schedule.ask(useful, now + 100) != ()


def test_throttle_spreads_bytes_over_time() -> None:
    throttle = Throttle(1_000_000, burst_s=0.1)
    assert throttle.wait_s(100_000, 10.0) == pytest.approx(0.0)  # the burst
    assert throttle.wait_s(100_000, 10.0) == pytest.approx(0.1)
    assert throttle.wait_s(100_000, 10.1) == pytest.approx(0.1)
    assert throttle.wait_s(50_000, 99.0) == 0.0  # idle time is made up for only by the burst
    assert throttle.wait_s(150_000, 99.0) == pytest.approx(0.1)


def test_no_cap_never_waits() -> None:
    throttle = Throttle(None)
    assert throttle.wait_s(1000 * MIB, 0.0) == 0.0


def test_pieces_are_small_under_a_cap_and_large_without() -> None:
    assert Throttle(None).piece_size(MIB) == MIB
    assert Throttle(100_000).piece_size(MIB) == 10_000
    assert Throttle(10).piece_size(MIB) == 1024
    assert Throttle(1e12).piece_size(MIB) == MIB
