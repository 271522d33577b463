"""What a starting node has to say, as values: `node.app` makes them, the CLI prints them."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class IdentityReady:
    """The node knows who it is."""

    peer_id: str
    name: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class StorageReady:
    """The blob store is open. `free_bytes` is the disk's, `limit_bytes` the quota."""

    free_bytes: int
    used_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class NetworkReady:
    """Both network parts listen. `nat` says how others reach us: "NAT: private, relay OK"."""

    peers: int
    direct: int
    relayed: int
    nat: str
    listening: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClusterReady:
    """What this node trains: `claimed` of `clusters`, or none and why (`note`)."""

    claimed: tuple[int, ...]
    clusters: int
    note: str


@dataclass(frozen=True, slots=True)
class ServingReady:
    """The HTTP API answers at `url`."""

    url: str


@dataclass(frozen=True, slots=True)
class NodeReady:
    """All parts run; `seconds` since the command began, `example` is a prompt worth trying."""

    seconds: float
    example: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know that is no failure: "0 peers, retrying in 4 s"."""

    text: str


StartEvent = (
    IdentityReady | StorageReady | NetworkReady | ClusterReady | ServingReady | NodeReady | Notice
)

_NAMES: dict[type, str] = {
    IdentityReady: "identity",
    StorageReady: "storage",
    NetworkReady: "network",
    ClusterReady: "cluster",
    ServingReady: "serving",
    NodeReady: "ready",
    Notice: "notice",
}


def event_to_json(event: StartEvent) -> dict[str, object]:
    """The event as `start --json` prints it: {event, ...its fields}."""
    return {"event": _NAMES[type(event)], **asdict(event)}
