from dataclasses import fields, replace
from typing import Any

import pytest

from p2p.codec import open_signed
from p2p.errors import DecodeError, ExpiredError, PeerError, SignatureError
from p2p.ids import ClusterId, RunId, blob_id
from p2p.limits import MAX_ASK_AGE_S, MAX_CLOCK_SKEW_S
from p2p.lora_checks import (
    MisadvertisedError,
    check_advertised,
    check_offer_time,
    open_agreement,
    open_delivery,
    open_offer,
    open_purchase,
    open_receipt,
    open_request,
)
from p2p.lora_messages import answers_digest
from p2p.lora_records import OfferRef, ProbeRequest
from p2p.records import BLOB_KEY
from p2p.sealed_box import public_of
from tests.support.lora_offers import (
    ANSWER_FRAMES,
    HEX,
    OFFER,
    OFFER_ENVELOPE,
    OFFER_ID,
    SELLER_SECRET,
    agreed_by,
    agreement,
    delivery,
    lora_offer,
    opened_offer,
    probe_receipt,
    probe_request,
)
from tests.support.people import NOW, RUN, alice, bob, carol, cid, sealed

OTHER_RUN = RunId(cid("another run"))
ASKED = open_signed(ProbeRequest, sealed(probe_request(), bob), key=BLOB_KEY, now=NOW)
ANSWERS = answers_digest(ANSWER_FRAMES)


def bits_flipped(envelope: bytes) -> list[bytes]:
    flipped = []
    for at in range(0, len(envelope), 7):
        changed = bytearray(envelope)
        changed[at] ^= 1 << at % 8
        flipped.append(bytes(changed))
    return flipped


# --- offers ---------------------------------------------------------------------------------------


def test_an_offer_is_read_by_its_id() -> None:
    opened = open_offer(OFFER_ENVELOPE, offer=OFFER_ID, now=NOW)
    assert (opened.record, opened.owner) == (OFFER, alice.peer)


def test_another_offer_under_the_id_is_refused() -> None:
    for other in (sealed(lora_offer(seq=2), alice), sealed(OFFER, bob), OFFER_ENVELOPE + b"\0"):
        with pytest.raises(PeerError, match="expected"):
            open_offer(other, offer=OFFER_ID, now=NOW)


def test_an_offer_that_is_changed_is_refused_even_by_its_new_id() -> None:
    for changed in bits_flipped(OFFER_ENVELOPE):
        with pytest.raises((DecodeError, SignatureError)):
            open_offer(changed, offer=blob_id(changed), now=NOW)


def test_an_offer_stands_from_its_making_to_its_end() -> None:
    early, late = OFFER.created_at - MAX_CLOCK_SKEW_S, OFFER.expires_at
    for now in (early, late - 0.1):
        assert open_offer(OFFER_ENVELOPE, offer=OFFER_ID, now=now)
    for now in (early - 0.1, late, late + 1e6):
        with pytest.raises(ExpiredError):
            open_offer(OFFER_ENVELOPE, offer=OFFER_ID, now=now)
        with pytest.raises(ExpiredError):
            check_offer_time(OFFER, now)


REF = OfferRef(OFFER_ID, OFFER.base, cid("proofs"))


def check_advert(ref: OfferRef = REF, **changes: Any) -> None:
    said: dict[str, Any] = {"owner": alice.peer, "run": OFFER.run, "cluster": OFFER.cluster}
    check_advertised(opened_offer(), ref, **{**said, **changes})


def test_an_offer_is_what_its_advert_says() -> None:
    check_advert()


