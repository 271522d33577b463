"""Making a run from a founder's pictures: what may be chosen, and how an interrupted one goes on.

What is encoded on the way lies in `preparing/` below the home, one folder per source, until the run
is in the blob store: the same command again goes on with it.  At most `KEPT` such folders are kept
beside the one in use, none longer than `KEPT_DAYS`.  Blocks on the disk.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node.errors import ErrorCode, NodeError
from node.runs import CreatedRun, import_run
from node.workers.trainer import device_of
from p2p.blobs import BlobStore
from p2p.records import ClaimPolicy

if TYPE_CHECKING:
    from training.clustering.mapping import Mapper
    from training.config import RunSpec
    from training.preparation.prepare import Progress
    from training.sources.data import Source

logger = logging.getLogger(__name__)

FOLDER: Final = "preparing"
KEPT: Final = 2
KEPT_DAYS: Final = 14.0


@dataclass(frozen=True, slots=True)
class SourceChoice:
    """What a founder may have to say about the pictures: a split, columns."""

    split: str | None = None
    image_column: str | None = None
    caption_column: str | None = None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a founder may choose; None takes what suits the data.

    Args:
        objectives: one for all experts, or one per cluster; empty for the usual one.
        fresh: forget what an interrupted command encoded.
        dask: address of the Dask cluster that does the clustering.
        models: folder of pretrained parts.
        device: where pretrained parts encode: "auto", or a torch device.
    """

    clusters: int = 4
    name: str | None = None
    preset: str | None = None
    codec: str | None = None
    extractor: str | None = None
    text: str | None = None
    image_size: int | None = None
    is_colour: bool | None = None
    objectives: tuple[str, ...] = ()
    batch: int | None = None
    budget_samples: int | None = None
    save_samples: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    claim_policy: ClaimPolicy = field(default_factory=ClaimPolicy)
    source: SourceChoice = field(default_factory=SourceChoice)
    fresh: bool = False
    dask: str | None = None
    models: Path | None = None
    device: str = "cpu"


def create_run(
    source: str,
    blobs: BlobStore,
    data: Path,
    options: RunOptions,
    on_progress: "Callable[[Progress], None] | None" = None,
) -> CreatedRun:
    """Make a run, or finish one that an earlier call began.

    Args:
        source: what `training.sources.detect.open_source` takes.
        blobs: the home's store; all of the run is kept in it.
        data: the home's folder of data; one process at a time works there.
        options: see `RunOptions`.
        on_progress: told of each phase.

    Raises:
        NodeError: if the data can't be used, with the reason.
        StorageError: if the store is full.
    """
    from training.clustering.kmeans import Job  # noqa: PLC0415  loads torch
    from training.preparation.prepare import PrepareOptions, prepare_run  # noqa: PLC0415

    work = _work_folder(data / FOLDER, source, is_fresh=options.fresh)
    with _said_as_ours(), _mapper(options.dask) as mapper:
        opened = _open(source, options.source)
        spec = _spec(opened, options)
        how = PrepareOptions(
            models=options.models,
            device=device_of(options.device),
            job=Job(mapper),
            keeps_spool=True,
        )
        prepared = prepare_run(opened, work, spec, on_progress, how)
    created = import_run(prepared, blobs, options.claim_policy)
    _forget(work)
    return created


@contextmanager
def _said_as_ours() -> Iterator[None]:
    """Errors of the training package, each with its exit code and what to do."""
    from training.errors import (  # noqa: PLC0415
        ConfigError,
        DiskError,
        ModelMissingError,
        OtherSpoolError,
        TrainingError,
    )

    try:
        yield
    except TrainingError as error:
        code, fix = ErrorCode.FAILED, "see: paris-node run create --help"
        if isinstance(error, ConfigError):
            code = ErrorCode.USAGE
        elif isinstance(error, DiskError):
            code, fix = ErrorCode.RESOURCE, "free some disk space, then repeat the command"
        elif isinstance(error, ModelMissingError):
            code, fix = ErrorCode.NOT_FOUND, "choose another part, or bring its files"
        elif isinstance(error, OtherSpoolError):
            fix = "repeat the earlier command to finish it, or add --fresh to start over"
        raise NodeError(code, str(error), fix) from error


@contextmanager
def _mapper(dask: str | None) -> "Iterator[Mapper]":
    """Who clusters: this process, or the workers of a Dask cluster."""
    from training.clustering.mapping import LOCAL  # noqa: PLC0415

    if dask is None:
        yield LOCAL
        return
    from training.clustering.dask_map import dask_mapper  # noqa: PLC0415

    with dask_mapper(dask) as mapper:
        yield mapper


def _open(source: str, choice: SourceChoice) -> "Source":
    from training.sources.detect import SourceOptions, open_source  # noqa: PLC0415
    from training.sources.tables import Columns  # noqa: PLC0415

    columns = Columns(choice.image_column, choice.caption_column)
    return open_source(source, SourceOptions(choice.split, columns))


def _spec(source: "Source", options: RunOptions) -> "RunSpec":
    from training.preparation.prepare import default_spec  # noqa: PLC0415

    usual = default_spec(source, options.clusters)
    one_for_all = options.objectives[0] if len(options.objectives) == 1 else None
    train = replace(
        usual.train,
        batch=options.batch or usual.train.batch,
        budget_samples=options.budget_samples or usual.train.budget_samples,
        save_samples=options.save_samples or usual.train.save_samples,
        learning_rate=options.learning_rate or usual.train.learning_rate,
        objective=one_for_all or usual.train.objective,
        seed=options.seed,
    )
    channels = {None: usual.image_channels, True: 3, False: 1}[options.is_colour]
    return replace(
        usual,
        name=options.name or usual.name,
        preset=options.preset or usual.preset,
        codec=options.codec or usual.codec,
        extractor=options.extractor or usual.extractor,
        text=options.text or usual.text,
        image_size=options.image_size or usual.image_size,
        image_channels=channels,
        objectives=() if one_for_all else options.objectives,
        seed=options.seed,
        train=train,
    )


def _work_folder(parent: Path, source: str, *, is_fresh: bool) -> Path:
    """Where a source's run is made; folders of others that were given up are deleted."""
    from training.files import sweep  # noqa: PLC0415

    name = sha256(os.fsencode(os.path.abspath(source))).hexdigest()[:16]
    work = parent / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
    except OSError as error:
        raise NodeError(
            ErrorCode.RESOURCE,
            f"{parent} cannot be used: {error.strerror}.",
            "free some disk space, or choose another home with --home DIR",
        ) from error
    if is_fresh and work.exists():
        _forget(work)
    others = sorted(
        ((_last_used(path), path) for path in parent.iterdir() if path != work), reverse=True
    )
    oldest = time.time() - KEPT_DAYS * 86_400
    for number, (last_used, path) in enumerate(others):
        if number >= KEPT or last_used < oldest:
            logger.info("forgot the unfinished run in %s", path)
            _forget(path)
    return work


def _last_used(work: Path) -> float:
    """When something was last added to an unfinished run."""
    return max(path.stat().st_mtime for path in (work, *work.glob("spool")))


def _forget(work: Path) -> None:
    from training.files import remove_folder  # noqa: PLC0415

    remove_folder(work)
