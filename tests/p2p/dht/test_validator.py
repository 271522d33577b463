"""The rule that every record obeys, on both sides of each limit."""

import math
from dataclasses import replace

import pytest

from p2p.dht.validator import check_record, key_hash
from p2p.errors import DecodeError, PeerError, SignatureError
from p2p.limits import MAX_CLOCK_SKEW_S, MAX_RECORD_LIFETIME_S, MAX_RECORD_SIZE
from tests.support.dht import ALICE, BOB, Sealed, sealed

NOW = 1_000_000.0


def check(record: Sealed, key: str | None = None) -> None:
    place = key_hash(record.key if key is None else key)
    check_record(place, record.subkey, record.value, record.expires_at, now=NOW)


def test_envelope_of_its_owner_for_its_key_is_fine() -> None:
    check(sealed(ALICE, expires_at=NOW + 60))


@pytest.mark.parametrize(
    ("life_s", "is_fine"),
    [
        (0.0, False),
        (0.001, True),
        (MAX_RECORD_LIFETIME_S + MAX_CLOCK_SKEW_S, True),
        (MAX_RECORD_LIFETIME_S + MAX_CLOCK_SKEW_S + 0.01, False),
        (-1.0, False),
    ],
)
def test_life_is_bounded(life_s: float, is_fine: bool) -> None:
    record = sealed(ALICE, expires_at=NOW + life_s)
    if is_fine:
        check(record)
    else:
        with pytest.raises(DecodeError, match="expires in"):
            check(record)


@pytest.mark.parametrize("expires_at", [math.inf, -math.inf, math.nan])
def test_expiry_that_is_no_time_is_refused(expires_at: float) -> None:
    with pytest.raises(DecodeError, match="not a time"):
        check(replace(sealed(ALICE, expires_at=NOW + 60), expires_at=expires_at))


def test_expiry_beside_the_record_must_be_the_signed_one() -> None:
    record = sealed(ALICE, expires_at=NOW + 60)
    for shift in (-1.0, 0.01, 1.0):
        with pytest.raises(SignatureError, match="expiry"):
            check(replace(record, expires_at=record.expires_at + shift))


def test_key_and_owner_must_be_the_signed_ones() -> None:
    record = sealed(ALICE, expires_at=NOW + 60)
    with pytest.raises(SignatureError, match="another"):
        check(record, key="paris/1/test/claim/1")
    with pytest.raises(SignatureError, match="somebody else"):
        check(replace(record, subkey=BOB.public_key))
    with pytest.raises(SignatureError, match="another"):
        check(sealed(ALICE, "paris/2/x", expires_at=NOW + 60))


def test_size_is_bounded_before_anything_is_decoded() -> None:
    record = sealed(ALICE, expires_at=NOW + 60)
    with pytest.raises(DecodeError, match="2048"):
        check(replace(record, value=b"\xc1" * (MAX_RECORD_SIZE + 1)))


def test_any_flipped_bit_is_noticed() -> None:
    record = sealed(ALICE, expires_at=NOW + 60)
    for position in range(len(record.value)):
        altered = bytearray(record.value)
        altered[position] ^= 1 << position % 8
        with pytest.raises(PeerError):
            check(replace(record, value=bytes(altered)))


def test_key_hash_is_hiveminds() -> None:
    """`DHTID.generate("paris/1/test")` of hivemind 1.1.12, as a number it gave once."""
    assert key_hash("paris/1/test").hex() == EXPECTED


EXPECTED = "296a073a2a8ae472d3e1ea3d7638e42a17e7f054"
