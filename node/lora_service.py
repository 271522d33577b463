"""Offers as `node.api` promises them: own ones made and withdrawn, others' looked into and bought.

Stands between the HTTP API and the parts that do the work; every failure comes out as a sentence.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from node.api import SCHEMA, Json
from node.clock import now_s
from node.context import NodeContext
from node.errors import ErrorCode, NodeError
from node.failures import for_people
from node.lora_market import LookWish, LoraMarket
from node.lora_rows import OfferStanding, OwnOffer, SeenOffer
from node.offer_board import OfferBoard
from node.offer_draft import OfferWish
from node.offer_rows import own_in_words, own_row, record_row, seen_row, statement_in_words
from node.offers import Offers
from node.proving import RejectedByProofError
from p2p.errors import DecodeError, P2PError
from p2p.ids import BlobId, PeerId, parse_blob_id
from p2p.lora_records import LoraOffer
from verification.errors import StatementError

_LIST: Final = "see those it knows: paris-node lora list"


@dataclass(frozen=True, slots=True)
class LoraService:
    """What can be asked of a node about offers.

    Attributes:
        context: the node.
        made: this node's own offers.
        board: others'.
        market: what can be done with those.
    """

    context: NodeContext
    made: Offers
    board: OfferBoard
    market: LoraMarket

    def offers(self) -> Json:
        """All offers that still stand; see `NodeApi.offers`."""
        now = now_s()
        try:
            return {
                "schema": SCHEMA,
                "run": self.context.run,
                "offers": [self._seen_row(seen) for seen in self.board.offers()],
                "own": [
                    self._own_row(own, self.made.opened(own).record)
                    for own in self.context.state.loras.own_offers(self.context.run)
                    if own.expires_at > now
                ],
            }
        except P2PError as error:
            raise for_people(error) from error

    async def show_offer(self, cid: str) -> Json:
        """One offer; see `NodeApi.show_offer`."""
        offer = _offer_id(cid)
        try:
            own = self.context.state.loras.own_offer(offer)
            if own is not None:
                _check_stands(own)
                record = self.made.opened(own).record
                row = {"own": True, "statement": own_in_words(record), **self._own_row(own, record)}
                return self._whole(row, record)
            seen = self._seen(offer)
            is_refused = seen.standing is OfferStanding.REFUSED  # it may not even be an offer
            heard = None if is_refused else (await self.board.offer(offer, seen.owner)).record
            row = {"own": False, "statement": statement_in_words(seen, heard)}
            return self._whole(row | self._seen_row(seen), heard)
        except P2PError as error:
            raise for_people(error) from error

    async def make_offer(self, request: Mapping[str, object]) -> AsyncGenerator[Json]:
        """Offer an adapter of this home; see `NodeApi.make_offer`."""
        wish = OfferWish(
            lora=str(request["lora"]),
            terms=str(request["terms"]),
            scalars=cast("int", request["scalars"]),
            delta_rows=cast("int", request["delta_rows"]),
            days=float(cast("float", request["days"])),
            buyers=tuple(PeerId(peer) for peer in cast("Sequence[str]", request["buyers"])),
        )
        try:
            async with aclosing(_told(self.made.make(wish))) as events:
                async for event in events:
                    yield event
        except RejectedByProofError as error:
            raise NodeError(
                ErrorCode.REFUSED,
                f"{wish.lora} cannot be offered: {error}.",
                "train another: paris-node lora train DATA --expert CID",
            ) from error

    async def verify_offer(self, cid: str, request: Mapping[str, object]) -> AsyncGenerator[Json]:
        """Look into an offer; see `NodeApi.verify_offer`."""
        offer = _offer_id(cid)
        draws = cast("int", request["delta_draws"])
        wish = LookWish(
            offer=offer,
            base=_base_of(request),
            probe=_probe_of(request),
            pairs=cast("int", request["pairs"]),
            delta_draws=draws,
        )
        if draws and self._seen(offer).facts.get("delta_rows") == 0:
            raise NodeError(  # before a number is asked that does not come back
                ErrorCode.REFUSED,
                "The offer's owner tells no rows of the adapter: there is no delta mode.",
                "look into it without --deltas",
            )
        async with aclosing(_told(self.market.verify(wish))) as events:
            async for event in events:
                yield event

    async def buy_offer(self, cid: str, request: Mapping[str, object]) -> AsyncGenerator[Json]:
        """Sign an offer's terms and take the adapter; see `NodeApi.buy_offer`."""
        wish = LookWish(offer=_offer_id(cid), base=_base_of(request))
        async with aclosing(_told(self.market.buy(wish))) as events:
            async for event in events:
                yield event

    def withdraw_offer(self, cid: str) -> Json:
        """Stop an own offer for good; see `NodeApi.withdraw_offer`."""
        offer = _offer_id(cid)
        try:
            self.made.withdraw(offer)
        except P2PError as error:
            raise for_people(error) from error
        return {"schema": SCHEMA, "offer": offer, "withdrawn": True}

    def _seen(self, offer: BlobId) -> SeenOffer:
        try:
            seen = self.context.state.loras.seen(offer)
        except P2PError as error:
            raise for_people(error) from error
        if seen is None:
            raise NodeError(
                ErrorCode.NOT_FOUND, f"This node has not heard of an offer {offer}.", _LIST
            )
        return seen

    def _seen_row(self, seen: SeenOffer) -> Json:
        known = self.context.peers.get(seen.owner)
        return seen_row(seen, owner_name=known.name if known else None, now=now_s())

    def _own_row(self, own: OwnOffer, record: LoraOffer) -> Json:
        leaks = self.context.state.loras.leaks(own.adapter)
        buyers = frozenset() if own.is_withdrawn else self.made.buyers(own.offer)
        return own_row(own, record, leaks, buyers, now=now_s())

    def _whole(self, row: Json, record: LoraOffer | None) -> Json:
        """A row with what the offer's record says of it."""
        try:
            facts = {} if record is None else record_row(record)
        except StatementError as error:
            raise NodeError(
                ErrorCode.VERIFICATION_FAILED, f"The offer names what cannot be: {error}.", _LIST
            ) from error
        return {"schema": SCHEMA, "run": self.context.run, **row, **facts}


async def _told(events: AsyncGenerator[Json]) -> AsyncGenerator[Json]:
    """The events of a part, its errors as sentences."""
    try:
        async with aclosing(events) as told:
            async for event in told:
                yield event
    except P2PError as error:
        raise for_people(error) from error


def _check_stands(own: OwnOffer) -> None:
    if own.expires_at <= now_s():  # its record need not be here any more
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"This node's offer {own.offer} is over.",
            "offer it anew: paris-node lora offer NAME --terms TEXT",
        )


def _base_of(request: Mapping[str, object]) -> BlobId | None:
    base = request["base"]
    return None if base is None else BlobId(str(base))


def _probe_of(request: Mapping[str, object]) -> Path | None:
    probe = request["probe"]
    if probe is None:
        return None
    folder = Path(str(probe))
    if not folder.is_dir():
        raise NodeError(
            ErrorCode.NOT_FOUND, f"There is no folder {folder}.", "paris-node lora verify --data"
        )
    return folder


def _offer_id(cid: str) -> BlobId:
    try:
        return parse_blob_id(cid)
    except DecodeError as error:
        raise NodeError(ErrorCode.USAGE, f"{error}.", _LIST) from error
