"""The small pure parts: the peer book, provider records, orders, sentences, the workers' line."""

import socket

import msgpack
import pytest
from trio.testing import MockClock

from node.errors import ErrorCode, NodeError
from node.failures import for_people
from node.orders import order_of
from node.peerbook import PeerBook, bulk_peer
from node.providers import MAX_ROOTS_PER_RECORD, announce_roots, find_providers
from node.workers.link import ParentGoneError, ParentLink, decode_message, encode_message
from p2p.codec import Verified, open_signed, seal
from p2p.errors import (
    DecodeError,
    IdentityError,
    LimitError,
    P2PError,
    QuotaError,
    RefusedError,
    SignatureError,
    StorageError,
    TransportError,
)
from p2p.identity import Identity
from p2p.limits import MAX_RECORD_SIZE
from p2p.records import NodeRecord, node_key, provider_key
from tests.support.people import NOW, RUN, alice, bob, carol, cid, person
from tests.support.swarm import World, open_nodes, world

__all__ = ["world"]


def record(
    who: Identity, *, issued_at: float = NOW, bulk: tuple[str, ...] = ()
) -> Verified[NodeRecord]:
    made = NodeRecord(RUN, "boat", "0.1.0", (), bulk, serves=True, issued_at=issued_at)
    key = node_key(RUN, who.peer)
    return open_signed(NodeRecord, seal(made, who, key=key, expires_at=NOW + 600), key=key, now=NOW)


def test_newer_record_replaces_and_older_does_not() -> None:
    book = PeerBook(alice.peer)
    assert book.add(record(bob, issued_at=NOW))
    assert not book.add(record(bob, issued_at=NOW + 1))  # newer, but nobody new
    book.add(record(bob, issued_at=NOW - 1))
    found = book.get(bob.peer)
    assert found is not None
    assert found.issued_at == NOW + 1


def test_our_own_record_is_not_kept() -> None:
    book = PeerBook(alice.peer)
    assert not book.add(record(alice))
    assert book.peers() == ()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1024, 1025])
def test_book_holds_1024_the_oldest_is_forgotten(count: int) -> None:
    book = PeerBook(alice.peer)
    people = [person(number) for number in range(count)]
    for who in people:
        book.add(record(who))
    assert len(book.peers()) == 1024
    assert (book.get(people[0].peer) is None) == (count > 1024)


@pytest.mark.parametrize(("later_s", "known"), [(599.0, True), (600.0, False)])
def test_expired_record_is_forgotten(later_s: float, *, known: bool) -> None:
    book = PeerBook(alice.peer)
    book.add(record(bob))
    book.forget_expired(NOW + later_s)
    assert (book.get(bob.peer) is not None) is known


def test_bulk_peer_takes_all_addresses_of_the_first_child_named() -> None:
    made = record(bob, bulk=("/ip4/1.1.1.1/tcp/1/p2p/Qa", "/ip4/2.2.2.2/tcp/1/p2p/Qa", "/x/p2p/Qb"))
    found = bulk_peer(made.record)
    assert found is not None
    assert (found.peer_id, len(found.addresses)) == ("Qa", 2)


@pytest.mark.parametrize("addresses", [(), ("/ip4/1.1.1.1/tcp/1",), ("/p2p/Qa",), ("/x/p2p/",)])
def test_record_without_a_child_names_no_bulk_peer(addresses: tuple[str, ...]) -> None:
    assert bulk_peer(record(bob, bulk=addresses).record) is None


async def test_providers_are_found_by_opened_records_only(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben):
        run, root = ada.context.run, cid("root")
        await announce_roots(ben.swarm, ben.context.identity, run, [root])
        key = provider_key(run, root)
        (mine,) = await ben.swarm.get(key)
        from p2p.dht.validator import key_hash

        table = world.dht.table("ada")
        table.put(key_hash(key), carol.public_key, mine.value[:-1] + b"?", mine.expires_at)
        assert await find_providers(ada.swarm, run, root) == (ben.peer,)
        assert await find_providers(ada.swarm, run, cid("another")) == ()


