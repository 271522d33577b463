"""This node's own offers: made once, with their proofs, then advertised for as long as they stand.

Making one takes a commitment and a proof for each layer, and spends of the adapter's budget before
anything is said. What is offered is written as it will be delivered, into a private folder.
"""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from node.api import Json, phase_event
from node.clock import now_s
from node.context import NodeContext
from node.disk import on_disk
from node.errors import ErrorCode, NodeError
from node.keeping import keep
from node.lora_budget import Leak, Limits, Spend
from node.lora_convert import modules_plain, offer_statement
from node.lora_rows import OwnOffer
from node.offer_draft import Draft, Drafting, OfferWish
from node.offer_files import store_folder
from node.offer_folder import (
    DELIVERY_FILE,
    drop,
    read_buyers,
    settle,
    sweep,
    workplace,
    write_buyers,
)
from node.providers import LIFETIME_S, RENEW_S
from node.proving import Proving
from p2p.blobs import BlobStore
from p2p.codec import BLOB_KEY, Verified, open_signed, seal
from p2p.errors import LimitError, StorageError, TransportError
from p2p.gossip_rules import topic
from p2p.ids import BlobId, ClusterId, PeerId, blob_id
from p2p.limits import MAX_OFFERS_PER_ADVERT, OFFER_PROOF_SCALARS
from p2p.lora_records import (
    LoraOffer,
    OfferAdvert,
    OfferRef,
)
from p2p.offer_proofs import PROOFS_FILE, ModuleProof, OfferProofs, pack_offer_proofs
from p2p.records import lora_key
from training.files import write_file

logger = logging.getLogger(__name__)

_RETRY_S: Final = 5.0
_LABEL: Final = "offer/"
"""Of pins; what follows says of what."""
_MOST_OPENED: Final = 64
"""Signed offers kept in memory: reading one of 280 layers takes four milliseconds."""


