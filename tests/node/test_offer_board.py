"""Others' offers: what one bad advert, a slow owner, a lacking prover or a full disk cannot do."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio

import node.lora_convert
from node.errors import ErrorCode, NodeError
from node.keeping import keep_folder
from node.lora_market import LookWish
from node.lora_rows import OfferStanding
from node.lora_state import LoraState
from node.offer_board import BAN_S, STRIKES
from node.offers import Offers
from p2p.codec import BLOB_KEY, seal
from p2p.errors import PeerError, StorageError
from p2p.file_sets import FileEntry, FileSet
from p2p.gossip_rules import topic
from p2p.ids import BlobId, ClusterId
from p2p.lora_records import LoraOffer, OfferAdvert, OfferRef
from p2p.offer_proofs import PROOFS_FILE, OfferProofs, pack_offer_proofs
from p2p.records import lora_key
from tests.support.offer_swarm import (
    LAYERS,
    OfferNode,
    OfferWorld,
    last_of,
    offer_world,
    seen_within,
    small_layers,
)
from tests.support.people import cid
from tests.support.swarm import World, wall, world
from verification.policy import Policy

__all__ = ["small_layers", "world"]

CLAIMED, PROVED, REFUSED = OfferStanding.CLAIMED, OfferStanding.PROVED, OfferStanding.REFUSED


@dataclass
class Square:
    """Alice and mallory offer, bob looks."""

    swarm: OfferWorld

    @property
    def alice(self) -> OfferNode:
        return self.swarm.nodes["alice"]

    @property
    def mallory(self) -> OfferNode:
        return self.swarm.nodes["mallory"]

    @property
    def bob(self) -> OfferNode:
        return self.swarm.nodes["bob"]

    async def offered(self, **wish: Any) -> BlobId:
        return await self.alice.offered(self.swarm.base, **wish)

    async def is_proved(self, offer: BlobId) -> None:
        await seen_within(lambda: self.bob.standing(offer) is PROVED)

    def record(self, node: OfferNode, offer: BlobId) -> LoraOffer:
        own = node.loras.own_offer(offer)
        assert own is not None
        return node.offers.opened(own).record

    def ref(self, node: OfferNode, offer: BlobId) -> OfferRef:
        """What a node's advert says of an offer of its own."""
        own = node.loras.own_offer(offer)
        assert own is not None
        return OfferRef(offer, self.record(node, offer).base, own.proofs)

    async def advertise(self, node: OfferNode, *refs: OfferRef, cluster: int = 0) -> None:
        """Say so in the DHT, as far as it is not said already, and by gossip."""
        context, now = node.member.context, wall()
        key = lora_key(context.run, ClusterId(cluster))
        advert = OfferAdvert(context.run, ClusterId(cluster), refs, issued_at=now)
        envelope = seal(advert, context.identity, key=key, expires_at=now + 3600)
        await context.swarm.put(key, context.identity.public_key, envelope, now + 3600)
        await context.host.publish(topic(context.run, "lora"), envelope)

    def forged(self, node: OfferNode, genuine: LoraOffer, **changes: Any) -> OfferRef:
        """An offer of good form in a node's store, and proofs of nothing."""
        context = node.member.context
        made = replace(genuine, created_at=wall(), **changes)
        envelope = seal(made, context.identity, key=BLOB_KEY, expires_at=None)
        offer_id = context.blobs.put(envelope)
        data = pack_offer_proofs(OfferProofs(offer_id, ()))
        entry = FileEntry(PROOFS_FILE, len(data), (context.blobs.put(data),))
        root = keep_folder(context.blobs, FileSet((entry,)), "x")
        return OfferRef(offer_id, made.base, root)

    @property
    def strikes(self) -> Counter[str]:
        """Of each node, by name, as bob counts them."""
        names = {node.peer: name for name, node in self.swarm.nodes.items()}
        return Counter({names[peer]: n for peer, n in self.bob.board._strikes.items()})


@pytest.fixture
async def square(
    tmp_path: Path, world: World, autojump_clock: object, small_layers: None
) -> AsyncIterator[Square]:
    async with offer_world(tmp_path, "alice", "bob", "mallory", plain=world) as swarm:
        await swarm.acquainted()
        yield Square(swarm)


# --- adverts --------------------------------------------------------------------------------------


