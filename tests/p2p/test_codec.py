import copy
import math
from dataclasses import FrozenInstanceError, replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.codec import (
    BLOB_KEY,
    SIGNING_TAG,
    Verified,
    check_envelope,
    open_signed,
    pack,
    seal,
    unpack,
)
from p2p.errors import DecodeError, EncodeError, ExpiredError, LimitError, SignatureError
from p2p.ids import RunId
from p2p.limits import (
    CHUNK_SIZE,
    MAX_CLOCK_SKEW_S,
    MAX_DECODE_DEPTH,
    MAX_RECORD_LIFETIME_S,
    MAX_RECORD_SIZE,
    MIB,
)
from p2p.msgpack_guard import Plain, decode_plain, encode_plain
from p2p.records import (
    CheckpointManifest,
    Claim,
    ExpertAdvert,
    ImageReceipt,
    ProviderRecord,
    Record,
    claim_key,
    provider_key,
)
from tests.support.lora_offers import (
    agreement,
    delivery,
    lora_offer,
    offer_advert,
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
    home_of,
    node_record,
    provider_record,
    receipt,
    router_advert,
    said,
    sealed,
)

RECORDS: list[Record] = [
    node_record(),
    claim(3, samples=7, checkpoint=cid("c")),
    advert(3),
    router_advert(3),
    provider_record("a", "b"),
    checkpoint_manifest(),
    receipt(b"png"),
    lora_offer(),
    offer_advert(),
    agreement(),
    delivery(),
    probe_request(),
    probe_receipt(),
]


def body_of(record: Record = RECORDS[1]) -> dict[str, object]:
    body: dict[str, object] = msgpack.unpackb(msgpack.unpackb(sealed(record, alice))[0])
    return body


def signed(body: dict[str, object], *, tag: bytes = SIGNING_TAG) -> bytes:
    """An envelope around any body at all, properly signed by alice."""
    packed = msgpack.packb(body)
    envelope: bytes = msgpack.packb([packed, alice.sign(tag + packed)])
    return envelope


# --- plain canonical bytes ------------------------------------------------------------------------


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_as_it_was_and_has_one_form(record: Record) -> None:
    data = pack(record)
    again = unpack(type(record), data, max_size=len(data))
    assert again == record
    assert pack(again) == data


def test_a_limit_of_bytes_holds_on_both_sides() -> None:
    data = pack(claim())
    assert unpack(Claim, data, max_size=len(data)) == claim()
    with pytest.raises(LimitError, match=f"{len(data)} bytes"):
        unpack(Claim, data, max_size=len(data) - 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("issued_at", int(NOW)),  # an integer where seconds are expected
        ("epoch", 1.0),
        ("epoch", True),
        ("epoch", "1"),
        ("epoch", None),
        ("is_released", 0),
        ("run", "not a cid"),
        ("run", None),
        ("checkpoint", 5),
        ("cluster", -1),
        ("cluster", 1024),
        ("samples", [0]),
    ],
)
def test_a_field_of_another_type_is_refused_by_name(field: str, value: object) -> None:
    fields = msgpack.unpackb(pack(claim()))
    fields[field] = value
    with pytest.raises(DecodeError, match=rf"Claim\.{field}"):
        unpack(Claim, msgpack.packb(fields), max_size=1000)


def test_a_missing_or_unknown_field_is_named() -> None:
    fields = msgpack.unpackb(pack(claim()))
    with pytest.raises(DecodeError, match="zeal"):
        unpack(Claim, msgpack.packb(fields | {"zeal": 1}), max_size=1000)
    del fields["epoch"]
    with pytest.raises(DecodeError, match="epoch"):
        unpack(Claim, msgpack.packb(fields), max_size=1000)


