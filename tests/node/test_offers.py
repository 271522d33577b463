"""The life of an offer between nodes in one process, with real proofs."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from node.errors import ErrorCode, NodeError
from node.lora_market import LookWish
from node.lora_rows import OfferStanding
from node.offer_board import STRIKES
from node.offer_draft import Drafting, OfferWish
from node.offer_folder import write_delivery
from p2p.errors import RefusedError
from p2p.fraud import check_fraud, unpack_fraud
from p2p.ids import BlobId, PeerId
from tests.support.offer_swarm import (
    BASE_LOSS,
    LAYERS,
    RANK,
    OfferNode,
    OfferWorld,
    change,
    helpful,
    ints_of,
    offer_world,
    raw_of,
    seen_within,
    shared_circuits,
    two_layers,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_layers")]

__all__ = ["shared_circuits", "two_layers"]


async def last_of(events: AsyncGenerator[dict[str, Any]]) -> dict[str, Any]:
    """The last event of a stream."""
    found: dict[str, Any] = {}
    async with aclosing(events):
        async for event in events:
            found = event
    return found


async def offered(world: OfferWorld, seller: OfferNode, **wish: Any) -> BlobId:
    """An offer of the seller's adapter; its id."""
    facts = {"terms": "free", "scalars": 32, "delta_rows": 0, "days": 1.0, **wish}
    seller.shelve(world.base)
    done = await last_of(seller.offers.make(OfferWish(lora="boots", **facts)))
    return BlobId(done["offer"])


def standing(node: OfferNode, offer: BlobId) -> OfferStanding | None:
    seen = node.member.context.state.loras.seen(offer)
    return seen.standing if seen else None


async def proved(node: OfferNode, offer: BlobId) -> None:
    await seen_within(lambda: standing(node, offer) is OfferStanding.PROVED)


