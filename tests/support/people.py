"""Alice, Bob and Carol: three fixed identities, and short ways to make records they would send."""

from dataclasses import replace
from typing import Final, assert_never

from p2p.codec import BLOB_KEY, Verified, open_signed, seal
from p2p.file_sets import FileEntry
from p2p.identity import Identity
from p2p.ids import BlobId, ClusterId, RunId, blob_id
from p2p.limits import CHUNK_SIZE
from p2p.lora_records import (
    Agreement,
    Delivery,
    LoraOffer,
    OfferAdvert,
    ProbeReceipt,
    ProbeRequest,
)
from p2p.records import (
    CheckpointManifest,
    Claim,
    ClaimPolicy,
    ExpertAdvert,
    ImageReceipt,
    NodeRecord,
    ProviderRecord,
    Record,
    RouterAdvert,
    claim_key,
    expert_key,
    lora_key,
    node_key,
    provider_key,
    router_key,
)

NOW: Final = 1_800_000_000.0
RUN: Final = RunId(blob_id(b"the run of the tests"))
POLICY: Final = ClaimPolicy()

alice: Final = Identity.from_seed(b"alice".ljust(32, b"."))
bob: Final = Identity.from_seed(b"bob".ljust(32, b"."))
carol: Final = Identity.from_seed(b"carol".ljust(32, b"."))


def person(number: int) -> Identity:
    """One of as many further identities as a test needs."""
    return Identity.from_seed(b"person" + number.to_bytes(26, "big"))


def cid(name: str) -> BlobId:
    """The id of a blob that need not exist."""
    return blob_id(name.encode())


def file_entry(name: str = "model.safetensors", size: int = 3 * CHUNK_SIZE + 5) -> FileEntry:
    """A file of made-up chunks."""
    count = -(-size // CHUNK_SIZE)
    return FileEntry(name, size, tuple(cid(f"{name} {index}") for index in range(count)))


def claim(  # a fresh lease, unless said otherwise
    cluster: int = 0,
    *,
    epoch: int = 1,
    renewal: int = 0,
    samples: int = 0,
    checkpoint: BlobId | None = None,
    issued_at: float = NOW,
    lease_s: float = POLICY.lease_s,
    is_released: bool = False,
    taken_at: float | None = None,
) -> Claim:
    """A claim on a cluster of `RUN`."""
    return Claim(
        run=RUN,
        cluster=ClusterId(cluster),
        epoch=epoch,
        renewal=renewal,
        samples=samples,
        checkpoint=checkpoint,
        issued_at=issued_at,
        expires_at=issued_at + lease_s,
        is_released=is_released,
        taken_at=taken_at,
    )


def advert(
    cluster: int = 0,
    *,
    epoch: int = 1,
    step: int = 10,
    issued_at: float = NOW,
    is_orphan: bool = False,
) -> ExpertAdvert:
    """An advert of a checkpoint that need not exist."""
    return ExpertAdvert(
        run=RUN,
        cluster=ClusterId(cluster),
        epoch=epoch,
        step=step,
        samples=step * 64,
        manifest=cid(f"checkpoint {cluster} {epoch} {step}"),
        size=1_000_000,
        loss=0.25,
        is_orphan=is_orphan,
        issued_at=issued_at,
    )


def router_advert(cluster: int = 0, *, issued_at: float = NOW) -> RouterAdvert:
    """An advert of a routing summary."""
    return RouterAdvert(RUN, ClusterId(cluster), 1, cid("summary"), issued_at)


def checkpoint_manifest(**changes: object) -> CheckpointManifest:
    """A checkpoint of one file."""
    manifest = CheckpointManifest(
        run=RUN,
        cluster=ClusterId(2),
        epoch=3,
        step=100,
        samples=6400,
        loss=0.5,
        parent=cid("parent"),
        files=(file_entry(),),
        created_at=NOW,
    )
    return replace(manifest, **changes)  # type: ignore[arg-type]


def node_record(name: str = "brave-otter-41") -> NodeRecord:
    """A node that listens on loopback."""
    return NodeRecord(
        run=RUN,
        name=name,
        version="0.1.0",
        host_addresses=(f"/ip4/127.0.0.1/tcp/4001/p2p/{alice.peer}",),
        bulk_addresses=(),
        serves=True,
        issued_at=NOW,
    )


def provider_record(*names: str) -> ProviderRecord:
    """A provider of the folders named."""
    return ProviderRecord(RUN, tuple(cid(name) for name in names), NOW)


def receipt(image: bytes, **changes: object) -> ImageReceipt:
    """The receipt of a picture two experts made."""
    made = ImageReceipt(
        run=RUN,
        image=blob_id(image),
        seed=7,
        strategy="top2",
        sampler="ab2",
        steps=30,
        guidance=2.5,
        experts=((0, cid("expert 0"), 0.75), (2, cid("expert 2"), 0.25)),
        seconds=1.5,
        created_at=NOW,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def home_of(record: Record, owner: Identity) -> str:
    """The key a record belongs under."""
    match record:
        case NodeRecord():
            home = node_key(record.run, owner.peer)
        case Claim():
            home = claim_key(record.run, record.cluster)
        case ExpertAdvert():
            home = expert_key(record.run, record.cluster)
        case RouterAdvert():
            home = router_key(record.run, record.cluster)
        case ProviderRecord():
            home = provider_key(record.run, record.roots[0])
        case OfferAdvert():
            home = lora_key(record.run, record.cluster)
        case CheckpointManifest() | ImageReceipt() | LoraOffer():
            home = BLOB_KEY
        case Agreement() | Delivery() | ProbeRequest() | ProbeReceipt():
            home = BLOB_KEY
        case _:
            assert_never(record)
    return home


def sealed(record: Record, owner: Identity, *, lifetime_s: float = 600.0) -> bytes:
    """The record in its owner's envelope, where and as long as it belongs."""
    match record:
        case Claim():
            expires_at: float | None = record.expires_at
        case CheckpointManifest() | ImageReceipt() | LoraOffer():
            expires_at = None
        case Agreement() | Delivery() | ProbeRequest() | ProbeReceipt():
            expires_at = None
        case _:
            expires_at = NOW + lifetime_s
    return seal(record, owner, key=home_of(record, owner), expires_at=expires_at)


def said(record: Claim, owner: Identity, *, now: float | None = None) -> Verified[Claim]:
    """A claim as a reader holds it: sealed by its owner and opened."""
    when = record.issued_at if now is None else now
    return open_signed(Claim, sealed(record, owner), key=home_of(record, owner), now=when)


def advertised(record: ExpertAdvert, owner: Identity) -> Verified[ExpertAdvert]:
    """An advert as a reader holds it."""
    key = home_of(record, owner)
    return open_signed(ExpertAdvert, sealed(record, owner), key=key, now=NOW)
