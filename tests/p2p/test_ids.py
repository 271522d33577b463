import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DecodeError
from p2p.ids import (
    blob_digest,
    blob_id,
    blob_id_of_digest,
    parse_blob_id,
    parse_peer_id,
    peer_id,
    peer_public_key,
)


def test_blob_id_is_the_cid_that_ipfs_prints() -> None:
    assert blob_id(b"hello world") == "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"


@given(st.binary(min_size=32, max_size=32))
def test_peer_id_is_base58_of_the_identity_multihash_of_the_key(key: bytes) -> None:
    # github.com/libp2p/specs, peer-ids.md: identity(36), protobuf {type: Ed25519, data: 32 bytes}
    assert peer_id(key) == _base58_by_division(bytes((0, 36, 8, 1, 18, 32)) + key)
    assert peer_id(key).startswith("12D3KooW")


def _base58_by_division(raw: bytes) -> str:
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    digits: list[int] = [0]
    for byte in raw:
        carry = byte
        for place, digit in enumerate(digits):
            carry += digit << 8
            digits[place] = carry % 58
            carry //= 58
        while carry:
            digits.append(carry % 58)
            carry //= 58
    leading = len(raw) - len(raw.lstrip(b"\0"))
    return "1" * leading + "".join(alphabet[digit] for digit in reversed(digits))


@given(st.binary(min_size=32, max_size=32))
def test_ids_give_back_what_they_were_made_of(raw: bytes) -> None:
    assert blob_digest(blob_id_of_digest(raw)) == raw
    assert peer_public_key(peer_id(raw)) == raw
    assert parse_blob_id(blob_id_of_digest(raw)) == blob_id_of_digest(raw)
    assert parse_peer_id(peer_id(raw)) == peer_id(raw)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz234567", min_size=52, max_size=52))
def test_a_blob_id_is_accepted_only_in_the_one_form_that_decoding_gives_back(tail: str) -> None:
    text = "bafkrei" + tail
    raw = base64.b32decode(text[1:].upper() + "======")
    is_canonical = (
        raw[:4] == bytes((1, 0x55, 0x12, 0x20))
        and base64.b32encode(raw).decode().lower().rstrip("=") == text[1:]
    )
    if is_canonical:
        assert parse_blob_id(text) == text
    else:
        with pytest.raises(DecodeError):
            parse_blob_id(text)


GOOD = blob_id(b"x")


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        b"bytes",
        "",
        GOOD[:-1],
        GOOD + "a",
        GOOD.upper(),
        GOOD + "\n",
        GOOD[:-1] + "b",
        "Qm" + GOOD[2:],
        pytest.param(10**5000, id="a number too long to print"),
    ],
)
def test_anything_but_a_canonical_cid_is_refused(text: object) -> None:
    with pytest.raises(DecodeError):
        parse_blob_id(text)


ALICE = peer_id(hashlib.sha256(b"alice").digest())


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        "",
        "1" * 52,
        ALICE[:-1],
        ALICE + "1",
        "1" + ALICE,
        ALICE.lower(),
        "0" + ALICE,
        10**9,
    ],
)
def test_anything_but_an_ed25519_peer_id_is_refused(text: object) -> None:
    with pytest.raises(DecodeError):
        parse_peer_id(text)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_digests_and_keys_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(DecodeError):
        blob_id_of_digest(bytes(size))
    with pytest.raises(DecodeError):
        peer_id(bytes(size))
