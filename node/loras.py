"""Adapters of this home: the checkpoint to train one on, found by CID, and the shelf they lie on.

Reads the store and writes whole folders beside it, so it works whether or not a node runs here.
torch is loaded only where an adapter is trained or read.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node.errors import ErrorCode, NodeError
from node.folders import checkpoint_folder, materialise, unpacked_place
from node.home import Home
from node.lora_shelf import LORA_FILE, SHORT_ID, find_on_shelf, lora_folders
from node.runs import load_manifest
from p2p.blobs import BlobStore, blobs_of
from p2p.codec import BLOB_KEY, open_signed, unpack
from p2p.errors import BlobMissingError, DecodeError, StorageError
from p2p.file_sets import FileSet
from p2p.ids import BlobId
from p2p.limits import CHUNK_SIZE
from p2p.records import CheckpointManifest

if TYPE_CHECKING:
    from training.errors import TrainingError
    from training.lora.files import LoraInfo
    from training.lora.settings import LoraSettings
    from training.lora.train import LoraJob, LoraStep
    from training.sources.data import SkipReport

MAX_PICTURES: Final = 200_000
"""Their latents are held in memory; an adapter learns from far fewer."""

_SLUG_LENGTH: Final = 32


@dataclass(frozen=True, slots=True)
class Base:
    """A checkpoint of the home's store, unpacked, with the folder of its run."""

    cid: BlobId
    cluster: int
    expert: Path
    shared: Path
    models: Path | None = None
    """Folder of pretrained parts."""


def has_checkpoint(blobs: BlobStore, cid: BlobId) -> bool:
    """Whether a checkpoint is here with all its files.

    Raises:
        NodeError: the CID names something else.
    """
    if not blobs.has(cid):
        return False
    manifest = _manifest(blobs, cid)
    return not blobs.missing(blob for blob, _ in blobs_of(manifest.files))


def find_base(home: Home, blobs: BlobStore, cid: BlobId) -> Base:
    """A checkpoint and its run as folders, from the home's store.

    Raises:
        NodeError: `NOT_FOUND` with the command that fetches it; `VERIFICATION_FAILED` if the CID
            names something else; `RESOURCE` if the disk refuses.
    """
    if not has_checkpoint(blobs, cid):
        raise _not_here(cid)
    manifest = _manifest(blobs, cid)
    folder = home.runs / manifest.run
    expert = checkpoint_folder(folder, manifest, cid)
    try:
        root = load_manifest(manifest.run, blobs).shared
        shared = unpacked_place(folder, root)
        if not shared.exists():
            files = unpack(FileSet, blobs.get(root), max_size=CHUNK_SIZE).files
            materialise(blobs, files, shared)
        if not expert.exists():
            materialise(blobs, manifest.files, expert)
    except (BlobMissingError, DecodeError) as error:
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"The run {manifest.run} of this checkpoint is not whole here: {error}.",
            f"join it once: paris-node start --run {manifest.run}",
        ) from error
    except StorageError as error:
        raise NodeError(
            ErrorCode.RESOURCE, f"The checkpoint cannot be unpacked: {error}.", "free some space"
        ) from error
    return Base(cid, manifest.cluster, expert, shared)


def default_folder(home: Home, data: str, cid: BlobId, rank: int) -> Path:
    """Where an adapter lies if nobody says: named after its data, its base and its rank."""
    words = re.sub(r"[^a-z0-9]+", "-", Path(data).resolve().stem.lower()).strip("-")
    return home.loras / f"{words[:_SLUG_LENGTH].strip('-') or 'lora'}-{cid[-6:]}-r{rank}"


