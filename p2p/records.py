"""Everything that is shared: frozen records, and the DHT keys they live under.

A record says *what*; who said it, under which key and until when is the envelope's business
(`p2p.codec`). Blobs never hold a path, a URL or code: only names of other blobs.
"""

from dataclasses import dataclass
from typing import Final, assert_never

from p2p.errors import DecodeError
from p2p.file_sets import FileEntry
from p2p.ids import BlobId, ClusterId, PeerId, RunId
from p2p.limits import (
    MAX_ADDRESS_LENGTH,
    MAX_ADDRESSES,
    MAX_CLUSTERS,
    MAX_FILE_SIZE,
    MAX_LEASE_S,
    MAX_MANIFEST_FILES,
    MAX_RECEIPT_EXPERTS,
    MAX_SAMPLES,
)
from p2p.lora_records import (
    Agreement,
    Delivery,
    LoraOffer,
    OfferAdvert,
    ProbeReceipt,
    ProbeRequest,
)
from p2p.record_checks import (
    check_count,
    check_files,
    check_labels,
    check_progress,
    check_texts,
    check_token,
)

KEY_PREFIX: Final = "paris/1"
NODE_SHARDS: Final = 16
"""Node records are spread over this many keys: a subkey dictionary travels whole in each reply."""
BLOB_KEY: Final = "paris/1/blob"
"""The key inside envelopes that are stored by their CID and never expire."""


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
            raise DecodeError(
                f"claim policy: lease <= {MAX_LEASE_S} s and 0 < stop < 1, got {self}"
            )
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
        if not 0 < self.save_samples <= self.budget_samples <= MAX_SAMPLES:
            raise DecodeError("run manifest: expected 0 < save_samples <= budget_samples")
        check_labels(self.name, self.preset, self.min_version)


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

    def __post_init__(self) -> None:
        """Check what will be shown and dialled.

        Raises:
            DecodeError: if a name or an address is not printable text.
            LimitError: if there are too many addresses or one is too long.
        """
        check_labels(self.name, self.version)
        for addresses in (self.host_addresses, self.bulk_addresses):
            check_count("addresses", addresses, MAX_ADDRESSES)
            check_texts("address", addresses, MAX_ADDRESS_LENGTH)


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
    taken_at: float | None = None
    """When this epoch began, kept through renewals; None if it begins with this very claim."""

    @property
    def began_at(self) -> float:
        """When this epoch began, as its owner says; seconds since the epoch."""
        return self.issued_at if self.taken_at is None else self.taken_at

    def __post_init__(self) -> None:
        """Check ranges that need no context.

        Raises:
            DecodeError: if a field is out of range.
        """
        check_token("claim", self.cluster, self.epoch)
        if not (self.renewal >= 0 and self.samples <= MAX_SAMPLES):
            raise DecodeError(f"claim: renewal or samples out of range in {self}")
        if not self.issued_at < self.expires_at <= self.issued_at + MAX_LEASE_S:
            raise DecodeError(f"claim: lease must be within (0, {MAX_LEASE_S}] s in {self}")
        if self.began_at > self.issued_at:
            raise DecodeError(f"claim: its epoch began after it was issued in {self}")
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

    def __post_init__(self) -> None:
        """Check counts and file names.

        Raises:
            DecodeError: if a number is out of range or two files have one name.
            LimitError: if there are too many files.
        """
        check_token("checkpoint", self.cluster, self.epoch)
        check_progress("checkpoint", self.step, self.samples)
        check_files([entry.name for entry in self.files])

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

    def __post_init__(self) -> None:
        """Check ranges; raises `DecodeError`."""
        check_token("expert advert", self.cluster, self.epoch)
        check_progress("expert advert", self.step, self.samples)
        if not 0 <= self.size <= MAX_MANIFEST_FILES * MAX_FILE_SIZE:
            raise DecodeError(f"expert advert: size out of range in {self}")


@dataclass(frozen=True, slots=True)
class RouterAdvert:
    """The DHT record that points to one cluster's routing summary (a `FileSet` blob)."""

    run: RunId
    cluster: ClusterId
    epoch: int
    summary: BlobId
    issued_at: float

    def __post_init__(self) -> None:
        """Check ranges; raises `DecodeError`."""
        check_token("router advert", self.cluster, self.epoch)


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

    def __post_init__(self) -> None:
        """Check ranges and the texts that are shown.

        Raises:
            DecodeError: if a number is out of range or a text is not printable.
            LimitError: if there are more experts than a run can have.
        """
        check_labels(self.strategy, self.sampler)
        check_count("experts", self.experts, MAX_RECEIPT_EXPERTS)
        if self.seed < 0 or self.steps < 1 or self.seconds < 0 or self.guidance < 0:
            raise DecodeError(f"receipt: a number is out of range in {self}"[:500])
        if not all(0 <= cluster < MAX_CLUSTERS for cluster, _, _ in self.experts):
            raise DecodeError("receipt: an expert's cluster is out of range")


Record = (
    NodeRecord
    | Claim
    | CheckpointManifest
    | ExpertAdvert
    | RouterAdvert
    | ProviderRecord
    | ImageReceipt
    | LoraOffer
    | OfferAdvert
    | Agreement
    | Delivery
    | ProbeRequest
    | ProbeReceipt
)
"""What may be signed. `RunManifest` and `FileSet` are plain: their CID is all they need."""


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


def lora_key(run: RunId, cluster: ClusterId) -> str:
    """DHT key of the adverts of LoRA offers for one cluster's expert."""
    return f"{KEY_PREFIX}/{run}/lora/{cluster}"


def provider_key(run: RunId, root: BlobId) -> str:
    """DHT key under which providers of a folder are found: by the last character of its CID."""
    return f"{KEY_PREFIX}/{run}/have/{root[-2:]}"


def is_home_of(record: Record, owner: PeerId, key: str) -> bool:
    """Whether a record of `owner` may lie under `key`: nobody is misled by a misplaced one."""
    match record:
        case NodeRecord():
            home = node_key(record.run, owner)
        case Claim():
            home = claim_key(record.run, record.cluster)
        case ExpertAdvert():
            home = expert_key(record.run, record.cluster)
        case RouterAdvert():
            home = router_key(record.run, record.cluster)
        case ProviderRecord():
            return key in {provider_key(record.run, root) for root in record.roots}
        case OfferAdvert():
            home = lora_key(record.run, record.cluster)
        case CheckpointManifest() | ImageReceipt() | LoraOffer():
            home = BLOB_KEY
        case Agreement() | Delivery() | ProbeRequest() | ProbeReceipt():
            home = BLOB_KEY
        case _:
            assert_never(record)
    return key == home
