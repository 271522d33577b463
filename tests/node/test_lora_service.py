"""Offers as the API has them: what is asked of the parts, what is told, and errors as sentences."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio.lowlevel

from node.clock import now_s
from node.errors import ErrorCode, NodeError
from node.lora_budget import Limits, Spend
from node.lora_market import LookWish, LoraMarket
from node.lora_rows import OfferStanding, SeenOffer
from node.lora_service import LoraService
from node.offer_board import OfferBoard
from node.offer_draft import OfferWish
from node.offers import Offers
from node.proving import RejectedByProofError
from p2p.codec import BLOB_KEY, Verified, open_signed
from p2p.errors import PeerError, RefusedError, StorageError, TransportError
from p2p.ids import BlobId, PeerId
from p2p.lora_records import LoraOffer
from tests.node.test_offer_rows import MODULES, OWN, RECORD, SEEN
from tests.support.offer_swarm import offer_world, seen_within, shared_circuits, two_layers
from tests.support.people import alice, bob, carol, cid, sealed
from tests.support.swarm import MemberNode, World, open_nodes, world

__all__ = ["shared_circuits", "two_layers", "world"]

WISH: dict[str, object] = {
    "lora": "boots",
    "terms": "free",
    "scalars": 20,
    "delta_rows": 3,
    "days": 2,
    "buyers": [bob.peer],
}
LOOK: dict[str, object] = {"base": None, "probe": None, "pairs": 1, "delta_draws": 0}
EVENTS: list[dict[str, object]] = [
    {"event": "progress", "phase": "proofs", "done": 1, "total": 2},
    {"event": "done"},
]


@dataclass
class Parts:
    """Stands in for `Offers`, `OfferBoard` and `LoraMarket`: says what a test puts there.

    Attributes:
        record: of every offer.
        failure: raised before the first event of whatever is asked, if set.
        late: raised after the first event.
        asked: wishes and names, in order.
        fetched: offers that had to be fetched, and who was asked first.
        closed: how many streams were closed, to the end or not.
        withdrawn: an offer of which nothing is kept but what it said.
    """

    record: LoraOffer = RECORD
    failure: Exception | None = None
    late: Exception | None = None
    asked: list[object] = field(default_factory=list)
    fetched: list[tuple[BlobId, PeerId | None]] = field(default_factory=list)
    closed: int = 0
    withdrawn: BlobId = field(default_factory=lambda: cid("withdrawn"))
    context: Any = None

    # --- of Offers
    def opened(self, own: object) -> Verified[LoraOffer]:
        self._fail()
        return self._offer()

    def buyers(self, offer: BlobId) -> frozenset[PeerId]:
        if offer == self.withdrawn:
            raise StorageError("its folder is gone")
        return frozenset({carol.peer})

    def make(self, wish: OfferWish) -> AsyncGenerator[dict[str, object]]:
        return self._events(wish)

    def withdraw(self, offer: BlobId) -> None:
        self._fail()
        self.asked.append(offer)

    # --- of OfferBoard
    def offers(self) -> tuple[SeenOffer, ...]:
        self._fail()
        return cast("tuple[SeenOffer, ...]", self.context.state.loras.seen_all(self.context.run))

    async def offer(self, offer: BlobId, owner: PeerId | None = None) -> Verified[LoraOffer]:
        await trio.lowlevel.checkpoint()
        self._fail()
        self.fetched.append((offer, owner))
        return self._offer()

    # --- of LoraMarket
    def verify(self, wish: LookWish) -> AsyncGenerator[dict[str, object]]:
        return self._events(wish)

    def buy(self, wish: LookWish) -> AsyncGenerator[dict[str, object]]:
        return self._events(wish)

    def _offer(self) -> Verified[LoraOffer]:
        envelope = sealed(self.record, alice)
        return open_signed(LoraOffer, envelope, key=BLOB_KEY, now=self.record.created_at)

    async def _events(self, wish: object) -> AsyncGenerator[dict[str, object]]:
        await trio.lowlevel.checkpoint()
        self._fail()
        self.asked.append(wish)
        try:
            yield EVENTS[0]
            if self.late is not None:
                raise self.late
            yield EVENTS[1]
        finally:
            self.closed += 1

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


@asynccontextmanager
async def serving(world: World, parts: Parts) -> AsyncIterator[tuple[LoraService, MemberNode]]:
    async with open_nodes(world, ("ada",)) as (ada,):
        parts.context = ada.context
        yield (
            LoraService(
                ada.context,
                cast("Offers", parts),
                cast("OfferBoard", parts),
                cast("LoraMarket", parts),
            ),
            ada,
        )


def heard(node: MemberNode, **changes: Any) -> SeenOffer:
    """An offer that the node remembers."""
    now = now_s()
    times = {"expires_at": now + 600, "updated_at": now}
    seen = replace(SEEN, run=node.context.run, **(times | changes))
    node.context.state.loras.note_seen(seen)
    return seen


def made(node: MemberNode, **changes: Any) -> BlobId:
    """An offer of the node's own."""
    times = {"created_at": now_s(), "expires_at": now_s() + 600}
    own = replace(OWN, run=node.context.run, **(times | changes))
    node.context.state.loras.save_own_offer(own)
    return own.offer


