"""Everything that is shared: frozen records, and the DHT keys they live under.

A record says *what*; who said it, under which key and until when is the envelope's business
(`p2p.codec`). Blobs never hold a path, a URL or code: only names of other blobs.
"""

from dataclasses import dataclass
from typing import Final

from p2p.errors import DecodeError
from p2p.ids import BlobId, ClusterId, PeerId, RunId
from p2p.limits import MAX_CLUSTERS, MAX_LEASE_S

KEY_PREFIX: Final = "paris/1"
NODE_SHARDS: Final = 16
"""Node records are spread over this many keys: a subkey dictionary travels whole in each reply."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file as chunks of `limits.CHUNK_SIZE` bytes, the last one shorter."""

    name: str
    """A bare file name: no separators, no leading dot."""
    size: int
    chunks: tuple[BlobId, ...]


@dataclass(frozen=True, slots=True)
class FileSet:
    """A folder's worth of files as a blob: what a CID of a folder names."""

    files: tuple[FileEntry, ...]

    @property
    def size(self) -> int:
        """Sum of the files' sizes in bytes."""
        return sum(entry.size for entry in self.files)


@dataclass(frozen=True, slots=True)
class ClaimPolicy:
    """How a run's claims behave; part of the manifest, so that all nodes reckon alike."""

    lease_s: float = 300.0
    renew_s: float = 100.0
    settle_s: float = 3.0
    """Between writing a claim and reading it back, so that rivals are seen."""
    stop_fraction: float = 0.8
    """An owner stops when this part of a lease has passed without a renewal."""
    patience_renewals: int = 6
    """Renewals without a newer checkpoint after which a claim no longer counts."""
    forfeit_s: float = 1800.0

    def __post_init__(self) -> None:
        """Check that the numbers make sense together.

        Raises:
            DecodeError: if they do not.
        """
        if not 0 < self.settle_s < self.renew_s < self.lease_s * self.stop_fraction:
            raise DecodeError(
                f"claim policy: expected 0 < settle < renew < lease * stop_fraction, got {self}"
            )
        if not (self.lease_s <= MAX_LEASE_S and 0 < self.stop_fraction < 1):
            raise DecodeError(f"claim policy: lease <= {MAX_LEASE_S} s and 0 < stop < 1, got {self}")
        if self.patience_renewals < 1 or self.forfeit_s <= 0:
            raise DecodeError(f"claim policy: patience and forfeit must be positive, got {self}")


@dataclass(frozen=True, slots=True)
class RunManifest:
    """One collective training. Not signed: its CID is the run id."""

    name: str
    clusters: int
    """K."""
    preset: str
    """The expert's model preset, a name in `training.config`."""
    budget_samples: int
    """Samples after which an expert is complete."""
    save_samples: int
    """Samples between two published checkpoints."""
    shared: BlobId
    """`FileSet` of what every node needs: run.json, codec, centroids, caption counts."""
    data: tuple[BlobId, ...]
    """`FileSet` of each cluster's shards, K of them."""
    claim_policy: ClaimPolicy
    min_version: str = "0.1.0"

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            DecodeError: if K is out of range or the shards do not match it.
        """
        if not 1 <= self.clusters <= MAX_CLUSTERS or len(self.data) != self.clusters:
            raise DecodeError(
                f"run manifest: K = {self.clusters} with {len(self.data)} data sets; "
                f"expected 1 <= K <= {MAX_CLUSTERS} and one data set per cluster"
            )
        if not 0 < self.save_samples <= self.budget_samples:
            raise DecodeError("run manifest: expected 0 < save_samples <= budget_samples")


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """Where a node is and what it does."""

    run: RunId
    name: str
    """The pet name: shown, never trusted."""
    version: str
    host_addresses: tuple[str, ...]
    """Multiaddrs of the py-libp2p host (gossip, requests)."""
    bulk_addresses: tuple[str, ...]
    """Multiaddrs of the swarm child's p2pd (records, blobs)."""
    serves: bool
    """Whether it draws for others."""
    issued_at: float


