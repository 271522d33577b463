"""From pictures to a run: clusters found without labels, latents in shards, what all nodes share.

out/shared/{run.json, codec.safetensors, clusters.safetensors, captions.json}
out/clusters/<k>/{captions.json, latents-000.safetensors, ...}
out/spool/...   encoded pictures (`training.preparation.spool`), only until the run is whole

Nothing here holds all pictures: a sample is fitted on, then batches are encoded into the spool, the
clustering reads features from it, and rows are copied from it to their clusters.  An interrupted
run goes on where it stopped.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch

from training.clustering.cluster_report import ClusterReport, cluster_report
from training.clustering.kmeans import HERE, Job, assign, two_stage
from training.clustering.rows import open_spool
from training.config import SCHEMA, RunSpec, TrainConfig, preset
from training.errors import DataError, DiskError, TrainingError
from training.files import remove_folder, sweep
from training.jsonio import canonical_json, from_json, read_json, to_json
from training.parts.codecs import NewCodec, codec_is_fitted, create_codec, open_codec
from training.parts.features import Extractor, create_extractor, extractor_is_fitted, open_extractor
from training.parts.hub import PARTS, Models
from training.parts.text import PretrainedText, load_text_encoder
from training.preparation.assembly import Assembly, CaptionColumn, write_clusters, write_shared
from training.preparation.encode import (
    Encoder,
    Report,
    fill_spool,
    pictures_per_batch,
    sample_pictures,
)
from training.preparation.spool import Plan, Spool, open_spool_folder, write_here
from training.run import ClusterMap, Run, check_parts, load_run
from training.sources.data import PictureShape, SkipReport, Source
from training.sources.detect import looks_grey, open_source, own_shape
from training.tensors import pack_tensors, read_header, read_tensors

logger = logging.getLogger(__name__)

SPOOL: Final = "spool"
MIN_PICTURES: Final = 2
"""Per cluster: principal components of fewer mean nothing."""

ROWS_PER_CLASS: Final = 10
"""Captions that occur so often on average are taken for classes in the clusters' report."""

_REPORT_FILE: Final = "clusters.json"
_CODEC, _EXTRACTOR = "codec", "extractor"