async def told(
    events: AsyncGenerator[Mapping[str, object]], seen: list[Mapping[str, object]] | None = None
) -> list[Mapping[str, object]]:
    """All events; also those before a failure, if a list is given for them."""
    found = [] if seen is None else seen
    async for event in events:
        found.append(event)
    return found


async def test_offers_are_those_heard_of_and_ones_own_that_still_stand(
    world: World, autojump_clock: object
) -> None:
    async with serving(world, Parts()) as (service, ada):
        seen = heard(ada)
        standing = made(ada)
        withdrawn = made(ada, offer=cid("withdrawn"), is_withdrawn=True)
        shown: Any = await service.show_offer(withdrawn)
        assert (shown["withdrawn"], shown["buyers"]) == (True, [])
        made(ada, offer=cid("over"), expires_at=now_s() - 1)
        limits = Limits(scalars=32, rows=0, proofs=64)
        spent = {module.name: Spend(scalars=16, proofs=2) for module in MODULES}
        ada.context.state.loras.spend(OWN.adapter, spent, limits)
        answer: Any = service.offers()
        assert (answer["schema"], answer["run"]) == (1, ada.context.run)
        assert [row["offer"] for row in answer["offers"]] == [seen.offer]
        assert answer["offers"][0]["owner_name"] is None  # nobody of that name is known
        own = {row["offer"]: row for row in answer["own"]}
        assert own.keys() == {standing, withdrawn}
        assert own[withdrawn]["withdrawn"]
        assert own[standing]["told_percent"] == pytest.approx(2.128, abs=0.01)
        assert own[standing]["proofs_made"] == 2
        assert own[standing]["buyers"] == [carol.peer]


async def test_disk_that_refuses_is_a_sentence_whatever_is_asked(
    world: World, autojump_clock: object
) -> None:
    parts = Parts(failure=StorageError("the disk is full"))
    async with serving(world, parts) as (service, ada):
        offer = made(ada)
        for ask in (service.offers, lambda: service.withdraw_offer(offer)):
            with pytest.raises(NodeError, match="the disk is full") as caught:
                ask()
            assert caught.value.code is ErrorCode.RESOURCE
        with pytest.raises(NodeError, match="the disk is full"):
            await service.show_offer(offer)
        for events in (
            service.make_offer(WISH),
            service.verify_offer(offer, LOOK),
            service.buy_offer(offer, {"base": None}),
        ):
            with pytest.raises(NodeError, match="the disk is full"):
                await told(events)


async def test_shown_offer_has_its_row_its_statement_and_its_record(
    world: World, autojump_clock: object
) -> None:
    parts = Parts()
    async with serving(world, parts) as (service, ada):
        seen = heard(ada)
        answer: Any = await service.show_offer(seen.offer)
        assert parts.fetched == [(seen.offer, alice.peer)]
        assert (answer["own"], answer["standing"], answer["owner"]) == (False, "proved", alice.peer)
        assert answer["statement"].startswith("proved: whoever signed this knows weights of rank")
        assert answer["terms"] == RECORD.terms
        assert [shape["k"] for shape in answer["shapes"]] == [10, 10]
        assert answer["probe"]["rows"] == 64


async def test_shown_own_offer_is_never_fetched_and_tells_what_leaked(
    world: World, autojump_clock: object
) -> None:
    parts = Parts()
    async with serving(world, parts) as (service, ada):
        answer: Any = await service.show_offer(made(ada))
        assert parts.fetched == []
        assert (answer["own"], answer["told_percent"]) == (True, 0.0)
        assert answer["statement"].startswith("yours: ")


