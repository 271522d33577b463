"""A run's best experts in this home, written out as a folder that others can use.

What is exported comes from the home's blob store alone: nothing is fetched, no node need run.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node.errors import ErrorCode, NodeError
from node.home import Home
from node.keeping import PULLED
from node.models import explained
from node.routers import trained_routers
from node.runs import builtin_run_id, load_manifest
from node.state import open_state
from p2p.blobs import BlobStore, blobs_of
from p2p.codec import BLOB_KEY, Verified, open_signed, unpack
from p2p.errors import P2PError
from p2p.file_sets import FileEntry, FileSet
from p2p.ids import BlobId, RunId
from p2p.limits import CHUNK_SIZE
from p2p.records import CheckpointManifest, RunManifest

if TYPE_CHECKING:
    from training.exchange.export import ExportRecord

FASHION_LICENSE: Final = "MIT (Fashion-MNIST, Zalando SE)"
"""Of the pictures of the built-in run."""

Checkpoint = Verified[CheckpointManifest]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What a person may say about an export."""

    cids: tuple[BlobId, ...] = ()
    """Checkpoints to take instead of the best of their clusters."""
    license: str = ""
    data_license: str = ""
    has_text: bool = True


def export_run(
    run: RunId, home: Home, blobs: BlobStore, target: Path, options: ExportOptions
) -> "ExportRecord":
    """Write a run's experts as a folder; see `training.exchange.export`.

    Args:
        run: which.
        home: whose; what is unpacked on the way lies in it, and is cleaned up.
        blobs: the home's store.
        target: the folder to write; must not exist, or be empty.
        options: see `ExportOptions`.

    Raises:
        NodeError: the run or an expert is not here or damaged, or `target` is in use.
    """
    from training.exchange.export import ExpertSource, ExportSource, export_model  # noqa: PLC0415

    manifest = _manifest(run, blobs)
    chosen = choose_experts(run, manifest, blobs, options.cids)
    data_license = options.data_license
    if not data_license and run == builtin_run_id():
        data_license = FASHION_LICENSE
    with explained(), tempfile.TemporaryDirectory(dir=home.data, prefix="export-") as folder:
        place = Path(folder)
        blobs.materialise(_files(manifest.shared, blobs), place / "shared")
        experts = {}
        for cluster, (cid, checkpoint) in chosen.items():
            blobs.materialise(checkpoint.record.files, place / f"expert-{cluster}")
            owner = str(checkpoint.owner)
            experts[cluster] = ExpertSource(place / f"expert-{cluster}", str(cid), owner)
        source = ExportSource(
            shared=place / "shared",
            experts=experts,
            summaries=_summaries(run, home, blobs, place),
            router=_router(run, home),
            run_id=str(run),
            license=options.license,
            data_license=data_license,
            has_text=options.has_text,
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        return export_model(target, source)


def choose_experts(
    run: RunId, manifest: RunManifest, blobs: BlobStore, cids: Sequence[BlobId] = ()
) -> dict[int, tuple[BlobId, Checkpoint]]:
    """The checkpoint of each cluster: the one named, or of those that are whole here the furthest.

    Raises:
        NodeError: a named one is not here or of another run, or a cluster has none.
    """
    chosen: dict[int, tuple[BlobId, Checkpoint]] = {}
    for cid in cids:
        found = _checkpoint(cid, run, blobs)
        if found is None:
            raise NodeError(
                ErrorCode.NOT_FOUND,
                f"{cid} is not a whole checkpoint of run {run} in this home.",
                f"paris-node experts pull {cid}",
            )
        if found.record.cluster in chosen:
            raise NodeError(
                ErrorCode.USAGE,
                f"Two of the checkpoints are of cluster {found.record.cluster}.",
                "name one for each cluster",
            )
        chosen[found.record.cluster] = (cid, found)
    named = frozenset(chosen)
    for pin in blobs.pins():
        if pin.label != PULLED and not pin.label.startswith("expert/"):
            continue
        found = _checkpoint(pin.root, run, blobs)
        if found is None or found.record.cluster in named:
            continue
        known = chosen.get(found.record.cluster)
        if known is None or _progress(known) < _progress((pin.root, found)):
            chosen[found.record.cluster] = (pin.root, found)
    missing = [k for k in range(manifest.clusters) if k not in chosen]
    if missing:
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"No expert of cluster {', '.join(map(str, missing))} is in this home; "
            f"a model has all {manifest.clusters} of its run.",
            "find them with: paris-node experts find; bring one here: paris-node experts pull CID",
        )
    return dict(sorted(chosen.items()))


def _manifest(run: RunId, blobs: BlobStore) -> RunManifest:
    try:
        return load_manifest(run, blobs)
    except P2PError as error:
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"The run {run} is not kept in this home: {error}.",
            "see those that are: paris-node run list",
        ) from error


def _router(run: RunId, home: Home) -> Path | None:
    """The router trained here for a run: from its data, or else from its experts' pictures."""
    found = trained_routers(home.runs / run)
    return next((found[kind] for kind in ("learned", "synthetic") if kind in found), None)


def _files(root: BlobId, blobs: BlobStore) -> tuple[FileEntry, ...]:
    return unpack(FileSet, blobs.get(root), max_size=CHUNK_SIZE).files


def _checkpoint(cid: BlobId, run: RunId, blobs: BlobStore) -> Checkpoint | None:
    """The checkpoint under a CID if it is one of this run and all of it is here."""
    try:
        found = open_signed(CheckpointManifest, blobs.get(cid), key=BLOB_KEY, now=0.0)
    except P2PError:
        return None
    is_whole = not blobs.missing(blob for blob, _ in blobs_of(found.record.files))
    return found if found.record.run == run and is_whole else None


def _progress(item: tuple[BlobId, Checkpoint]) -> tuple[int, int, str]:
    cid, checkpoint = item
    return (checkpoint.record.samples, checkpoint.record.epoch, cid)


def _summaries(run: RunId, home: Home, blobs: BlobStore, place: Path) -> dict[int, Path]:
    """The routing summaries that are here, if they are of this run: a home joins exactly one."""
    if not home.database.is_file():
        return {}
    with open_state(home.database) as state:
        if state.run() != run:
            return {}
    found: dict[int, Path] = {}
    for pin in blobs.pins():
        kind, _, number = pin.label.partition("/")
        if kind != "summary" or not number.isdecimal() or blobs.missing(pin.blobs):
            continue
        folder = place / f"summary-{pin.root}"
        blobs.materialise(_files(pin.root, blobs), folder)
        found |= {int(number): path for path in folder.iterdir()}
    return found
