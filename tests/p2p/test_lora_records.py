import math
from dataclasses import fields, replace
from typing import Any

import pytest

from p2p.codec import open_signed, pack, seal, unpack
from p2p.errors import DecodeError, LimitError
from p2p.ids import ClusterId
from p2p.limits import (
    CHUNK_SIZE,
    MAX_CLAIM_ROWS,
    MAX_CLUSTERS,
    MAX_DELIVERY_SIZE,
    MAX_DELTA_ROWS,
    MAX_EPOCH,
    MAX_LABEL,
    MAX_LETTER_SIZE,
    MAX_LICENCE_LENGTH,
    MAX_LORA_MODULES,
    MAX_LORA_WIDTH,
    MAX_MODULE_NAME,
    MAX_OFFER_LIFETIME_S,
    MAX_OFFERS_PER_ADVERT,
    MAX_QUESTIONS,
    MAX_RECORD_SIZE,
    MAX_SEED,
    MAX_TERMS_LENGTH,
)
from p2p.lora_records import Agreement, LoraModule, LoraOffer, OfferAdvert
from p2p.records import BLOB_KEY, lora_key
from tests.support.lora_offers import (
    HEX,
    OFFER,
    TO_K,
    TO_Q,
    agreement,
    delivery,
    lora_offer,
    offer_advert,
    offer_ref,
    probe_receipt,
    probe_request,
)
from tests.support.people import NOW, RUN, alice, bob, cid, sealed

MOMENTS = ([0.0, NOW], [-1.0, math.nan, math.inf])
LOSSES = ([0.0, 1e6], [-0.001, math.nan, math.inf, -math.inf])
DIGESTS = ([HEX, "0" * 64], ["", HEX[:-1], HEX + "0", HEX.upper(), "g" * 64, HEX + "\n"])
KEYS = ([bytes(32)], [b"", bytes(31), bytes(33)])
NONCES = ([bytes(16)], [b"", bytes(15), bytes(17)])
TERMS = (["", "é" * MAX_TERMS_LENGTH], ["x" * (MAX_TERMS_LENGTH + 1), "two\nlines", "\x1b[2J"])
CLUSTERS = ([0, MAX_CLUSTERS - 1], [-1, MAX_CLUSTERS])
MODULE_NAMES = (["x" * MAX_MODULE_NAME], ["", "x" * (MAX_MODULE_NAME + 1), "a\0b", "\u202eq_ot"])
WIDTHS = ([4, MAX_LORA_WIDTH], [-4, 0, MAX_LORA_WIDTH + 1])