async def test_own_offer_that_is_over_is_not_found_though_its_record_is_gone(
    world: World, autojump_clock: object
) -> None:
    parts = Parts(failure=StorageError("blob is not in the local store"))
    async with serving(world, parts) as (service, ada):
        with pytest.raises(NodeError, match="is over") as caught:
            await service.show_offer(made(ada, expires_at=now_s()))
        assert caught.value.code is ErrorCode.NOT_FOUND


async def test_refused_offer_is_shown_without_being_fetched_again(
    world: World, autojump_clock: object
) -> None:
    parts = Parts()
    async with serving(world, parts) as (service, ada):
        seen = heard(ada, standing=OfferStanding.REFUSED, why="no offer", facts={})
        answer: Any = await service.show_offer(seen.offer)
        assert parts.fetched == []
        assert answer["statement"] == "refused: no offer"
        assert "shapes" not in answer


async def test_offer_of_impossible_shapes_is_a_sentence(
    world: World, autojump_clock: object
) -> None:
    huge = replace(MODULES[0], inputs=8192)
    parts = Parts(replace(RECORD, modules=(huge,)))
    async with serving(world, parts) as (service, ada):
        with pytest.raises(NodeError, match="cannot be") as caught:
            await service.show_offer(heard(ada).offer)
        assert caught.value.code is ErrorCode.VERIFICATION_FAILED


async def test_offer_nobody_told_of_is_not_found_and_what_is_no_cid_is_usage(
    world: World, autojump_clock: object
) -> None:
    async with serving(world, Parts()) as (service, _):
        with pytest.raises(NodeError, match="not heard of") as caught:
            await service.show_offer(cid("nobody's"))
        assert caught.value.code is ErrorCode.NOT_FOUND
        with pytest.raises(NodeError) as caught:
            await service.show_offer("../etc")
        assert caught.value.code is ErrorCode.USAGE
        with pytest.raises(NodeError) as caught:
            service.withdraw_offer("../etc")
        assert caught.value.code is ErrorCode.USAGE
        for events in (service.verify_offer("x", LOOK), service.buy_offer("x", {"base": None})):
            with pytest.raises(NodeError) as caught:
                await told(events)
            assert caught.value.code is ErrorCode.USAGE


async def test_wish_reaches_the_maker_whole_and_its_events_come_through(
    world: World, autojump_clock: object
) -> None:
    parts = Parts()
    async with serving(world, parts) as (service, _):
        assert await told(service.make_offer(WISH)) == EVENTS
        assert parts.asked == [OfferWish("boots", "free", 20, 3, 2.0, (bob.peer,))]


async def test_look_reaches_the_market_whole_and_its_events_come_through(
    world: World, autojump_clock: object, tmp_path: Path
) -> None:
    parts = Parts()
    async with serving(world, parts) as (service, ada):
        offer, base = heard(ada).offer, cid("checkpoint")
        look = {"base": base, "probe": str(tmp_path), "pairs": 3, "delta_draws": 2}
        assert await told(service.verify_offer(offer, look)) == EVENTS
        assert await told(service.verify_offer(offer, LOOK)) == EVENTS
        assert await told(service.buy_offer(offer, {"base": base})) == EVENTS
        assert parts.asked == [
            LookWish(offer, base, tmp_path, 3, 2),
            LookWish(offer),
            LookWish(offer, base),
        ]


async def test_deltas_that_the_owner_does_not_give_are_refused_before_a_number_is_spent(
    world: World, autojump_clock: object
) -> None:
    parts = Parts()
    async with serving(world, parts) as (service, ada):
        offer = heard(ada, facts={**SEEN.facts, "delta_rows": 0}).offer
        with pytest.raises(NodeError, match="no delta mode") as caught:
            await told(service.verify_offer(offer, {**LOOK, "delta_draws": 1}))
        assert caught.value.code is ErrorCode.REFUSED
        assert parts.asked == []
        assert await told(service.verify_offer(offer, LOOK)) == EVENTS


async def test_probe_that_is_not_there_is_not_found(
    world: World, autojump_clock: object, tmp_path: Path
) -> None:
    parts = Parts()
    (tmp_path / "file").touch()
    async with serving(world, parts) as (service, ada):
        offer = heard(ada).offer
        for path in (tmp_path / "none", tmp_path / "file"):
            with pytest.raises(NodeError, match="There is no folder") as caught:
                await told(service.verify_offer(offer, {**LOOK, "probe": str(path)}))
            assert caught.value.code is ErrorCode.NOT_FOUND
        assert parts.asked == []