def test_a_field_deep_inside_is_named_by_its_path() -> None:
    fields = msgpack.unpackb(pack(checkpoint_manifest()))
    fields["files"][0]["size"] = "big"
    with pytest.raises(DecodeError, match=r"CheckpointManifest\.files\.size"):
        unpack(CheckpointManifest, msgpack.packb(fields), max_size=CHUNK_SIZE)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"", "ends after 0 bytes", id="nothing"),
        pytest.param(b"\x01\x01", "1 bytes too many", id="more after the value"),
        pytest.param(b"\xcc\x01", "canonical", id="a small number in a long form"),
        pytest.param(b"\xd9\x01a", "canonical", id="a short text in a long form"),
        pytest.param(b"\xdc\x00\x01\x01", "canonical", id="a short list in a long form"),
        pytest.param(b"\xde\x00\x00", "canonical", id="an empty map in a long form"),
        pytest.param(b"\xca\x00\x00\x00\x00", "type 0xca", id="a single float"),
        pytest.param(b"\xcb\x80" + bytes(7), "-0.0 is not", id="minus zero"),
        pytest.param(b"\xcb\x7f\xf8" + bytes(6), "nan is not", id="not a number"),
        pytest.param(b"\xcb\x7f\xf0" + bytes(6), "inf is not", id="infinity"),
        pytest.param(b"\xc1", "type 0xc1", id="the unused type"),
        pytest.param(b"\xd4\x01\x00", "type 0xd4", id="an extension"),
        pytest.param(b"\xc7\x01\x01\x00", "type 0xc7", id="a long extension"),
        pytest.param(b"\xd6\xff" + bytes(4), "type 0xd6", id="a timestamp"),
        pytest.param(b"\xa1\xff", "UnicodeDecodeError", id="text that is not UTF-8"),
        pytest.param(b"\x81\x01\x01", "not allowed for map key", id="a key that is a number"),
        pytest.param(b"\x81\xc4\x01a\x01", "key is not text", id="a key that is bytes"),
        pytest.param(b"\x82\xa1b\x01\xa1a\x01", "out of order", id="keys out of order"),
        pytest.param(b"\x82\xa1a\x01\xa1a\x01", "a key twice", id="a key twice"),
        pytest.param(b"\xdd" + b"\xff" * 4, "announces 4294967295", id="a list of 2^32 - 1"),
        pytest.param(b"\xdf" + b"\xff" * 4, "announces 8589934590", id="a map of 2^32 - 1"),
        pytest.param(b"\xdb\xff\xff\xff\xffa", "cut", id="a text of four gigabytes"),
        pytest.param(b"\x91", "announces 1 items in 0", id="a list that is cut"),
        pytest.param(b"\x92\xa2a", "ends after 3 bytes", id="a text that is cut, in a list"),
    ],
)
def test_what_is_not_canonical_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        decode_plain(data, max_size=1000)


FORMS: list[Plain] = [  # each form msgpack has for a kind, at both of its ends
    *(0, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**64 - 1),
    *(-1, -32, -33, -128, -129, -32_768, -32_769, -(2**31), -(2**31) - 1, -(2**63)),
    *(None, False, True, 0.0, 0.1, -1e300),
    *("x" * n for n in (0, 31, 32, 255, 256, 65_535, 65_536)),
    *(bytes(n) for n in (0, 255, 256, 65_535, 65_536)),
    *(list[Plain](["x" * 40] * n) for n in (0, 15, 16, 65_535, 65_536)),
    # there is no room for a map of 65,536
    *(dict[str, Plain]((f"{i:040}", i) for i in range(n)) for n in (0, 15, 16, 32_000)),
]


@pytest.mark.parametrize("value", FORMS, ids=range(len(FORMS)))
def test_every_form_of_a_value_comes_back(value: Plain) -> None:
    assert decode_plain(encode_plain(value), max_size=4 * MIB) == value


def test_nesting_is_refused_one_past_the_limit_and_far_past_it() -> None:
    assert decode_plain(b"\x91" * MAX_DECODE_DEPTH + b"\x01", max_size=1000)
    for depth in (MAX_DECODE_DEPTH + 1, 500, 1_000_000):
        with pytest.raises(DecodeError, match="nested"):
            decode_plain(b"\x91" * depth + b"\x01", max_size=2_000_000)