BOUNDS: list[tuple[object, str, tuple[list[Any], list[Any]]]] = [
    (TO_Q, "name", MODULE_NAMES),
    (TO_Q, "inputs", WIDTHS),
    (TO_Q, "outputs", WIDTHS),
    (TO_Q, "circuit", DIGESTS),
    (
        TO_Q,
        "commitment",
        ([bytes(64), bytes(16 * 64)], [b"", bytes(63), bytes(65), bytes(96), bytes(17 * 64)]),
    ),
    (OFFER.claims, "rows", ([1, MAX_CLAIM_ROWS], [0, -1, MAX_CLAIM_ROWS + 1])),
    (OFFER.claims, "seed", ([0, MAX_SEED], [-1, MAX_SEED + 1])),
    (OFFER.claims, "base_loss", LOSSES),
    (OFFER.claims, "adapted_loss", LOSSES),
    (OFFER.leaks, "scalars", ([16, 32], [0, 15, 33])),
    (OFFER.leaks, "proofs", ([1, 64], [0, 65])),
    (OFFER.leaks, "delta_rows", ([0, MAX_DELTA_ROWS], [-1, MAX_DELTA_ROWS + 1])),
    (OFFER, "cluster", CLUSTERS),
    (OFFER, "name", (["x" * MAX_LABEL], ["", "x" * (MAX_LABEL + 1), "two\nlines"])),
    (OFFER, "form", (["int16@2^12"], ["", "int16@2^8", "float32"])),
    (OFFER, "rank", ([1, 4], [0, -1, 5])),
    (OFFER, "alpha", ([0.001, 64.0], [0.0, -1.0, 64.001, math.nan, math.inf])),
    (OFFER, "targets", (["", "x" * MAX_LABEL], ["x" * (MAX_LABEL + 1), "a\tb"])),
    (OFFER, "modules", ([(TO_Q,)], [(), (TO_Q, TO_Q), (TO_Q, replace(TO_K, name=TO_Q.name))])),
    (OFFER, "terms", TERMS),
    (OFFER, "licence", (["", "x" * MAX_LICENCE_LENGTH], ["x" * (MAX_LICENCE_LENGTH + 1), "\x07"])),
    (OFFER, "seq", ([0, MAX_EPOCH], [-1, MAX_EPOCH + 1])),
    (
        OFFER,
        "created_at",
        (
            [OFFER.expires_at - MAX_OFFER_LIFETIME_S, OFFER.expires_at - 1],
            [OFFER.expires_at - MAX_OFFER_LIFETIME_S - 1, OFFER.expires_at, math.nan, -math.inf],
        ),
    ),
    (
        OFFER,
        "expires_at",
        (
            [OFFER.created_at + 1, OFFER.created_at + MAX_OFFER_LIFETIME_S],
            [OFFER.created_at, OFFER.created_at + MAX_OFFER_LIFETIME_S + 1, math.nan, math.inf],
        ),
    ),
    (offer_advert(), "cluster", CLUSTERS),
    (
        offer_advert(),
        "offers",
        (
            [(offer_ref(),), tuple(offer_ref(n) for n in range(MAX_OFFERS_PER_ADVERT))],
            [
                (),
                tuple(offer_ref(n) for n in range(MAX_OFFERS_PER_ADVERT + 1)),
                (offer_ref(), replace(offer_ref(), base=cid("another base"))),
            ],
        ),
    ),
    (offer_advert(), "issued_at", MOMENTS),
    (agreement(), "buyer", ([bob.peer], [alice.peer])),
    (agreement(), "buyer_key", KEYS),
    (agreement(), "terms", TERMS),
    (agreement(), "nonce", NONCES),
    (agreement(), "agreed_at", MOMENTS),
    (delivery(), "seller_key", KEYS),
    (delivery(), "size", ([1, MAX_DELIVERY_SIZE], [0, -1, MAX_DELIVERY_SIZE + 1])),
    (delivery(), "ciphertext", DIGESTS),
    (delivery(), "delivered_at", MOMENTS),
    (probe_request(), "nonce", NONCES),
    (probe_request(), "mode", (["blind", "delta"], ["", "Blind", "x" * 5000])),
    (probe_request(), "questions", DIGESTS),
    (probe_request(), "count", ([1, MAX_QUESTIONS], [0, -1, MAX_QUESTIONS + 1])),
    (probe_request(), "asked_at", MOMENTS),
    (probe_receipt(), "answers", DIGESTS),
    (probe_receipt(), "scalars_left", ([0, 32], [-1, 33])),
    (probe_receipt(), "rows_left", ([0, MAX_DELTA_ROWS], [-1, MAX_DELTA_ROWS + 1])),
    (probe_receipt(), "issued_at", MOMENTS),
]


@pytest.mark.parametrize(
    ("record", "field", "values"),
    BOUNDS,
    ids=[f"{type(record).__name__}.{field}" for record, field, _ in BOUNDS],
)
def test_every_field_holds_on_both_sides_of_its_bounds(
    record: Any, field: str, values: tuple[list[Any], list[Any]]
) -> None:
    fine, wrong = values
    for value in fine:
        changed = replace(record, **{field: value})
        data = pack(changed)
        assert unpack(type(record), data, max_size=len(data)) == changed
    for value in wrong:
        with pytest.raises((DecodeError, LimitError)):
            replace(record, **{field: value})


def test_every_field_that_has_a_bound_is_tried() -> None:
    names = {"run", "offer", "base", "claims", "leaks", "seller", "agreement", "request", "probe"}
    for kind in {type(record) for record, _, _ in BOUNDS}:
        tried = {field for record, field, _ in BOUNDS if type(record) is kind}
        every = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        assert every - names == tried - names, kind.__name__


