"""Records to canonical bytes and back, and the signed envelope that every shared record wears.

`open_signed` is the only door by which a peer's words come in: what it returns is `Verified`, and
handlers accept nothing else. Imports neither torch nor libp2p: the DHT's child validates with it.

    envelope = msgpack([body, signature])             signature: Ed25519 over SIGNING_TAG + body
    body     = msgpack({e: expiry or nil, k: key, r: record, s: owner's public key, t: kind, v: 1})
"""

from dataclasses import InitVar, dataclass
from typing import Final, Generic, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2p.errors import DecodeError, EncodeError, ExpiredError, LimitError, SignatureError
from p2p.file_sets import FileSet
from p2p.identity import Identity
from p2p.ids import PeerId, peer_id
from p2p.limits import (
    CHUNK_SIZE,
    MAX_CLOCK_SKEW_S,
    MAX_LABEL,
    MAX_LETTER_SIZE,
    MAX_RECORD_LIFETIME_S,
    MAX_RECORD_SIZE,
)
from p2p.lora_records import Agreement, Delivery, LoraOffer, ProbeReceipt, ProbeRequest
from p2p.msgpack_guard import Plain, decode_plain, encode_plain
from p2p.records import (
    BLOB_KEY,
    CheckpointManifest,
    Claim,
    ImageReceipt,
    Record,
    RunManifest,
    is_home_of,
)
from p2p.schema import from_plain, to_plain

SIGNING_TAG: Final = b"paris-rec-v1"
"""Before the body under the signature, so that no other thing signed by this key reads as one."""
ENVELOPE_VERSION: Final = 1
MAX_KEY_LENGTH: Final = 160

__all__ = [
    "BLOB_KEY",
    "EnvelopeFacts",
    "Verified",
    "check_envelope",
    "open_signed",
    "pack",
    "seal",
    "unpack",
]

T = TypeVar("T")
R = TypeVar("R", bound=Record)

_LISTS: Final = (CheckpointManifest, ImageReceipt, LoraOffer)
"""They last, and list so much that one may fill a blob."""
_LETTERS: Final = (Agreement, Delivery, ProbeRequest, ProbeReceipt)
"""They last too, and are small."""
_LASTING: Final = _LISTS + _LETTERS
_BODY_KEYS: Final = ["e", "k", "r", "s", "t", "v"]
_FIELD_PRIME: Final = 2**255 - 19
_SMALL_ORDER_Y: Final = frozenset(
    {
        0,
        1,
        _FIELD_PRIME - 1,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    }
)
"""y of the eight points of small order: under such a key anybody can make a valid signature."""
_DOOR: Final = object()


@dataclass(frozen=True, slots=True)
class EnvelopeFacts:
    """What an envelope's signature vouches for, before the record in it is looked at."""

    kind: str
    key: str
    subkey: bytes
    """The owner's raw 32-byte public key."""
    expires_at: float | None
    record: dict[str, Plain]
    """Canonical but not checked: `open_signed` makes a record of it."""


@dataclass(frozen=True, slots=True)
class Verified(Generic[R]):
    """A record whose signature, key, owner and time were checked. Only `open_signed` makes one."""

    record: R
    owner: PeerId
    key: str
    expires_at: float | None
    """Seconds since the epoch; None for what lasts as long as its blob."""
    envelope: bytes
    door: InitVar[object]

    def __post_init__(self, door: object) -> None:
        """Refuse every other maker.

        Raises:
            TypeError: if this was not called by `open_signed`.
        """
        if door is not _DOOR:
            raise TypeError("Verified is made by p2p.codec.open_signed alone")


def pack(thing: object) -> bytes:
    """Canonical bytes of a record, a manifest or a message.

    Raises:
        EncodeError: if a field is not of its type, is NaN or infinite: `unpack` would refuse it.
        LimitError: if a `FileSet` or `RunManifest` would not fit one blob.
    """
    data = encode_plain(to_plain(thing))
    if isinstance(thing, FileSet | RunManifest) and len(data) > CHUNK_SIZE:
        raise LimitError(f"{type(thing).__name__}: {len(data)} bytes do not fit one blob")
    return data


def unpack(kind: type[T], data: bytes, *, max_size: int) -> T:
    """Read bytes from outside as a `kind`.

    Raises:
        LimitError: if there are more than `max_size` bytes, or a limit of the type is passed.
        DecodeError: naming the field, for anything that is not exactly what `pack` writes.
    """
    return from_plain(kind, decode_plain(data, max_size=max_size))


def seal(record: Record, identity: Identity, *, key: str, expires_at: float | None) -> bytes:
    """Sign a record for one DHT key until a moment.

    Args:
        record: what to say.
        identity: who says it; the DHT subkey is its public key.
        key: the DHT key it will lie under, `BLOB_KEY` for what is stored by its CID.
        expires_at: seconds since the epoch; None only with `BLOB_KEY`.

    Raises:
        EncodeError: if the record cannot lie there or until then.
        LimitError: if the envelope is too large for where it goes.
    """
    try:
        _check_place(record, identity.peer, key, expires_at)
    except DecodeError as error:
        raise EncodeError(str(error)) from error
    body = encode_plain(
        {
            "e": None if expires_at is None else float(expires_at),
            "k": key,
            "r": to_plain(record),
            "s": identity.public_key,
            "t": type(record).__name__,
            "v": ENVELOPE_VERSION,
        }
    )
    envelope = encode_plain([body, identity.sign(SIGNING_TAG + body)])
    limit = _max_size(type(record))
    if len(envelope) > limit:
        raise LimitError(f"{type(record).__name__}: {len(envelope)} bytes, the limit is {limit}")
    return envelope


