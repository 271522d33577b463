from dataclasses import fields, replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p import fraud as module
from p2p.errors import DecodeError, LimitError, PeerError, SignatureError
from p2p.fraud import FraudProof, check_fraud, pack_fraud, unpack_fraud
from p2p.identity import Identity
from p2p.ids import RunId, blob_id
from p2p.limits import CHUNK_SIZE, MAX_DELIVERY_SIZE, MAX_FRAUD_SIZE, MAX_LETTER_SIZE
from p2p.sealed_box import public_of
from tests.support.lora_offers import (
    BUYER_SECRET,
    HEX,
    OFFER,
    OFFER_ENVELOPE,
    OFFER_ID,
    PLAINTEXT,
    SELLER_SECRET,
    agreed_by,
    agreement,
    ciphertext_for,
    delivery,
    lora_offer,
)
from tests.support.people import NOW, alice, bob, carol, cid, sealed

CIPHERTEXT = ciphertext_for(agreed_by())
PROOF = FraudProof(
    offer=OFFER_ENVELOPE,
    agreement=agreed_by().envelope,
    delivery=sealed(delivery(), alice),
    buyer_secret=BUYER_SECRET,
    ciphertext=CIPHERTEXT,
)
OTHER_RUN = RunId(cid("another run"))


def proof_of(
    *, seller: Identity = alice, agreed: dict[str, Any] | None = None, **changes: Any
) -> FraudProof:
    """A proof whose agreement and delivery fit each other, with these fields changed in them."""
    letter = sealed(agreement(**(agreed or {})), seller)
    about = {"agreement": blob_id(letter)} | changes
    return replace(PROOF, agreement=letter, delivery=sealed(delivery(**about), alice))


def test_a_fraud_proof_shows_what_was_delivered() -> None:
    case = check_fraud(unpack_fraud(pack_fraud(PROOF)), now=NOW)
    assert (case.offer, case.offer_id) == (OFFER, OFFER_ID)
    assert (case.seller, case.buyer) == (alice.peer, bob.peer)
    assert (case.agreement, case.delivery) == (agreement(), delivery())
    assert (case.plaintext, case.reason) == (PLAINTEXT, None)


def test_a_fraud_proof_holds_however_late_and_whatever_the_seller_dated() -> None:
    assert check_fraud(PROOF, now=NOW + 1e9).plaintext == PLAINTEXT
    assert check_fraud(proof_of(delivered_at=NOW + 1e9), now=NOW).seller == alice.peer


def test_a_delivery_that_does_not_decrypt_is_the_seller_s_fraud() -> None:
    noise = b"noise" * 50
    case = check_fraud(
        replace(PROOF, ciphertext=noise, delivery=sealed(delivery(noise), alice)), now=NOW
    )
    assert case.plaintext is None
    assert case.reason is not None
    assert "does not decrypt" in case.reason
    assert (case.seller, case.buyer) == (alice.peer, bob.peer)


def test_a_seller_s_key_that_opens_nothing_is_its_fraud_too() -> None:
    other = sealed(delivery(seller_key=public_of(b"o" * 32)), alice)
    assert check_fraud(replace(PROOF, delivery=other), now=NOW).plaintext is None
    weak = sealed(delivery(seller_key=bytes(32)), alice)  # of small order
    case = check_fraud(replace(PROOF, delivery=weak), now=NOW)
    assert case.plaintext is None
    assert case.reason is not None
    assert "small order" in case.reason


# --- what proves nothing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "record"),
    [("offer", OFFER), ("agreement", agreement()), ("delivery", delivery())],
)
def test_what_the_seller_did_not_sign_is_held_against_nobody(field: str, record: Any) -> None:
    for other in (bob, carol):
        with pytest.raises(SignatureError, match="signed by"):
            check_fraud(replace(PROOF, **{field: sealed(record, other)}), now=NOW)


def test_a_buyer_who_signs_all_three_frames_nobody_else() -> None:
    offer = sealed(OFFER, bob)
    letter = sealed(agreement(offer=blob_id(offer)), bob)
    about = delivery(offer=blob_id(offer), agreement=blob_id(letter))
    forged = replace(PROOF, offer=offer, agreement=letter, delivery=sealed(about, bob))
    with pytest.raises(PeerError, match=r"Agreement\.seller"):
        check_fraud(forged, now=NOW)


