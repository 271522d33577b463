"""Runs: shipped with the package, made here, or fetched from a peer; kept as blobs.

A run's manifest is a blob whose CID is the run id; it names the folder that every node needs and
one folder of data per cluster. The built-in run lies in the package as those folders, so its id is
the same on every machine.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node.config import Config
from node.errors import ErrorCode, NodeError
from node.keeping import keep, keep_folder
from node.state import open_state
from p2p.blobs import BlobStore
from p2p.codec import pack, unpack
from p2p.errors import DecodeError
from p2p.file_sets import FileSet
from p2p.ids import BlobId, RunId, blob_id, parse_blob_id
from p2p.limits import CHUNK_SIZE
from p2p.records import ClaimPolicy, RunManifest

if TYPE_CHECKING:
    from training.clustering.cluster_report import ClusterReport
    from training.preparation.prepare import PreparedRun
    from training.sources.data import SkipReport

BUILTIN_FOLDER: Final = Path(__file__).parent / "builtin_run"
MANIFEST_FILE: Final = "manifest.bin"


@dataclass(frozen=True, slots=True)
class CreatedRun:
    """A run that was made and lies in the home's blob store."""

    run: RunId
    manifest: RunManifest
    cluster_sizes: tuple[int, ...]
    size_bytes: int
    image_size: int
    image_channels: int
    skipped: "SkipReport"
    """Entries of the source that were left out."""
    report: "ClusterReport"


def import_run(prepared: "PreparedRun", blobs: BlobStore, policy: ClaimPolicy) -> CreatedRun:
    """Store a prepared run as blobs and name it."""
    folders = [prepared.shared, *(info.folder for info in prepared.clusters)]
    stored = [_store(folder, blobs) for folder in folders]
    train = prepared.spec.train
    manifest = RunManifest(
        name=prepared.spec.name,
        clusters=prepared.spec.clusters,
        preset=prepared.spec.preset,
        budget_samples=train.budget_samples,
        save_samples=train.save_samples,
        shared=stored[0][0],
        data=tuple(root for root, _ in stored[1:]),
        claim_policy=policy,
    )
    return CreatedRun(
        run=_keep_manifest(manifest, blobs),
        manifest=manifest,
        cluster_sizes=tuple(info.n for info in prepared.clusters),
        size_bytes=sum(folder.size for _, folder in stored),
        image_size=prepared.spec.image_size,
        image_channels=prepared.spec.image_channels,
        skipped=prepared.skipped,
        report=prepared.report,
    )


def load_manifest(run: RunId, blobs: BlobStore) -> RunManifest:
    """A run's manifest from the local store.

    Raises:
        BlobMissingError: if it is not there.
        DecodeError: if the blob is not a run manifest.
    """
    return unpack(RunManifest, blobs.get(BlobId(run)), max_size=CHUNK_SIZE)


def parse_run_id(text: str) -> RunId:
    """A run id as a person typed it.

    Raises:
        NodeError: if it is not a CID.
    """
    try:
        return RunId(parse_blob_id(text))
    except DecodeError as error:
        raise NodeError(
            ErrorCode.USAGE,
            f"{text!r} is not a run id: {error}",
            "copy it from: paris-node run list",
        ) from error


def known_runs(blobs: BlobStore) -> tuple[tuple[RunId, RunManifest], ...]:
    """Runs whose manifest is kept here."""
    found = []
    for pin in blobs.pins():
        if pin.label == "run":
            run = RunId(pin.root)
            found.append((run, load_manifest(run, blobs)))
    return tuple(sorted(found, key=lambda item: item[1].name))


def keep_run_manifest(run: RunId, blobs: BlobStore) -> RunManifest:
    """Check that a fetched blob is a run manifest, and pin it.

    Raises:
        NodeError: if it is something else.
    """
    try:
        manifest = load_manifest(run, blobs)
    except DecodeError as error:
        raise NodeError(
            ErrorCode.VERIFICATION_FAILED,
            f"{run} names something that is not a run: {error}",
            "check the run id with whoever gave it to you",
        ) from error
    keep(blobs, BlobId(run), "run", ())
    return manifest


def run_meant(config: Config, said: str | None) -> RunId:
    """The run said, or set, or the one this home belongs to, or the built-in one.

    Raises:
        NodeError: if the id is malformed, or the home's state cannot be read.
    """
    chosen = said or config.run
    if chosen:
        return parse_run_id(chosen)
    bound = None
    if config.paths.database.is_file():
        with open_state(config.paths.database) as state:
            bound = state.run()
    return bound or builtin_run_id()


def builtin_run_id() -> RunId:
    """The id of the run shipped with the package.

    Raises:
        NodeError: if the package data is not there.
    """
    return RunId(_builtin_blob()[0])


def install_builtin_run(blobs: BlobStore) -> RunId:
    """Bring the shipped run into a home's store; costs nothing if it is there already.

    Raises:
        NodeError: if the package data was altered.
        StorageError: if the store is full.
    """
    run, packed = _builtin_blob()
    if any(pin.root == run for pin in blobs.pins()):
        return RunId(run)
    manifest = unpack(RunManifest, packed, max_size=CHUNK_SIZE)
    wanted = {"shared": manifest.shared} | {
        f"clusters/{cluster}": root for cluster, root in enumerate(manifest.data)
    }
    for name, root in wanted.items():
        found, _ = _store(BUILTIN_FOLDER / name, blobs)
        if found != root:
            raise NodeError(
                ErrorCode.VERIFICATION_FAILED,
                f"the built-in run's {name} was altered: got {found}, expected {root}",
                "install paris-node again",
            )
    _keep_manifest(manifest, blobs)
    return RunId(run)


def write_builtin_run(prepared: "PreparedRun", policy: ClaimPolicy, folder: Path) -> RunId:
    """Lay a prepared run out as package data (done by hand, once; see scripts)."""
    with tempfile.TemporaryDirectory() as scratch:
        blobs = BlobStore.open(Path(scratch) / "blobs", floor_bytes=0)
        created = import_run(prepared, blobs, policy)
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(prepared.root, folder)
    (folder / MANIFEST_FILE).write_bytes(pack(created.manifest))
    return created.run


def _builtin_blob() -> tuple[BlobId, bytes]:
    try:
        packed = (BUILTIN_FOLDER / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise NodeError(
            ErrorCode.FAILED,
            f"the built-in run is missing from the package: {error.strerror}",
            "install paris-node again, or join a run with --run",
        ) from error
    return blob_id(packed), packed


def _store(folder: Path, blobs: BlobStore) -> tuple[BlobId, FileSet]:
    paths = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    files = FileSet(blobs.add_files(paths))
    return keep_folder(blobs, files, "run data"), files


def _keep_manifest(manifest: RunManifest, blobs: BlobStore) -> RunId:
    root = blobs.put(pack(manifest))
    keep(blobs, root, "run", ())
    return RunId(root)
