"""A file that proves what a seller delivered: anybody can check it, only the seller could forge it.

It holds what the seller signed (offer, agreement, delivery), the ciphertext, and the buyer's key
for that one delivery. `check_fraud` shows what was sent; whether it is what the offer committed to
is decided by whoever recomputes the commitments from `FraudCase.plaintext`.
"""

from dataclasses import dataclass

from p2p.codec import Verified, open_signed, pack, unpack
from p2p.errors import DecodeError, LimitError, PeerError, SignatureError
from p2p.ids import BlobId, PeerId, blob_id
from p2p.limits import CHUNK_SIZE, MAX_DELIVERY_SIZE, MAX_FRAUD_SIZE, MAX_LETTER_SIZE
from p2p.lora_checks import check_delivery
from p2p.lora_records import KEY_SIZE, Agreement, Delivery, LoraOffer
from p2p.lora_streams import check_ciphertext
from p2p.record_checks import check_filled, check_size
from p2p.records import BLOB_KEY
from p2p.sealed_box import open_box, public_of


@dataclass(frozen=True, slots=True)
class FraudProof:
    """What a buyer shows of a delivery; it gives away the plaintext."""

    offer: bytes
    """The sealed `LoraOffer`."""
    agreement: bytes
    """The `Agreement` sealed by the seller."""
    delivery: bytes
    """The sealed `Delivery`."""
    buyer_secret: bytes
    """The buyer's X25519 private key for this delivery."""
    ciphertext: bytes

    def __post_init__(self) -> None:
        """Check sizes.

        Raises:
            DecodeError: if a part is empty, or the key is not 32 bytes.
            LimitError: if a part is too large.
        """
        check_filled("FraudProof.offer", self.offer, CHUNK_SIZE)
        check_filled("FraudProof.agreement", self.agreement, MAX_LETTER_SIZE)
        check_filled("FraudProof.delivery", self.delivery, MAX_LETTER_SIZE)
        check_size("FraudProof.buyer_secret", self.buyer_secret, KEY_SIZE)
        check_filled("FraudProof.ciphertext", self.ciphertext, MAX_DELIVERY_SIZE)


@dataclass(frozen=True, slots=True)
class FraudCase:
    """What a fraud proof shows beyond doubt: this seller sent this to this buyer for this offer."""

    offer_id: BlobId
    offer: LoraOffer
    agreement: Agreement
    delivery: Delivery
    seller: PeerId
    buyer: PeerId
    """As the seller named it."""
    plaintext: bytes | None
    """What was delivered; None if it does not decrypt, which is fraud by itself."""
    reason: str | None
    """Why it does not decrypt; None if it does."""


def pack_fraud(proof: FraudProof) -> bytes:
    """The file's bytes.

    Raises:
        EncodeError: if a field is not of its type.
        LimitError: if they are more than `MAX_FRAUD_SIZE`.
    """
    data = pack(proof)
    if len(data) > MAX_FRAUD_SIZE:
        raise LimitError(f"fraud proof: {len(data)} bytes, the limit is {MAX_FRAUD_SIZE}")
    return data


def unpack_fraud(data: bytes) -> FraudProof:
    """Read a fraud proof.

    Raises:
        LimitError: if it, or a part of it, is over a limit.
        DecodeError: if it is anything else.
    """
    return unpack(FraudProof, data, max_size=MAX_FRAUD_SIZE)


def check_fraud(proof: FraudProof, *, now: float) -> FraudCase:
    """Establish what a seller delivered.

    No time that the seller wrote is looked at: a delivery dated oddly must not excuse it.

    Args:
        proof: as it was read.
        now: seconds since the epoch.

    Raises:
        PeerError: naming the field, if the file does not show that the seller signed for this
            ciphertext, under this offer, to the key that decrypts it.
    """
    offer = open_signed(LoraOffer, proof.offer, key=BLOB_KEY, now=now)
    agreed = open_signed(Agreement, proof.agreement, key=BLOB_KEY, now=now)
    delivered = open_signed(Delivery, proof.delivery, key=BLOB_KEY, now=now)
    _check_seller(offer, agreed, delivered)
    check_delivery(delivered.record, agreed)
    check_ciphertext(proof.ciphertext, delivered.record)
    if public_of(proof.buyer_secret) != agreed.record.buyer_key:
        raise PeerError("FraudProof.buyer_secret: is not the key of Agreement.buyer_key")
    plaintext, reason = _decrypted(proof, delivered.record)
    return FraudCase(
        offer_id=blob_id(proof.offer),
        offer=offer.record,
        agreement=agreed.record,
        delivery=delivered.record,
        seller=offer.owner,
        buyer=agreed.record.buyer,
        plaintext=plaintext,
        reason=reason,
    )


def _check_seller(
    offer: Verified[LoraOffer], agreed: Verified[Agreement], delivered: Verified[Delivery]
) -> None:
    """Check that one peer signed all three, and agreed to sell this offer."""
    if agreed.owner != offer.owner:
        raise SignatureError(f"Agreement: signed by {agreed.owner}, the offer by {offer.owner}")
    if delivered.owner != offer.owner:
        raise SignatureError(f"Delivery: signed by {delivered.owner}, the offer by {offer.owner}")
    if agreed.record.seller != offer.owner:
        raise PeerError(f"Agreement.seller: is {agreed.record.seller}, signed by {offer.owner}")
    if agreed.record.offer != blob_id(offer.envelope):
        raise PeerError(f"Agreement.offer: is {agreed.record.offer}, not the offer shown")
    if agreed.record.run != offer.record.run:
        raise PeerError(f"Agreement.run: is {agreed.record.run}, the offer's {offer.record.run}")


def _decrypted(proof: FraudProof, delivery: Delivery) -> tuple[bytes | None, str | None]:
    """The plaintext, or why there is none: all that was checked is the seller's doing by now."""
    try:
        plaintext = open_box(
            proof.ciphertext,
            secret=proof.buyer_secret,
            sender=delivery.seller_key,
            agreement=delivery.agreement,
        )
    except (DecodeError, SignatureError) as error:
        return None, str(error)
    return plaintext, None