def test_many_small_items_are_refused_before_they_are_built() -> None:
    few, many = 135, 136  # with the list itself: 128 and one per 16 bytes
    assert decode_plain(b"\xdc" + few.to_bytes(2, "big") + b"\x80" * few, max_size=1000)
    with pytest.raises(DecodeError, match="too many items"):
        decode_plain(b"\xdc" + many.to_bytes(2, "big") + b"\x80" * many, max_size=1000)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_number_nobody_would_accept_is_not_sent(loss: float) -> None:
    with pytest.raises(EncodeError):
        pack(replace(advert(), loss=loss))


def test_our_own_wrong_type_is_our_error_not_a_peer_s() -> None:
    with pytest.raises(EncodeError, match=r"ExpertAdvert\.size"):
        pack(replace(advert(), size=1.5))  # type: ignore[arg-type]
    with pytest.raises(EncodeError):
        pack(replace(advert(), manifest="nowhere"))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pack({"a": "dict"})


def test_zero_is_written_in_one_way_whatever_our_own_code_says() -> None:
    assert pack(replace(advert(), loss=0)) == pack(replace(advert(), loss=-0.0))
    assert pack(replace(advert(), loss=0.0)) == pack(replace(advert(), loss=-0.0))


def test_text_that_cannot_be_written_is_our_error() -> None:
    with pytest.raises(EncodeError):
        encode_plain("\ud800")


@pytest.mark.parametrize(
    ("plain", "why"),
    [
        ([[[[[[[[[]]]]]]]]], "nested"),
        ([*range(1000)], "too many items"),
    ],
    ids=["a level too deep", "too many small items"],
)
def test_what_a_peer_would_refuse_is_not_sent(plain: Plain, why: str) -> None:
    with pytest.raises(EncodeError, match=why):
        encode_plain(plain)


# --- envelopes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_sealed_record_opens_as_its_owner_s(record: Record) -> None:
    envelope = sealed(record, alice)
    key = home_of(record, alice)
    opened: Verified[Record] = open_signed(type(record), envelope, key=key, now=NOW)
    assert (opened.record, opened.owner, opened.key) == (record, alice.peer, key)
    assert opened.envelope == envelope
    facts = check_envelope(envelope, max_size=CHUNK_SIZE)
    assert (facts.kind, facts.key) == (type(record).__name__, key)
    assert (facts.subkey, facts.expires_at) == (alice.public_key, opened.expires_at)


def test_a_bit_flipped_anywhere_in_an_envelope_is_noticed() -> None:
    envelope = sealed(claim(3), alice)
    for position in range(len(envelope)):
        forged = bytearray(envelope)
        forged[position] ^= 1 << position % 8
        with pytest.raises((DecodeError, SignatureError)):
            check_envelope(bytes(forged))


def test_another_s_signature_is_refused() -> None:
    body = msgpack.unpackb(sealed(claim(3), alice))[0]
    with pytest.raises(SignatureError):
        check_envelope(msgpack.packb([body, bob.sign(SIGNING_TAG + body)]))


def test_a_signature_over_something_else_never_passes_for_a_record() -> None:
    with pytest.raises(SignatureError):
        check_envelope(signed(body_of(), tag=b"paris-other"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("t", "Advert"),
        ("t", ""),
        ("t", "x" * 65),
        ("v", 2),
        ("v", True),
        ("v", "1"),
        ("k", ""),
        ("k", "x" * 161),
        ("k", b"bytes"),
        ("s", b"short"),
        ("s", "text"),
        ("e", int(NOW)),
        ("e", "soon"),
        ("r", []),
        ("r", None),
    ],
)
def test_a_body_of_another_form_is_refused_though_signed(field: str, value: object) -> None:
    with pytest.raises((DecodeError, SignatureError)):
        open_signed(Claim, signed(body_of() | {field: value}), key=claim_key(RUN, 3), now=NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "envelope",
    [b"", b"\x90", b"\xc0", msgpack.packb([b"", b"", b""]), msgpack.packb(["text", b"x"])],
)
def test_what_is_no_envelope_is_refused(envelope: bytes) -> None:
    with pytest.raises(DecodeError):
        check_envelope(envelope)


