"""Others' offers as this node sees them: heard of, looked into, and what came of it.

Checks come in the order of what they cost: size, form, signature, seen before and rate (the gossip
topic's rules); then known already, banned, the owner's turn; then the offer's own bytes against our
base and circuits; then its proofs, one after the other, in a process of their own. Two offers that
do not hold, and the owner is left alone for an hour.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

from node.catalog import Catalog
from node.clock import now_s
from node.context import NodeContext
from node.errors import ErrorCode, NodeError
from node.lora_convert import check_offer, offer_name, offer_statement
from node.lora_rows import OfferStanding, SeenOffer
from node.offer_files import fetch_file
from node.offer_hearing import OfferHearing
from node.offer_queue import OfferQueue, PutOff, Waiting
from node.proving import Proving, RejectedByProofError
from p2p.codec import Verified
from p2p.errors import ExpiredError, P2PError, PeerError, StorageError, TransportError
from p2p.ids import BlobId, PeerId
from p2p.limits import MAX_OFFER_PROOFS_SIZE
from p2p.lora_checks import MisadvertisedError, check_advertised, open_offer
from p2p.lora_records import LoraOffer, OfferAdvert
from p2p.offer_proofs import PROOFS_FILE, open_offer_proofs
from verification.errors import PolicyError
from verification.policy import Policy

logger = logging.getLogger(__name__)

STRIKES: Final = 2
"""Offers that do not hold, after which an owner is banned."""
BAN_S: Final = 3600.0
_LOOKERS: Final = 4
"""Offers fetched at a time, so that an owner who sends slowly does not hold up the others."""
_PATIENCE_S: Final = 20.0
"""For fetching one offer's bytes; what is not there by then is looked for again."""
_PROOFS_PATIENCE_S: Final = 60.0
"""For fetching its proofs: 8 MiB at most, 1 MiB of 280 layers."""
_FORGET_S: Final = 30.0
_MOST_STRIKERS: Final = 1024


class OfferRefusedError(Exception):
    """An offer that does not hold; says why. Its owner signed it."""