def test_somebody_else_s_offer_is_told_from_one_that_is_not_as_advertised() -> None:
    with pytest.raises(MisadvertisedError, match="advertised by"):
        check_advert(owner=bob.peer)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"run": OTHER_RUN}, "run"),
        ({"cluster": ClusterId(3)}, "cluster"),
        ({"ref": OfferRef(cid("another"), OFFER.base, cid("proofs"))}, "OfferRef.offer"),
        ({"ref": OfferRef(OFFER_ID, cid("another base"), cid("proofs"))}, "base"),
    ],
)
def test_an_advert_that_says_something_else_of_an_offer_is_refused(
    changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(PeerError, match=field) as caught:
        check_advert(**changes)
    assert not isinstance(caught.value, MisadvertisedError)


# --- asking ---------------------------------------------------------------------------------------


def test_a_request_about_our_offer_is_read() -> None:
    opened = open_request(sealed(probe_request(), bob), opened_offer(), peer=bob.peer, now=NOW)
    assert (opened.record, opened.owner) == (probe_request(), bob.peer)


@pytest.mark.parametrize("changes", [{"run": OTHER_RUN}, {"offer": cid("another offer")}])
def test_a_request_about_something_else_is_refused_by_name(changes: dict[str, Any]) -> None:
    (field,) = changes
    with pytest.raises(PeerError, match=rf"ProbeRequest\.{field}"):
        open_request(sealed(probe_request(**changes), bob), opened_offer(), peer=bob.peer, now=NOW)


def test_a_request_passed_on_by_another_peer_is_refused() -> None:
    with pytest.raises(SignatureError, match="it came from"):
        open_request(sealed(probe_request(), bob), opened_offer(), peer=carol.peer, now=NOW)


def test_a_request_is_read_while_it_is_fresh_and_not_again_later() -> None:
    envelope = sealed(probe_request(), bob)
    for now in (NOW - MAX_CLOCK_SKEW_S, NOW + MAX_ASK_AGE_S):
        assert open_request(envelope, opened_offer(), peer=bob.peer, now=now)
    for now in (NOW - MAX_CLOCK_SKEW_S - 0.1, NOW + MAX_ASK_AGE_S + 0.1):
        with pytest.raises(ExpiredError, match="asked_at"):
            open_request(envelope, opened_offer(), peer=bob.peer, now=now)


def test_the_receipt_for_our_questions_is_read() -> None:
    opened = open_receipt(
        sealed(probe_receipt(), alice), ASKED, answers=ANSWERS, seller=alice.peer, now=NOW
    )
    assert opened.record == probe_receipt()


RECEIPT_CHANGES: dict[str, Any] = {
    "run": OTHER_RUN,
    "offer": cid("another offer"),
    "request": cid("another request"),
    "answers": HEX,
    "issued_at": NOW - MAX_CLOCK_SKEW_S - 1,
}


@pytest.mark.parametrize("field", RECEIPT_CHANGES)
def test_a_receipt_for_something_else_is_refused_by_name(field: str) -> None:
    receipt = sealed(probe_receipt(**{field: RECEIPT_CHANGES[field]}), alice)
    with pytest.raises(PeerError, match=rf"ProbeReceipt\.{field}"):
        open_receipt(receipt, ASKED, answers=ANSWERS, seller=alice.peer, now=NOW)


def test_every_field_of_a_receipt_is_checked_but_what_is_left() -> None:
    free = {"scalars_left", "rows_left"}
    assert {field.name for field in fields(probe_receipt())} == free | set(RECEIPT_CHANGES)


def test_a_receipt_from_the_future_is_refused() -> None:
    for ahead_s, is_fine in ((MAX_CLOCK_SKEW_S, True), (MAX_CLOCK_SKEW_S + 0.1, False)):
        receipt = sealed(probe_receipt(issued_at=NOW + ahead_s), alice)
        if is_fine:
            assert open_receipt(receipt, ASKED, answers=ANSWERS, seller=alice.peer, now=NOW)
        else:
            with pytest.raises(ExpiredError):
                open_receipt(receipt, ASKED, answers=ANSWERS, seller=alice.peer, now=NOW)


def test_a_receipt_by_somebody_else_is_refused() -> None:
    with pytest.raises(SignatureError, match="signed by"):
        open_receipt(
            sealed(probe_receipt(), carol), ASKED, answers=ANSWERS, seller=alice.peer, now=NOW
        )


def test_a_receipt_for_the_same_questions_asked_with_another_nonce_is_refused() -> None:
    again = sealed(replace(probe_request(), nonce=b"M" * 16), bob)
    asked = open_signed(ProbeRequest, again, key=BLOB_KEY, now=NOW)
    with pytest.raises(PeerError, match=r"ProbeReceipt\.request"):
        open_receipt(
            sealed(probe_receipt(), alice), asked, answers=ANSWERS, seller=alice.peer, now=NOW
        )


def test_a_receipt_for_the_same_questions_of_another_peer_is_refused() -> None:
    of_carol = open_signed(ProbeRequest, sealed(probe_request(), carol), key=BLOB_KEY, now=NOW)
    with pytest.raises(PeerError, match=r"ProbeReceipt\.request"):
        open_receipt(
            sealed(probe_receipt(), alice), of_carol, answers=ANSWERS, seller=alice.peer, now=NOW
        )


# --- buying ---------------------------------------------------------------------------------------

AGREEMENT_CHANGES: dict[str, Any] = {
    "run": OTHER_RUN,
    "offer": cid("another offer"),
    "buyer": carol.peer,
    "seller": carol.peer,
    "buyer_key": public_of(SELLER_SECRET),
    "terms": "Pass it on to all.",
    "nonce": b"m" * 16,
    "agreed_at": NOW + 1,
}


def test_every_field_of_an_agreement_is_altered_below() -> None:
    assert {field.name for field in fields(agreement())} == set(AGREEMENT_CHANGES)


def test_the_seller_s_copy_of_our_agreement_is_read() -> None:
    opened = open_agreement(sealed(agreement(), alice), agreement(), seller=alice.peer, now=NOW)
    assert (opened.record, opened.owner) == (agreement(), alice.peer)


@pytest.mark.parametrize("field", AGREEMENT_CHANGES)
def test_a_seller_s_copy_that_says_something_else_is_refused_by_name(field: str) -> None:
    altered = sealed(agreement(**{field: AGREEMENT_CHANGES[field]}), alice)
    with pytest.raises(PeerError, match=rf"Agreement\.{field}: is"):
        open_agreement(altered, agreement(), seller=alice.peer, now=NOW)


def test_an_agreement_that_another_signs_in_the_seller_s_place_is_refused() -> None:
    for other in (carol, bob):  # our own is not the seller's
        with pytest.raises(SignatureError, match="signed by"):
            open_agreement(sealed(agreement(), other), agreement(), seller=alice.peer, now=NOW)
    with pytest.raises(PeerError, match=r"Agreement\.seller"):
        open_agreement(sealed(agreement(), carol), agreement(), seller=carol.peer, now=NOW)


def test_a_purchase_of_our_offer_is_read() -> None:
    opened = open_purchase(sealed(agreement(), bob), opened_offer(), buyer=bob.peer, now=NOW)
    assert (opened.record, opened.owner) == (agreement(), bob.peer)


@pytest.mark.parametrize("field", ["run", "offer", "buyer", "seller", "terms"])
def test_a_purchase_that_says_something_else_than_the_offer_is_refused_by_name(field: str) -> None:
    altered = sealed(agreement(**{field: AGREEMENT_CHANGES[field]}), bob)
    with pytest.raises(PeerError, match=rf"Agreement\.{field}: is"):
        open_purchase(altered, opened_offer(), buyer=bob.peer, now=NOW)


def test_a_purchase_passed_on_by_another_peer_is_refused() -> None:
    with pytest.raises(SignatureError, match="it came from"):
        open_purchase(sealed(agreement(), bob), opened_offer(), buyer=carol.peer, now=NOW)
    with pytest.raises(PeerError, match=r"Agreement\.buyer"):
        open_purchase(sealed(agreement(), carol), opened_offer(), buyer=carol.peer, now=NOW)


def test_a_purchase_is_read_while_it_is_fresh_and_not_again_later() -> None:
    envelope = sealed(agreement(), bob)
    for now in (NOW - MAX_CLOCK_SKEW_S, NOW + MAX_ASK_AGE_S):
        assert open_purchase(envelope, opened_offer(), buyer=bob.peer, now=now)
    for now in (NOW - MAX_CLOCK_SKEW_S - 0.1, NOW + MAX_ASK_AGE_S + 0.1):
        with pytest.raises(ExpiredError, match="agreed_at"):
            open_purchase(envelope, opened_offer(), buyer=bob.peer, now=now)


def test_nothing_is_sold_when_the_offer_s_time_is_over() -> None:
    late = sealed(agreement(agreed_at=OFFER.expires_at), bob)
    with pytest.raises(ExpiredError, match="LoraOffer"):
        open_purchase(late, opened_offer(), buyer=bob.peer, now=OFFER.expires_at)


def test_a_delivery_under_our_agreement_is_read() -> None:
    opened = open_delivery(sealed(delivery(), alice), agreed_by(), now=NOW)
    assert (opened.record, opened.owner) == (delivery(), alice.peer)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", OTHER_RUN),
        ("offer", cid("another offer")),
        ("agreement", cid("another agreement")),
        ("agreement", blob_id(sealed(agreement(), bob))),  # the buyer's copy
        ("delivered_at", NOW - MAX_CLOCK_SKEW_S - 1),
        ("delivered_at", NOW + MAX_CLOCK_SKEW_S + 1),
    ],
)
def test_a_delivery_under_something_else_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(PeerError, match=rf"Delivery\.{field}"):
        open_delivery(sealed(delivery(**{field: value}), alice), agreed_by(), now=NOW)


