"""A probe of a person's own pictures, to look into offers with: encoded as for `lora train`.

The pictures stay here: of a probe, an offer's owner is sent directions of the loss alone, in delta
mode its activations. torch is loaded when a probe is made.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node.config import Config
from node.errors import ErrorCode, NodeError
from node.folders import materialise, unpacked_place
from node.loras import training_errors
from node.runs import load_manifest
from p2p.blobs import BlobStore
from p2p.codec import unpack
from p2p.errors import BlobMissingError, DecodeError, StorageError
from p2p.file_sets import FileSet
from p2p.ids import RunId
from p2p.limits import CHUNK_SIZE


@dataclass(frozen=True, slots=True)
class OwnProbe:
    """A probe on disk.

    Attributes:
        folder: absolute.
        pictures: in it.
        found: pictures there were to choose from.
    """

    folder: Path
    pictures: int
    found: int


@contextmanager
def own_probe(config: Config, run: RunId, data: str) -> Iterator[OwnProbe]:
    """A probe of pictures evenly chosen from `data`, gone afterwards.

    Args:
        config: the home's.
        run: whose latents and captions it has.
        data: whatever `training.sources.detect` can open.

    Raises:
        NodeError: `NOT_FOUND` if the run is not here; whatever `lora train` says of its data.
    """
    shared = _shared_folder(config, run)
    with _private_folder(config.paths.data.absolute()) as folder:
        with training_errors():
            probe = _made(shared, config.models_folder, data, folder / "probe")
        yield probe


@contextmanager
def _private_folder(parent: Path) -> Iterator[Path]:
    try:
        made = tempfile.TemporaryDirectory(prefix=".probe-", dir=parent)
    except OSError as error:
        raise _unwritable(error) from error
    with made as folder:
        yield Path(folder)


def _shared_folder(config: Config, run: RunId) -> Path:
    """The run's own folder, unpacked."""
    try:
        blobs = BlobStore.open(config.paths.blobs, quota_bytes=config.quota_bytes)
        root = load_manifest(run, blobs).shared
        shared = unpacked_place(config.paths.runs / run, root)
        if not shared.exists():
            files = unpack(FileSet, blobs.get(root), max_size=CHUNK_SIZE).files
            materialise(blobs, files, shared)
    except (BlobMissingError, DecodeError) as error:
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"The run {run} is not whole here: {error}.",
            f"join it once: paris-node start --run {run}",
        ) from error
    except StorageError as error:
        raise NodeError(
            ErrorCode.RESOURCE, f"The run cannot be unpacked: {error}.", "free some space"
        ) from error
    return shared


def _made(shared: Path, models: Path, data: str, folder: Path) -> OwnProbe:
    from training.lora.probe import MAX_PROBE_ROWS, Probe, write_probe  # noqa: PLC0415
    from training.run import load_run  # noqa: PLC0415
    from training.sources.data import (  # noqa: PLC0415
        PictureShape,
        SkipReport,
        no_usable_picture,
        read_pictures,
    )
    from training.sources.detect import open_source  # noqa: PLC0415

    run = load_run(shared, models)
    source = open_source(data)
    shape = PictureShape(run.spec.image_size, run.spec.image_channels)
    step = max(1, -(-len(source) // MAX_PROBE_ROWS))
    pictures = read_pictures(source, range(0, len(source), step), shape)
    if not pictures.captions:
        raise no_usable_picture(source, SkipReport.of(pictures.skipped))
    latents = run.codec.encode(pictures.images).half()  # as training keeps them
    try:
        write_probe(folder, Probe.of(latents, pictures.captions, seed=0))
    except OSError as error:
        raise _unwritable(error) from error
    return OwnProbe(folder, len(pictures.captions), len(source))


def _unwritable(error: OSError) -> NodeError:
    return NodeError(
        ErrorCode.RESOURCE, f"The probe cannot be written: {error.strerror}.", "free some space"
    )
