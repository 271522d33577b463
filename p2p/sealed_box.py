"""Encryption of one delivery to one buyer: both sides use an X25519 key that is made for it alone.

    key = HKDF-SHA256(X25519(secret, other's public key), salt = digest of the agreement's CID,
                      info = "paris/delivery/1")
    ciphertext = ChaCha20-Poly1305(key, nonce = 0, plaintext, additional data = the agreement's CID)

A key is used once, so its nonce may be fixed: **never seal two plaintexts with one secret for one
agreement**. Who made a public key is not this module's business: both stand in signed records.
Sources: RFC 7748, RFC 5869, RFC 8439.
"""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2p.errors import DecodeError, LimitError, SignatureError
from p2p.ids import BlobId, blob_digest
from p2p.limits import MAX_DELIVERY_SIZE
from p2p.lora_records import KEY_SIZE
from p2p.record_checks import check_size

TAG_SIZE: Final = 16
"""Bytes a ciphertext is longer than its plaintext."""
_INFO: Final = b"paris/delivery/1"
_NONCE: Final = bytes(12)


def new_secret() -> bytes:
    """A fresh X25519 private key for one delivery, 32 bytes; never log or send it."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_of(secret: bytes) -> bytes:
    """The public key of a private one, 32 bytes.

    Raises:
        DecodeError: if the secret is not 32 bytes.
    """
    return _private(secret).public_key().public_bytes_raw()


def seal_box(plaintext: bytes, *, secret: bytes, to: bytes, agreement: BlobId) -> bytes:
    """Encrypt a delivery.

    Args:
        plaintext: what is delivered.
        secret: the seller's private key for this one delivery.
        to: the buyer's public key, from the agreement.
        agreement: CID of the seller's sealed agreement.

    Returns:
        The ciphertext, `TAG_SIZE` bytes longer than the plaintext.

    Raises:
        DecodeError: if a key is not 32 bytes, or the buyer's is of small order: anybody could read.
        LimitError: if the ciphertext would be over `MAX_DELIVERY_SIZE`.
    """
    if len(plaintext) + TAG_SIZE > MAX_DELIVERY_SIZE:
        raise LimitError(f"delivery: {len(plaintext)} bytes, the limit is {MAX_DELIVERY_SIZE}")
    cipher = _cipher(secret, to, agreement)
    return cipher.encrypt(_NONCE, plaintext, agreement.encode())


def open_box(ciphertext: bytes, *, secret: bytes, sender: bytes, agreement: BlobId) -> bytes:
    """Decrypt a delivery.

    Args:
        ciphertext: what came, whole.
        secret: the buyer's private key for this one delivery.
        sender: the seller's public key, from the delivery.
        agreement: CID of the seller's sealed agreement.

    Raises:
        DecodeError: if a key is not 32 bytes, or the seller's is of small order.
        LimitError: if the ciphertext is over `MAX_DELIVERY_SIZE`.
        SignatureError: if it was not sealed by that key, to this one, for that agreement.
    """
    if len(ciphertext) > MAX_DELIVERY_SIZE:
        raise LimitError(f"delivery: {len(ciphertext)} bytes, the limit is {MAX_DELIVERY_SIZE}")
    cipher = _cipher(secret, sender, agreement)
    try:
        return cipher.decrypt(_NONCE, ciphertext, agreement.encode())
    except InvalidTag as error:
        raise SignatureError("delivery: does not decrypt with these keys and agreement") from error


def _private(secret: bytes) -> X25519PrivateKey:
    check_size("X25519 private key", secret, KEY_SIZE)
    return X25519PrivateKey.from_private_bytes(secret)


def _cipher(secret: bytes, public: bytes, agreement: BlobId) -> ChaCha20Poly1305:
    private = _private(secret)
    check_size("X25519 public key", public, KEY_SIZE)
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # OpenSSL refuses a shared secret of zeros, RFC 7748, section 6.1
        raise DecodeError("X25519 public key: is of small order, all would share it") from error
    derive = HKDF(hashes.SHA256(), length=KEY_SIZE, salt=blob_digest(agreement), info=_INFO)
    return ChaCha20Poly1305(derive.derive(shared))
