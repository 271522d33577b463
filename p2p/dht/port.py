"""The DHT as the rest of the program sees it: opaque signed bytes under a key and an owner.

Two implementations pass one set of contract tests: `p2p.dht.client` (hivemind in a child process)
and `p2p.dht.memory`. Neither reads a value: `p2p.codec.open_signed` does, and only that is trusted.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """One owner's value under a key, as some replica gave it: untrusted until opened."""

    subkey: bytes
    """The owner's raw 32-byte Ed25519 public key."""
    value: bytes
    expires_at: float
    """Seconds since the epoch."""


class RecordStore(Protocol):
    """Signed, expiring records shared by everybody."""

    async def put(self, key: str, subkey: bytes, value: bytes, expires_at: float) -> bool:
        """Store our own record and say whether enough replicas took it.

        Args:
            key: `paris/1/...`, as in the signed body.
            subkey: our public key; only its owner can write under it.
            value: what `p2p.codec.seal` made, at most `limits.MAX_RECORD_SIZE` bytes.
            expires_at: seconds since the epoch, the body's own expiry.

        Raises:
            LimitError: if the value is too large.
            TransportError: if the child is down or the deadline passed.
        """
        ...

    async def get(self, key: str) -> tuple[StoredRecord, ...]:
        """Every live record under `key`, one per owner, in no order; empty if there is none.

        Raises:
            TransportError: if the child is down or the deadline passed.
        """
        ...
