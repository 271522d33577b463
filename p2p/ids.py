"""Names of things on the wire: real libp2p peer ids and real CIDs, so other tools can read them.

Knows base58, base32 and two multihash layouts; deliberately imports neither libp2p nor multiformats
(the command line and the DHT child both need these names, and neither may load a network stack).
Sources: github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md, github.com/multiformats/cid.
"""

import base64
import hashlib
import re
from typing import Final, NewType

from p2p.errors import DecodeError

PeerId = NewType("PeerId", str)
"""Base58 of the identity multihash of an Ed25519 public key: `12D3KooW...`."""
BlobId = NewType("BlobId", str)
"""CIDv1, base32, codec raw, sha2-256: `bafkrei...`."""
RunId = NewType("RunId", str)
"""The `BlobId` of a run manifest's canonical bytes."""
ClusterId = NewType("ClusterId", int)

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_VALUE: Final = {char: value for value, char in enumerate(_BASE58)}
_CID_PREFIX: Final = bytes((0x01, 0x55, 0x12, 0x20))  # CIDv1, raw, sha2-256, 32 bytes
_PEER_PREFIX: Final = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))  # identity(36), Ed25519, 32 bytes
_BLOB_ID: Final = re.compile("bafkrei[a-h][a-z2-7]{50}[aeimquy4]")
"""Exactly the canonical texts of that prefix and 32 bytes: the last character's two spare bits are
zero. A pattern, because decoding base32 in Python takes 20 us and a manifest has 16,000 of them."""
_PEER_ID_MAX_LENGTH: Final = 64


def blob_id(data: bytes) -> BlobId:
    """CID of `data` as one raw block."""
    return blob_id_of_digest(hashlib.sha256(data).digest())


def blob_id_of_digest(digest: bytes) -> BlobId:
    """CID that a 32-byte sha2-256 digest names.

    Raises:
        DecodeError: if the digest is not 32 bytes.
    """
    if len(digest) != 32:
        raise DecodeError(f"sha2-256 digest: got {len(digest)} bytes, expected 32")
    encoded = base64.b32encode(_CID_PREFIX + digest).decode().lower().rstrip("=")
    return BlobId("b" + encoded)


def parse_blob_id(text: object) -> BlobId:
    """Check that `text` is a canonical CID of the one kind we use.

    Raises:
        DecodeError: if it is anything else (other codec, other hash, upper case, padding).
    """
    if not isinstance(text, str) or _BLOB_ID.fullmatch(text) is None:
        raise DecodeError(
            f"CID: got {_shown(text)}, expected the canonical CIDv1 of a raw block by sha2-256: "
            "'bafkrei...', 59 characters"
        )
    return BlobId(text)


def blob_digest(blob: BlobId) -> bytes:
    """The 32-byte sha2-256 digest inside a CID."""
    checked = parse_blob_id(blob)
    return base64.b32decode(checked[1:].upper() + "=" * (-len(checked[1:]) % 8))[4:]


def peer_id(public_key: bytes) -> PeerId:
    """Peer id of a raw 32-byte Ed25519 public key.

    Raises:
        DecodeError: if the key is not 32 bytes.
    """
    if len(public_key) != 32:
        raise DecodeError(f"Ed25519 public key: got {len(public_key)} bytes, expected 32")
    return PeerId(_base58_encode(_PEER_PREFIX + public_key))


def peer_public_key(peer: object) -> bytes:
    """Raw Ed25519 public key inside a peer id.

    Raises:
        DecodeError: if `peer` is not a peer id that carries an Ed25519 key.
    """
    if not isinstance(peer, str) or not 0 < len(peer) <= _PEER_ID_MAX_LENGTH:
        raise DecodeError(f"peer id: got {_shown(peer)}, expected '12D3KooW...'")
    raw = _base58_decode(peer)
    if raw[:6] != _PEER_PREFIX or len(raw) != 38:
        raise DecodeError(f"peer id {peer!r} does not carry an Ed25519 public key")
    return raw[6:]


def parse_peer_id(text: object) -> PeerId:
    """Check that `text` is an Ed25519 peer id.

    Raises:
        DecodeError: if it is anything else.
    """
    return peer_id(peer_public_key(text))


def _shown(thing: object) -> str:
    return repr(thing[:70]) if isinstance(thing, str) else type(thing).__name__


def _base58_encode(raw: bytes) -> str:
    number = int.from_bytes(raw, "big")
    chars: list[str] = []
    while number:
        number, value = divmod(number, 58)
        chars.append(_BASE58[value])
    zeros = len(raw) - len(raw.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(chars))


def _base58_decode(text: str) -> bytes:
    number = 0
    for char in text:
        value = _BASE58_VALUE.get(char)
        if value is None:
            raise DecodeError(f"peer id {text!r}: {char!r} is not a base58 character")
        number = number * 58 + value
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")
