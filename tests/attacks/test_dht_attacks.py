"""Attacks on the DHT's records by a bare hivemind node that sends what it likes to a real child.

Named after what they try; each leaves the victim alive and honest readers served.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
import trio

from p2p.dht.client import DhtClient
from p2p.dht.port import StoredRecord
from p2p.dht.validator import key_hash
from p2p.identity import Identity
from p2p.limits import MAX_OWNERS_PER_KEY
from tests.support.dht import (
    ALICE,
    BOB,
    MALLORY,
    HostileNode,
    Portal,
    Sealed,
    eventually,
    hostile_node,
    nodes_in_thread,
    peer_of,
    put,
    sealed,
    values,
)

pytestmark = pytest.mark.slow

FOUND_REGULAR, FOUND_DICTIONARY = 1, 2
PLAIN_VALUE = msgpack.packb(None)
WHOLE_DICTIONARY = b""


class Arena:
    """A victim, an honest reader, a hostile node, and a fresh key for each attack."""

    def __init__(self, portal: Portal, nodes: list[DhtClient], hostile: HostileNode) -> None:
        self.portal = portal
        self.victim, self.reader = nodes
        self.hostile = hostile
        self._attacks = 0

    def fresh_key(self) -> str:
        self._attacks += 1
        return f"paris/1/attack/{self._attacks}"

    def put(self, record: Sealed) -> None:
        assert self.portal.run(put, self.victim, record)

    def attack(self, key: str, subkey: bytes, value: bytes, expires_at: Any, **more: Any) -> Any:
        """Send one raw store to the victim; what it says."""
        fields = {"key": key_hash(key), "subkey": subkey, "value": value}
        return self.hostile.store(
            peer_of(self.victim.addresses()[0]), {**fields, "expires_at": expires_at}, **more
        )

    def found(self, key: str) -> set[bytes]:
        """What the honest reader sees."""
        return set(self.portal.run(values, self.reader, key))

    def check_alive(self) -> None:
        """Both honest nodes still run their first child and serve each other."""
        key = self.fresh_key()
        record = sealed(BOB, key)
        self.put(record)
        assert self.found(key) == {record.value}
        assert self.victim.status.restarts == self.reader.status.restarts == 0


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("dht")
    with (
        nodes_in_thread(folder, 2) as (portal, nodes),
        hostile_node(nodes[0].addresses()[0], is_listed=True) as hostile,
    ):
        yield Arena(portal, nodes, hostile)


def packed(subkey: bytes) -> bytes:
    return bytes(msgpack.packb(subkey))


def test_honest_raw_store_is_taken(arena: Arena) -> None:
    """The attacks below are refused for what they do, not because raw stores never arrive."""
    key = arena.fresh_key()
    record = sealed(MALLORY, key)
    answer = arena.attack(key, packed(record.subkey), record.value, record.expires_at)
    assert answer == [True]
    assert arena.found(key) == {record.value}


def forged_subkey(key: str, victim: Sealed) -> tuple[bytes, bytes, Any]:
    return packed(ALICE.public_key), sealed(MALLORY, key).value, victim.expires_at + 1


def plain_value_wipes_dictionary(key: str, victim: Sealed) -> tuple[bytes, bytes, Any]:
    return PLAIN_VALUE, msgpack.packb(b"gone"), victim.expires_at + 1


def signed_plain_value(key: str, victim: Sealed) -> tuple[bytes, bytes, Any]:
    record = sealed(MALLORY, key, expires_at=victim.expires_at + 1)
    return PLAIN_VALUE, record.value, record.expires_at


def extended_expiry(key: str, victim: Sealed) -> tuple[bytes, bytes, Any]:
    return packed(ALICE.public_key), victim.value, victim.expires_at + 1000


def replay_with_earlier_expiry(key: str, victim: Sealed) -> tuple[bytes, bytes, Any]:
    older = sealed(ALICE, key, note="older", expires_at=victim.expires_at - 20)
    return packed(ALICE.public_key), older.value, older.expires_at


def infinite_expiry(key: str, victim: Sealed) -> tuple[bytes, bytes, Any]:
    return packed(ALICE.public_key), victim.value, "inf"


def no_expiry_at_all(key: str, victim: Sealed) -> tuple[bytes, bytes, Any]:
    return packed(ALICE.public_key), victim.value, "nan"


def unsigned_value(key: str, victim: Sealed) -> tuple[bytes, bytes, Any]:
    return packed(MALLORY.public_key), b"unsigned", victim.expires_at


def record_of_another_key(key: str, victim: Sealed) -> tuple[bytes, bytes, Any]:
    record = sealed(MALLORY, "paris/1/attack/elsewhere")
    return packed(MALLORY.public_key), record.value, record.expires_at


def subkey_in_other_bytes(key: str, victim: Sealed) -> tuple[bytes, bytes, Any]:
    """The same key in a longer msgpack form would be a second slot of the same owner."""
    record = sealed(MALLORY, key)
    return b"\xc5\x00\x20" + MALLORY.public_key, record.value, record.expires_at


def dictionary(entries: list[tuple[bytes, bytes, float]]) -> bytes:
    body = msgpack.packb([float("inf"), float("inf"), [list(entry) for entry in entries]])
    return bytes(msgpack.packb(msgpack.ExtType(0x50, body)))


ATTACKS = [
    forged_subkey,
    plain_value_wipes_dictionary,
    signed_plain_value,
    extended_expiry,
    replay_with_earlier_expiry,
    infinite_expiry,
    no_expiry_at_all,
    unsigned_value,
    record_of_another_key,
    subkey_in_other_bytes,
]


@pytest.mark.parametrize("craft", ATTACKS)
@pytest.mark.parametrize("in_cache", [False, True])
def test_record_survives(
    arena: Arena, craft: Callable[[str, Sealed], tuple[bytes, bytes, Any]], in_cache: bool
) -> None:
    key = arena.fresh_key()
    record = sealed(ALICE, key)
    arena.put(record)
    assert arena.attack(key, *craft(key, record), in_cache=in_cache) == [False]
    assert arena.found(key) == {record.value}


def test_valid_record_in_the_cache_hides_nothing(arena: Arena) -> None:
    """hivemind prefers what is cached, if it expires later, to all records under a key."""
    key = arena.fresh_key()
    record = sealed(ALICE, key)
    arena.put(record)
    own = sealed(MALLORY, key, life_s=600)
    assert arena.attack(key, packed(own.subkey), own.value, own.expires_at, in_cache=True) == [
        False
    ]
    assert arena.found(key) == {record.value}


def test_dictionary_keeps_its_good_entries_only(arena: Arena) -> None:
    key = arena.fresh_key()
    record, good = sealed(ALICE, key), sealed(BOB, key)
    arena.put(record)
    forged = sealed(MALLORY, key)
    entries = [
        (good.subkey, good.value, good.expires_at),
        (ALICE.public_key, forged.value, forged.expires_at),
        (MALLORY.public_key, b"unsigned", forged.expires_at),
    ]
    arena.attack(key, WHOLE_DICTIONARY, dictionary(entries), record.expires_at + 1)
    arena.attack(key, WHOLE_DICTIONARY, dictionary([]), record.expires_at + 1)
    assert arena.found(key) == {record.value, good.value}


def nested(levels: int) -> bytes:
    """msgpack extension tuples inside each other: 400 of them are 1.5 KB."""
    value = b"\xc0"
    for _ in range(levels):
        value = msgpack.packb(msgpack.ExtType(0x40, b"\x91" + value))
    return value


@pytest.mark.parametrize("levels", [1, 9, 400, 4000])
@pytest.mark.parametrize("place", ["subkey", "value", "dictionary", "plain"])
def test_nested_bomb_kills_nobody(arena: Arena, levels: int, place: str) -> None:
    key = arena.fresh_key()
    bomb = nested(levels)
    until = time.time() + 60
    owner = packed(MALLORY.public_key)
    match place:
        case "subkey":
            answer = arena.attack(key, bomb, b"", until)
        case "value":
            answer = arena.attack(key, owner, bomb, until)
        case "dictionary":
            answer = arena.attack(key, WHOLE_DICTIONARY, bomb, until)
        case _:
            answer = arena.attack(key, PLAIN_VALUE, bomb, until)
    assert answer == [False] or "error" in answer
    assert arena.found(key) == set()
    arena.check_alive()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (FOUND_DICTIONARY, dictionary([])),
        (FOUND_DICTIONARY, dictionary([(ALICE.public_key, b"unsigned", 2e9)])),
        (FOUND_DICTIONARY, nested(400)),
        (FOUND_REGULAR, nested(400)),
        (FOUND_REGULAR, b"plain"),
        (FOUND_DICTIONARY, b"\xc1"),
    ],
)
def test_lying_replica_hides_no_record(arena: Arena, kind: int, value: bytes) -> None:
    """A replica that claims an infinite expiry ends hivemind's own search at once.

    Each lie needs a new liar: one that sends what does not decode is left alone for a while.
    """
    key = arena.fresh_key()
    record = sealed(ALICE, key)
    arena.put(record)
    place = key_hash(key).hex()
    reader = arena.reader.addresses()[0]
    with hostile_node(reader, is_listed=True) as liar:
        liar.ask("answer", key=place, type=kind, value=value.hex(), expires_at="inf")
        assert liar.ask("ping", victim=peer_of(reader))["met"]

        async def is_asked() -> bool:
            assert await values(arena.reader, key) == {record.value}
            return bool(liar.ask("told", key=place)["times"])

        arena.portal.run(eventually, is_asked)
    arena.check_alive()


@pytest.mark.parametrize("trick", ["stalls", "names a thousand peers that do not exist"])
def test_costly_replica_delays_a_reader_by_seconds_at_most(arena: Arena, trick: str) -> None:
    key = arena.fresh_key()
    record = sealed(ALICE, key)
    arena.put(record)
    place = key_hash(key).hex()
    reader = arena.reader.addresses()[0]
    with hostile_node(reader, is_listed=True) as hostile:
        lie = {"key": place, "type": 0, "value": "", "expires_at": 0.0}
        hostile.ask("answer", **lie, neighbors=0 if trick == "stalls" else 1000)
        hostile.ask("stall", seconds=30 if trick == "stalls" else 0)
        assert hostile.ask("ping", victim=peer_of(reader))["met"]

        async def is_asked() -> bool:
            with trio.fail_after(8):
                assert await values(arena.reader, key) == {record.value}
            return bool(hostile.ask("told", key=place)["times"])

        arena.portal.run(eventually, is_asked)
    arena.check_alive()


def test_oversized_requests_are_refused(arena: Arena) -> None:
    key = arena.fresh_key()
    victim = peer_of(arena.victim.addresses()[0])
    raw = key_hash(key).hex()
    assert len(arena.hostile.ask("find", victim=victim, key=raw, times=64)["found"]) == 64
    assert "LimitError" in arena.hostile.ask("find", victim=victim, key=raw, times=65)["error"]
    record = sealed(MALLORY, key)
    fields: dict[str, Any] = {"subkey": packed(record.subkey), "value": record.value}
    fields |= {"key": key_hash(key), "expires_at": record.expires_at}
    assert arena.hostile.store(victim, {**fields, "times": 256}) == [True] * 256
    assert "LimitError" in arena.hostile.store(victim, {**fields, "times": 257})["error"]
    arena.check_alive()


def test_node_that_chose_its_place_is_not_listed(arena: Arena) -> None:
    """Whoever may pick a DHT id can sit next to any key and answer for it."""

    async def known() -> int:
        return await arena.reader.known_peers()

    before = arena.portal.run(known)
    with hostile_node(arena.reader.addresses()[0], is_listed=False) as squatter:
        assert squatter.ask("ping", victim=peer_of(arena.reader.addresses()[0]))["met"]
        assert arena.portal.run(known) == before
    with hostile_node(arena.reader.addresses()[0], is_listed=True) as ordinary:
        assert ordinary.ask("ping", victim=peer_of(arena.reader.addresses()[0]))["met"]

        async def is_listed() -> bool:
            return await known() == before + 1

        arena.portal.run(eventually, is_listed)


def test_full_key_refuses_newcomers_and_keeps_owners(arena: Arena) -> None:
    key = arena.fresh_key()
    record = sealed(ALICE, key)
    arena.put(record)
    taken = 0
    for number in range(MAX_OWNERS_PER_KEY + 4):
        crowd = sealed(Identity.from_seed(number.to_bytes(32, "big")), key)
        taken += arena.attack(key, packed(crowd.subkey), crowd.value, crowd.expires_at) == [True]
    assert taken == MAX_OWNERS_PER_KEY - 1
    renewed = sealed(ALICE, key, note="renewed", life_s=120)
    arena.put(renewed)
    assert renewed.value in arena.found(key)


def test_everybody_is_alive_after_all_of_it(arena: Arena) -> None:
    arena.check_alive()

    async def read() -> tuple[StoredRecord, ...]:
        with trio.fail_after(5):
            return await arena.reader.get("paris/1/attack/none")

    assert arena.portal.run(read) == ()