def check_envelope(value: bytes, *, max_size: int = MAX_RECORD_SIZE) -> EnvelopeFacts:
    """Check size, depth, canonical form and signature, and nothing about the record.

    The DHT's validator still compares `key`, `subkey` and `expires_at` with where the value lies.

    Raises:
        LimitError: if it is larger than `max_size` bytes.
        DecodeError: if it is not a canonical envelope of our version.
        SignatureError: if the key is weak or the signature does not match.
    """
    outer = decode_plain(value, max_size=max_size)
    match outer:
        case [bytes(body), bytes(signature)]:
            facts = _read_body(decode_plain(body, max_size=max_size))
            _check_signature(facts.subkey, signature, body)
            return facts
        case _:
            raise DecodeError("envelope: expected [body, signature]")


def open_signed(kind: type[R], envelope: bytes, *, key: str, now: float) -> Verified[R]:
    """Turn bytes from anywhere into a record that may be believed to be its owner's.

    Args:
        kind: the record type expected here.
        envelope: what `seal` made.
        key: the DHT key it was found under, `BLOB_KEY` for a blob.
        now: seconds since the epoch.

    Raises:
        LimitError: if it is too large, or a limit of the record is passed.
        DecodeError: if its form, kind, version, key or a field is not as expected.
        ExpiredError: if its time is over, or ends further away than any record may live.
        SignatureError: if the signature is not the owner's.
    """
    facts = check_envelope(envelope, max_size=_max_size(kind))
    if facts.kind != kind.__name__:
        raise DecodeError(f"envelope: got a {facts.kind!r}, expected a {kind.__name__}")
    if facts.key != key:
        raise DecodeError(f"envelope: sealed for key {facts.key!r}, found under {key!r}")
    owner = peer_id(facts.subkey)
    record = from_plain(kind, facts.record)
    _check_place(record, owner, key, facts.expires_at)
    if facts.expires_at is not None:
        _check_time(facts.expires_at, now)
    return Verified(record, owner, key, facts.expires_at, envelope, _DOOR)


def _read_body(body: Plain) -> EnvelopeFacts:
    if not isinstance(body, dict) or list(body) != _BODY_KEYS:
        raise DecodeError(f"envelope: expected a body with the keys {_BODY_KEYS}")
    kind, key, subkey, expires_at = body["t"], body["k"], body["s"], body["e"]
    record, version = body["r"], body["v"]
    if type(version) is not int or version != ENVELOPE_VERSION:
        raise DecodeError(f"envelope: version {version!r:.20}, this node reads {ENVELOPE_VERSION}")
    if not isinstance(kind, str) or not 0 < len(kind) <= MAX_LABEL:
        raise DecodeError("envelope: field t: expected the record's kind")
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_LENGTH:
        raise DecodeError(f"envelope: field k: expected a key of 1..{MAX_KEY_LENGTH} characters")
    if not isinstance(subkey, bytes) or len(subkey) != 32:
        raise DecodeError("envelope: field s: expected a public key of 32 bytes")
    if not isinstance(expires_at, float | None):
        raise DecodeError("envelope: field e: expected seconds or null")
    if not isinstance(record, dict):
        raise DecodeError("envelope: field r: expected a map")
    return EnvelopeFacts(kind, key, subkey, expires_at, record)


def _check_signature(public_key: bytes, signature: bytes, body: bytes) -> None:
    y = int.from_bytes(public_key, "little") & (2**255 - 1)
    if y >= _FIELD_PRIME or y in _SMALL_ORDER_Y:
        raise SignatureError("envelope: the owner's key is weak: anybody could sign for it")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, SIGNING_TAG + body)
    except (InvalidSignature, ValueError) as error:
        raise SignatureError("envelope: the signature does not match body and owner") from error


def _check_place(record: Record, owner: PeerId, key: str, expires_at: float | None) -> None:
    """Check that this record may lie under this key until then."""
    kind = type(record).__name__
    if not is_home_of(record, owner, key):
        raise DecodeError(f"{kind}: does not belong under the key {key!r:.200}")
    if (expires_at is None) != isinstance(record, _LASTING):
        raise DecodeError(f"{kind}: expiry {expires_at}; only what lies in blobs has none")
    if isinstance(record, Claim) and record.expires_at != expires_at:
        raise DecodeError(f"Claim.expires_at: {record.expires_at}, the envelope says {expires_at}")


def _check_time(expires_at: float, now: float) -> None:
    left_s = expires_at - now
    if not -MAX_CLOCK_SKEW_S < left_s <= MAX_RECORD_LIFETIME_S + MAX_CLOCK_SKEW_S:
        raise ExpiredError(
            f"envelope: expires in {left_s:.1f} s, expected 0..{MAX_RECORD_LIFETIME_S:.0f} s"
        )


def _max_size(kind: type) -> int:
    if kind in _LISTS:
        return CHUNK_SIZE
    return MAX_LETTER_SIZE if kind in _LETTERS else MAX_RECORD_SIZE