async def test_advert_of_somebody_elses_offer_does_not_spoil_it(
    square: Square, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else anybody could have everybody refuse an honest offer before its owner is heard."""

    async def says_nothing(offers: Offers) -> None:
        pass

    monkeypatch.setattr(Offers, "_advertise_all", says_nothing)
    offer = await square.offered()
    stolen = square.ref(square.alice, offer)
    square.mallory.member.context.blobs.put(square.alice.member.context.blobs.get(offer))
    await square.advertise(square.mallory, stolen)
    await seen_within(lambda: square.strikes == {"mallory": 1})
    assert square.bob.standing(offer) is None
    await square.advertise(square.alice, stolen)
    await square.is_proved(offer)
    assert square.strikes["alice"] == 0


async def test_offer_whose_owner_advertises_another_base_for_it_is_refused(
    square: Square, autojump_clock: object
) -> None:
    offer = await square.offered()
    await square.is_proved(offer)
    forged = square.forged(square.alice, square.record(square.alice, offer), terms="x")
    await square.advertise(square.alice, replace(forged, base=cid("another")))
    await seen_within(lambda: square.bob.standing(forged.offer) is REFUSED)
    seen = square.bob.loras.seen(forged.offer)
    assert seen is not None
    assert f"advertised was {cid('another')}" in seen.why
    assert square.strikes == {"alice": 1}


async def test_offer_that_is_decided_is_not_queued_again(
    square: Square, autojump_clock: object
) -> None:
    offer = await square.offered()
    await square.is_proved(offer)
    known = square.bob.board.counts["known"]
    await trio.sleep(1)
    await square.advertise(square.alice, square.ref(square.alice, offer))
    assert len(square.bob.board._queue) == 0
    await seen_within(lambda: square.bob.board.counts["known"] > known)
    assert square.bob.board.counts["proofs checked"] == 2


async def test_what_waits_is_not_looked_into_once_its_owner_is_banned(
    square: Square, autojump_clock: object
) -> None:
    square.swarm.world.hub.gate = trio.Event()
    refs = [OfferRef(cid(f"none {n}"), cid("base"), cid("x")) for n in range(2)]
    await square.advertise(square.mallory, *refs)
    await trio.sleep(1)  # the first one is being fetched
    for node_ in (square.alice, square.bob):
        node_.loras.ban(square.mallory.peer, "why", wall() + BAN_S)
    square.swarm.world.hub.gate.set()
    await trio.sleep(60)
    assert (cid("none 1"),) not in square.swarm.world.hub.pulls


async def test_adverts_of_other_clusters_and_ones_own_are_let_go(
    square: Square, autojump_clock: object
) -> None:
    offer = await square.offered()
    ref = square.ref(square.alice, offer)
    count = square.bob.member.catalog.manifest.clusters
    await square.advertise(square.alice, replace(ref, offer=cid("x")), cluster=count)
    await square.is_proved(offer)
    await trio.sleep(60)
    assert square.alice.standing(offer) is None
    assert square.bob.standing(cid("x")) is None
    assert len(square.bob.board._put_off) == 0


@pytest.mark.slow
async def test_banned_owners_offers_are_not_looked_at_wherever_they_are_found(
    square: Square, autojump_clock: object
) -> None:
    square.bob.loras.ban(square.alice.peer, "why", wall() + BAN_S)
    offer = await square.offered()
    await seen_within(lambda: square.bob.board.counts["of banned owners"] >= 2)
    await trio.sleep(120)  # the DHT is read again and again
    assert square.bob.standing(offer) is None
    assert "verify" not in square.bob.plain.jobs
    await trio.sleep(BAN_S)
    await square.is_proved(offer)


# --- whose fault it is ----------------------------------------------------------------------------


async def test_two_offers_that_do_not_hold_are_a_ban_and_one_is_not(
    square: Square, autojump_clock: object
) -> None:
    genuine = square.record(square.alice, await square.offered())
    now = square.bob.loras.is_banned
    for number in range(1, STRIKES + 1):
        assert not now(square.mallory.peer, wall())
        ref = square.forged(square.mallory, genuine, seq=number)
        await square.advertise(square.mallory, ref)
        await seen_within(lambda: square.strikes["mallory"] == number)  # noqa: B023
        assert square.bob.standing(ref.offer) is REFUSED
    assert now(square.mallory.peer, wall())
    assert not now(square.mallory.peer, wall() + BAN_S + 1)
    square.bob.board.strike(square.mallory.peer, "once more")
    assert square.bob.board.counts["banned"] == 1


async def test_one_bad_offer_counts_once_however_often_it_is_heard_of(
    square: Square, autojump_clock: object
) -> None:
    """Heard again while it is being looked into, it must not be looked into twice."""
    genuine = square.record(square.alice, await square.offered())
    square.swarm.world.hub.gate = trio.Event()  # nothing can be fetched
    ref = square.forged(square.mallory, genuine)
    for _ in range(5):
        await square.advertise(square.mallory, ref)
        await trio.sleep(1)
    square.swarm.world.hub.gate.set()
    await seen_within(lambda: square.bob.standing(ref.offer) is REFUSED)
    await trio.sleep(60)
    assert square.strikes["mallory"] == 1


async def test_what_only_our_policy_does_not_take_is_refused_and_nobodys_fault(
    square: Square, autojump_clock: object
) -> None:
    square.bob.board.policy = Policy(max_rank=1)
    offer = await square.offered()
    await seen_within(lambda: square.bob.standing(offer) is REFUSED)
    seen = square.bob.loras.seen(offer)
    assert seen is not None
    assert "rank 2; this node takes at most 1" in seen.why
    assert square.strikes == {}


@pytest.mark.slow
async def test_own_prover_that_fails_decides_nothing_accuses_nobody_and_does_not_spin(
    square: Square, autojump_clock: object
) -> None:
    """As without the extra that proofs need."""

    def lacking(_: int) -> None:
        raise NodeError(ErrorCode.FAILED, "proofs need ezkl")

    square.bob.plain.failing = lacking
    offer = await square.offered()
    await seen_within(lambda: square.bob.board.counts["undecided"])
    await trio.sleep(3600)
    assert square.bob.board.counts["undecided"] < 12
    assert square.bob.standing(offer) is CLAIMED
    seen = square.bob.loras.seen(offer)
    assert seen is not None
    assert seen.why == "proofs need ezkl"
    assert square.strikes == {}
    square.bob.plain.failing = square.alice.plain.failing
    await seen_within(lambda: square.bob.standing(offer) is PROVED, within_s=1000)


async def test_offers_do_not_wait_where_proofs_queue_but_are_looked_for_again(
    square: Square, autojump_clock: object
) -> None:
    square.bob.plain.is_full = True
    offer = await square.offered()
    await seen_within(lambda: square.bob.board.counts["undecided"])
    assert square.bob.standing(offer) is CLAIMED
    assert square.strikes == {}
    square.bob.plain.is_full = False
    await seen_within(lambda: square.bob.standing(offer) is PROVED, within_s=100)


async def test_offer_that_is_over_is_put_off_and_nobodys_fault(
    square: Square, autojump_clock: object
) -> None:
    genuine = square.record(square.alice, await square.offered())
    over = square.forged(square.mallory, genuine, expires_at=wall() + 0.01)
    await trio.sleep(1)
    await square.advertise(square.mallory, over)
    await seen_within(lambda: len(square.bob.board._put_off))
    assert square.bob.standing(over.offer) is None
    assert square.strikes == {}


@pytest.mark.slow
async def test_offer_that_nobody_has_is_looked_for_less_and_less(
    square: Square, autojump_clock: object
) -> None:
    for _ in range(120):
        await square.advertise(square.mallory, OfferRef(cid("none"), cid("base"), cid("proofs")))
        await trio.sleep(30)
    assert 4 < square.swarm.world.hub.pulls.count((cid("none"),)) < 20  # by two who look
    assert square.strikes == {}


# --- slow owners ----------------------------------------------------------------------------------


async def test_owner_whose_offers_never_come_holds_up_nobody_else(
    square: Square, autojump_clock: object
) -> None:
    square.swarm.world.hub.faults["child-mallory"] = "stall"
    refs = [OfferRef(cid(f"none {n}"), cid("base"), cid("x")) for n in range(6)]
    await square.advertise(square.mallory, *refs)
    await trio.sleep(2)
    begun = trio.current_time()
    await square.is_proved(await square.offered())
    assert trio.current_time() - begun < 5
    assert square.strikes == {}


async def test_offer_that_does_not_come_is_given_up_in_time(
    square: Square, autojump_clock: object
) -> None:
    square.swarm.world.hub.gate = trio.Event()
    await square.advertise(square.mallory, OfferRef(cid("none"), cid("base"), cid("x")))
    await trio.sleep(19)
    assert len(square.bob.board._put_off) == 0
    await trio.sleep(2)
    assert len(square.bob.board._put_off) == 1


@pytest.mark.slow
async def test_proofs_that_never_come_are_given_up_and_asked_for_again(
    square: Square, autojump_clock: object
) -> None:
    offer = await square.offered()
    await square.is_proved(offer)  # so that its base is here
    ref = square.forged(square.mallory, square.record(square.alice, offer))
    await square.bob.member.context.fetcher.blob(ref.offer, hints=(square.mallory.peer,))
    square.swarm.world.hub.gate = trio.Event()
    await square.advertise(square.mallory, ref)
    await seen_within(lambda: square.bob.board.counts["undecided"], within_s=100)
    seen = square.bob.loras.seen(ref.offer)
    assert seen is not None
    assert seen.why == "The proofs did not come within 60 s."
    assert square.strikes == {}
    square.swarm.world.hub.gate.set()
    await seen_within(lambda: square.bob.standing(ref.offer) is REFUSED, within_s=300)


# --- our own disk and services --------------------------------------------------------------------


@pytest.mark.slow
async def test_board_goes_on_when_the_disk_refuses_and_when_it_does_no_more(
    square: Square, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[object] = []

    def full(*item: object) -> None:
        refused.append(item)
        raise StorageError("the node's database can't be written")

    with monkeypatch.context() as patch:
        patch.setattr(LoraState, "note_seen", full)
        patch.setattr(LoraState, "forget_expired", full)
        await square.advertise(square.mallory, OfferRef(cid("none"), cid("base"), cid("x")))
        with pytest.MonkeyPatch.context() as more:
            more.setattr(LoraState, "is_banned", full)
            await square.advertise(square.mallory, OfferRef(cid("none 2"), cid("base"), cid("x")))
            await trio.sleep(60)
        offer = await square.offered()
        await trio.sleep(300)
    assert 0 < len(refused) < 100
    await seen_within(lambda: square.bob.standing(offer) is PROVED, within_s=1000)


async def test_board_that_failed_is_started_again(square: Square, autojump_clock: object) -> None:
    """Its topic is joined already."""
    ended = trio.Event()

    async def again() -> None:
        with trio.move_on_after(2):
            await square.bob.board._hearing.run()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(again)
        await ended.wait()


async def test_strangers_offer_that_names_our_proofs_does_not_lose_them(
    square: Square, autojump_clock: object
) -> None:
    offer = await square.offered()
    await square.is_proved(offer)
    own = square.alice.loras.own_offer(offer)
    assert own is not None
    forged = square.forged(square.mallory, square.record(square.alice, offer))
    await square.advertise(square.mallory, replace(forged, proofs=own.proofs))
    await seen_within(lambda: square.alice.standing(forged.offer) is REFUSED)
    pins = {pin.root: pin.label for pin in square.alice.member.context.blobs.pins()}
    assert pins[own.proofs].startswith("offer/proofs/")


@pytest.mark.parametrize(
    "facts",
    [
        "null",
        "{",
        '["squares"]',
        "{}",
        '{"squares": 3}',
        '{"squares": {}}',
        '{"squares": {"block.to_q": 1.0}}',
        '{"squares": {"block.to_q": 1.0, "block.to_k": "1"}}',
        '{"squares": {"block.to_q": 1.0, "block.to_k": true}}',
        '{"squares": {"block.to_q": 1.0, "block.to_k": -1.0}}',
        '{"squares": {"block.to_q": 1.0, "block.to_k": 1.0, "other": 1.0}}',
    ],
)
async def test_facts_that_the_database_lost_are_found_out_again(
    square: Square, autojump_clock: object, facts: str
) -> None:
    offer = await square.offered()
    await square.is_proved(offer)
    square.bob.loras._db.execute("UPDATE seen_offers SET facts = ?", (facts,))
    assert square.bob.board.offers()[0].standing is PROVED
    square.bob.plain.jobs.clear()
    looked = await last_of(square.bob.market.verify(LookWish(offer)))
    assert looked["ratio"] > 0
    assert square.bob.plain.jobs.count("verify") == 2 + 2 * 2  # the offer's proofs, and answers
    seen = square.bob.loras.seen(offer)
    assert seen is not None
    assert seen.facts["terms"] == "free"
    assert set(seen.facts["squares"]) == {layer.name for layer in LAYERS}  # type: ignore[call-overload]


# --- what a person asks for all the same ----------------------------------------------------------


async def test_offer_of_other_layers_is_refused_to_a_person_as_well(
    square: Square, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A true adapter of one layer, offered as one of two."""
    monkeypatch.setattr(node.lora_convert, "adaptable_layers", lambda *_: LAYERS[:1])
    offer = await square.offered()
    await seen_within(lambda: square.bob.standing(offer) is REFUSED)
    for action in (square.bob.market.verify, square.bob.market.buy):
        with pytest.raises(PeerError, match=r"LoraOffer\.modules: not the layers"):
            await last_of(action(LookWish(offer)))
    assert square.bob.standing(offer) is REFUSED


async def test_rank_beyond_the_policy_is_refused_to_a_person_as_well(
    square: Square, autojump_clock: object
) -> None:
    offer = await square.offered()
    await square.is_proved(offer)
    square.bob.board.policy = Policy(max_rank=1)
    with pytest.raises(NodeError, match="Rank 2; this node takes at most 1") as caught:
        await last_of(square.bob.market.buy(LookWish(offer)))
    assert caught.value.code is ErrorCode.REFUSED


async def test_proofs_that_are_malformed_are_refused_to_a_person_as_well(
    square: Square, autojump_clock: object
) -> None:
    genuine = square.record(square.alice, await square.offered())
    ref = square.forged(square.mallory, genuine)
    await square.advertise(square.mallory, ref)
    await seen_within(lambda: square.bob.standing(ref.offer) is REFUSED)
    with pytest.raises(NodeError, match="proofs do not hold") as caught:
        await last_of(square.bob.market.verify(LookWish(ref.offer)))
    assert caught.value.code is ErrorCode.VERIFICATION_FAILED
