"""T11: a storm of bad, replayed and oversized offers around five good ones."""

import random
import time
from collections.abc import Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from node.keeping import keep_folder
from node.lora_rows import OfferStanding
from node.offer_draft import OfferWish
from p2p.codec import BLOB_KEY, seal
from p2p.errors import P2PError
from p2p.file_sets import FileEntry, FileSet
from p2p.gossip_rules import topic
from p2p.ids import BlobId, blob_id
from p2p.lora_records import LoraModule, LoraOffer, OfferAdvert, OfferRef
from p2p.offer_proofs import PROOFS_FILE, ModuleProof, OfferProofs, pack_offer_proofs
from p2p.records import lora_key
from tests.support.offer_swarm import (
    OfferNode,
    offer_world,
    seen_within,
    shared_circuits,
    two_layers,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_layers")]

__all__ = ["shared_circuits", "two_layers"]

BAD = 200
REPLAYED = 20
ATTACKERS = ("mallory", "trudy", "oscar", "eve")
PROOF_BYTES = 2112
STORM_S = 30.0


def forged(node: OfferNode, genuine: LoraOffer, number: int) -> OfferRef:
    """An offer of good form: somebody's record with other commitments, and proofs of noise."""
    context, rng = node.member.context, random.Random(number)
    modules = tuple(
        replace(module, commitment=rng.randbytes(len(module.commitment)))
        for module in genuine.modules
    )
    offer = replace(genuine, modules=modules, seq=number, created_at=time.time())
    envelope = seal(offer, context.identity, key=BLOB_KEY, expires_at=None)
    offer_id = context.blobs.put(envelope)
    context.blobs.pin(offer_id, "offer", ())
    proofs = OfferProofs(
        offer_id,
        tuple(ModuleProof(m.name, rng.randbytes(256), rng.randbytes(PROOF_BYTES)) for m in modules),
    )
    data = pack_offer_proofs(proofs)
    entry = FileEntry(PROOFS_FILE, len(data), (context.blobs.put(data),))
    root = keep_folder(context.blobs, FileSet((entry,)), f"proofs/{number}")
    return OfferRef(offer_id, offer.base, root)


def advert(node: OfferNode, ref: OfferRef, moment: float) -> bytes:
    context = node.member.context
    key = lora_key(context.run, 0)  # type: ignore[arg-type]
    record = OfferAdvert(context.run, 0, (ref,), issued_at=moment)  # type: ignore[arg-type]
    return seal(record, context.identity, key=key, expires_at=moment + 600)


def bad_messages(
    attackers: list[OfferNode], genuine: LoraOffer
) -> Iterator[tuple[OfferNode, bytes]]:
    """Forged offers, wrong bases, wrong circuits, flipped signatures, in turn by each attacker."""
    now = time.time()
    for number in range(BAD):
        node = attackers[number % len(attackers)]
        match number % 10:
            case 0:
                other = LoraModule("x", 64, 64, "0" * 64, genuine.modules[0].commitment)
                ref = forged(node, replace(genuine, modules=(other,)), number)
            case 1:
                ref = forged(node, replace(genuine, base=blob_id(b"nothing")), number)
            case _:
                ref = forged(node, genuine, number)
        data = advert(node, ref, now + number / 1000)
        if number % 10 == 2:
            data = data[:-1] + bytes([data[-1] ^ 1])
        yield node, data


def bombs() -> list[bytes]:
    """Too large, too deep, and maps that would fill the memory."""
    return [bytes(1 << 20), b"\x91" * 16_000, b"\x80" * 16_000, b"\xdf\xff\xff\xff\xff" * 10, b""]


async def storm(attackers: list[OfferNode], messages: list[tuple[OfferNode, bytes]]) -> None:
    """Send everything within the time, each from whom it should come."""
    pause_s = STORM_S / len(messages) / 2
    for node, data in messages:
        context = node.member.context
        with suppress(P2PError):  # our own host does not send what is too large
            await context.host.publish(topic(context.run, "lora"), data)
        await trio.sleep(pause_s)


async def lag_of(lags: list[float]) -> None:
    """How late the loop is, every ten milliseconds."""
    while True:
        begun = trio.current_time()
        await trio.sleep(0.01)
        lags.append(trio.current_time() - begun - 0.01)


async def test_five_good_offers_are_accepted_in_a_storm_and_few_bad_ones_reach_ezkl(
    tmp_path: Path,
) -> None:
    async with offer_world(tmp_path, "alice", "bob", *ATTACKERS) as world:
        alice, bob, *attackers = world.nodes.values()
        alice.shelve(world.base)
        good = [await _offer(alice)]
        await seen_within(lambda: _is_proved(bob, good[0]))
        genuine = alice.offers.opened(alice.offers.standing()[0]).record
        before = bob.board.counts["proofs checked"]
        messages = list(bad_messages(attackers, genuine))
        messages += [(attackers[0], data) for data in bombs()]
        messages += messages[:REPLAYED]
        lags: list[float] = []
        with trio.fail_after(4 * STORM_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lag_of, lags)
                async with trio.open_nursery() as both:
                    both.start_soon(storm, attackers, messages)
                    for _ in range(4):
                        good.append(await _offer(alice))
                await seen_within(lambda: all(_is_proved(bob, offer) for offer in good), STORM_S)
                nursery.cancel_scope.cancel()
        checked = bob.board.counts["proofs checked"] - before
        assert checked - 2 * 4 <= 10  # two layers each of four more good offers
        assert bob.board.counts["banned"] == len(ATTACKERS)
        assert sorted(lags)[int(0.99 * len(lags))] < 0.1


async def _offer(node: OfferNode) -> BlobId:
    found = ""
    async with aclosing(node.offers.make(OfferWish("boots", "free", 32, 0, 1.0))) as events:
        async for event in events:
            found = str(event.get("offer", ""))
    return BlobId(found)


def _is_proved(node: OfferNode, offer: BlobId) -> bool:
    seen = node.member.context.state.loras.seen(offer)
    return seen is not None and seen.standing is OfferStanding.PROVED
