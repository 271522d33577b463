"""T10: whatever bytes arrive, a decoder answers with its own errors, soon, and in little memory."""

import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import get_args

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2p.codec import SIGNING_TAG, check_envelope, open_signed, pack, unpack
from p2p.errors import DecodeError, IdentityError, LimitError, PeerError, SignatureError
from p2p.file_sets import FileSet
from p2p.fraud import FraudProof, check_fraud, pack_fraud, unpack_fraud
from p2p.gossip_rules import GossipRules
from p2p.host import Verdict
from p2p.identity import load_or_create
from p2p.ids import parse_blob_id, parse_peer_id
from p2p.inference import (
    InferenceProgress,
    InferenceRefusal,
    InferenceRequest,
    pack_message,
    pack_request,
    parse_message,
    parse_request,
)
from p2p.limits import (
    CHUNK_SIZE,
    MAX_ANSWER_FRAME,
    MAX_IMAGE_REPLY_SIZE,
    MAX_LORA_FRAME,
    MAX_OFFER_PROOFS_SIZE,
    MAX_REQUEST_SIZE,
    MIB,
)
from p2p.lora_matrices import pack_probe, pack_values, unpack_probe, unpack_values
from p2p.lora_messages import (
    Agreed,
    Answer,
    BuyStart,
    Delivered,
    LoraRefusal,
    Piece,
    ProbeStart,
    Question,
    Receipt,
    pack_question,
    pack_reply,
    pack_start,
    parse_question,
    parse_reply,
    parse_start,
)
from p2p.lora_records import (
    Agreement,
    Delivery,
    LoraOffer,
    OfferAdvert,
    ProbeReceipt,
    ProbeRequest,
)
from p2p.offer_proofs import open_offer_proofs, pack_offer_proofs
from p2p.records import (
    CheckpointManifest,
    Claim,
    ClaimPolicy,
    ExpertAdvert,
    ImageReceipt,
    NodeRecord,
    ProviderRecord,
    Record,
    RouterAdvert,
    RunManifest,
)
from p2p.sealed_box import open_box, public_of
from p2p.wire import FrameDecoder
from tests.support.lora_offers import (
    BUYER_SECRET,
    OFFER,
    OFFER_ENVELOPE,
    OFFER_ID,
    SELLER_SECRET,
    agreed_by,
    agreement,
    answer,
    blind_question,
    ciphertext_for,
    delivery,
    delta_question,
    lora_offer,
    offer_advert,
    offer_proofs,
    probe_receipt,
    probe_request,
)
from tests.support.people import (
    NOW,
    RUN,
    advert,
    alice,
    bob,
    checkpoint_manifest,
    cid,
    claim,
    file_entry,
    home_of,
    node_record,
    provider_record,
    receipt,
    router_advert,
    sealed,
)

Decoder = Callable[[bytes], object]
REFUSALS = (DecodeError, LimitError, SignatureError)

RECORDS: dict[type[Record], Record] = {
    type(record): record
    for record in (
        node_record(),
        claim(samples=5, checkpoint=cid("c")),
        advert(),
        router_advert(),
        provider_record("a"),
        checkpoint_manifest(),
        receipt(b"png"),
        lora_offer(),
        offer_advert(),
        agreement(),
        delivery(),
        probe_request(),
        probe_receipt(),
    )
}
RUN_MANIFEST = RunManifest(
    "fashion", 1, "tiny", 96_000, 8_000, cid("shared"), (cid("data"),), ClaimPolicy()
)
REQUEST = InferenceRequest(RUN, "a boat", 1, 7, "top2", "ab2", 30, 2.5, 60.0)
LETTER = agreed_by().envelope
BOX = ciphertext_for(agreed_by())
FRAUD = FraudProof(OFFER_ENVELOPE, LETTER, sealed(delivery(), alice), BUYER_SECRET, BOX)
BLIND, DELTA = blind_question(pairs=2), delta_question()


def read_fraud(data: bytes) -> object:
    try:
        return check_fraud(unpack_fraud(data), now=NOW)
    except PeerError as error:  # of parts that do not belong together
        return error


def read_proofs(data: bytes) -> object:
    try:
        return open_offer_proofs(data, OFFER, offer_id=OFFER_ID)
    except PeerError as error:
        return error


def read_box(data: bytes) -> object:
    sender = public_of(SELLER_SECRET)
    return open_box(data, secret=BUYER_SECRET, sender=sender, agreement=cid("agreement"))


def unpacker(kind: type) -> Decoder:
    return lambda data: unpack(kind, data, max_size=CHUNK_SIZE)


def opener(kind: type[Record]) -> Decoder:
    key = home_of(RECORDS[kind], alice)
    return lambda data: open_signed(kind, data, key=key, now=NOW)


