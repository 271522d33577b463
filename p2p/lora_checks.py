"""What the sealed records of a LoRA exchange must say, given who sent them and what went before.

Each opener takes bytes and what is already known, and returns `Verified` or raises naming the
field. Says nothing of proofs or weights. Time is a parameter.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import TypeVar

from p2p.codec import Verified, open_signed
from p2p.errors import ExpiredError, PeerError, SignatureError
from p2p.ids import BlobId, ClusterId, PeerId, RunId, blob_id
from p2p.limits import MAX_ASK_AGE_S, MAX_CLOCK_SKEW_S
from p2p.lora_records import (
    Agreement,
    Delivery,
    LoraOffer,
    OfferRef,
    ProbeReceipt,
    ProbeRequest,
)
from p2p.records import BLOB_KEY


class MisadvertisedError(SignatureError):
    """An advert that names somebody else's offer: nothing is wrong with the offer itself."""


L = TypeVar("L", LoraOffer, Agreement, Delivery, ProbeRequest, ProbeReceipt)


def open_offer(envelope: bytes, *, offer: BlobId, now: float) -> Verified[LoraOffer]:
    """Read an offer by its id.

    Raises:
        ExpiredError: if its time is over, or has not come.
        PeerError: if it is another blob, or no valid offer.
    """
    if blob_id(envelope) != offer:
        raise PeerError(f"offer: these bytes are {blob_id(envelope)}, expected {offer}")
    opened = open_signed(LoraOffer, envelope, key=BLOB_KEY, now=now)
    check_offer_time(opened.record, now)
    return opened


def check_offer_time(offer: LoraOffer, now: float) -> None:
    """Refuse an offer whose time is over, or has not come: `ExpiredError`."""
    if now >= offer.expires_at or now < offer.created_at - MAX_CLOCK_SKEW_S:
        raise ExpiredError(
            f"LoraOffer: stands from {offer.created_at:.0f} to {offer.expires_at:.0f}, "
            f"now is {now:.0f}"
        )


def check_advertised(
    offer: Verified[LoraOffer], ref: OfferRef, *, owner: PeerId, run: RunId, cluster: ClusterId
) -> None:
    """Check an offer against the advert that led to it.

    Args:
        offer: as it came.
        ref: its line in the advert.
        owner: who signed the advert.
        run: of the advert.
        cluster: of the advert.

    Raises:
        MisadvertisedError: if it is another's.
        PeerError: if the advert says something else of it; naming the field.
    """
    if offer.owner != owner:
        raise MisadvertisedError(f"offer: signed by {offer.owner}, advertised by {owner}")
    if blob_id(offer.envelope) != ref.offer:
        raise PeerError(f"OfferRef.offer: is {ref.offer}, came {blob_id(offer.envelope)}")
    for field, said in (("run", run), ("cluster", cluster), ("base", ref.base)):
        if (got := getattr(offer.record, field)) != said:
            raise PeerError(f"LoraOffer.{field}: is {got}, advertised was {said}")


def open_request(
    envelope: bytes, offer: Verified[LoraOffer], *, peer: PeerId, now: float
) -> Verified[ProbeRequest]:
    """Read the request of a peer that asks of our offer.

    Whether its nonce is new is for the caller, who remembers nonces for `MAX_ASK_AGE_S` and
    `MAX_CLOCK_SKEW_S`: so long one request may be read.

    Raises:
        ExpiredError: if it is old, or from the future.
        PeerError: if it is another's (a replay), or about another offer.
    """
    opened = _open(ProbeRequest, envelope, peer, now)
    _check_fields(opened.record, _about(offer))
    _check_fresh("ProbeRequest.asked_at", opened.record.asked_at, now)
    return opened


