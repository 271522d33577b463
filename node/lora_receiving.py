"""What came of a purchase: commitments recomputed before anything is believed, then kept, or proof.

A delivery that is not what was committed to leaves a file that shows it to anybody.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from node.adapter_facts import Place, Purchase
from node.adapters import Adapters
from node.clock import now_s
from node.context import NodeContext
from node.disk import on_disk
from node.errors import ErrorCode, NodeError
from node.lora_asking import Purchased
from node.lora_convert import modules_plain, offer_name
from node.lora_rows import OfferStanding
from node.lora_shelf import PURCHASE_FILE
from node.offer_board import OfferBoard
from node.offer_folder import workplace
from node.proving import Proving, RejectedByProofError
from p2p.codec import Verified
from p2p.errors import PeerError
from p2p.fraud import FraudProof, pack_fraud
from p2p.ids import BlobId
from p2p.lora_records import LoraOffer
from training.files import write_file
from training.jsonio import canonical_json
from verification.adapter import numbers_of

KEEP_TIMEOUT_S: Final = 600.0
FRAUD_BAN_S: Final = 365 * 86_400.0
_DELIVERY_FILE: Final = "delivered.bin"
_ARRAYS_FILE: Final = "arrays.bin"


@dataclass(frozen=True, slots=True)
class ReceivedDelivery:
    """What was bought, and for which base.

    Attributes:
        offer: what was promised.
        place: its base, here.
        probe: folder of the offer's probe.
        bought: what came.
    """

    offer: Verified[LoraOffer]
    place: Place
    probe: Path
    bought: Purchased


@dataclass(frozen=True, slots=True)
class Receiving:
    """Checks and keeps deliveries."""

    context: NodeContext
    board: OfferBoard
    adapters: Adapters
    proving: Proving

    async def keep(self, received: ReceivedDelivery) -> Path:
        """Put a delivered adapter on the shelf, if it is the one that was committed to.

        Raises:
            NodeError: `VERIFICATION_FAILED` if it is not, naming the file that proves it.
            StorageError: the disk refuses.
        """
        offers = self.context.config.paths.offers
        with workplace(offers) as folder:  # of this purchase alone: what is checked is what is kept
            delivery = folder / _DELIVERY_FILE
            try:
                plaintext = await trio.to_thread.run_sync(received.bought.plaintext)
                with on_disk("write what was delivered"):
                    await trio.to_thread.run_sync(write_file, delivery, plaintext)
                await self.proving.check(modules_plain(received.offer.record), delivery)
            except (PeerError, RejectedByProofError) as error:
                raise await self._fraud(received, str(error)) from error
            return await self._shelve(received, plaintext, folder)

    async def _shelve(self, received: ReceivedDelivery, plaintext: bytes, place: Path) -> Path:
        home, offer_id = self.context.config.paths, offer_name(received.offer)
        record, claims = received.offer.record, received.offer.record.claims
        with on_disk("find a place on the shelf"):
            folder = _free_folder(home.loras, record.name, offer_id)
        arrays = place / _ARRAYS_FILE
        purchase = Purchase(
            arrays=arrays,
            cid=record.base,
            offer=offer_id,
            targets=record.targets,
            rank=record.rank,
            alpha=record.alpha,
            rows=claims.rows,
            seed=claims.seed,
            base_loss=claims.base_loss,
            adapted_loss=claims.adapted_loss,
            licence=record.licence,
            probe=received.probe,
        )
        with on_disk("write the adapter"):
            await trio.to_thread.run_sync(write_file, arrays, numbers_of(plaintext))
        await self.adapters.keep(received.place, purchase, folder, timeout_s=KEEP_TIMEOUT_S)
        told = {
            "offer": offer_id,
            "seller": received.offer.owner,
            "terms": record.terms,
            "bought_at": now_s(),
        }
        with on_disk("write down the purchase"):
            await trio.to_thread.run_sync(write_file, folder / PURCHASE_FILE, canonical_json(told))
        return folder

    async def _fraud(self, received: ReceivedDelivery, why: str) -> NodeError:
        """Have nothing more to do with the seller, keep what proves it, and say so."""
        offer, bought = received.offer, received.bought
        offer_id = offer_name(offer)
        proof = FraudProof(
            offer=offer.envelope,
            agreement=bought.agreement,
            delivery=bought.delivery.envelope,
            buyer_secret=bought.secret,
            ciphertext=bought.ciphertext,
        )
        seen = self.context.state.loras.seen(offer_id)
        if seen is not None:
            self.board.note(offer, seen.proofs, OfferStanding.REFUSED, f"fraud: {why}"[:500])
        self.board.strike(offer.owner, f"fraud, {offer_id}: {why}", ban_s=FRAUD_BAN_S, at=1)
        path = self.context.config.paths.offers / f"{offer_id}.fraud"
        with on_disk("write the proof of fraud"):
            data = await trio.to_thread.run_sync(pack_fraud, proof)
            await trio.to_thread.run_sync(write_file, path, data)
        self.context.journal.write("fraud", offer=offer_id, seller=offer.owner, proof=str(path))
        return NodeError(
            ErrorCode.VERIFICATION_FAILED,
            f"What was delivered is not what was offered: {why}.",
            f"anybody can check it: paris-node lora judge {path}",
        )


def _free_folder(shelf: Path, name: str, offer: BlobId) -> Path:
    """A place on the shelf, named after the offer."""
    shelf.mkdir(parents=True, exist_ok=True)
    words = "".join(char if char.isalnum() or char in "._-" else "-" for char in name).strip(".-")
    stem = f"{words or 'lora'}-{offer[-6:]}"
    folder, number = shelf / stem, 2
    while folder.exists():
        folder, number = shelf / f"{stem}-{number}", number + 1
    return folder
