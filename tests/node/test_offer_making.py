"""Own offers: whole or not at all, whatever fails on the way, and still there after a restart."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

import node.offer_folder
import node.offers
from node.errors import ErrorCode, NodeError
from node.lora_budget import BudgetSpentError, Leak
from node.lora_market import LookWish
from node.lora_rows import OfferStanding, OwnOffer
from node.lora_state import LoraState
from node.offer_draft import OfferWish
from node.offers import Offers
from p2p.blobs import BlobStore
from p2p.errors import QuotaError, RefusedError, StorageError
from p2p.ids import BlobId, ClusterId
from p2p.limits import MAX_OFFERS_PER_ADVERT
from tests.support.offer_swarm import (
    OfferNode,
    OfferWorld,
    last_of,
    offer_world,
    seen_within,
    small_layers,
)
from tests.support.people import cid
from tests.support.swarm import World, wall, world
from training.files import write_file

__all__ = ["small_layers", "world"]


@pytest.fixture
async def swarm(
    tmp_path: Path, world: World, autojump_clock: object, small_layers: None
) -> AsyncIterator[OfferWorld]:
    """Bob, whose checkpoint is the base; alice comes and goes."""
    async with offer_world(tmp_path, "bob", plain=world) as found:
        yield found


def left(alice: OfferNode) -> list[str]:
    """What lies in its private folder."""
    offers = alice.member.context.config.paths.offers
    return sorted(path.name for path in offers.iterdir()) if offers.exists() else []


def labels(alice: OfferNode) -> dict[BlobId, str]:
    """Pins that have to do with offers."""
    pins = alice.member.context.blobs.pins()
    return {pin.root: pin.label for pin in pins if pin.label.startswith("offer/")}


def told(alice: OfferNode) -> set[Leak]:
    (leaks,) = {own.adapter for own in alice.loras.all_own_offers()}
    return set(alice.loras.leaks(leaks).values())


def own(alice: OfferNode, offer: BlobId) -> OwnOffer:
    found = alice.loras.own_offer(offer)
    assert found is not None
    return found


async def is_proved(swarm: OfferWorld, offer: BlobId) -> None:
    bob = swarm.nodes["bob"]
    await seen_within(lambda: bob.standing(offer) is OfferStanding.PROVED, within_s=120)


async def fails_and_leaves_nothing(
    alice: OfferNode, swarm: OfferWorld, match: str, error: type[Exception] = Exception
) -> None:
    with pytest.raises(error, match=match):
        await alice.offered(swarm.base)
    assert left(alice) == []
    assert alice.loras.all_own_offers() == ()
    await trio.sleep(60)
    assert swarm.nodes["bob"].board.offers() == ()  # nobody was told


async def works_again(alice: OfferNode, swarm: OfferWorld, *, proofs: int) -> None:
    """What was counted stays counted; the numbers are told once."""
    offer = await alice.offered(swarm.base)
    await is_proved(swarm, offer)
    assert left(alice) == [offer]
    assert told(alice) == {Leak(16, 0, proofs)}


# --- failures on the way --------------------------------------------------------------------------


@pytest.mark.parametrize(("job", "proofs"), [(1, 1), (2, 2), (3, 2)])
async def test_prover_that_dies_at_any_job_leaves_nothing_and_it_works_again(
    swarm: OfferWorld, autojump_clock: object, job: int, proofs: int
) -> None:
    async with swarm.running("alice") as alice:
        await swarm.acquainted()

        def die(number: int) -> None:
            if number == job:
                raise NodeError(ErrorCode.FAILED, "the worker was killed")

        alice.plain.failing = die
        await fails_and_leaves_nothing(alice, swarm, "the worker was killed", NodeError)
        await works_again(alice, swarm, proofs=proofs)


@pytest.mark.parametrize(
    "name", ["delivery.bin", "delivery.sha256", "buyers.json", "proofs.msgpack"]
)
async def test_disk_full_at_any_file_leaves_nothing_and_it_works_again(
    swarm: OfferWorld, autojump_clock: object, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.name == name:
            raise OSError(28, "No space left on device")
        write_file(path, data)

    async with swarm.running("alice") as alice:
        await swarm.acquainted()
        for module in (node.offer_folder, node.offers):
            monkeypatch.setattr(module, "write_file", full)
        await fails_and_leaves_nothing(alice, swarm, "the disk is full", QuotaError)
        for module in (node.offer_folder, node.offers):
            monkeypatch.setattr(module, "write_file", write_file)
        await works_again(alice, swarm, proofs=1 if name.startswith("delivery") else 2)


@pytest.mark.parametrize(
    ("kind", "method"), [(BlobStore, "put"), (BlobStore, "pin"), (LoraState, "save_own_offer")]
)
async def test_store_that_refuses_leaves_nothing_and_it_works_again(
    swarm: OfferWorld,
    autojump_clock: object,
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    method: str,
) -> None:
    real: Callable[..., Any] = getattr(kind, method)

    async with swarm.running("alice") as alice:
        await swarm.acquainted()
        mine = (alice.member.context.blobs, alice.loras)
        fails = True

        def refuse(store: Any, *rest: Any, **named: Any) -> Any:
            if fails and store in mine and len(alice.plain.jobs) == 3:  # after the last proof
                raise StorageError("the disk refuses")
            return real(store, *rest, **named)

        monkeypatch.setattr(kind, method, refuse)
        await fails_and_leaves_nothing(alice, swarm, "the disk refuses", StorageError)
        fails = False
        await works_again(alice, swarm, proofs=2)


async def test_offer_that_is_given_up_leaves_nothing_and_it_works_again(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    async with swarm.running("alice") as alice:
        await swarm.acquainted()
        alice.shelve(swarm.base)
        wish = OfferWish("boots", "free", 32, 0, 1.0)
        alice.plain.gate = trio.Event()
        with trio.move_on_after(10):
            await last_of(alice.offers.make(wish))
        assert left(alice) == []
        alice.plain.gate.set()
        events = alice.offers.make(wish)  # and one whose listener leaves
        async for event in events:
            if event["phase"] == "proved":
                break
        await events.aclose()
        assert left(alice) == []
        await works_again(alice, swarm, proofs=3)


async def test_budget_that_is_spent_is_told_before_a_proof_is_made(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    async with swarm.running("alice") as alice:
        offer = await alice.offered(swarm.base)
        limit = alice.offers.opened(own(alice, offer)).record.leaks.proofs
        alice.loras._db.execute("UPDATE leaks SET proofs = ?", (limit - 1,))
        await alice.offered(swarm.base)
        made = alice.plain.jobs.count("prove")
        with pytest.raises(BudgetSpentError, match=f"{limit} of {limit} proofs"):
            await alice.offered(swarm.base)
        assert alice.plain.jobs.count("prove") == made
        assert len(left(alice)) == 2


async def test_offers_are_made_one_after_the_other(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    async with swarm.running("alice") as alice:
        alice.shelve(swarm.base)
        alice.plain.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.offered, swarm.base)
            await trio.sleep(1)
            nursery.start_soon(alice.offered, swarm.base)
            await trio.sleep(1)
            assert alice.plain.jobs == ["commit", "prove"]
            alice.plain.gate.set()
        assert alice.plain.jobs == ["commit", "prove", "prove"] * 2
        assert len(alice.offers.standing()) == 2


async def test_adapter_whose_name_cannot_be_said_is_refused_as_such(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    async with swarm.running("alice") as alice:
        alice.shelve(swarm.base, name="bo\x07ots")
        with pytest.raises(NodeError, match="It cannot be offered") as caught:
            await last_of(alice.offers.make(OfferWish("bo\x07ots", "free", 32, 0, 1.0)))
        assert caught.value.code is ErrorCode.REFUSED
        assert left(alice) == []


# --- restarts -------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_node_that_starts_again_goes_on_advertising_answering_and_selling(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    async with swarm.running("alice") as alice:
        offer = await alice.offered(swarm.base)
    await trio.sleep(3700)  # its adverts are over
    async with swarm.running("alice") as alice:
        async with swarm.running("carol") as carol:  # who never heard of it
            await seen_within(lambda: carol.standing(offer) is OfferStanding.PROVED, within_s=120)
            looked = await last_of(carol.market.verify(LookWish(offer)))
            assert looked["scalars_left"] == 32 - 16 - 2
            bought = await last_of(carol.market.buy(LookWish(offer)))
            assert bought["measured_loss"] == pytest.approx(bought["claimed_loss"])
        assert told(alice) == {Leak(18, 0, 3)}
        assert left(alice) == [offer]


async def test_budget_is_the_same_after_a_restart(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    bob = swarm.nodes["bob"]
    async with swarm.running("alice") as alice:
        offer = await alice.offered(swarm.base, scalars=16 + 3)
        await is_proved(swarm, offer)
        await last_of(bob.market.verify(LookWish(offer)))
    async with swarm.running("alice") as alice:
        await trio.sleep(60)
        with pytest.raises(RefusedError, match="18 of 19 scalars"):
            await last_of(bob.market.verify(LookWish(offer)))
        assert told(alice) == {Leak(18, 0, 3)}


async def test_start_clears_what_was_begun_and_keeps_what_stands(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    async with swarm.running("alice") as alice:
        offer = await alice.offered(swarm.base)
        kept = labels(alice)
        assert len(kept) == 3  # the offer, its proofs and its probe
        blobs, offers = alice.member.context.blobs, alice.member.context.config.paths.offers
        for label in ("offer/x", "offer/proofs/x", "offer/looked-at", "pulled"):
            blobs.pin(blobs.put(label.encode()), label)
        for name in (".making-abc", "bafkreibegun"):
            (offers / name).mkdir()
            (offers / name / "delivery.bin").write_bytes(b"weights")
        (offers / f"{offer}.fraud").write_bytes(b"proof of another's fraud")
    async with swarm.running("alice") as alice:
        await trio.sleep(1)
        assert labels(alice) == kept
        assert "pulled" in {pin.label for pin in alice.member.context.blobs.pins()}
        assert left(alice) == [offer, f"{offer}.fraud"]


async def test_offers_for_another_run_of_the_home_are_left_alone(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    async with swarm.running("alice") as alice:
        offer = await alice.offered(swarm.base)
        alice.loras._db.execute("UPDATE own_offers SET run = ?", (cid("another run"),))
        kept = labels(alice)
    async with swarm.running("alice") as alice:
        await trio.sleep(1)
        assert alice.offers.standing() == ()
        assert left(alice) == [offer]
        assert labels(alice) == kept


async def test_offer_whose_time_is_over_leaves_nothing_at_the_next_start(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    async with swarm.running("alice") as alice:
        offer = await alice.offered(swarm.base, days=60 / 86_400)
        later = await alice.offered(swarm.base)
    await trio.sleep(61)
    async with swarm.running("alice") as alice:
        await trio.sleep(1)
        assert left(alice) == [later]
        record = alice.offers.opened(own(alice, later)).record
        assert set(labels(alice)) == {later, own(alice, later).proofs, record.claims.probe}
        assert offer not in labels(alice)


async def test_start_waits_for_a_disk_that_refuses(
    swarm: OfferWorld, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with swarm.running("alice") as alice:
        offer = await alice.offered(swarm.base)
        real, failures = alice.offers.opened, 3

        def opened(offers: Any, own: OwnOffer) -> Any:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise StorageError("the disk refuses")
            return real(own)

        monkeypatch.setattr(Offers, "opened", opened)
        alice.offers._wake.set()
        await trio.sleep(30)
        assert failures < 0
        await is_proved(swarm, offer)


async def test_network_that_fails_is_tried_again(swarm: OfferWorld, autojump_clock: object) -> None:
    async with swarm.running("alice") as alice:
        alice.member.swarm.hangs = True
        offer = await alice.offered(swarm.base)
        await trio.sleep(60)
        assert swarm.nodes["bob"].standing(offer) is None
        alice.member.swarm.hangs = False
        await is_proved(swarm, offer)


# --- withdrawing ----------------------------------------------------------------------------------


async def test_withdrawn_offer_leaves_no_weights_and_is_advertised_no_more(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    async with swarm.running("alice") as alice:
        offer = await alice.offered(swarm.base)
        await trio.sleep(1)  # an advert replaces those of before
        other = await alice.offered(swarm.base, terms="x")
        await trio.sleep(1)
        alice.offers.withdraw(offer)
        assert left(alice) == [other]
        assert own(alice, offer).proofs not in labels(alice)
        assert offer in labels(alice)  # what was said is still told of
        await trio.sleep(1)
        async with swarm.running("carol") as carol:
            await seen_within(lambda: carol.standing(other) is OfferStanding.PROVED, within_s=120)
            assert carol.standing(offer) is None
        alice.offers.withdraw(offer)  # nothing is left to do


async def test_withdrawing_that_failed_midway_is_finished_the_next_time(
    swarm: OfferWorld, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with swarm.running("alice") as alice:
        offer = await alice.offered(swarm.base)

        def refuse(_: Path) -> None:
            raise OSError(30, "Read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr(node.offer_folder, "remove_folder", refuse)
            with pytest.raises(StorageError, match="Read-only"):
                alice.offers.withdraw(offer)
        assert alice.offers.standing() == ()
        assert left(alice) == [offer]
        alice.offers.withdraw(offer)
        assert left(alice) == []


async def test_offer_of_somebody_else_cannot_be_withdrawn(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    async with swarm.running("alice") as alice:
        with pytest.raises(NodeError) as caught:
            alice.offers.withdraw(cid("nobody's"))
        assert caught.value.code is ErrorCode.NOT_FOUND


async def test_newest_offers_of_a_cluster_are_those_that_are_advertised(
    swarm: OfferWorld, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with swarm.running("alice") as alice:
        await trio.sleep(1)
        offer = await alice.offered(swarm.base)
        made = own(alice, offer)
        blobs = alice.member.context.blobs
        for number in range(MAX_OFFERS_PER_ADVERT + 1):
            copy = replace(made, offer=blobs.put(b"%d" % number), created_at=wall() + number)
            alice.loras.save_own_offer(copy)
        adverts: list[int] = []

        async def note(offers: Offers, cluster: ClusterId, these: Sequence[OwnOffer]) -> None:
            adverts.append(len(these))
            assert offer not in {one.offer for one in these}

        with monkeypatch.context() as patch:
            patch.setattr(Offers, "_advertise", note)
            alice.offers._wake.set()
            await seen_within(lambda: adverts)
        assert adverts == [MAX_OFFERS_PER_ADVERT]


async def test_an_offer_that_no_advert_has_room_for_is_refused_before_anything_is_told(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    async with swarm.running("alice") as alice:
        offer = await alice.offered(swarm.base)
        for number in range(MAX_OFFERS_PER_ADVERT - 1):
            alice.loras.save_own_offer(replace(own(alice, offer), offer=cid(f"{number}")))
        before = told(alice)
        with pytest.raises(NodeError, match="as many as it can advertise") as caught:
            await alice.offered(swarm.base)
        assert caught.value.code is ErrorCode.REFUSED
        assert told(alice) == before
        alice.loras.withdraw(cid("0"))
        await alice.offered(swarm.base)