async def test_full_provider_record_fits_a_dht_value(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada",)) as (ada,):
        tail = cid("x")[-2:]
        roots = [one for n in range(200_000) if (one := cid(f"root {n}")).endswith(tail)]
        roots = roots[: MAX_ROOTS_PER_RECORD + 1]
        await announce_roots(ada.swarm, ada.context.identity, ada.context.run, roots)
        (stored,) = await ada.swarm.get(provider_key(ada.context.run, roots[0]))
        assert len(stored.value) <= MAX_RECORD_SIZE
        found = [await find_providers(ada.swarm, ada.context.run, root) for root in roots]
        assert [bool(one) for one in found] == [True] * MAX_ROOTS_PER_RECORD + [False]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (IdentityError("x"), ErrorCode.REFUSED),
        (TransportError("x"), ErrorCode.FAILED),
        (QuotaError("x"), ErrorCode.RESOURCE),
        (StorageError("x"), ErrorCode.RESOURCE),
        (LimitError("x"), ErrorCode.REFUSED),
        (DecodeError("x"), ErrorCode.VERIFICATION_FAILED),
        (SignatureError("x"), ErrorCode.VERIFICATION_FAILED),
        (P2PError("x"), ErrorCode.FAILED),
    ],
)
def test_each_error_has_its_code(error: P2PError, code: ErrorCode) -> None:
    assert for_people(error).code is code
    assert for_people(error).message == "x"


def test_peer_that_refused_is_not_taken_for_one_that_cheated() -> None:
    said = for_people(RefusedError("budget_spent", "16 of 16 scalars are spent"))
    assert said.code is ErrorCode.REFUSED
    assert said.message == "refused (budget_spent): 16 of 16 scalars are spent"


def test_sentence_stays_as_it_is() -> None:
    error = NodeError(ErrorCode.TIMEOUT, "late", "wait")
    assert for_people(error) is error


def test_order_takes_every_field_and_draws_a_seed_if_none_was_said() -> None:
    asked = {
        "prompt": "a boat",
        "n": 2,
        "seed": 7,
        "strategy": "topk",
        "top_k": 3,
        "threshold": 0.1,
        "router": "gauss",
        "sampler": "euler",
        "steps": 20,
        "guidance": 3,
        "autoguidance": 0.30000001,
        "where": "peer",
        "peer": bob.peer,
        "loras": None,
    }
    order = order_of(asked)
    assert (order.where, order.peer) == ("peer", bob.peer)
    assert order.draw.prompt == "a boat"
    assert (order.draw.n, order.draw.seed, order.draw.steps) == (2, 7, 20)
    assert (order.draw.sampler, order.draw.guidance) == ("euler", 3.0)
    assert order.draw.routing.label() == "top3@gauss~0.3"
    seeds = {order_of({**asked, "seed": None}).draw.seed for _ in range(5)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_line_carries_messages_whole_in_any_pieces() -> None:
    ours, theirs = socket.socketpair()
    link = ParentLink(theirs.detach())
    with ours:
        assert link.poll() is None
        data = encode_message({"kind": "a", "n": 1}) + encode_message({"kind": "b"})
        ours.sendall(data[:7])
        assert link.poll() is None
        ours.sendall(data[7:])
        assert link.receive() == {"kind": "a", "n": 1}
        assert link.poll() == {"kind": "b"}
        link.send({"kind": "c"})
        assert ours.recv(100) == encode_message({"kind": "c"})
    with pytest.raises(ParentGoneError):
        link.poll()
    with pytest.raises(ParentGoneError):
        link.receive()
    link._socket.close()


@pytest.mark.parametrize("thing", [1, [], {}, {"kind": 1}, {"x": "y"}])
def test_message_without_a_kind_is_none(thing: object) -> None:
    with pytest.raises(ValueError, match="kind"):
        decode_message(msgpack.packb(thing))