def test_a_rank_never_exceeds_a_layer_or_the_limit() -> None:
    narrow, wide = replace(TO_Q, inputs=3), replace(TO_Q, inputs=64, outputs=64)
    with pytest.raises(DecodeError, match="exceeds"):
        lora_offer(modules=(TO_K, narrow))
    with pytest.raises(DecodeError, match="exceeds"):
        lora_offer(modules=(TO_K, replace(TO_Q, outputs=3)))
    assert lora_offer(modules=(wide,), rank=64).rank == 64
    with pytest.raises(DecodeError, match=r"LoraOffer\.rank"):
        lora_offer(modules=(replace(wide, inputs=65, outputs=65),), rank=65)


def test_an_offer_is_not_made_before_time_began() -> None:
    assert lora_offer(created_at=0.0, expires_at=100.0)
    with pytest.raises(DecodeError, match=r"LoraOffer\.created_at"):
        lora_offer(created_at=-1.0, expires_at=100.0)


def test_alpha_is_bounded_by_the_rank() -> None:
    assert lora_offer(rank=1, alpha=16.0)
    with pytest.raises(DecodeError, match=r"LoraOffer\.alpha"):
        lora_offer(rank=1, alpha=17.0)


def modules(count: int, columns: int) -> tuple[LoraModule, ...]:
    return tuple(
        LoraModule(f"transformer_blocks.{n}.attn1.to_out.0", 1152, 1152, HEX, bytes(64 * columns))
        for n in range(count)
    )


def test_an_offer_of_the_most_modules_fits_one_blob() -> None:
    offer = lora_offer(modules=modules(MAX_LORA_MODULES, 10))
    envelope = sealed(offer, alice)
    assert len(envelope) <= CHUNK_SIZE
    assert open_signed(LoraOffer, envelope, key=BLOB_KEY, now=NOW).record == offer
    with pytest.raises(LimitError):
        lora_offer(modules=modules(MAX_LORA_MODULES + 1, 1))


def test_an_offer_larger_than_a_blob_is_neither_sealed_nor_read() -> None:
    with pytest.raises(LimitError):
        sealed(lora_offer(modules=modules(MAX_LORA_MODULES, 16)), alice)
    with pytest.raises(LimitError):
        open_signed(LoraOffer, bytes(CHUNK_SIZE + 1), key=BLOB_KEY, now=NOW)


def test_a_small_offer_of_small_modules_is_not_taken_for_a_bomb() -> None:
    least = tuple(LoraModule(f"{n}", 4, 4, HEX, bytes(64)) for n in range(MAX_LORA_MODULES))
    assert len(sealed(lora_offer(modules=least), alice)) < CHUNK_SIZE


def test_an_advert_of_the_most_offers_fits_a_dht_record() -> None:
    refs = tuple(offer_ref(number) for number in range(MAX_OFFERS_PER_ADVERT))
    advert = offer_advert(MAX_CLUSTERS - 1, offers=refs)
    assert len(sealed(advert, alice)) <= MAX_RECORD_SIZE


def test_a_letter_of_the_longest_terms_fits_its_limit_and_none_is_read_above_it() -> None:
    longest = agreement(terms="🚤" * MAX_TERMS_LENGTH)
    assert len(sealed(longest, bob)) <= MAX_LETTER_SIZE
    for kind in (Agreement, type(delivery()), type(probe_request()), type(probe_receipt())):
        with pytest.raises(LimitError, match=f"limit is {MAX_LETTER_SIZE}"):
            open_signed(kind, bytes(MAX_LETTER_SIZE + 1), key=BLOB_KEY, now=NOW)


@pytest.mark.parametrize(
    "record",
    [lora_offer(), agreement(), delivery(), probe_request(), probe_receipt()],
    ids=lambda record: type(record).__name__,
)
def test_what_lies_in_blobs_opens_however_late(record: Any) -> None:
    opened = open_signed(type(record), sealed(record, alice), key=BLOB_KEY, now=NOW + 1e9)
    assert opened.record == record
    assert opened.expires_at is None


def test_an_advert_of_offers_lies_under_its_cluster_and_expires() -> None:
    assert lora_key(RUN, ClusterId(3)) == f"paris/1/{RUN}/lora/3"
    key = lora_key(RUN, ClusterId(3))
    envelope = seal(offer_advert(3), alice, key=key, expires_at=NOW + 60)
    opened = open_signed(OfferAdvert, envelope, key=key, now=NOW)
    assert (opened.record, opened.expires_at) == (offer_advert(3), NOW + 60)
    with pytest.raises(ValueError, match="expiry"):
        seal(offer_advert(3), alice, key=key, expires_at=None)
