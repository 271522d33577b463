"""Errors of the p2p package: one base; *their* fault is a `PeerError`, ours is a bug and rises."""


class P2PError(Exception):
    """Base of every error this package raises on purpose."""


class PeerError(P2PError):
    """A peer sent something wrong or went away: drop the peer, keep the node."""


class DecodeError(PeerError):
    """Bytes from outside are not what they should be; the message says what, got, expected."""


class ExpiredError(DecodeError):
    """A well-formed record whose time is over or has not come: late, not necessarily hostile."""


class EncodeError(P2PError, ValueError):
    """Our own value breaks the form every reader would demand: a bug or a NaN on this side."""


class SignatureError(PeerError):
    """A signed record whose signature, owner or key does not match."""


class LimitError(PeerError):
    """A peer asked for, or sent, more than a limit in `p2p.limits` allows."""


class RefusedError(PeerError):
    """A peer answered with a typed refusal: `code` for programs, the message for people."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"refused ({code}): {reason}")
        self.code = code
        self.reason = reason


class StreamClosedError(PeerError):
    """The other side closed or reset the stream before the message was whole."""


class TransportError(P2PError):
    """The local network part failed: a port in use, a child that is down, a dial that timed out."""


class ListenError(TransportError):
    """The address we were told to listen on cannot be had; trying again soon will not help."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"cannot listen on {address}: {reason}")
        self.address = address
        self.reason = reason

    @property
    def port(self) -> int | None:
        """The port of `address`, if it names one."""
        parts = self.address.split("/")
        return int(parts[4]) if len(parts) > 4 and parts[4].isdigit() else None


class PortInUseError(ListenError):
    """Another program listens there."""

    def __init__(self, address: str) -> None:
        super().__init__(address, "the port is in use by another program")


class StorageError(P2PError):
    """The local disk refused: full, over quota, read-only, or a file altered."""


class BlobMissingError(StorageError):
    """A blob is not in the local store."""

    def __init__(self, blob: str) -> None:
        super().__init__(f"blob {blob} is not in the local store")
        self.blob = blob


class BlobCorruptError(StorageError):
    """A stored blob no longer hashes to its name."""

    def __init__(self, blob: str) -> None:
        super().__init__(f"blob {blob} no longer matches its hash: it was altered on disk")
        self.blob = blob


class QuotaError(StorageError):
    """The store's quota or the disk's free-space floor would be broken."""


class IdentityError(P2PError):
    """The identity file is unreadable, malformed, or readable by others."""


class ClaimError(P2PError):
    """A claim or fencing epoch would break the rules of `p2p.claims`."""