def test_a_delivery_of_an_agreement_with_another_nonce_is_refused() -> None:
    with pytest.raises(PeerError, match=r"Delivery\.agreement"):
        open_delivery(sealed(delivery(), alice), agreed_by(nonce=b"m" * 16), now=NOW)


def test_a_delivery_by_somebody_else_is_refused() -> None:
    with pytest.raises(SignatureError, match="signed by"):
        open_delivery(sealed(delivery(), carol), agreed_by(), now=NOW)


OPENERS: dict[str, tuple[bytes, Any]] = {
    "request": (
        sealed(probe_request(), bob),
        lambda data: open_request(data, opened_offer(), peer=bob.peer, now=NOW),
    ),
    "receipt": (
        sealed(probe_receipt(), alice),
        lambda data: open_receipt(data, ASKED, answers=ANSWERS, seller=alice.peer, now=NOW),
    ),
    "purchase": (
        sealed(agreement(), bob),
        lambda data: open_purchase(data, opened_offer(), buyer=bob.peer, now=NOW),
    ),
    "agreement": (
        sealed(agreement(), alice),
        lambda data: open_agreement(data, agreement(), seller=alice.peer, now=NOW),
    ),
    "delivery": (
        sealed(delivery(), alice),
        lambda data: open_delivery(data, agreed_by(), now=NOW),
    ),
}


@pytest.mark.parametrize("name", OPENERS)
def test_a_letter_that_is_changed_cut_or_longer_is_refused(name: str) -> None:
    envelope, opener = OPENERS[name]
    assert opener(envelope).envelope == envelope
    for changed in (b"", envelope[:-1], envelope + b"\0", *bits_flipped(envelope)):
        with pytest.raises((DecodeError, SignatureError)):
            opener(changed)


@pytest.mark.parametrize("name", OPENERS)
def test_a_letter_is_never_read_as_another(name: str) -> None:
    _, opener = OPENERS[name]
    kinds = {"request": "Request", "receipt": "Receipt", "delivery": "Delivery"}
    for other, (envelope, _) in OPENERS.items():
        if kinds.get(other, "Agreement") != kinds.get(name, "Agreement"):
            with pytest.raises(DecodeError, match="expected a"):
                opener(envelope)


def test_the_run_of_the_tests_is_not_the_other() -> None:
    assert RUN != OTHER_RUN