@pytest.mark.parametrize(
    ("late", "code"),
    [
        (RefusedError("budget_spent", "32 of 32 are spent"), ErrorCode.REFUSED),
        (PeerError("Answer.values: 3 bytes"), ErrorCode.VERIFICATION_FAILED),
        (TransportError("cannot be reached"), ErrorCode.FAILED),
        (NodeError(ErrorCode.TIMEOUT, "late"), ErrorCode.TIMEOUT),
    ],
)
async def test_failure_midway_is_a_sentence_after_what_was_told(
    world: World, autojump_clock: object, late: Exception, code: ErrorCode
) -> None:
    parts = Parts(late=late)
    async with serving(world, parts) as (service, ada):
        offer = heard(ada).offer
        for events in (
            service.make_offer(WISH),
            service.verify_offer(offer, LOOK),
            service.buy_offer(offer, {"base": None}),
        ):
            seen: list[Mapping[str, object]] = []
            with pytest.raises(NodeError) as caught:
                await told(events, seen)
            assert seen == EVENTS[:1]
            assert caught.value.code is code
        assert parts.closed == 3


async def test_adapter_that_no_proof_can_be_made_of_is_refused(
    world: World, autojump_clock: object
) -> None:
    parts = Parts(late=RejectedByProofError("to_q: the adapter is zero there"))
    async with serving(world, parts) as (service, _):
        with pytest.raises(NodeError, match="boots cannot be offered: to_q") as caught:
            await told(service.make_offer(WISH))
        assert caught.value.code is ErrorCode.REFUSED


async def test_listener_that_leaves_ends_the_work(world: World, autojump_clock: object) -> None:
    parts = Parts()
    async with serving(world, parts) as (service, ada):
        offer = heard(ada).offer
        for events in (
            service.make_offer(WISH),
            service.verify_offer(offer, LOOK),
            service.buy_offer(offer, {"base": None}),
        ):
            assert await anext(events) == EVENTS[0]
            await events.aclose()
        assert parts.closed == 3


async def test_own_offer_is_withdrawn_by_its_id(world: World, autojump_clock: object) -> None:
    parts = Parts()
    async with serving(world, parts) as (service, ada):
        offer = made(ada)
        answer = service.withdraw_offer(offer)
        assert answer == {"schema": 1, "offer": offer, "withdrawn": True}
        assert parts.asked == [offer]


@pytest.mark.slow
@pytest.mark.usefixtures("two_layers")
async def test_real_offer_is_listed_shown_withdrawn_and_still_told_of(tmp_path: Path) -> None:
    async with offer_world(tmp_path, "alice", "bob") as swarm:
        alice_, bob_ = (
            LoraService(each.member.context, each.offers, each.board, each.market)
            for each in swarm.nodes.values()
        )
        swarm.nodes["alice"].shelve(swarm.base)
        wish = {**WISH, "scalars": 32, "buyers": []}
        *_, done = await told(alice_.make_offer({**wish, "lora": "boots"}))
        offer = str(done["offer"])

        def proved() -> Any:
            rows: Any = bob_.offers()["offers"]
            return [row for row in rows if row["standing"] == "proved"]

        (row,) = await seen_within(proved)
        assert (row["offer"], row["rank"], row["layers"]) == (offer, 2, 2)
        shown: Any = await bob_.show_offer(offer)
        assert "knows weights of rank <= 2 for 2 layers" in shown["statement"]
        assert shown["leaks"]["percent"] > 0

        look = {**LOOK, "base": swarm.base}
        *_, looked = await told(bob_.verify_offer(offer, look))
        assert looked["scalars_left"] == 14
        own: Any = (await alice_.show_offer(offer))["told_percent"]
        assert own == looked["leak_percent"]  # both say the same of what is told
        alice_.withdraw_offer(offer)
        (mine,) = cast("list[Any]", alice_.offers()["own"])
        assert (mine["withdrawn"], mine["told_percent"]) == (True, own)
        with pytest.raises(NodeError) as caught:
            await told(bob_.verify_offer(offer, look))
        assert caught.value.code is ErrorCode.REFUSED