@dataclass(frozen=True, slots=True)
class Claim:
    """An advisory, expiring lease on one cluster."""

    run: RunId
    cluster: ClusterId
    epoch: int
    """The fencing token: 1 for the first owner, +1 at each takeover."""
    renewal: int
    """0 at first, +1 each time this same claim is renewed."""
    samples: int
    """Progress claimed: samples seen by `checkpoint` (0 without one)."""
    checkpoint: BlobId | None
    issued_at: float
    expires_at: float
    is_released: bool = False

    def __post_init__(self) -> None:
        """Check ranges that need no context.

        Raises:
            DecodeError: if a field is out of range.
        """
        if not 0 <= self.cluster < MAX_CLUSTERS or self.epoch < 1 or self.renewal < 0:
            raise DecodeError(f"claim: cluster, epoch or renewal out of range in {self}")
        if not self.issued_at < self.expires_at <= self.issued_at + MAX_LEASE_S:
            raise DecodeError(f"claim: lease must be within (0, {MAX_LEASE_S}] s in {self}")
        if self.samples < 0 or (self.samples > 0) != (self.checkpoint is not None):
            raise DecodeError(f"claim: samples and checkpoint must come together in {self}")


@dataclass(frozen=True, slots=True)
class CheckpointManifest:
    """One saved state of an expert, as a sealed blob: what `experts pull CID` fetches."""

    run: RunId
    cluster: ClusterId
    epoch: int
    step: int
    samples: int
    loss: float
    parent: BlobId | None
    """The checkpoint this one continued from, possibly by another owner."""
    files: tuple[FileEntry, ...]
    created_at: float

    @property
    def size(self) -> int:
        """Sum of the files' sizes in bytes."""
        return sum(entry.size for entry in self.files)


@dataclass(frozen=True, slots=True)
class ExpertAdvert:
    """The DHT record that points to a cluster's newest checkpoint by one owner."""

    run: RunId
    cluster: ClusterId
    epoch: int
    step: int
    samples: int
    manifest: BlobId
    size: int
    loss: float
    is_orphan: bool
    """Trained by an owner that lost the cluster: usable, never a base for claims."""
    issued_at: float


@dataclass(frozen=True, slots=True)
class RouterAdvert:
    """The DHT record that points to one cluster's routing summary (a `FileSet` blob)."""

    run: RunId
    cluster: ClusterId
    epoch: int
    summary: BlobId
    issued_at: float


@dataclass(frozen=True, slots=True)
class ProviderRecord:
    """Which folders (by the CID of their manifest) a node can give, newest first."""

    run: RunId
    roots: tuple[BlobId, ...]
    issued_at: float


@dataclass(frozen=True, slots=True)
class ImageReceipt:
    """How a picture was made; signed by the peer that computed it."""

    run: RunId
    image: BlobId
    """CID of the PNG bytes."""
    seed: int
    strategy: str
    sampler: str
    steps: int
    guidance: float
    experts: tuple[tuple[int, BlobId, float], ...]
    """(cluster, checkpoint, share of the work or routing weight)."""
    seconds: float
    created_at: float


Record = (
    NodeRecord
    | Claim
    | CheckpointManifest
    | ExpertAdvert
    | RouterAdvert
    | ProviderRecord
    | ImageReceipt
)
"""What may be signed. `RunManifest` and `FileSet` are plain: their CID is all the trust they need."""


def node_key(run: RunId, peer: PeerId) -> str:
    """DHT key of a node's own record."""
    return f"{KEY_PREFIX}/{run}/node/{sum(peer.encode()) % NODE_SHARDS}"


def node_keys(run: RunId) -> tuple[str, ...]:
    """All keys node records of a run may lie under."""
    return tuple(f"{KEY_PREFIX}/{run}/node/{shard}" for shard in range(NODE_SHARDS))


def claim_key(run: RunId, cluster: ClusterId) -> str:
    """DHT key of the claims on one cluster."""
    return f"{KEY_PREFIX}/{run}/claim/{cluster}"


def expert_key(run: RunId, cluster: ClusterId) -> str:
    """DHT key of the adverts of one cluster's expert."""
    return f"{KEY_PREFIX}/{run}/expert/{cluster}"


def router_key(run: RunId, cluster: ClusterId) -> str:
    """DHT key of one cluster's routing summary."""
    return f"{KEY_PREFIX}/{run}/router/{cluster}"


def provider_key(run: RunId, root: BlobId) -> str:
    """DHT key under which providers of a folder are found: by the last character of its CID."""
    return f"{KEY_PREFIX}/{run}/have/{root[-2:]}"
