"""Alice offers a LoRA of two modules, Bob asks about it and buys it: the records they send."""

import hashlib
from dataclasses import replace
from typing import Final

from p2p.codec import Verified, open_signed
from p2p.identity import Identity
from p2p.ids import ClusterId, blob_id
from p2p.lora_matrices import pack_probe, pack_values
from p2p.lora_messages import Answer, Question, pack_question, pack_reply, questions_digest
from p2p.lora_records import (
    BLIND,
    DELTA,
    LORA_FORMAT,
    Agreement,
    Delivery,
    LeakPolicy,
    LoraClaims,
    LoraModule,
    LoraOffer,
    OfferAdvert,
    OfferRef,
    ProbeReceipt,
    ProbeRequest,
)
from p2p.offer_proofs import ModuleProof, OfferProofs
from p2p.records import BLOB_KEY
from p2p.sealed_box import public_of, seal_box
from tests.support.people import NOW, RUN, alice, bob, cid, sealed

SELLER_SECRET: Final = bytes(range(32))
BUYER_SECRET: Final = bytes(range(32, 64))
PLAINTEXT: Final = b"two hundred weights" * 20
HEX: Final = hashlib.sha256(b"some digest").hexdigest()
TO_Q: Final = LoraModule("blocks.0.attn1.to_q", 6, 5, HEX, b"c" * 128)
TO_K: Final = LoraModule("blocks.0.attn1.to_k", 4, 8, HEX, b"C" * 192)


def lora_offer(**changes: object) -> LoraOffer:
    """Alice's offer for the expert of cluster 2, which allows delta mode."""
    offer = LoraOffer(
        run=RUN,
        cluster=ClusterId(2),
        base=cid("checkpoint"),
        name="ukiyo-e",
        form=LORA_FORMAT,
        rank=4,
        alpha=4.0,
        targets="attention",
        modules=(TO_Q, TO_K),
        claims=LoraClaims(cid("probe"), rows=64, seed=7, base_loss=0.5, adapted_loss=0.25),
        leaks=LeakPolicy(scalars=32, proofs=64, delta_rows=4),
        terms="Not to be passed on.",
        licence="cc-by-4.0",
        seq=1,
        created_at=NOW - 100,
        expires_at=NOW + 86_400,
    )
    return replace(offer, **changes)  # type: ignore[arg-type]


OFFER: Final = lora_offer()
OFFER_ENVELOPE: Final = sealed(OFFER, alice)
OFFER_ID: Final = blob_id(OFFER_ENVELOPE)


def opened_offer() -> Verified[LoraOffer]:
    """Alice's offer as a reader holds it."""
    return open_signed(LoraOffer, OFFER_ENVELOPE, key=BLOB_KEY, now=NOW)


def offer_ref(number: int = 0) -> OfferRef:
    """Where an offer that need not exist lies."""
    return OfferRef(cid(f"offer {number}"), cid("checkpoint"), cid(f"proofs {number}"))


def offer_advert(cluster: int = 2, **changes: object) -> OfferAdvert:
    """An advert of Alice's offer."""
    ref = OfferRef(OFFER_ID, OFFER.base, cid("proofs"))
    advert = OfferAdvert(RUN, ClusterId(cluster), (ref,), issued_at=NOW)
    return replace(advert, **changes)  # type: ignore[arg-type]


def agreement(**changes: object) -> Agreement:
    """Bob buys what Alice offers."""
    agreed = Agreement(
        run=RUN,
        offer=OFFER_ID,
        buyer=bob.peer,
        seller=alice.peer,
        buyer_key=public_of(BUYER_SECRET),
        terms=OFFER.terms,
        nonce=b"n" * 16,
        agreed_at=NOW,
    )
    return replace(agreed, **changes)  # type: ignore[arg-type]


def agreed_by(seller: Identity = alice, **changes: object) -> Verified[Agreement]:
    """The agreement as the seller sealed it."""
    return open_signed(Agreement, sealed(agreement(**changes), seller), key=BLOB_KEY, now=NOW)


def ciphertext_for(agreed: Verified[Agreement], plaintext: bytes = PLAINTEXT) -> bytes:
    """What Alice sends."""
    key = agreed.record.buyer_key
    return seal_box(plaintext, secret=SELLER_SECRET, to=key, agreement=blob_id(agreed.envelope))


def delivery(given: bytes | None = None, /, **changes: object) -> Delivery:
    """Alice's word for a ciphertext."""
    agreed = agreed_by()
    data = ciphertext_for(agreed) if given is None else given
    made = Delivery(
        run=RUN,
        offer=OFFER_ID,
        agreement=blob_id(agreed.envelope),
        seller_key=public_of(SELLER_SECRET),
        size=len(data),
        ciphertext=hashlib.sha256(data).hexdigest(),
        delivered_at=NOW,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def blind_question(module: LoraModule = TO_Q, first: int = 1, pairs: int = 1) -> Question:
    """So many pairs of vectors for one module."""
    left = pack_probe([[first] * module.inputs] * pairs)
    right = pack_probe([[2] * pairs] * module.outputs)
    return Question(module.name, pairs, pairs, left, right)


def delta_question(module: LoraModule = TO_Q, rows: int = 2) -> Question:
    """So many rows of activations for one module."""
    return Question(module.name, rows, 0, pack_probe([[3] * module.inputs] * rows), b"")


QUESTIONS: Final = (blind_question(), blind_question(TO_K), blind_question(first=-5))


def question_frames(*questions: Question) -> list[bytes]:
    """Their payloads."""
    return [pack_question(question) for question in questions]


def probe_request(*questions: Question, **changes: object) -> ProbeRequest:
    """Bob asks `questions`, or else `QUESTIONS`."""
    asked = questions or QUESTIONS
    request = ProbeRequest(
        run=RUN,
        offer=OFFER_ID,
        nonce=b"N" * 16,
        mode=DELTA if asked[0].is_delta else BLIND,
        questions=questions_digest(question_frames(*asked)),
        count=len(asked),
        asked_at=NOW,
    )
    return replace(request, **changes)  # type: ignore[arg-type]


def answer(question: Question, outputs: int = 0) -> Answer:
    """Numbers of the right shape, and no proof of them."""
    columns = outputs if question.is_delta else question.columns
    return Answer(question.module, pack_values([[-(2**70)] * columns] * question.rows), b"proof")


ANSWER_FRAMES: Final = tuple(pack_reply(answer(question)) for question in QUESTIONS)


def probe_receipt(**changes: object) -> ProbeReceipt:
    """Alice's receipt for `ANSWER_FRAMES`."""
    made = ProbeReceipt(
        run=RUN,
        offer=OFFER_ID,
        request=blob_id(sealed(probe_request(), bob)),
        answers=questions_digest(ANSWER_FRAMES),
        scalars_left=13,
        rows_left=4,
        issued_at=NOW,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def offer_proofs(**changes: object) -> OfferProofs:
    """Of Alice's offer: the right sizes, and nothing proved."""
    values = pack_values([[row * column for column in range(4)] for row in range(4)])
    proofs = tuple(ModuleProof(module.name, values, b"p" * 4064) for module in OFFER.modules)
    return replace(OfferProofs(OFFER_ID, proofs), **changes)  # type: ignore[arg-type]