async def test_an_offer_is_proved_looked_into_bought_and_measured(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob") as world:
        alice, bob = world.nodes.values()
        offer = await offered(world, alice)
        await proved(bob, offer)

        looked = await last_of(bob.market.verify(LookWish(offer)))
        true = change(helpful())
        assert looked["predicted"] == pytest.approx(true, rel=0.01)
        assert looked["base_loss"] == BASE_LOSS
        assert looked["scalars_left"] == 32 - 16 - 2  # one pair, and one of signs
        assert 0 < looked["leak_percent"] < 10
        assert 0 < looked["ratio"] < 1

        bought = await last_of(bob.market.buy(LookWish(offer)))
        assert bought["measured_loss"] == pytest.approx(bought["claimed_loss"])
        assert standing(bob, offer) is OfferStanding.MEASURED
        kept = Path(bought["folder"])
        sold = alice.offers.folder(offer) / "delivery.bin"
        assert sold.read_bytes().endswith((kept / "arrays.bin").read_bytes())


async def test_an_offer_made_anew_tells_nothing_new(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice") as world:
        (alice,) = world.nodes.values()
        first = await offered(world, alice)
        again = OfferWish("boots", "now it costs something", 32, 0, 1.0)
        second = BlobId((await last_of(alice.offers.make(again)))["offer"])
        one, two = (alice.offers.opened(own).record for own in alice.offers.standing())
        assert first != second
        assert one.modules == two.modules  # the same commitments, so the same signs
        leaks = alice.member.context.state.loras.leaks(alice.offers.standing()[0].adapter)
        assert {leak.scalars for leak in leaks.values()} == {16}
        assert {leak.proofs for leak in leaks.values()} == {2}


async def test_an_offer_for_another_base_is_refused_before_anything_is_fetched(
    tmp_path: Path,
) -> None:
    async with offer_world(tmp_path, "alice", "bob") as world:
        alice, bob = world.nodes.values()
        offer = await offered(world, alice)
        await proved(bob, offer)
        other = world.publish(alice)
        pulls = len(world.world.hub.pulls)
        for action in (bob.market.verify, bob.market.buy):
            with pytest.raises(NodeError) as caught:
                await last_of(action(LookWish(offer, base=other)))
            assert caught.value.code is ErrorCode.REFUSED
            assert world.base in caught.value.message
            assert other in caught.value.message
        assert len(world.world.hub.pulls) == pulls


async def test_an_offer_for_a_checkpoint_of_another_cluster_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with offer_world(tmp_path, "alice", "bob") as world:
        alice, bob = world.nodes.values()
        world.base = world.publish(alice, cluster=1)  # the adapter says cluster 0
        with pytest.raises(NodeError, match="is of cluster 1; this node"):
            await offered(world, alice)
        monkeypatch.setattr(Drafting, "_check_cluster", lambda *_: None)
        wish = OfferWish("boots", "free", 32, 0, 1.0)
        offer = BlobId((await last_of(alice.offers.make(wish)))["offer"])
        await seen_within(lambda: standing(bob, offer) is OfferStanding.REFUSED)
        seen = bob.member.context.state.loras.seen(offer)
        assert seen is not None
        assert world.base in seen.why
        assert "this node's expert" in seen.why


async def test_a_zero_adapter_is_refused(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob") as world:
        alice, bob = world.nodes.values()
        alice.adapters.ints = {k: (a * 0, b) for k, (a, b) in helpful().items()}
        offer = await offered(world, alice)
        await seen_within(lambda: standing(bob, offer) is OfferStanding.REFUSED)
        seen = bob.member.context.state.loras.seen(offer)
        assert seen is not None
        assert "zero" in seen.why


async def test_an_adapter_scaled_up_is_refused_by_its_size(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob") as world:
        alice, bob = world.nodes.values()
        bob.board.policy = replace(bob.board.policy, most_ratio=0.05)
        alice.adapters.ints, alice.adapters.claims = helpful(scale=64), 0.1
        offer = await offered(world, alice)
        await proved(bob, offer)  # the proof says nothing false: it is what it is
        with pytest.raises(NodeError, match="of their norm; this node takes") as caught:
            await last_of(bob.market.verify(LookWish(offer)))
        assert caught.value.code is ErrorCode.REFUSED


async def test_a_size_that_its_maker_made_look_small_is_found_by_one_s_own_signs(
    tmp_path: Path,
) -> None:
    async with offer_world(tmp_path, "alice", "bob") as world:
        alice, bob = world.nodes.values()
        bob.board.policy = replace(bob.board.policy, most_ratio=0.05)
        alice.adapters.ints, alice.adapters.claims = helpful(scale=64), 0.1
        offer = await offered(world, alice)
        await proved(bob, offer)
        seen = bob.loras.seen(offer)
        assert seen is not None
        small = dict.fromkeys((layer.name for layer in LAYERS), 1e-6)  # as if drawn and drawn again
        bob.loras.note_seen(replace(seen, facts={**seen.facts, "squares": small}))
        with pytest.raises(NodeError, match="of their norm; this node takes"):
            await last_of(bob.market.verify(LookWish(offer)))
        (own,) = alice.offers.standing()
        assert {leak.scalars for leak in alice.loras.leaks(own.adapter).values()} == {18}  # asked


async def test_the_same_adapter_unscaled_passes_the_same_band(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob") as world:
        alice, bob = world.nodes.values()
        bob.board.policy = replace(bob.board.policy, most_ratio=0.05)
        offer = await offered(world, alice)
        await proved(bob, offer)
        looked = await last_of(bob.market.verify(LookWish(offer)))
        assert looked["ratio"] < 0.05


async def test_one_integer_changed_in_the_delivery_leaves_proof_of_fraud(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob") as world:
        alice, bob = world.nodes.values()
        offer = await offered(world, alice)
        await proved(bob, offer)
        folder = alice.offers.folder(offer)
        data = bytearray((folder / "delivery.bin").read_bytes())
        data[-1] ^= 1
        write_delivery(folder, bytes(data))
        with pytest.raises(NodeError, match="not what was offered") as caught:
            await last_of(bob.market.buy(LookWish(offer)))
        assert caught.value.code is ErrorCode.VERIFICATION_FAILED
        file = Path(caught.value.fix.split("judge ")[1])
        case = check_fraud(unpack_fraud(await trio.Path(file).read_bytes()), now=0.0)
        assert (case.seller, case.buyer, case.offer_id) == (alice.peer, bob.peer, offer)
        assert case.plaintext == bytes(data)
        assert standing(bob, offer) is OfferStanding.REFUSED
        assert bob.member.context.state.loras.is_banned(PeerId(alice.peer), time.time() + 86_400)
        assert not list(bob.member.context.config.paths.loras.glob("*"))


async def test_weights_that_do_less_than_was_claimed_are_told_of(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob") as world:
        alice, bob = world.nodes.values()
        alice.adapters.claims = 0.5 * (BASE_LOSS + change(helpful()))
        offer = await offered(world, alice)
        await proved(bob, offer)
        with pytest.raises(NodeError, match="does not do what was claimed") as caught:
            await last_of(bob.market.buy(LookWish(offer)))
        assert caught.value.code is ErrorCode.VERIFICATION_FAILED
        seen = bob.member.context.state.loras.seen(offer)
        assert seen is not None
        assert "was claimed" in seen.why


async def test_probes_end_with_the_budget_whoever_asks(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob", "carol") as world:
        alice, bob, carol = world.nodes.values()
        offer = await offered(world, alice, scalars=16 + 5)
        await proved(bob, offer)
        await proved(carol, offer)
        looked = await last_of(bob.market.verify(LookWish(offer, pairs=2)))
        assert looked["scalars_left"] == 2
        with pytest.raises(RefusedError, match="19 of 21 scalars") as caught:
            await last_of(carol.market.verify(LookWish(offer, pairs=2)))
        assert caught.value.code == "budget_spent"
        looked = await last_of(carol.market.verify(LookWish(offer)))
        assert looked["scalars_left"] == 0


async def test_requests_at_the_same_time_never_pass_the_budget(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob", "carol", "dave") as world:
        alice, *others = world.nodes.values()
        offer = await offered(world, alice, scalars=16 + 4)
        for node in others:
            await proved(node, offer)
        refusals: list[str] = []

        async def look(node: OfferNode) -> None:
            try:
                await last_of(node.market.verify(LookWish(offer)))
            except RefusedError as error:
                refusals.append(error.code)

        async with trio.open_nursery() as nursery:
            for node in others:
                nursery.start_soon(look, node)
        assert refusals == ["budget_spent"]
        leaks = alice.member.context.state.loras.leaks(alice.offers.standing()[0].adapter)
        assert {leak.scalars for leak in leaks.values()} == {20}


async def test_delta_mode_needs_to_be_offered(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob") as world:
        alice, bob = world.nodes.values()
        offer = await offered(world, alice)
        await proved(bob, offer)
        with pytest.raises(RefusedError, match="no delta mode") as caught:
            await last_of(bob.market.verify(LookWish(offer, delta_draws=1)))
        assert caught.value.code == "not_offered"


async def test_deltas_give_the_loss_and_use_up_their_rows(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob") as world:
        alice, bob = world.nodes.values()
        offer = await offered(world, alice, delta_rows=64)
        await proved(bob, offer)
        looked = await last_of(bob.market.verify(LookWish(offer, delta_draws=8)))
        assert looked["delta_loss"] == pytest.approx(BASE_LOSS + change(helpful()))
        assert looked["rows_left"] == 0
        assert looked["delta_leak_percent"] == 100.0  # as many rows as inputs: all of A B
        with pytest.raises(RefusedError, match="64 of 64 rows"):
            await last_of(bob.market.verify(LookWish(offer, delta_draws=1)))


async def test_only_named_buyers_get_an_offer_that_names_them(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob", "carol") as world:
        alice, bob, carol = world.nodes.values()
        offer = await offered(world, alice, buyers=(PeerId(carol.peer),))
        await proved(bob, offer)
        await proved(carol, offer)
        with pytest.raises(RefusedError, match="not for you"):
            await last_of(bob.market.buy(LookWish(offer)))
        assert (await last_of(carol.market.buy(LookWish(offer))))["event"] == "done"


async def test_a_withdrawn_offer_is_answered_for_no_more(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob") as world:
        alice, bob = world.nodes.values()
        offer = await offered(world, alice)
        await proved(bob, offer)
        alice.offers.withdraw(offer)
        with pytest.raises(RefusedError, match="does not offer") as caught:
            await last_of(bob.market.buy(LookWish(offer)))
        assert caught.value.code == "unknown_offer"


async def test_an_owner_whose_offers_do_not_hold_is_left_alone(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob") as world:
        alice, bob = world.nodes.values()
        alice.adapters.ints = {k: (a * 0, b) for k, (a, b) in helpful().items()}
        await offered(world, alice)
        for _ in range(STRIKES - 1):
            await last_of(alice.offers.make(OfferWish("boots", "free", 32, 0, 1.0)))
        banned = bob.member.context.state.loras.is_banned
        await seen_within(lambda: banned(PeerId(alice.peer), time.time()))
        assert not banned(PeerId(alice.peer), time.time() + 3601)
        checked = bob.board.counts["proofs checked"]
        await last_of(alice.offers.make(OfferWish("boots", "please", 32, 0, 1.0)))
        await seen_within(lambda: bob.board.counts["of banned owners"])
        assert bob.board.counts["proofs checked"] == checked


def test_delivered_integers_come_back_as_they_were() -> None:
    ints = helpful()
    again = ints_of(raw_of(ints))
    for name, (a, b) in ints.items():
        assert a.shape == (64, RANK)
        np.testing.assert_array_equal(a, again[name][0])
        np.testing.assert_array_equal(b, again[name][1])
