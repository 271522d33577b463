"""The rules of one replica's table, with a clock of the test's own."""

import math

from hypothesis import given
from hypothesis import strategies as st

from p2p.dht.table import RecordTable

KEY, OTHER_KEY = b"k" * 20, b"o" * 20
ALICE, BOB, CAROL = b"a" * 32, b"b" * 32, b"c" * 32


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def table(clock: Clock | None = None, **limits: int) -> RecordTable:
    return RecordTable(clock=clock or Clock(), **limits)


def held(records: RecordTable, key: bytes = KEY) -> dict[bytes, bytes]:
    return {owner: slot.value for owner, slot in records.get(key).items()}


def test_later_expiry_wins_and_earlier_evicts_nothing() -> None:
    records = table()
    assert records.put(KEY, ALICE, b"first", 1010)
    assert records.put(KEY, ALICE, b"renewed", 1020)
    assert not records.put(KEY, ALICE, b"first", 1010)
    assert held(records) == {ALICE: b"renewed"}


def test_same_record_again_is_fine_and_another_of_the_same_expiry_is_not() -> None:
    records = table()
    assert records.put(KEY, ALICE, b"value", 1010)
    assert records.put(KEY, ALICE, b"value", 1010)
    assert not records.put(KEY, ALICE, b"other", 1010)
    assert (held(records), len(records)) == ({ALICE: b"value"}, 1)


def test_expired_and_timeless_records_are_refused() -> None:
    records = table()
    assert not records.put(KEY, ALICE, b"past", 999)
    assert not records.put(KEY, ALICE, b"now", 1000)
    assert not records.put(KEY, ALICE, b"never", math.nan)
    assert len(records) == 0


def test_record_goes_when_its_time_is_over() -> None:
    clock = Clock()
    records = table(clock)
    records.put(KEY, ALICE, b"short", 1001)
    records.put(KEY, BOB, b"long", 1002)
    clock.now = 1001.0
    assert held(records) == {BOB: b"long"}
    clock.now = 1002.0
    assert held(records) == {}
    assert len(records) == 0
    assert list(records) == []
    assert records.put(KEY, ALICE, b"again", 1010)


def test_full_key_refuses_newcomers_but_not_renewals() -> None:
    records = table(max_owners=2)
    assert records.put(KEY, ALICE, b"1", 1010)
    assert records.put(KEY, BOB, b"1", 1010)
    assert not records.put(KEY, CAROL, b"1", 1999)
    assert records.put(KEY, ALICE, b"2", 1020)
    assert records.put(OTHER_KEY, CAROL, b"1", 1010)


def test_full_table_refuses_newcomers_until_something_expires() -> None:
    clock = Clock()
    records = table(clock, max_records=2)
    assert records.put(KEY, ALICE, b"1", 1001)
    assert records.put(OTHER_KEY, ALICE, b"1", 1010)
    assert not records.put(KEY, BOB, b"1", 1999)
    assert records.put(OTHER_KEY, ALICE, b"2", 1020), "a renewal needs no room"
    clock.now = 1001.0
    assert records.put(KEY, BOB, b"1", 1999)


def test_answer_is_the_callers_to_change() -> None:
    records = table()
    records.put(KEY, ALICE, b"1", 1010)
    records.get(KEY).clear()
    assert held(records) == {ALICE: b"1"}


puts = st.lists(
    st.tuples(
        st.sampled_from([KEY, OTHER_KEY]),
        st.sampled_from([ALICE, BOB, CAROL]),
        st.integers(990, 1030),
        st.integers(0, 5),
    )
)


@given(puts, st.integers(1, 4), st.integers(1, 3))
def test_table_never_outgrows_its_limits_and_counts_right(
    steps: list[tuple[bytes, bytes, int, int]], max_records: int, max_owners: int
) -> None:
    clock = Clock()
    records = table(clock, max_records=max_records, max_owners=max_owners)
    for key, owner, expires_at, wait in steps:
        before = records.get(key).get(owner)
        was_taken = records.put(key, owner, b"v%d" % expires_at, expires_at)
        after = records.get(key).get(owner)
        if was_taken:
            assert after is not None
            assert after.expires_at == expires_at
        else:
            assert after == before, "a refused put changes nothing"
        clock.now += wait
        live = sum(len(records.get(each)) for each in (KEY, OTHER_KEY))
        assert live == len(records) <= max_records
        assert all(len(records.get(each)) <= max_owners for each in (KEY, OTHER_KEY))