DECODERS: dict[str, tuple[Decoder, bytes]] = {
    **{f"unpack {kind.__name__}": (unpacker(kind), pack(it)) for kind, it in RECORDS.items()},
    **{f"open {kind.__name__}": (opener(kind), sealed(it, alice)) for kind, it in RECORDS.items()},
    "unpack FileSet": (unpacker(FileSet), pack(FileSet((file_entry(),)))),
    "unpack RunManifest": (unpacker(RunManifest), pack(RUN_MANIFEST)),
    "check_envelope": (check_envelope, sealed(claim(), alice)),
    "parse_request": (parse_request, pack_request(REQUEST)),
    "parse_message": (parse_message, pack_message(InferenceRefusal("busy", "later"))),
    "parse_start, probe": (
        parse_start,
        pack_start(ProbeStart(sealed(probe_request(), bob))),
    ),
    "parse_start, buy": (parse_start, pack_start(BuyStart(sealed(agreement(), bob)))),
    "parse_question, blind": (parse_question, pack_question(BLIND)),
    "parse_question, delta": (parse_question, pack_question(DELTA)),
    **{
        f"parse_reply {type(reply).__name__}": (parse_reply, pack_reply(reply))
        for reply in (
            answer(BLIND),
            Receipt(sealed(probe_receipt(), alice)),
            Agreed(LETTER),
            Delivered(sealed(delivery(), alice)),
            Piece(BOX),
            LoraRefusal("busy", "later"),
        )
    },
    "unpack_values": (lambda data: unpack_values(data, 2, 3), pack_values([[1, 2, 3]] * 2)),
    "unpack_probe": (lambda data: unpack_probe(data, 2, 3), pack_probe([[1, 2, 3]] * 2)),
    "open_offer_proofs": (read_proofs, pack_offer_proofs(offer_proofs())),
    "check_fraud": (read_fraud, pack_fraud(FRAUD)),
    "open_box": (read_box, BOX),
    "parse_blob_id": (lambda data: parse_blob_id(data.decode("latin-1")), cid("x").encode()),
    "parse_peer_id": (lambda data: parse_peer_id(data.decode("latin-1")), alice.peer.encode()),
    "FrameDecoder": (FrameDecoder(max_size=64).feed, b"\0\0\0\x01x"),
}

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=70)
    | st.binary(max_size=70)
    | st.just(cid("x")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=12,
)
edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "put"]), st.integers(0, 10_000), st.binary(max_size=5)
    ),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    out = bytearray(data)
    for what, where, new in changes:
        at = where % (len(out) + 1)
        if what == "flip" and at < len(out):
            out[at] ^= 1 << where % 8
        elif what == "cut":
            del out[at : at + 1 + where % 7]
        else:
            out[at:at] = new
    return bytes(out)


def must_survive(decoder: Decoder, data: bytes) -> None:
    try:
        decoder(data)
    except REFUSALS:
        return


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(noise=st.binary(max_size=300), changes=edits, value=values)
def test_only_refusals_come_out(
    name: str, noise: bytes, changes: list[tuple[str, int, bytes]], value: object
) -> None:
    decoder, good = DECODERS[name]
    for data in (noise, edited(good, changes), msgpack.packb(value), good + noise):
        must_survive(decoder, data)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), value=values)
def test_a_signed_record_with_any_field_replaced_is_refused_or_whole(
    kind: type[Record], data: st.DataObject, value: object
) -> None:
    """The signature is good, so that the checks behind it are reached."""
    body = msgpack.unpackb(msgpack.unpackb(sealed(RECORDS[kind], alice))[0])
    place = data.draw(st.sampled_from(["body", "record", "extra"]))
    target = body if place == "body" else body["r"]
    name = "zz" if place == "extra" else data.draw(st.sampled_from(sorted(target)))
    target[name] = value
    packed = msgpack.packb(body)
    envelope = msgpack.packb([packed, alice.sign(SIGNING_TAG + packed)])
    try:
        opened = opener(kind)(envelope)
    except REFUSALS:
        return
    assert pack(opened.record) == msgpack.packb(body["r"])  # type: ignore[attr-defined]


@settings(max_examples=100, deadline=None)
@given(noise=st.binary(max_size=300), changes=edits)
def test_gossip_is_judged_whatever_the_bytes(
    noise: bytes, changes: list[tuple[str, int, bytes]]
) -> None:
    rules = GossipRules(RUN, ExpertAdvert)
    good = sealed(advert(), alice)
    for data in (noise, edited(good, changes)):
        verdict, record = rules.check(alice.peer, data, NOW)
        assert (record is None) == (verdict is not Verdict.ACCEPT)
        assert record is None or record.envelope == data == good


@settings(max_examples=100, deadline=None)
@given(changes=edits)
def test_an_edited_fraud_proof_shows_what_was_delivered_or_nothing(
    changes: list[tuple[str, int, bytes]],
) -> None:
    shown = read_fraud(edited(pack_fraud(FRAUD), changes))
    assert isinstance(shown, PeerError) or shown == check_fraud(FRAUD, now=NOW)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(noise=st.binary(max_size=300))
def test_a_key_file_of_noise_is_an_identity_error(tmp_path: Path, noise: bytes) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "identity.key"
    path.write_bytes(noise)
    path.chmod(0o600)
    with pytest.raises(IdentityError):
        load_or_create(path)