@dataclass(frozen=True, slots=True)
class Shelved:
    """An adapter's folder, and what it says of itself."""

    folder: Path
    info: "LoraInfo"

    @property
    def id(self) -> str:
        """Its first characters of sha256, which name it for a person."""
        return self.info.sha256[:SHORT_ID]

    @property
    def name(self) -> str:
        """Its folder's."""
        return self.folder.name

    @property
    def size_bytes(self) -> int:
        """Of its files, the probe beside it included."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


def shelved(home: Home) -> Iterator[Shelved | tuple[Path, str]]:
    """The adapters of this home by name; for a broken one its folder and the reason."""
    from training.errors import LoraError  # noqa: PLC0415
    from training.lora.files import read_info  # noqa: PLC0415

    for folder in lora_folders(home):
        try:
            yield Shelved(folder, read_info(folder))
        except LoraError as error:
            yield folder, str(error)


def find_lora(home: Home, wanted: str) -> Shelved:
    """An adapter by its folder, or as `find_on_shelf` finds it; checked in every part.

    Raises:
        NodeError: `NOT_FOUND`, or `VERIFICATION_FAILED` for one that is altered or broken.
    """
    from training.errors import LoraError, TensorFileError  # noqa: PLC0415
    from training.lora.files import read_lora  # noqa: PLC0415

    is_folder = wanted and (Path(wanted) / LORA_FILE).is_file()
    folder = Path(wanted) if is_folder else find_on_shelf(home, wanted).folder
    try:
        info, _ = read_lora(folder)
    except (LoraError, TensorFileError) as error:
        raise NodeError(
            ErrorCode.VERIFICATION_FAILED, f"{error}.", f"train it again, or remove {folder}"
        ) from error
    return Shelved(folder, info)


def make_ready(
    base: Base, data: str, settings: "LoraSettings", folder: Path, device: str
) -> "tuple[LoraJob, SkipReport]":
    """Load expert, run and pictures.

    Args:
        base: from `find_base`.
        data: whatever `training.sources.detect` can open.
        settings: how to train.
        folder: of the adapter to be.
        device: "auto" or a torch device name.

    Returns:
        The job, and what was left out, by reason.

    Raises:
        TrainingError: whatever does not fit, with the reason.
    """
    from node.workers.trainer import device_of  # noqa: PLC0415
    from training.errors import DataError  # noqa: PLC0415
    from training.experts.loaded import load_expert  # noqa: PLC0415
    from training.lora.settings import LoraRows  # noqa: PLC0415
    from training.lora.train import LoraJob  # noqa: PLC0415
    from training.preparation.encode import encode_source  # noqa: PLC0415
    from training.run import load_run  # noqa: PLC0415

    if folder.exists():  # said before the pictures are read
        raise DataError(f"{folder} exists already: choose another name, or remove it")
    run = load_run(base.shared, base.models)
    found = encode_source(data, run, max_pictures=MAX_PICTURES)
    rows = LoraRows(found.latents, found.captions)
    expert = load_expert(base.expert, run, device_of(device))
    return LoraJob(expert, run, rows, settings, folder, base.cid), found.skipped


def train_job(
    job: "LoraJob", should_stop: Callable[[], bool], on_step: "Callable[[LoraStep], None]"
) -> "Shelved | int":
    """Train to the end; if stopped first, how many samples were seen and saved.

    Raises:
        TrainingError: diverged, out of memory, or an interrupted training of other settings.
        OSError: the disk refuses.
    """
    from training.lora.train import Interrupted, LoraStep, train_lora  # noqa: PLC0415

    job.folder.parent.mkdir(parents=True, exist_ok=True)
    last: Interrupted | Shelved | None = None
    for event in train_lora(job, should_stop):
        match event:
            case LoraStep():
                on_step(event)
            case Interrupted():
                last = event
            case _:
                last = Shelved(event.folder, event.info)
    assert last is not None  # noqa: S101  its generator ends with one of both
    return last.samples if isinstance(last, Interrupted) else last


@contextmanager
def training_errors() -> Iterator[None]:
    """What the training package and the disk refuse, as a person should read it."""
    from training.errors import TrainingError  # noqa: PLC0415

    try:
        yield
    except TrainingError as error:
        code, fix = _means(error)
        raise NodeError(code, f"{str(error).rstrip('.')}.", fix) from error
    except OSError as error:
        raise NodeError(
            ErrorCode.RESOURCE, f"The LoRA cannot be written: {error.strerror}.", "free some space"
        ) from error


def _means(error: "TrainingError") -> tuple[ErrorCode, str]:
    from training import errors  # noqa: PLC0415

    match error:
        case errors.ConfigError() | errors.ModelMissingError():
            is_config = isinstance(error, errors.ConfigError)
            code = ErrorCode.USAGE if is_config else ErrorCode.NOT_FOUND
            return code, "see: paris-node lora train --help"
        case errors.LoraError():
            return ErrorCode.REFUSED, "start anew with --restart, or name another folder: -o FOLDER"
        case errors.DivergedError():
            return ErrorCode.FAILED, "paris-node lora train ... --lr X"
        case errors.CheckpointError() | errors.TensorFileError():
            return ErrorCode.VERIFICATION_FAILED, "fetch it again: paris-node experts pull CID"
        case errors.TooLargeError():
            return ErrorCode.RESOURCE, "use a smaller --batch, or --device cpu"
    return ErrorCode.FAILED, "see: paris-node lora train --help"


def _manifest(blobs: BlobStore, cid: BlobId) -> CheckpointManifest:
    try:
        return open_signed(CheckpointManifest, blobs.get(cid), key=BLOB_KEY, now=0.0).record
    except DecodeError as error:
        raise NodeError(
            ErrorCode.VERIFICATION_FAILED,
            f"{cid} names something that is not a checkpoint: {error}.",
            "see the CIDs with: paris-node experts find",
        ) from error


def _not_here(cid: BlobId) -> NodeError:
    return NodeError(
        ErrorCode.NOT_FOUND,
        f"The checkpoint {cid} is not in this home.",
        f"fetch it while the node runs: paris-node experts pull {cid}",
    )