def open_receipt(
    envelope: bytes, asked: Verified[ProbeRequest], *, answers: str, seller: PeerId, now: float
) -> Verified[ProbeReceipt]:
    """Read the receipt for the answers that came to our request.

    Args:
        envelope: the sealed receipt.
        asked: our request, as we sealed it.
        answers: `answers_digest` of the answer frames as they came.
        seller: who answered, as the channel proved.
        now: seconds since the epoch.

    Raises:
        PeerError: if it is another's, or for other questions or answers; naming the field.
    """
    opened = _open(ProbeReceipt, envelope, seller, now)
    request = asked.record
    expected = {
        "run": request.run,
        "offer": request.offer,
        "request": blob_id(asked.envelope),
        "answers": answers,
    }
    _check_fields(opened.record, expected)
    earliest = request.asked_at - MAX_CLOCK_SKEW_S
    _check_moment("ProbeReceipt.issued_at", opened.record.issued_at, earliest=earliest, now=now)
    return opened


def open_purchase(
    envelope: bytes, offer: Verified[LoraOffer], *, buyer: PeerId, now: float
) -> Verified[Agreement]:
    """Read the agreement of a peer that wants to buy what we offer.

    Raises:
        ExpiredError: if it is old, or from the future, or the offer's time is over.
        PeerError: if it is another's (a replay), or does not say what the offer says.
    """
    opened = _open(Agreement, envelope, buyer, now)
    expected = {"buyer": buyer, "seller": offer.owner, "terms": offer.record.terms}
    _check_fields(opened.record, _about(offer) | expected)
    _check_fresh("Agreement.agreed_at", opened.record.agreed_at, now)
    check_offer_time(offer.record, now)
    return opened


def open_agreement(
    envelope: bytes, ours: Agreement, *, seller: PeerId, now: float
) -> Verified[Agreement]:
    """Read the seller's copy of our agreement.

    Args:
        envelope: what the seller sealed.
        ours: what we sealed.
        seller: who answered, as the channel proved.
        now: seconds since the epoch.

    Raises:
        PeerError: if it is another's, or a field is not ours; naming the field.
    """
    opened = _open(Agreement, envelope, seller, now)
    _check_fields(opened.record, {field.name: getattr(ours, field.name) for field in fields(ours)})
    _check_fields(opened.record, {"seller": seller})
    return opened


def open_delivery(
    envelope: bytes, agreed: Verified[Agreement], *, now: float
) -> Verified[Delivery]:
    """Read the seller's word for what it is about to send.

    Args:
        envelope: the sealed delivery.
        agreed: the seller's agreement, from `open_agreement`.
        now: seconds since the epoch.

    Raises:
        PeerError: if it is not the seller's, or belongs to another agreement; naming the field.
    """
    opened = _open(Delivery, envelope, agreed.owner, now)
    check_delivery(opened.record, agreed)
    earliest = agreed.record.agreed_at - MAX_CLOCK_SKEW_S
    _check_moment("Delivery.delivered_at", opened.record.delivered_at, earliest=earliest, now=now)
    return opened


def check_delivery(delivery: Delivery, agreed: Verified[Agreement]) -> None:
    """Check that a delivery belongs to an agreement: `PeerError`, naming the field."""
    expected = {
        "run": agreed.record.run,
        "offer": agreed.record.offer,
        "agreement": blob_id(agreed.envelope),
    }
    _check_fields(delivery, expected)


def _open(kind: type[L], envelope: bytes, peer: PeerId, now: float) -> Verified[L]:
    opened = open_signed(kind, envelope, key=BLOB_KEY, now=now)
    if opened.owner != peer:
        raise SignatureError(f"{kind.__name__}: signed by {opened.owner}, it came from {peer}")
    return opened


def _about(offer: Verified[LoraOffer]) -> dict[str, object]:
    return {"run": offer.record.run, "offer": blob_id(offer.envelope)}


def _check_fields(record: object, expected: Mapping[str, object]) -> None:
    for field, value in expected.items():
        got = getattr(record, field)
        if got != value:
            where = f"{type(record).__name__}.{field}"
            raise PeerError(f"{where}: is {got!r:.100}, expected {value!r:.100}")


def _check_fresh(what: str, moment: float, now: float) -> None:
    _check_moment(what, moment, earliest=now - MAX_ASK_AGE_S, now=now)


def _check_moment(what: str, moment: float, *, earliest: float, now: float) -> None:
    if not earliest <= moment <= now + MAX_CLOCK_SKEW_S:
        raise ExpiredError(f"{what}: {moment - now:.1f} s from now, expected a moment just past")