@dataclass(slots=True)
class OfferBoard:
    """Knows others' offers; `run` must be running.

    Attributes:
        counts: what became of adverts and offers, for `status` and for tests.
    """

    context: NodeContext
    catalog: Catalog
    proving: Proving
    policy: Policy = field(default_factory=Policy)
    counts: Counter[str] = field(default_factory=Counter)
    _queue: OfferQueue = field(default_factory=OfferQueue)
    _put_off: PutOff = field(default_factory=PutOff)
    _in_hand: dict[PeerId, BlobId] = field(default_factory=dict)
    """One offer of an owner at a time: a slow one holds up its other offers alone."""
    _news: trio.Event = field(default_factory=trio.Event)
    _strikes: Counter[PeerId] = field(default_factory=Counter)
    _hearing: OfferHearing = field(init=False)

    def __post_init__(self) -> None:
        self._hearing = OfferHearing(self.context, self.catalog, self._take)

    async def run(self) -> None:
        """Listen, read the DHT now and then, and look into what was heard of; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hearing.run)
            nursery.start_soon(self._forget_now_and_then)
            for _ in range(_LOOKERS):
                nursery.start_soon(self._look_into_all)

    def offers(self) -> tuple[SeenOffer, ...]:
        """Offers that still stand, the newest first."""
        now = now_s()
        return tuple(
            seen
            for seen in self.context.state.loras.seen_all(self.context.run)
            if seen.expires_at > now
        )

    async def offer(self, offer: BlobId, owner: PeerId | None = None) -> Verified[LoraOffer]:
        """A signed offer by its id, from here or from a peer.

        Raises:
            NodeError: it can't be had.
            PeerError: it is no offer, or of another run, or its time is over.
        """
        hints = () if owner is None else (owner,)
        envelope = await self.context.fetcher.blob(offer, hints=hints)
        opened = open_offer(envelope, offer=offer, now=now_s())
        if opened.record.run != self.context.run:
            raise PeerError(f"LoraOffer.run: is {opened.record.run}, ours is {self.context.run}")
        return opened

    async def prove(self, offer: Verified[LoraOffer], proofs: BlobId) -> Mapping[str, float]:
        """Check an offer's own proofs.

        Returns:
            By layer, the estimate of ||A B||_F^2.

        Raises:
            OfferRefusedError: one does not hold.
            NodeError, P2PError: nothing was decided.
        """
        record, offer_id = offer.record, offer_name(offer)
        try:
            with trio.fail_after(_PROOFS_PATIENCE_S):
                data = await fetch_file(
                    self.context, proofs, PROOFS_FILE, MAX_OFFER_PROOFS_SIZE, owner=offer.owner
                )
        except trio.TooSlowError as error:
            raise NodeError(
                ErrorCode.TIMEOUT, f"The proofs did not come within {_PROOFS_PATIENCE_S:g} s."
            ) from error
        found = open_offer_proofs(data, record, offer_id=offer_id)
        squares: dict[str, float] = {}
        for module, proof in zip(record.modules, found.modules, strict=True):
            statement = offer_statement(record, offer_id, module, proof)
            try:
                squares[module.name] = await self.proving.verify(
                    statement, proof.proof, may_wait=False
                )
            except RejectedByProofError as error:
                raise OfferRefusedError(f"{module.name}: {error}") from error
            finally:
                self.counts["proofs checked"] += 1
        return squares

    def strike(self, owner: PeerId, why: str, *, ban_s: float = BAN_S, at: int = STRIKES) -> None:
        """Note that an owner's signed word did not hold; ban it at the given number of times."""
        self._strikes[owner] += 1
        if len(self._strikes) > _MOST_STRIKERS:
            del self._strikes[next(iter(self._strikes))]
        if self._strikes[owner] >= at:
            loras, now = self.context.state.loras, now_s()
            if not loras.is_banned(owner, now):
                self.counts["banned"] += 1
            loras.ban(owner, why[:500], now + ban_s)
            self._queue.forget(owner)
            logger.warning("offers of %s are ignored for %.0f s: %s", owner, ban_s, why)

    def note(
        self,
        offer: Verified[LoraOffer],
        proofs: BlobId,
        standing: OfferStanding,
        why: str = "",
        facts: Mapping[str, object] | None = None,
    ) -> None:
        """Remember how far an offer was looked into."""
        record, offer_id = offer.record, offer_name(offer)
        known = self.context.state.loras.seen(offer_id)
        self.context.state.loras.note_seen(
            SeenOffer(
                offer=offer_id,
                run=record.run,
                cluster=record.cluster,
                owner=offer.owner,
                proofs=proofs,
                standing=standing,
                why=why,
                facts={**summary(record), **(known.facts if known else {}), **(facts or {})},
                expires_at=record.expires_at,
                updated_at=now_s(),
            )
        )

    def _take(self, advert: Verified[OfferAdvert]) -> None:
        """Queue what an advert tells that is not known yet."""
        owner = advert.owner
        is_ours = owner == self.context.identity.peer
        if is_ours or advert.record.cluster not in self.catalog.clusters():
            return
        if self.context.state.loras.is_banned(owner, now_s()):
            self.counts["of banned owners"] += 1
            return
        for ref in advert.record.offers:
            item = Waiting(owner, ref, advert.record.cluster)
            if not self._is_wanted(item):
                self.counts["known"] += 1
            elif self._queue.add(item):
                self._news.set()
                self._news = trio.Event()
            else:
                self.counts["dropped"] += 1

    def _is_wanted(self, item: Waiting) -> bool:
        """Whether an offer is neither decided, nor being looked into, nor put off."""
        is_in_hand = self._in_hand.get(item.owner) == item.ref.offer
        is_due = self._put_off.is_due(item, trio.current_time())
        return is_due and not is_in_hand and not self._is_decided(item.ref.offer)

    def _is_decided(self, offer: BlobId) -> bool:
        known = self.context.state.loras.seen(offer)
        return known is not None and known.standing is not OfferStanding.CLAIMED

    async def _forget_now_and_then(self) -> None:
        while True:
            try:
                self.context.state.loras.forget_expired(now_s())
            except StorageError as error:
                logger.warning("offers that are over are not forgotten: %s", error)
            await trio.sleep(_FORGET_S)

    async def _look_into_all(self) -> None:
        while True:
            found = self._queue.take(trio.current_time(), self._in_hand.keys())
            if not isinstance(found, Waiting):
                with trio.move_on_after(found):
                    await self._news.wait()
                continue
            self._in_hand[found.owner] = found.ref.offer
            try:
                await self._look_into(found)
            except StorageError as error:
                logger.warning("offer %s is not looked into: %s", found.ref.offer, error)
                self._put_off.note(found, trio.current_time())
            finally:
                del self._in_hand[found.owner]  # whoever had it takes the next one

    async def _look_into(self, item: Waiting) -> None:
        """One offer, from its bytes to its proofs; what cannot be had is left for another time."""
        is_banned = self.context.state.loras.is_banned(item.owner, now_s())
        if is_banned or self._is_decided(item.ref.offer):  # a person may have looked meanwhile
            return
        try:
            with trio.fail_after(_PATIENCE_S):
                offer = await self._claimed(item)
        except (ExpiredError, NodeError, StorageError, TransportError, trio.TooSlowError) as error:
            logger.info("offer %s of %s can't be had: %s", item.ref.offer, item.owner, error)
            self._put_off.note(item, trio.current_time())
        except (PeerError, PolicyError) as error:
            self._refuse_unread(item, error)
        else:
            await self._decide(item, offer)

    async def _decide(self, item: Waiting, offer: Verified[LoraOffer]) -> None:
        """Check the proofs of an offer of good form, and remember what came of it."""
        self.note(offer, item.ref.proofs, OfferStanding.CLAIMED, "its proofs are being checked")
        try:
            squares = await self.prove(offer, item.ref.proofs)
        except (OfferRefusedError, PeerError) as error:
            self.note(offer, item.ref.proofs, OfferStanding.REFUSED, str(error)[:500])
            self.counts["refused"] += 1
            self.strike(item.owner, f"offer {item.ref.offer}: {error}")
        except (NodeError, P2PError) as error:
            self.note(offer, item.ref.proofs, OfferStanding.CLAIMED, str(error)[:500])
            self.counts["undecided"] += 1
            self._put_off.note(item, trio.current_time())
            logger.info("offer %s is not decided: %s", item.ref.offer, error)
        else:
            self.note(offer, item.ref.proofs, OfferStanding.PROVED, facts={"squares": squares})
            self.counts["proved"] += 1
            self._put_off.forget(item)
            self.context.journal.write("offer proved", offer=item.ref.offer, owner=item.owner)

    async def _claimed(self, item: Waiting) -> Verified[LoraOffer]:
        """The offer's signed bytes, checked against the advert, our run, its base, our circuits."""
        offer = await self.offer(item.ref.offer, item.owner)
        record = offer.record
        check_advertised(
            offer, item.ref, owner=item.owner, run=self.context.run, cluster=item.cluster
        )
        await self.check_base(record, item.owner)
        check_offer(record, self.catalog.manifest.preset, self.policy)
        return offer

    async def check_base(self, offer: LoraOffer, owner: PeerId) -> None:
        """Refuse an offer that is for no checkpoint of our run; only its manifest is fetched.

        Raises:
            PeerError: naming the offer's base and our own expert.
            NodeError: the manifest can't be had.
        """
        ours = self.catalog.best(offer.cluster)
        named = f"this node's expert of it is {ours.record.manifest if ours else 'none'}"
        try:
            manifest = await self.context.fetcher.manifest(offer.base, hints=(owner,))
        except PeerError as error:
            raise PeerError(f"LoraOffer.base: {offer.base}: {error}; {named}") from error
        if manifest.record.cluster != offer.cluster:
            raise PeerError(
                f"LoraOffer.base: {offer.base} is of cluster {manifest.record.cluster}, the offer "
                f"says {offer.cluster}; {named}"
            )

    def _refuse_unread(self, item: Waiting, error: Exception) -> None:
        """An offer whose own bytes do not hold, or that this node's policy does not take.

        What breaks only our policy is no fault of its owner's; what is somebody else's is still
        an offer of that one.
        """
        why = str(error)
        self.counts["refused"] += 1
        logger.info("offer %s of %s refused: %s", item.ref.offer, item.owner, why)
        if not isinstance(error, MisadvertisedError):
            self.context.state.loras.note_seen(
                SeenOffer(
                    offer=item.ref.offer,
                    run=self.context.run,
                    cluster=item.cluster,
                    owner=item.owner,
                    proofs=item.ref.proofs,
                    standing=OfferStanding.REFUSED,
                    why=why[:500],
                    facts={},
                    expires_at=now_s() + BAN_S,
                    updated_at=now_s(),
                )
            )
        if not isinstance(error, PolicyError):
            self.strike(item.owner, f"offer {item.ref.offer}: {why}")


def summary(offer: LoraOffer) -> dict[str, object]:
    """What a person is shown of an offer, as JSON keeps it."""
    return {
        "name": offer.name,
        "base": offer.base,
        "rank": offer.rank,
        "layers": len(offer.modules),
        "base_loss": offer.claims.base_loss,
        "adapted_loss": offer.claims.adapted_loss,
        "rows": offer.claims.rows,
        "terms": offer.terms,
        "licence": offer.licence,
        "delta_rows": offer.leaks.delta_rows,
        "scalars": offer.leaks.scalars,
    }
