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
from node.errors import NodeError
from node.lora_convert import check_offer, offer_name, offer_statement
from node.lora_rows import OfferStanding, SeenOffer
from node.offer_files import fetch_file
from node.offer_queue import OfferQueue, Waiting
from node.proving import Proving, RejectedByProofError
from p2p.codec import Verified, check_envelope, open_signed
from p2p.errors import ExpiredError, P2PError, PeerError, StorageError, TransportError
from p2p.gossip_rules import GossipRules
from p2p.host import Verdict
from p2p.ids import BlobId, ClusterId, PeerId
from p2p.limits import MAX_OFFER_PROOFS_SIZE, MAX_OWNERS_PER_KEY
from p2p.lora_checks import open_offer
from p2p.lora_records import LoraOffer, OfferAdvert
from p2p.offer_proofs import PROOFS_FILE, open_offer_proofs
from p2p.records import lora_key
from verification.errors import PolicyError
from verification.policy import Policy

logger = logging.getLogger(__name__)

STRIKES: Final = 2
"""Offers that do not hold, after which an owner is banned."""
BAN_S: Final = 3600.0
_REFRESH_S: Final = 30.0
_AT_ONCE: Final = 8
_LOOKERS: Final = 4
"""Offers fetched at a time, so that an owner who sends slowly does not hold up the others."""
_PATIENCE_S: Final = 20.0
"""For fetching one offer's bytes; what is not there by then is looked for again."""
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
    _news: trio.Event = field(default_factory=trio.Event)
    _strikes: Counter[PeerId] = field(default_factory=Counter)

    async def run(self) -> None:
        """Listen, read the DHT now and then, and look into what was heard of; until cancelled."""
        rules = GossipRules(self.context.run, OfferAdvert)

        def validate(sender: PeerId, data: bytes) -> Verdict:
            return rules.check(sender, data, now_s())[0]

        channel = await self.context.host.subscribe(rules.topic, validate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_now_and_then)
            for _ in range(_LOOKERS):
                nursery.start_soon(self._look_into_all)
            async for message in channel:
                self._hear(message.data)

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
        data = await fetch_file(
            self.context, proofs, PROOFS_FILE, MAX_OFFER_PROOFS_SIZE, owner=offer.owner
        )
        found = open_offer_proofs(data, record, offer_id=offer_id)
        squares: dict[str, float] = {}
        for module, proof in zip(record.modules, found.modules, strict=True):
            statement = offer_statement(record, offer_id, module, proof)
            try:
                squares[module.name] = await self.proving.verify(statement, proof.proof)
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
            self.context.state.loras.ban(owner, why[:500], now_s() + ban_s)
            self._queue.forget(owner)
            self.counts["banned"] += 1
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
                facts={**(known.facts if known else summary(record)), **(facts or {})},
                expires_at=record.expires_at,
                updated_at=now_s(),
            )
        )

    def _hear(self, envelope: bytes) -> None:
        """An advert that the topic's rules let through."""
        try:
            key = check_envelope(envelope).key
            self._take(open_signed(OfferAdvert, envelope, key=key, now=now_s()))
        except PeerError as error:
            logger.info("gossiped offers dropped: %s", error)

    def _take(self, advert: Verified[OfferAdvert]) -> None:
        """Queue what an advert tells that is not known yet."""
        owner, loras = advert.owner, self.context.state.loras
        if owner == self.context.identity.peer or advert.record.cluster not in self._clusters():
            return
        if loras.is_banned(owner, now_s()):
            self.counts["of banned owners"] += 1
            return
        for ref in advert.record.offers:
            known = loras.seen(ref.offer)
            if known is not None and known.standing is not OfferStanding.CLAIMED:
                self.counts["known"] += 1
            elif self._queue.add(Waiting(owner, ref)):
                self._news.set()
                self._news = trio.Event()
            else:
                self.counts["dropped"] += 1

    def _clusters(self) -> tuple[ClusterId, ...]:
        return self.catalog.clusters()

    async def _read_now_and_then(self) -> None:
        while True:
            self.context.state.loras.forget_expired(now_s())
            limiter = trio.CapacityLimiter(_AT_ONCE)
            async with trio.open_nursery() as nursery:
                for cluster in self._clusters():
                    nursery.start_soon(self._read, cluster, limiter)
            await trio.sleep(_REFRESH_S)

    async def _read(self, cluster: ClusterId, limiter: trio.CapacityLimiter) -> None:
        key = lora_key(self.context.run, cluster)
        async with limiter:
            try:
                stored = (await self.context.swarm.get(key))[:MAX_OWNERS_PER_KEY]
            except TransportError as error:
                logger.info("offers of cluster %d not read: %s", cluster, error)
                return
        for each in stored:
            try:
                self._take(open_signed(OfferAdvert, each.value, key=key, now=now_s()))
            except PeerError as error:
                logger.info("offers dropped: %s", error)

    async def _look_into_all(self) -> None:
        while True:
            found = self._queue.take(trio.current_time())
            if isinstance(found, Waiting):
                await self._look_into(found)
                continue
            with trio.move_on_after(found):
                await self._news.wait()

    async def _look_into(self, item: Waiting) -> None:
        """One offer, from its bytes to its proofs; what cannot be had is left for another time."""
        if self.context.state.loras.is_banned(item.owner, now_s()):
            return
        try:
            with trio.fail_after(_PATIENCE_S):
                offer = await self._claimed(item)
        except (ExpiredError, NodeError, StorageError, TransportError, trio.TooSlowError) as error:
            logger.info("offer %s of %s can't be had: %s", item.ref.offer, item.owner, error)
            return
        except (PeerError, PolicyError) as error:
            self._refuse_unread(item, str(error))
            return
        self.note(offer, item.ref.proofs, OfferStanding.CLAIMED, "its proofs are being checked")
        try:
            squares = await self.prove(offer, item.ref.proofs)
        except (OfferRefusedError, PeerError) as error:
            self.note(offer, item.ref.proofs, OfferStanding.REFUSED, str(error)[:500])
            self.counts["refused"] += 1
            self.strike(item.owner, f"offer {item.ref.offer}: {error}")
        except (NodeError, P2PError) as error:
            self.note(offer, item.ref.proofs, OfferStanding.CLAIMED, str(error)[:500])
            logger.info("offer %s is not decided: %s", item.ref.offer, error)
        else:
            self.note(offer, item.ref.proofs, OfferStanding.PROVED, facts={"squares": squares})
            self.counts["proved"] += 1
            self.context.journal.write("offer proved", offer=item.ref.offer, owner=item.owner)

    async def _claimed(self, item: Waiting) -> Verified[LoraOffer]:
        """The offer's signed bytes, checked against the advert, our run, its base, our circuits."""
        offer = await self.offer(item.ref.offer, item.owner)
        record = offer.record
        for name, got, expected in (
            ("owner", offer.owner, item.owner),
            ("base", record.base, item.ref.base),
        ):
            if got != expected:
                raise PeerError(f"LoraOffer: {name} is {got}, advertised was {expected}")
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

    def _refuse_unread(self, item: Waiting, why: str) -> None:
        """An offer whose own bytes do not hold; an expired one is nobody's fault."""
        self.counts["refused"] += 1
        logger.info("offer %s of %s refused: %s", item.ref.offer, item.owner, why)
        self.context.state.loras.note_seen(
            SeenOffer(
                offer=item.ref.offer,
                run=self.context.run,
                cluster=ClusterId(0),
                owner=item.owner,
                proofs=item.ref.proofs,
                standing=OfferStanding.REFUSED,
                why=why[:500],
                facts={},
                expires_at=now_s() + BAN_S,
                updated_at=now_s(),
            )
        )
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
