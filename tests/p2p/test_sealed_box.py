import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from p2p import sealed_box
from p2p.errors import DecodeError, LimitError, SignatureError
from p2p.ids import blob_digest
from p2p.limits import MAX_DELIVERY_SIZE
from p2p.sealed_box import TAG_SIZE, new_secret, open_box, public_of, seal_box
from tests.support.people import cid

# RFC 7748, section 6.1: two secrets, their public keys, and what both share
SELLER = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
BUYER = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
SELLER_KEY = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BUYER_KEY = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
AGREEMENT = cid("agreement")
PLAINTEXT = b"weights" * 100
BOX = seal_box(PLAINTEXT, secret=SELLER, to=BUYER_KEY, agreement=AGREEMENT)

_P = 2**255 - 19
SMALL_ORDER = [  # u of every point of order 1, 2, 4, 8 on the curve and its twist, mod p and above
    *(0, 1, _P - 1, _P, _P + 1),
    0x00B8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
    0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
]


def test_a_box_is_opened_by_the_other_key() -> None:
    assert open_box(BOX, secret=BUYER, sender=SELLER_KEY, agreement=AGREEMENT) == PLAINTEXT
    assert len(BOX) == len(PLAINTEXT) + TAG_SIZE
    assert PLAINTEXT[:16] not in BOX


def test_a_public_key_is_the_one_of_rfc_7748() -> None:
    assert (public_of(SELLER), public_of(BUYER)) == (SELLER_KEY, BUYER_KEY)


def test_a_box_is_made_as_its_module_says() -> None:
    """HKDF (RFC 5869) written out, so that another program can read a delivery."""
    inner = hmac.digest(blob_digest(AGREEMENT), SHARED, "sha256")
    key = hmac.digest(inner, b"paris/delivery/1" + b"\x01", "sha256")
    again = ChaCha20Poly1305(key).encrypt(bytes(12), PLAINTEXT, AGREEMENT.encode())
    assert again == BOX


@given(plaintext=st.binary(max_size=300), number=st.integers(0, 9))
def test_any_plaintext_round_trips(plaintext: bytes, number: int) -> None:
    agreement = cid(f"agreement {number}")
    box = seal_box(plaintext, secret=SELLER, to=BUYER_KEY, agreement=agreement)
    assert open_box(box, secret=BUYER, sender=SELLER_KEY, agreement=agreement) == plaintext


def test_fresh_secrets_are_of_32_bytes_and_differ() -> None:
    made = {new_secret() for _ in range(8)}
    assert len(made) == 8
    assert {len(secret) for secret in made} == {32}
    assert len({public_of(secret) for secret in made}) == 8


def test_neither_another_key_nor_another_agreement_opens_a_box() -> None:
    other = bytes(range(32))
    for secret, sender, agreement in (
        (other, SELLER_KEY, AGREEMENT),
        (BUYER, public_of(other), AGREEMENT),
        (BUYER, BUYER_KEY, AGREEMENT),
        (BUYER, SELLER_KEY, cid("another agreement")),
    ):
        with pytest.raises(SignatureError, match="does not decrypt"):
            open_box(BOX, secret=secret, sender=sender, agreement=agreement)


@pytest.mark.parametrize("at", [0, 7, len(PLAINTEXT) - 1, len(PLAINTEXT), len(BOX) - 1])
def test_a_bit_flipped_in_a_box_is_noticed(at: int) -> None:
    changed = bytearray(BOX)
    changed[at] ^= 1
    with pytest.raises(SignatureError):
        open_box(bytes(changed), secret=BUYER, sender=SELLER_KEY, agreement=AGREEMENT)


def test_a_box_that_is_cut_or_longer_is_refused() -> None:
    for changed in (b"", b"x" * 5, BOX[:-1], BOX[1:], BOX + b"\0", BOX[:TAG_SIZE]):
        with pytest.raises(SignatureError):
            open_box(changed, secret=BUYER, sender=SELLER_KEY, agreement=AGREEMENT)


@pytest.mark.parametrize("u", SMALL_ORDER)
def test_a_key_of_small_order_is_refused_on_both_sides(u: int) -> None:
    weak = u.to_bytes(32, "little")
    with pytest.raises(DecodeError, match="small order"):
        seal_box(PLAINTEXT, secret=SELLER, to=weak, agreement=AGREEMENT)
    with pytest.raises(DecodeError, match="small order"):
        open_box(BOX, secret=BUYER, sender=weak, agreement=AGREEMENT)


@pytest.mark.parametrize("wrong", [b"", bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused(wrong: bytes) -> None:
    with pytest.raises(DecodeError, match="private key: got"):
        public_of(wrong)
    with pytest.raises(DecodeError, match="private key: got"):
        seal_box(PLAINTEXT, secret=wrong, to=BUYER_KEY, agreement=AGREEMENT)
    with pytest.raises(DecodeError, match="public key: got"):
        seal_box(PLAINTEXT, secret=SELLER, to=wrong, agreement=AGREEMENT)
    with pytest.raises(DecodeError, match="public key: got"):
        open_box(BOX, secret=BUYER, sender=wrong, agreement=AGREEMENT)


def test_what_is_over_the_limit_is_neither_sealed_nor_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(LimitError):
        open_box(bytes(MAX_DELIVERY_SIZE + 1), secret=BUYER, sender=SELLER_KEY, agreement=AGREEMENT)
    monkeypatch.setattr(sealed_box, "MAX_DELIVERY_SIZE", len(BOX))
    assert seal_box(PLAINTEXT, secret=SELLER, to=BUYER_KEY, agreement=AGREEMENT) == BOX
    assert open_box(BOX, secret=BUYER, sender=SELLER_KEY, agreement=AGREEMENT) == PLAINTEXT
    with pytest.raises(LimitError):
        seal_box(PLAINTEXT + b"x", secret=SELLER, to=BUYER_KEY, agreement=AGREEMENT)


def test_two_agreements_of_the_same_keys_share_no_key_stream() -> None:
    other = seal_box(PLAINTEXT, secret=SELLER, to=BUYER_KEY, agreement=cid("another agreement"))
    assert hashlib.sha256(other).digest() != hashlib.sha256(BOX).digest()
    same = sum(one == two for one, two in zip(BOX, other, strict=True))
    assert same < len(BOX) // 32  # 1 in 256 by chance
