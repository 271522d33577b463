"""The first words between two hosts: who I am, which run I am in, and whom else I know.

One request and one reply of the same shape over `PROTOCOL`. This is how one address of a host is
enough to join: the reply's signed node record holds the addresses of the DHT as well.
"""

from dataclasses import dataclass
from typing import Final

from p2p.errors import DecodeError
from p2p.ids import RunId
from p2p.limits import KIB, MAX_RECORD_SIZE

PROTOCOL: Final = "/paris/hello/1"
MAX_OTHERS: Final = 16
"""Enough to leave an eclipse of a few; the DHT has the rest."""
MAX_HELLO_SIZE: Final = (MAX_OTHERS + 2) * MAX_RECORD_SIZE
assert MAX_HELLO_SIZE <= 64 * KIB  # noqa: S101  a fact about two constants, checked at import


@dataclass(frozen=True, slots=True)
class Hello:
    """What both sides say."""

    run: RunId
    node: bytes
    """Our own sealed `NodeRecord`."""
    others: tuple[bytes, ...]
    """Sealed `NodeRecord`s of peers we know, newest first."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            DecodeError: if there are too many records, or one is too large.
        """
        if len(self.others) > MAX_OTHERS:
            raise DecodeError(f"hello: {len(self.others)} records, at most {MAX_OTHERS}")
        if any(len(record) > MAX_RECORD_SIZE for record in (self.node, *self.others)):
            raise DecodeError(f"hello: a record is larger than {MAX_RECORD_SIZE} bytes")
