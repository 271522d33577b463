"""The rule every record obeys before it is kept or believed: it must be a whole, living envelope.

Pure: bytes and a time in, an error or nothing out. hivemind calls it through `p2p.dht.swarm`, the
in-memory store calls it directly, so both refuse the same things for the same reasons.
"""

import hashlib
import math
from typing import Final

import msgpack

from p2p.codec import EnvelopeFacts, check_envelope
from p2p.errors import DecodeError, SignatureError
from p2p.limits import MAX_CLOCK_SKEW_S, MAX_RECORD_LIFETIME_S, MAX_RECORD_SIZE
from p2p.records import KEY_PREFIX

_EXPIRY_TOLERANCE_S: Final = 1e-6


def key_hash(key: str) -> bytes:
    """Where a key lies in the DHT: hivemind's `DHTID.generate(key)`, 20 bytes."""
    return hashlib.sha1(msgpack.packb(key, use_bin_type=True), usedforsecurity=False).digest()


def check_record(
    key: bytes, subkey: bytes, value: bytes, expires_at: float, *, now: float
) -> EnvelopeFacts:
    """Check one record against its envelope.

    Args:
        key: the DHT key's hash (`key_hash`).
        subkey: the owner's raw public key it is stored under.
        value: the envelope.
        expires_at: the expiry that came beside the value, seconds since the epoch.
        now: seconds since the epoch.

    Returns:
        What the envelope says of itself.

    Raises:
        DecodeError: if it is too large, malformed, expired, or expires too late.
        SignatureError: if owner, key or expiry are not what was signed.
    """
    if len(value) > MAX_RECORD_SIZE:
        raise DecodeError(f"record: got {len(value)} bytes, the limit is {MAX_RECORD_SIZE}")
    if not math.isfinite(expires_at):
        raise DecodeError(f"record: expiry {expires_at} is not a time")
    latest = now + MAX_RECORD_LIFETIME_S + MAX_CLOCK_SKEW_S
    if not now < expires_at <= latest:
        raise DecodeError(f"record: expires in {expires_at - now:.1f} s, expected 0 to 3600 s")
    facts = check_envelope(value)
    if facts.subkey != subkey:
        raise SignatureError("record: stored under the subkey of somebody else")
    if not facts.key.startswith(f"{KEY_PREFIX}/") or key_hash(facts.key) != key:
        raise SignatureError(f"record: signed for key {facts.key!r}, stored under another")
    if facts.expires_at is None or abs(facts.expires_at - expires_at) > _EXPIRY_TOLERANCE_S:
        raise SignatureError("record: the expiry beside it is not the one that was signed")
    return facts
