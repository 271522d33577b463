"""From the parts' errors to sentences for a person: one table, read by `app` and by the API."""

from typing import Final

from node.errors import ErrorCode, NodeError
from p2p.errors import (
    IdentityError,
    LimitError,
    ListenError,
    P2PError,
    PeerError,
    QuotaError,
    RefusedError,
    StorageError,
    TransportError,
)

_LOGS: Final = "see: paris-node logs"


_TABLE: Final = (  # the first row that fits
    (IdentityError, ErrorCode.REFUSED, "or use another home: --home DIR"),
    (ListenError, ErrorCode.RESOURCE, "choose another address or port: paris-node start --help"),
    (TransportError, ErrorCode.FAILED, _LOGS),
    (QuotaError, ErrorCode.RESOURCE, ""),
    (StorageError, ErrorCode.RESOURCE, "free some space, or choose another --home DIR"),
    (LimitError, ErrorCode.REFUSED, ""),
    (RefusedError, ErrorCode.REFUSED, ""),
    (PeerError, ErrorCode.VERIFICATION_FAILED, "try another peer"),
)


def for_people(error: NodeError | P2PError) -> NodeError:
    """The error as a person should read it."""
    if isinstance(error, NodeError):
        return error
    for kind, code, fix in _TABLE:
        if isinstance(error, kind):
            return NodeError(code, str(error), fix)
    return NodeError(ErrorCode.FAILED, str(error), _LOGS)