@dataclass(slots=True)
class Offers:
    """Makes offers and keeps them known; `run` must be running."""

    context: NodeContext
    drafting: Drafting
    proving: Proving
    _is_swept: bool = False
    _opened: dict[BlobId, Verified[LoraOffer]] = field(default_factory=dict)
    _wake: trio.Event = field(default_factory=trio.Event)
    _turn: trio.Lock = field(default_factory=trio.Lock)
    """One offer is made at a time: they would wait for each other in any case."""

    def standing(self) -> tuple[OwnOffer, ...]:
        """Own offers that are neither withdrawn nor over."""
        now = now_s()
        return tuple(
            own
            for own in self.context.state.loras.own_offers(self.context.run)
            if not own.is_withdrawn and own.expires_at > now
        )

    def opened(self, own: OwnOffer) -> Verified[LoraOffer]:
        """An own offer's signed record; raises `StorageError` if its blob is gone."""
        found = self._opened.get(own.offer)
        if found is None:
            envelope = self.context.blobs.get(own.offer)
            found = open_signed(LoraOffer, envelope, key=BLOB_KEY, now=now_s())
            if len(self._opened) >= _MOST_OPENED:
                self._opened.clear()
            self._opened[own.offer] = found
        return found

    def folder(self, offer: BlobId) -> Path:
        """Where what will be delivered lies."""
        return self.context.config.paths.offers / offer

    def buyers(self, offer: BlobId) -> frozenset[PeerId]:
        """Who may buy an own offer; empty for whoever signs its terms."""
        return read_buyers(self.folder(offer))

    async def make(self, wish: OfferWish) -> AsyncGenerator[Json]:
        """Make an offer of an adapter on the shelf.

        Events {event: "progress", phase, done, total}, then {event: "done", offer, ...}.

        Raises:
            NodeError: whatever the person should read.
            P2PError: the disk or the network refuses.
        """
        async with self._turn:
            with workplace(self.context.config.paths.offers) as folder:
                draft = await self.drafting.draft(wish, folder)
                self._check_room(draft.facts.cluster)
                yield phase_event("measured", 1, 1)
                offer = self.drafting.offer(wish, draft)
                envelope = seal(offer, self.context.identity, key=BLOB_KEY, expires_at=None)
                offer_id = blob_id(envelope)
                self._spend(draft, offer)
                proofs: list[ModuleProof] = []
                for module in offer.modules:
                    proven = await self.proving.prove(
                        modules_plain(offer),
                        folder / DELIVERY_FILE,
                        offer_statement(offer, offer_id, module),
                    )
                    proofs.append(ModuleProof(module.name, proven.values, proven.proof))
                    yield phase_event("proved", len(proofs), len(offer.modules))
                await trio.to_thread.run_sync(write_buyers, folder, wish.buyers)
                await self._keep(draft, envelope, OfferProofs(offer_id, tuple(proofs)))
            self._wake.set()
        yield {
            "event": "done",
            "offer": offer_id,
            "cluster": offer.cluster,
            "base": offer.base,
            "layers": len(offer.modules),
            "base_loss": offer.claims.base_loss,
            "adapted_loss": offer.claims.adapted_loss,
            "float_loss": draft.claimed.float_loss,
            "expires_at": offer.expires_at,
        }

    def withdraw(self, offer: BlobId) -> None:
        """Stop an offer for good.

        Raises:
            NodeError: this node makes no such offer.
        """
        own = self.context.state.loras.own_offer(offer)
        if own is None:
            raise NodeError(
                ErrorCode.NOT_FOUND, f"{offer} is no offer of this node.", "paris-node lora list"
            )
        if self.context.state.loras.withdraw(offer):
            self._wake.set()
        self.context.blobs.unpin(own.proofs)  # what it said stays, for `lora list`
        drop(self.folder(offer))

    async def run(self) -> None:
        """Advertise own offers: at once when there is news, again before adverts expire."""
        if not self._is_swept:
            async with self._turn:  # nothing is being made
                self._sweep()
            self._is_swept = True
        while True:
            wake = self._wake = trio.Event()
            pause_s = RENEW_S
            try:
                await self._advertise_all()
            except (StorageError, TransportError) as error:
                logger.warning("offers not advertised yet: %s", error)
                pause_s = _RETRY_S
            with trio.move_on_after(pause_s):
                await wake.wait()

    def _sweep(self) -> None:
        """Let go of what belongs to no offer of this home, whatever run that is for."""
        now = now_s()
        over = [own for own in self._all() if own.expires_at <= now]
        standing = [own for own in self._all() if own.expires_at > now and not own.is_withdrawn]
        sweep(self.context.config.paths.offers, {own.offer for own in standing})
        kept = {own.offer for own in self._all()} - {own.offer for own in over}
        for own in standing:
            kept.add(own.proofs)
            with suppress(StorageError):  # its blob is gone: `_advertise_all` says so
                kept.add(self.opened(own).record.claims.probe)
        for pin in self.context.blobs.pins():
            if pin.label.startswith(_LABEL) and pin.root not in kept:
                self.context.blobs.unpin(pin.root)

    def _all(self) -> tuple[OwnOffer, ...]:
        return self.context.state.loras.all_own_offers()

    def _check_room(self, cluster: ClusterId) -> None:
        """Refuse what no advert would have room for."""
        if sum(own.cluster == cluster for own in self.standing()) >= MAX_OFFERS_PER_ADVERT:
            raise NodeError(
                ErrorCode.REFUSED,
                f"This node offers {MAX_OFFERS_PER_ADVERT} LoRAs for cluster {cluster} already, "
                "as many as it can advertise.",
                "stop one: paris-node lora withdraw OFFER    see them: paris-node lora list",
            )

    def _spend(self, draft: Draft, offer: LoraOffer) -> None:
        """Count the proofs of an offer, and its numbers if no offer of the adapter told them."""
        loras = self.context.state.loras
        adapter = draft.claimed.sha256
        told = loras.leaks(adapter)
        wanted = {
            module.name: Spend(
                scalars=0 if told.get(module.name, Leak()).scalars else OFFER_PROOF_SCALARS,
                proofs=1,
            )
            for module in offer.modules
        }
        loras.spend(adapter, wanted, limits_of(offer))

    async def _keep(self, draft: Draft, envelope: bytes, proofs: OfferProofs) -> None:
        """Keep all that an offer needs, then remember it; before, nobody was told of it."""
        context, offer_id = self.context, proofs.offer
        offer = open_signed(LoraOffer, envelope, key=BLOB_KEY, now=now_s()).record
        with on_disk("write the offer's proofs"):
            file = draft.folder / PROOFS_FILE
            await trio.to_thread.run_sync(write_file, file, pack_offer_proofs(proofs))
        root = await store_folder(context, {PROOFS_FILE: file}, f"{_LABEL}proofs/{offer_id[-6:]}")
        await trio.to_thread.run_sync(_pinned, context.blobs, envelope, f"{_LABEL}{offer.name}")
        await trio.to_thread.run_sync(settle, draft.folder, self.folder(offer_id))
        try:
            context.state.loras.save_own_offer(
                OwnOffer(
                    offer=offer_id,
                    run=context.run,
                    cluster=offer.cluster,
                    adapter=draft.claimed.sha256,
                    folder=str(draft.facts.folder),
                    proofs=root,
                    created_at=offer.created_at,
                    expires_at=offer.expires_at,
                )
            )
        except StorageError:
            drop(self.folder(offer_id))
            raise
        context.journal.write("offered", offer=offer_id, cluster=offer.cluster)

    async def _advertise_all(self) -> None:
        by_cluster: dict[ClusterId, list[OwnOffer]] = {}
        for own in self.standing():
            if self.context.blobs.has(own.offer):
                by_cluster.setdefault(own.cluster, []).append(own)
            else:
                logger.error("offer %s is not in the store any more: make it anew", own.offer)
        for cluster, offers in by_cluster.items():
            await self._advertise(cluster, offers[-MAX_OFFERS_PER_ADVERT:])

    async def _advertise(self, cluster: ClusterId, offers: Sequence[OwnOffer]) -> None:
        context, now = self.context, now_s()
        refs = [OfferRef(own.offer, self.opened(own).record.base, own.proofs) for own in offers]
        advert = OfferAdvert(context.run, cluster, tuple(refs), issued_at=now)
        key = lora_key(context.run, cluster)
        expires_at = now + LIFETIME_S
        envelope = seal(advert, context.identity, key=key, expires_at=expires_at)
        await context.swarm.put(key, context.identity.public_key, envelope, expires_at)
        try:
            await context.host.publish(topic(context.run, "lora"), envelope)
        except (LimitError, TransportError) as error:
            logger.info("offers not gossiped: %s", error)  # the DHT has them; gossip is a hint


def limits_of(offer: LoraOffer) -> Limits:
    """What an offer's owner lets out."""
    return Limits(
        scalars=offer.leaks.scalars, rows=offer.leaks.delta_rows, proofs=offer.leaks.proofs
    )


def _pinned(blobs: BlobStore, envelope: bytes, label: str) -> None:
    keep(blobs, blobs.put(envelope), label, ())
