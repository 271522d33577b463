"""What the in-memory DHT adds to the contract: partitions and nodes that are down."""

import pytest

from p2p.dht.memory import MemoryDht
from p2p.errors import TransportError
from tests.support.dht import ALICE, BOB, CAROL, put, sealed, values


async def test_groups_of_a_partition_see_only_their_own_new_records() -> None:
    dht = MemoryDht()
    left, right, rest = dht.store("left"), dht.store("right"), dht.store("rest")
    before = sealed(CAROL)
    await put(left, before)
    dht.partition(["left"], ["right"])
    ours, theirs = sealed(ALICE), sealed(BOB)
    assert await put(left, ours)
    assert await put(right, theirs)
    assert await values(left) == {before.value, ours.value}
    assert await values(right) == {before.value, theirs.value}
    assert await values(rest) == {before.value}
    dht.heal()
    for store in (left, right, rest):
        assert await values(store) == {before.value, ours.value, theirs.value}


async def test_renewal_wins_over_the_older_record_after_healing() -> None:
    dht = MemoryDht()
    left, right = dht.store("left"), dht.store("right")
    await put(left, sealed(ALICE, life_s=30))
    dht.partition(["left"], ["right"])
    renewed = sealed(ALICE, life_s=60)
    await put(right, renewed)
    dht.heal()
    assert await values(left) == {renewed.value}


async def test_node_that_is_down_fails_every_call_and_no_other() -> None:
    dht = MemoryDht()
    alice, bob = dht.store("alice"), dht.store("bob")
    dht.take_down("alice")
    with pytest.raises(TransportError, match="alice"):
        await alice.get("paris/1/test/x")
    with pytest.raises(TransportError, match="alice"):
        await put(alice, sealed(ALICE))
    assert await put(bob, sealed(BOB))
    dht.bring_up("alice")
    assert len(await values(alice)) == 1
