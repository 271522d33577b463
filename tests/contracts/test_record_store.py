"""What every `RecordStore` promises: run against memory and against two real swarm children."""

import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from p2p.dht.memory import MemoryDht
from p2p.dht.port import RecordStore
from p2p.errors import LimitError
from p2p.identity import Identity
from p2p.limits import MAX_RECORD_LIFETIME_S, MAX_RECORD_SIZE
from tests.support.dht import ALICE, BOB, MALLORY, Sealed, envelope, open_nodes, put, sealed, values


@dataclass
class World:
    """Two nodes' stores over one DHT, and the time both go by."""

    near: RecordStore
    far: RecordStore
    clock: "Clock | None"
    """None where only real time goes by."""

    async def pass_time(self, seconds: float) -> None:
        """Let time go by: at once in memory, for real between processes."""
        if self.clock is None:
            await trio.sleep(seconds)
        else:
            self.clock.skipped_s += seconds


@dataclass
class Clock:
    """The machine's clock, put forward."""

    skipped_s: float = 0.0

    def now(self) -> float:
        return time.time() + self.skipped_s


@pytest.fixture(params=["memory", pytest.param("hivemind", marks=pytest.mark.slow)])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "memory":
        clock = Clock()
        dht = MemoryDht(clock=clock.now)
        yield World(dht.store("alice"), dht.store("bob"), clock)
        return
    async with open_nodes(tmp_path, 2) as (alice, bob):
        yield World(alice, bob, None)


async def test_owners_put_renew_and_cannot_be_replayed(world: World) -> None:
    assert await world.far.get("paris/1/test/nobody") == ()
    first = sealed(ALICE, note="first", life_s=30)
    renewed = sealed(ALICE, note="renewed", life_s=40)
    rival = sealed(BOB, note="rival", life_s=20)
    assert await put(world.near, first)
    assert await values(world.far) == {first.value}
    assert await put(world.near, first), "putting the same again is how records are kept alive"
    assert await put(world.far, rival)
    assert await values(world.near) == {first.value, rival.value}
    assert await put(world.near, renewed)
    assert await values(world.far) == {renewed.value, rival.value}
    assert not await put(world.far, first), "an older record of the same owner"
    assert await values(world.near) == {renewed.value, rival.value}
    (found,) = [
        record for record in await world.far.get(first.key) if record.value == renewed.value
    ]
    assert found.subkey == ALICE.public_key
    assert found.expires_at == pytest.approx(renewed.expires_at)


async def test_record_is_gone_after_its_expiry(world: World) -> None:
    record = sealed(ALICE, life_s=1.0)
    assert await put(world.near, record)
    assert await values(world.far) == {record.value}
    await world.pass_time(1.1)
    assert await world.far.get(record.key) == ()


def wrong_records() -> dict[str, Sealed]:
    honest = sealed(ALICE)
    now = time.time()
    altered = honest.value[:-1] + bytes([honest.value[-1] ^ 1])
    too_long = now + MAX_RECORD_LIFETIME_S + 60
    return {
        "somebody else's subkey": replace(honest, subkey=MALLORY.public_key),
        "another key": replace(honest, key="paris/1/test/claim/1"),
        "a later expiry beside it": replace(honest, expires_at=honest.expires_at + 60),
        "a broken signature": replace(honest, value=altered),
        "no envelope": replace(honest, value=b"\xc4\x00"),
        "already expired": sealed(ALICE, expires_at=now - 1),
        "a life beyond the limit": sealed(ALICE, expires_at=too_long),
        "infinite life": replace(honest, expires_at=math.inf),
        "no time at all": replace(honest, expires_at=math.nan),
        "a key outside our space": sealed(ALICE, "other/1/x"),
    }


async def test_records_that_break_a_rule_are_not_stored(world: World) -> None:
    for name, record in wrong_records().items():
        assert not await put(world.near, record), name
        assert await world.far.get(record.key) == (), name


async def test_longest_allowed_life_and_largest_record_are_taken(world: World) -> None:
    longest = sealed(ALICE, expires_at=time.time() + MAX_RECORD_LIFETIME_S - 1)
    assert await put(world.near, longest)
    key = "paris/1/test/large"
    until = time.time() + 60
    spare = MAX_RECORD_SIZE - len(envelope(BOB, key, until)) - 4
    largest = Sealed(key, BOB.public_key, envelope(BOB, key, until, note="x" * spare), until)
    assert await put(world.near, largest)
    assert await values(world.far, key) == {largest.value}
    with pytest.raises(LimitError, match="2048"):
        await world.near.put(key, BOB.public_key, b"x" * (MAX_RECORD_SIZE + 1), until)


async def test_many_owners_share_a_key(world: World) -> None:
    owners = [Identity.from_seed(bytes([number]) * 32) for number in range(10, 30)]
    async with trio.open_nursery() as nursery:
        for owner in owners:
            nursery.start_soon(put, world.near, sealed(owner))
    assert {record.subkey for record in await world.far.get(sealed(ALICE).key)} == {
        owner.public_key for owner in owners
    }