def test_a_record_of_another_kind_is_refused() -> None:
    with pytest.raises(DecodeError, match="expected a ExpertAdvert"):
        open_signed(ExpertAdvert, sealed(claim(3), alice), key=claim_key(RUN, 3), now=NOW)  # type: ignore[arg-type]


def test_a_record_moved_to_another_key_is_refused() -> None:
    with pytest.raises(DecodeError, match="found under"):
        open_signed(Claim, sealed(claim(3), alice), key=claim_key(RUN, 4), now=NOW)  # type: ignore[arg-type]


def test_a_claim_on_one_cluster_never_lies_under_another_though_signed_so() -> None:
    other = claim_key(RUN, 4)  # type: ignore[arg-type]
    with pytest.raises(EncodeError, match="does not belong"):
        seal(claim(3), alice, key=other, expires_at=claim(3).expires_at)
    with pytest.raises(DecodeError, match="does not belong"):
        open_signed(Claim, signed(body_of() | {"k": other}), key=other, now=NOW)


@pytest.mark.parametrize("left_s", [-MAX_CLOCK_SKEW_S, MAX_RECORD_LIFETIME_S + 5.01, 1e9])
def test_a_record_outside_its_time_is_refused_as_late(left_s: float) -> None:
    record = advert(3)
    key = home_of(record, alice)
    envelope = seal(record, alice, key=key, expires_at=NOW + left_s)
    with pytest.raises(ExpiredError):
        open_signed(ExpertAdvert, envelope, key=key, now=NOW)


@pytest.mark.parametrize("left_s", [-MAX_CLOCK_SKEW_S + 0.01, MAX_RECORD_LIFETIME_S + 4.99])
def test_clocks_may_differ_by_a_little(left_s: float) -> None:
    record = advert(3)
    key = home_of(record, alice)
    envelope = seal(record, alice, key=key, expires_at=NOW + left_s)
    assert open_signed(ExpertAdvert, envelope, key=key, now=NOW).record == record


def test_only_what_lies_in_blobs_lasts_for_ever() -> None:
    with pytest.raises(EncodeError, match="expiry"):
        seal(advert(3), alice, key=home_of(advert(3), alice), expires_at=None)
    with pytest.raises(EncodeError, match="expiry"):
        seal(receipt(b"png"), alice, key=BLOB_KEY, expires_at=NOW + 1)
    with pytest.raises(DecodeError, match="expiry"):
        open_signed(Claim, signed(body_of() | {"e": None}), key=claim_key(RUN, 3), now=NOW)  # type: ignore[arg-type]


def test_a_claim_s_lease_is_the_envelope_s() -> None:
    key = home_of(claim(3), alice)
    with pytest.raises(EncodeError, match="expires_at"):
        seal(claim(3), alice, key=key, expires_at=claim(3).expires_at + 1)
    with pytest.raises(DecodeError, match="expires_at"):
        open_signed(Claim, signed(body_of() | {"e": NOW + 301.0}), key=key, now=NOW)


def test_a_dht_record_is_as_large_as_the_limit_and_no_larger() -> None:
    fits = provider_record(*(str(number) for number in range(28)))
    assert len(sealed(fits, alice)) <= MAX_RECORD_SIZE
    with pytest.raises(LimitError):
        sealed(provider_record(*(str(number) for number in range(40))), alice)