# --- round trips ----------------------------------------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    name=st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=64),
    serves=st.booleans(),
    issued_at=finite,
    addresses=st.lists(st.text(st.characters(categories=["L", "N"]), max_size=20), max_size=8),
)
def test_any_node_record_round_trips(
    name: str, serves: bool, issued_at: float, addresses: list[str]
) -> None:
    record = NodeRecord(RUN, name, "0.1.0", tuple(addresses), (), serves, issued_at)
    data = pack(record)
    assert pack(unpack(NodeRecord, data, max_size=len(data))) == data


@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    seed=st.integers(0, 2**62),
    guidance=st.floats(0, 30),
)
def test_any_request_round_trips(prompt: str, seed: int, guidance: float) -> None:
    asked = InferenceRequest(RUN, prompt, 1, seed, "all", "euler", 30, guidance, 60.0)
    assert parse_request(pack_request(asked)) == asked


# --- bombs ----------------------------------------------------------------------------------------


def largest_manifest() -> bytes:
    return pack(FileSet((file_entry("largest", 16 * 1024 * MIB),)))


def many(item: bytes, size: int) -> bytes:
    count = min(size, CHUNK_SIZE) // 16
    return b"\xdd" + count.to_bytes(4, "big") + item * count


BOMBS: dict[str, tuple[Decoder, Callable[[], bytes]]] = {
    "empty maps": (unpacker(FileSet), lambda: many(b"\x80", CHUNK_SIZE)),
    "empty maps, filled up": (
        unpacker(FileSet),
        lambda: many(b"\x80", CHUNK_SIZE).ljust(CHUNK_SIZE, b"\x80"),
    ),
    "short texts": (unpacker(FileSet), lambda: many(b"\xaf" + b"x" * 14, CHUNK_SIZE)),
    "doubles": (unpacker(FileSet), lambda: many(b"\xcb" + bytes(8), CHUNK_SIZE)),
    "a deep list": (unpacker(FileSet), lambda: b"\x91" * CHUNK_SIZE),
    "one long text": (
        unpacker(FileSet),
        lambda: b"\xdb" + (CHUNK_SIZE - 5).to_bytes(4, "big") + b"x" * (CHUNK_SIZE - 5),
    ),
    "the largest honest manifest": (unpacker(FileSet), largest_manifest),
    "a request of empty maps": (parse_request, lambda: many(b"\x80", MAX_REQUEST_SIZE)),
    "a request that is too large": (parse_request, lambda: b"\x80" * 10_000_000),
    "a reply of empty maps": (parse_message, lambda: many(b"\x80", MAX_IMAGE_REPLY_SIZE)),
    "a reply of one long blob": (
        parse_message,
        lambda: (
            b"\xc6"
            + (MAX_IMAGE_REPLY_SIZE - 5).to_bytes(4, "big")
            + bytes(MAX_IMAGE_REPLY_SIZE - 5)
        ),
    ),
    "a start of empty maps": (parse_start, lambda: many(b"\x80", MAX_REQUEST_SIZE)),
    "a question of empty maps": (parse_question, lambda: many(b"\x80", MAX_LORA_FRAME)),
    "an answer of empty maps": (parse_reply, lambda: many(b"\x80", MAX_ANSWER_FRAME)),
    "offer proofs of empty maps": (read_proofs, lambda: many(b"\x80", MAX_OFFER_PROOFS_SIZE)),
    "the largest honest question": (
        parse_question,
        lambda: pack_question(Question("m", 64, 0, bytes(64 * 4608 * 2), b"")),
    ),
    "the largest honest answer": (
        parse_reply,
        lambda: pack_reply(Answer("m", bytes(40 * 4608 * 16), bytes(16_000))),
    ),
    "an offer of empty maps": (unpacker(LoraOffer), lambda: many(b"\x80", CHUNK_SIZE)),
    "an envelope of nested envelopes": (
        check_envelope,
        lambda: msgpack.packb([b"\x91" * 1900, bytes(64)]),
    ),
}


MAX_CALLS = 150_000
"""Of functions, Python's and C's: alike on every machine, as milliseconds are not."""


def calls_of(work: Callable[[], object]) -> int:
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_little(name: str) -> None:
    decoder, make = BOMBS[name]
    data = make()
    assert calls_of(lambda: must_survive(decoder, data)) <= MAX_CALLS
    took = []
    for _ in range(3):
        begun = time.process_time()
        must_survive(decoder, data)
        took.append(time.process_time() - begun)
    assert min(took) <= 0.05, f"{min(took) * 1000:.0f} ms of processor time"
    tracemalloc.start()
    try:
        must_survive(decoder, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 32 * MIB, f"{peak / MIB:.0f} MiB"


def test_every_kind_of_record_is_fuzzed() -> None:
    kinds = {NodeRecord, Claim, ExpertAdvert, RouterAdvert, ProviderRecord}
    lora = {LoraOffer, OfferAdvert, Agreement, Delivery, ProbeRequest, ProbeReceipt}
    assert set(RECORDS) == kinds | lora | {CheckpointManifest, ImageReceipt}
    assert set(RECORDS) == set(get_args(Record))
    assert InferenceProgress.__name__ not in DECODERS  # by way of parse_message