@pytest.mark.parametrize(
    ("proof", "field"),
    [
        pytest.param(
            replace(PROOF, offer=sealed(lora_offer(seq=2), alice)),
            r"Agreement\.offer",
            id="another offer of the seller",
        ),
        pytest.param(
            proof_of(agreed={"offer": cid("another")}, offer=cid("another")),
            r"Agreement\.offer",
            id="an agreement about another offer",
        ),
        pytest.param(
            proof_of(agreed={"run": OTHER_RUN}, run=OTHER_RUN),
            r"Agreement\.run",
            id="an agreement of another run",
        ),
        pytest.param(
            proof_of(agreed={"seller": carol.peer}),
            r"Agreement\.seller",
            id="an agreement that names another seller",
        ),
        pytest.param(
            proof_of(offer=cid("another")), r"Delivery\.offer", id="a delivery of another offer"
        ),
        pytest.param(proof_of(run=OTHER_RUN), r"Delivery\.run", id="a delivery of another run"),
        pytest.param(
            replace(PROOF, agreement=sealed(agreement(nonce=b"m" * 16), alice)),
            r"Delivery\.agreement",
            id="a delivery under another agreement",
        ),
        pytest.param(
            replace(PROOF, ciphertext=CIPHERTEXT[:-1] + b"!"),
            r"Delivery\.ciphertext",
            id="another ciphertext",
        ),
        pytest.param(
            replace(PROOF, ciphertext=CIPHERTEXT + b"!"), r"Delivery\.size", id="a longer one"
        ),
        pytest.param(proof_of(size=len(CIPHERTEXT) + 1), r"Delivery\.size", id="another size"),
        pytest.param(proof_of(ciphertext=HEX), r"Delivery\.ciphertext", id="another hash"),
        pytest.param(
            replace(PROOF, buyer_secret=SELLER_SECRET), "buyer_secret", id="another's secret"
        ),
        pytest.param(
            proof_of(agreed={"buyer_key": public_of(SELLER_SECRET)}),
            "buyer_secret",
            id="a secret that was not agreed on",
        ),
    ],
)
def test_a_proof_that_does_not_hang_together_is_refused_by_name(
    proof: FraudProof, field: str
) -> None:
    with pytest.raises(PeerError, match=field):
        check_fraud(proof, now=NOW)


@pytest.mark.parametrize("field", ["offer", "agreement", "delivery"])
def test_an_envelope_that_is_changed_cut_or_another_kind_is_refused(field: str) -> None:
    envelope: bytes = getattr(PROOF, field)
    changed = bytearray(envelope)
    changed[len(envelope) // 2] ^= 1
    others = [getattr(PROOF, name) for name in ("offer", "agreement", "delivery") if name != field]
    for wrong in (bytes(changed), envelope[:-1], envelope[:-1] + b"\0", *others):
        with pytest.raises((DecodeError, SignatureError, LimitError)):
            check_fraud(replace(PROOF, **{field: wrong}), now=NOW)


# --- the file -------------------------------------------------------------------------------------

LETTERS = ([b"x", bytes(MAX_LETTER_SIZE)], [b"", bytes(MAX_LETTER_SIZE + 1)])
BOUNDS: dict[str, tuple[list[bytes], list[bytes]]] = {
    "offer": ([b"x", bytes(CHUNK_SIZE)], [b"", bytes(CHUNK_SIZE + 1)]),
    "agreement": LETTERS,
    "delivery": LETTERS,
    "buyer_secret": ([bytes(32)], [b"", bytes(31), bytes(33)]),
    "ciphertext": ([b"x", bytes(MAX_DELIVERY_SIZE)], [b"", bytes(MAX_DELIVERY_SIZE + 1)]),
}


@pytest.mark.parametrize("field", BOUNDS)
def test_every_part_holds_on_both_sides_of_its_bounds(field: str) -> None:
    fine, wrong = BOUNDS[field]
    for value in fine:
        assert getattr(replace(PROOF, **{field: value}), field) is value
    for value in wrong:
        with pytest.raises((DecodeError, LimitError), match=rf"FraudProof\.{field}"):
            replace(PROOF, **{field: value})


def test_every_part_is_tried() -> None:
    assert {field.name for field in fields(PROOF)} == set(BOUNDS)


@given(
    letters=st.tuples(*[st.binary(min_size=1, max_size=50)] * 3),
    secret=st.binary(min_size=32, max_size=32),
    ciphertext=st.binary(min_size=1, max_size=200),
)
def test_any_fraud_proof_round_trips(
    letters: tuple[bytes, bytes, bytes], secret: bytes, ciphertext: bytes
) -> None:
    made = FraudProof(*letters, secret, ciphertext)
    assert unpack_fraud(pack_fraud(made)) == made


def test_a_file_that_is_cut_longer_or_something_else_is_refused() -> None:
    data = pack_fraud(PROOF)
    good = msgpack.unpackb(data)
    others = [msgpack.packb(good | {"zeal": b"1"}), msgpack.packb(good | {"ciphertext": "text"})]
    for wrong in (b"", data[:-1], data + b"\0", b"\xc0", *others):
        with pytest.raises(DecodeError):
            unpack_fraud(wrong)


def test_a_file_that_is_too_large_is_neither_written_nor_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(LimitError, match=f"limit is {MAX_FRAUD_SIZE}"):
        unpack_fraud(bytes(MAX_FRAUD_SIZE + 1))
    size = len(pack_fraud(PROOF))
    monkeypatch.setattr(module, "MAX_FRAUD_SIZE", size)
    assert unpack_fraud(pack_fraud(PROOF)) == PROOF
    monkeypatch.setattr(module, "MAX_FRAUD_SIZE", size - 1)
    with pytest.raises(LimitError, match="fraud proof"):
        pack_fraud(PROOF)


def test_a_proof_of_the_largest_parts_is_within_the_limit_of_the_file() -> None:
    parts = CHUNK_SIZE + 2 * MAX_LETTER_SIZE + 32 + MAX_DELIVERY_SIZE
    names = len(pack_fraud(FraudProof(b"x", b"x", b"x", bytes(32), b"x")))
    assert parts + names + 16 <= MAX_FRAUD_SIZE