def test_a_large_envelope_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(LimitError):
        check_envelope(bytes(MAX_RECORD_SIZE + 1))
    with pytest.raises(LimitError):
        open_signed(Claim, bytes(MAX_RECORD_SIZE + 1), key="k", now=NOW)
    with pytest.raises(LimitError):
        open_signed(ImageReceipt, bytes(CHUNK_SIZE + 1), key=BLOB_KEY, now=NOW)


def test_a_provider_record_lies_under_the_key_of_each_folder() -> None:
    record = provider_record("a", "b")
    for root in record.roots:
        key = provider_key(RUN, root)
        envelope = seal(record, alice, key=key, expires_at=NOW + 60)
        assert open_signed(ProviderRecord, envelope, key=key, now=NOW).record == record


# --- weak keys ------------------------------------------------------------------------------------

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


def add(one: Point, two: Point) -> Point:
    """The Edwards addition law of Ed25519, RFC 8032, 5.1.4, in affine coordinates."""
    (x1, y1), (x2, y2) = one, two
    common = D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + common, -1, P)
    y = (y1 * y2 + x1 * x2) * pow(1 - common, -1, P)
    return x % P, y % P


def points_of_y(y: int) -> list[Point]:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    for x in (root, root * pow(2, (P - 1) // 4, P) % P):
        if (x * x - square) % P == 0:
            return [(x, y), (P - x if x else 0, y)]
    return []


def small_order_ys() -> set[int]:
    """y of every point whose order divides eight, found by multiplying by the large order."""
    order = 2**252 + 27742317777372353535851937790883648493
    found = {(0, 1)}
    y = 2
    while len(found) < 8:
        for start in points_of_y(y):
            total, doubled, rest = (0, 1), start, order
            while rest:
                if rest & 1:
                    total = add(total, doubled)
                doubled, rest = add(doubled, doubled), rest >> 1
            while total not in found:
                found.add(total)
                total = add(total, total)
        y += 1
    return {y for _, y in found}


@pytest.mark.parametrize("sign", [0, 1 << 255])
def test_a_key_under_which_anybody_can_sign_is_refused(sign: int) -> None:
    ys = small_order_ys()
    assert len(ys) == 5
    for y in (*ys, P, P + 1, 2**255 - 1):  # and the forms that are not canonical
        weak = (y | sign).to_bytes(32, "little")
        packed = msgpack.packb(body_of() | {"s": weak})
        for signature in (weak + bytes(32), bytes(64), (1).to_bytes(32, "little") + bytes(32)):
            with pytest.raises(SignatureError, match="weak"):
                check_envelope(msgpack.packb([packed, signature]))


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=96))
def test_garbage_keys_and_signatures_are_refused(key: bytes, signature: bytes) -> None:
    packed = msgpack.packb(body_of() | {"s": key})
    with pytest.raises(SignatureError):
        check_envelope(msgpack.packb([packed, signature]))


# --- Verified -------------------------------------------------------------------------------------


def test_verified_is_made_by_open_signed_alone() -> None:
    true = said(claim(3), alice)
    with pytest.raises(TypeError, match="open_signed alone"):
        Verified(claim(3), bob.peer, true.key, true.expires_at, true.envelope, object())
    with pytest.raises((TypeError, ValueError)):
        replace(true, owner=bob.peer)  # type: ignore[call-arg]
    with pytest.raises(FrozenInstanceError):
        true.owner = bob.peer  # type: ignore[misc]
    assert copy.copy(true) == true


def test_what_is_verified_shows_no_secret_and_carries_its_proof() -> None:
    true = said(claim(3), alice)
    assert alice.seed.hex() not in repr(true)
    assert repr(alice.seed) not in repr(alice)
    assert open_signed(Claim, true.envelope, key=true.key, now=NOW) == true


def test_a_run_id_of_another_run_is_another_key() -> None:
    other = replace(claim(3), run=RunId(cid("another run")))
    with pytest.raises(EncodeError):
        seal(other, alice, key=home_of(claim(3), alice), expires_at=other.expires_at)
