"""What an offer will say: an adapter measured as it would be sold, committed to, and described."""

import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from node.adapter_facts import Claimed, Place
from node.adapters import Adapters
from node.catalog import Catalog
from node.clock import now_s
from node.context import NodeContext
from node.disk import on_disk
from node.errors import ErrorCode, NodeError
from node.folders import unpacked_checkpoint, unpacked_folder
from node.keeping import PULLED
from node.lora_shelf import LoraFacts, base_of, find_on_shelf
from node.offer_files import store_folder
from node.offer_folder import write_delivery
from node.proving import Proving
from p2p.errors import PeerError
from p2p.ids import BlobId, ClusterId, PeerId
from p2p.lora_records import LORA_FORMAT, LeakPolicy, LoraClaims, LoraModule, LoraOffer
from training.lora.layers import PROBE_FILES
from verification.adapter import delivery_of
from verification.circuit import Shape, circuit_of, known
from verification.errors import StatementError

CLAIM_TIMEOUT_S: Final = 600.0
_SALT_DOMAIN: Final = b"paris/lora/salt-seed/1/"
_RAW_FILE: Final = "raw.bin"


@dataclass(frozen=True, slots=True)
class OfferWish:
    """What a person wants to offer, checked.

    Attributes:
        lora: what the adapter is called on the shelf.
        terms: a sentence or a few; what a buyer signs.
        scalars: of each layer, that may be told in all.
        delta_rows: of each layer, in delta mode; 0 for none.
        days: how long the offer stands.
        buyers: who may buy; empty for whoever signs the terms.
    """

    lora: str
    terms: str
    scalars: int
    delta_rows: int
    days: float
    buyers: tuple[PeerId, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """An adapter on its way to be offered.

    Attributes:
        facts: of its folder.
        claimed: what it is and does.
        folder: private, with its bytes as they will be delivered.
        commitments: by layer.
        probe: root of its probe's folder.
    """

    facts: LoraFacts
    claimed: Claimed
    folder: Path
    commitments: dict[str, bytes]
    probe: BlobId


@dataclass(frozen=True, slots=True)
class Drafting:
    """Measures and describes adapters."""

    context: NodeContext
    catalog: Catalog
    adapters: Adapters
    proving: Proving

    async def draft(self, wish: OfferWish, folder: Path) -> Draft:
        """Measure what will be offered, and commit to it.

        Args:
            wish: what a person wants.
            folder: empty, private, its own.

        Raises:
            NodeError: whatever the person should read.
            P2PError: the disk or the network refuses.
        """
        context, home = self.context, self.context.config.paths
        facts = await trio.to_thread.run_sync(find_on_shelf, home, wish.lora)
        _check_probe(facts)
        place = await self._place(facts)
        raw = folder / _RAW_FILE
        claimed = await self.adapters.claim(place, facts.folder, raw, timeout_s=CLAIM_TIMEOUT_S)
        salt = self._salt_of(claimed.sha256)
        delivery = await trio.to_thread.run_sync(_salted_delivery, raw, salt)
        modules = [
            {
                "name": module.name,
                "inputs": module.in_features,
                "rank": claimed.rank,
                "outputs": module.out_features,
            }
            for module in claimed.modules
        ]
        commitments = await self.proving.commit(modules, delivery)
        paths = {name: facts.folder / name for name in PROBE_FILES}
        probe = await store_folder(context, paths, f"offer/probe/{facts.id}")
        return Draft(facts, claimed, folder, commitments, probe)

    async def _place(self, facts: LoraFacts) -> Place:
        """The adapter's base, here; refused if it is no checkpoint of this run."""
        context = self.context
        base = base_of(facts)
        manifest = await context.fetcher.manifest(base)
        self._check_cluster(facts, base, manifest.record.cluster)
        return await place_of(context, base, manifest.owner, self.catalog.manifest.shared)

    def _check_cluster(self, facts: LoraFacts, base: BlobId, cluster: ClusterId) -> None:
        if cluster != facts.cluster:
            ours = self.catalog.best(facts.cluster)
            raise NodeError(
                ErrorCode.REFUSED,
                f"{facts.name} is for cluster {facts.cluster}, its base {base} is of cluster "
                f"{cluster}; this node's expert of {facts.cluster} is "
                f"{ours.record.manifest if ours else 'none'}.",
                "train it anew: paris-node lora train DATA --expert CID",
            )

    def _salt_of(self, adapter: str) -> bytes:
        """The salt of an adapter: the same in all its offers, so that a new one tells nothing."""
        secret = self.context.identity.seed
        return hmac.digest(secret, _SALT_DOMAIN + adapter.encode(), "sha256")

    def offer(self, wish: OfferWish, draft: Draft) -> LoraOffer:
        """The record to be signed.

        Raises:
            NodeError: no circuit fits a layer, or a field cannot be said: a name that is not
                printable.
        """
        try:
            return self._record(wish, draft)
        except (StatementError, PeerError) as error:
            raise NodeError(
                ErrorCode.REFUSED,
                f"It cannot be offered: {error}.",
                "train it with --rank 16 or less, and give it a plain name",
            ) from error

    def _record(self, wish: OfferWish, draft: Draft) -> LoraOffer:
        context, claimed, now = self.context, draft.claimed, now_s()
        shapes = [Shape(m.in_features, claimed.rank, m.out_features) for m in claimed.modules]
        modules = tuple(
            LoraModule(
                name=module.name,
                inputs=module.in_features,
                outputs=module.out_features,
                circuit=known(shape).circuit,
                commitment=draft.commitments[module.name],
            )
            for module, shape in zip(claimed.modules, shapes, strict=True)
        )
        return LoraOffer(
            run=context.run,
            cluster=draft.facts.cluster,
            base=base_of(draft.facts),
            name=draft.facts.name[:64],
            form=LORA_FORMAT,
            rank=claimed.rank,
            alpha=claimed.alpha,
            targets=claimed.targets,
            modules=modules,
            claims=LoraClaims(
                probe=draft.probe,
                rows=claimed.rows,
                seed=claimed.seed,
                base_loss=claimed.base_loss,
                adapted_loss=claimed.adapted_loss,
            ),
            leaks=LeakPolicy(
                scalars=wish.scalars,
                proofs=min(circuit_of(shape).hidden_proofs for shape in shapes),
                delta_rows=wish.delta_rows,
            ),
            terms=wish.terms,
            licence=claimed.licence,
            seq=len(context.state.loras.own_offers(context.run)),
            created_at=now,
            expires_at=now + 86_400.0 * wish.days,
        )


async def place_of(context: NodeContext, base: BlobId, publisher: PeerId, shared: BlobId) -> Place:
    """An adapter's base on this disk, fetched if need be, and how this node computes.

    Args:
        context: the node.
        base: CID of the checkpoint.
        publisher: who to ask first.
        shared: root of the run's own folder.

    Raises:
        NodeError, P2PError: it can't be had, or the disk refuses.
    """
    config = context.config
    expert = await unpacked_checkpoint(context, base, publisher, label=PULLED)
    return Place(
        shared=await unpacked_folder(context, shared, "shared"),
        models=config.models_folder,
        expert=expert,
        threads=config.threads,
        device=config.device,
    )


def _check_probe(facts: LoraFacts) -> None:
    if not all((facts.folder / name).is_file() for name in PROBE_FILES):
        raise NodeError(
            ErrorCode.REFUSED,
            f"{facts.name} has no probe beside it: nobody could measure what it claims.",
            "train it with this version: paris-node lora train",
        )


def _salted_delivery(raw: Path, salt: bytes) -> Path:
    """The adapter as it will be delivered, in place of its bare numbers. Blocks."""
    with on_disk("read the adapter's numbers"):
        data = delivery_of(salt, raw.read_bytes())
        raw.unlink()
    return write_delivery(raw.parent, data)