Phase = Literal["sample", "fit", "encode", "cluster", "write"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase of `prepare_run` is: `done` of `total` pictures ("fit", "cluster": of 1)."""

    phase: Phase
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """A prepared cluster: its number, its rows, its folder."""

    k: int
    n: int
    folder: Path


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """What `prepare_run` made.

    Args:
        spec: what was asked for.
        root: the output folder.
        clusters: all K, by number.
        skipped: entries of the source that were left out, by reason.
        report: how balanced the clusters are, and whether they mean anything.
        models: the folder of pretrained parts it was made with.
    """

    spec: RunSpec
    root: Path
    clusters: tuple[ClusterInfo, ...]
    skipped: SkipReport
    report: ClusterReport
    models: Path | None = None

    @property
    def shared(self) -> Path:
        """The folder every node holds."""
        return self.root / "shared"

    def load(self) -> Run:
        """Open the shared folder."""
        return load_run(self.shared, self.models)


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """How a run is made, not what: but for the rounding of a device, the bytes are the same.

    Args:
        models: the user's folder of pretrained parts (`training.parts.hub`).
        device: where pretrained networks encode, a torch device name.
        job: who clusters.
        keeps_spool: leave the spool, for a caller who deletes the whole folder later; until then
            the same call costs nothing.
    """

    models: Path | None = None
    device: str = "cpu"
    job: Job = HERE
    keeps_spool: bool = False


USUAL: Final = PrepareOptions()


def default_spec(source: Source | str | Path, clusters: int = 4) -> RunSpec:
    """Settings that suit a source, found by looking at it.

    Pictures that are pixels already, as the bundled set's, have the ones measured for that set;
    others become 64 pixels a side, grey if no picture of a sample has colour.

    Raises:
        DataError: nothing there that can be read.
    """
    opened = _opened(source)
    name = Path(opened.name).resolve().name[:64] or "run"
    if own_shape(opened) is not None:
        return RunSpec(name, clusters)
    return RunSpec(
        name,
        clusters,
        preset="tiny-cpu",
        image_size=64,
        image_channels=1 if looks_grey(opened) else 3,
        train=TrainConfig(budget_samples=64_000),
    )


def prepare_run(
    source: Source | str | Path,
    out: Path,
    spec: RunSpec,
    on_progress: Callable[[Progress], None] | None = None,
    options: PrepareOptions = USUAL,
) -> PreparedRun:
    """Make a run, or finish one that was interrupted, however it was (SIGKILL, a full disk).

    The same source, spec and thread count give the same bytes on one machine, interrupted or not.

    Args:
        source: one that is open, or what `training.sources.detect.open_source` takes.
        out: does not exist, is empty, or holds the beginning of this run.
        spec: what the run is. What does not concern encoding (clusters, seed, preset, text
            encoder, training) may differ from an interrupted call's.
        on_progress: told of each phase.
        options: see `PrepareOptions`.

    Raises:
        ConfigError: a name this program does not know, or sizes that do not fit together.
        DataError: no usable picture, too few for K clusters, `out` in use or of another source.
        DiskError: the disk is full; the same call goes on once there is room.
        ModelMissingError: the weights of a pretrained part are not to be had.
    """
    check_parts(spec)
    opened = _opened(source)
    if len(opened) < spec.clusters * MIN_PICTURES:
        raise _too_few(opened, len(opened), spec, SkipReport())
    with _held(out):
        prepared = _Work(opened, out, spec, options, on_progress or _ignore).run()
        if not options.keeps_spool:
            remove_folder(out / SPOOL)
    if prepared.skipped.count:
        logger.warning("left out %s", prepared.skipped)
    return prepared


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """One call of `prepare_run`."""

    source: Source
    out: Path
    spec: RunSpec
    options: PrepareOptions
    on_progress: Callable[[Progress], None]

    def run(self) -> PreparedRun:
        """Go through the phases; those that an earlier call went through cost little."""
        models = Models(self.options.models)
        text = load_text_encoder(self.spec.text, models)
        _ = text.pins  # found now, not after the pictures are encoded
        spool = open_spool_folder(self.out / SPOOL, _plan(self.source, self.spec, models))
        report_file = spool.folder / _REPORT_FILE
        if _is_finished(self.out, self.spec):
            report = from_json(ClusterReport, read_json(report_file), _REPORT_FILE)
        else:
            codec, extractor = self._encode(spool, models)
            made, report = self._cluster(spool, codec, extractor, text)
            write_clusters(self.out / "clusters", spool, made, self._report("write"))
            write_here(report_file, canonical_json(to_json(report)))
            write_shared(self.out / "shared", made)
        clusters = (
            ClusterInfo(k, n, self.out / "clusters" / str(k)) for k, n in enumerate(report.sizes)
        )
        return PreparedRun(
            self.spec, self.out, tuple(clusters), spool.skipped, report, self.options.models
        )

    def _encode(self, spool: Spool, models: Models) -> tuple[NewCodec, Extractor]:
        try:
            codec, extractor = self._parts(spool, models)
            preset(self.spec.preset).net_config(codec.latent, 1)  # raises if they do not fit
            encoder = Encoder(codec, extractor, self.options.device)
            fill_spool(self.source, spool, encoder, self._report("encode"))
            if spool.rows < self.spec.clusters * MIN_PICTURES:
                raise _too_few(self.source, spool.rows, self.spec, spool.skipped)
        except TrainingError:
            # Nothing is kept that a second try, with the pictures or settings mended, trips over.
            if spool.rows < self.spec.clusters * MIN_PICTURES:
                remove_folder(spool.folder)
            raise
        return codec, extractor

    def _parts(self, spool: Spool, models: Models) -> tuple[NewCodec, Extractor]:
        """Codec and extractor: as fitted by an interrupted call, or fitted now."""
        spec, shape = self.spec, PictureShape(self.spec.image_size, self.spec.image_channels)
        stored = (spool.part(_CODEC), spool.part(_EXTRACTOR))
        needed = (codec_is_fitted(spec.codec), extractor_is_fitted(spec.extractor))
        is_whole = all(path for path, is_needed in zip(stored, needed, strict=True) if is_needed)
        if not is_whole:
            spool.clear()
            sample = sample_pictures(self.source, shape, self._report("sample"))
            report = self._report("fit")
            report(0, 1)
            codec = create_codec(spec, sample, models)
            extractor = create_extractor(spec, sample, models)
            if needed[0]:
                spool.add_part(_CODEC, codec.stored())
            if needed[1]:
                spool.add_part(_EXTRACTOR, pack_tensors(extractor.tensors()))
            report(1, 1)
            return codec, extractor
        tensors = read_tensors(stored[1], read_header(stored[1])) if stored[1] else {}
        codec = open_codec(spec, stored[0] or self.out, models)
        return codec, open_extractor(spec.extractor, tensors, models)

    def _cluster(
        self, spool: Spool, codec: NewCodec, extractor: Extractor, text: PretrainedText
    ) -> tuple[Assembly, ClusterReport]:
        say, job, count = self._report("cluster"), self.options.job, self.spec.clusters
        say(0, 1)
        rows = open_spool([batch.path for batch in spool.batches() if batch.rows])
        fine, coarse = two_stage(rows, count, self.spec.seed, job)
        owners = torch.cat(list(assign(rows, fine, coarse, job)))
        captions = CaptionColumn.of(spool)
        # Captions that recur are classes: how well clusters, found without them, agree is worth
        # knowing. Captions of one picture each say nothing.
        recur = len(captions.texts) * ROWS_PER_CLASS <= len(owners)
        report = cluster_report(rows, owners, count, captions.rows if recur else None, job)
        say(1, 1)
        clusters = ClusterMap(extractor, fine, coarse)
        return Assembly(self.spec, codec, clusters, owners, captions, text), report

    def _report(self, phase: Phase) -> Report:
        return lambda done, total: self.on_progress(Progress(phase, done, total))


def _ignore(progress: Progress) -> None:
    """Nobody wants to know."""


def _opened(source: Source | str | Path) -> Source:
    return open_source(source) if isinstance(source, (str, Path)) else source


def _too_few(source: Source, found: int, spec: RunSpec, skipped: SkipReport) -> DataError:
    needed, most = spec.clusters * MIN_PICTURES, found // MIN_PICTURES
    left_out = f" ({skipped.count} skipped: {skipped})" if skipped.count else ""
    mend = f"choose at most {most} clusters" if most else "add pictures"
    return DataError(
        f"{source.name}: {spec.clusters} clusters need at least {needed} pictures, "
        f"got {found}{left_out}; {mend}"
    )


def _plan(source: Source, spec: RunSpec, models: Models) -> Plan:
    parts = [PARTS[name] for name in (spec.codec, spec.extractor) if name in PARTS]
    pins: dict[str, str] = {}
    for part in parts:
        pins |= models.find(part).pins
    return Plan(
        schema=SCHEMA,
        source=source.name,
        fingerprint=source.fingerprint,
        entries=len(source),
        batch=pictures_per_batch(PictureShape(spec.image_size, spec.image_channels)),
        image_size=spec.image_size,
        image_channels=spec.image_channels,
        codec=spec.codec,
        extractor=spec.extractor,
        models=pins,
    )


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """The output folder, made or taken up again, for this process alone."""
    begun = out / SPOOL
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not begun.is_dir())):
        raise DataError(f"{out}: exists already and is not an empty folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DiskError(out, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{out}: another process is making a run there") from error
        sweep(out)
        yield
    finally:
        os.close(descriptor)


def _is_finished(out: Path, spec: RunSpec) -> bool:
    """Whether this run was finished here already; what another spec left is removed."""
    if (out / "shared").exists():
        if load_run(out / "shared").spec == spec:
            return True
        remove_folder(out / "shared")
    if (out / "clusters").exists():
        remove_folder(out / "clusters")
    return False
