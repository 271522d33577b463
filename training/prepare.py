"""From pictures to a run: clusters found without labels, latents in shards, what all nodes share.

out/shared/{run.json, codec.safetensors, clusters.safetensors, captions.json}
out/clusters/<k>/{captions.json, latents-000.safetensors, ...}
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from training.bundled import FASHION
from training.centroids import nearest
from training.clusters import ClusterIndex, cluster_files
from training.codecs import Codec, NewCodec, create_codec
from training.config import SCHEMA, RunSpec, TrainConfig, preset
from training.data import Pictures, PictureShape, SkipReport, read_all
from training.errors import DataError
from training.features import create_extractor
from training.files import digest_of, write_folder
from training.hub import Models
from training.jsonio import canonical_json, to_json
from training.kmeans import two_stage
from training.run import (
    CAPTIONS_FILE,
    CLUSTERS_FILE,
    CODEC_FILE,
    RUN_FILE,
    CaptionCounts,
    ClusterMap,
    Run,
    RunFacts,
    check_parts,
    load_run,
    shared_files,
)
from training.sources import open_source
from training.tensors import pack_tensors
from training.text import load_text_encoder

logger = logging.getLogger(__name__)

MIN_PICTURES: Final = 2
"""Per cluster: principal components of fewer mean nothing."""

MAX_CAPTIONS: Final = 4096

Phase = Literal["read", "codec", "cluster", "write"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far `prepare_run` is: `done` of `total` steps, and which one begins."""

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
        models: the folder of pretrained parts it was made with.
    """

    spec: RunSpec
    root: Path
    clusters: tuple[ClusterInfo, ...]
    skipped: SkipReport
    models: Path | None = None

    @property
    def shared(self) -> Path:
        """The folder every node holds."""
        return self.root / "shared"

    def load(self) -> Run:
        """Open the shared folder."""
        return load_run(self.shared, self.models)


def default_spec(source: str | Path, clusters: int = 4) -> RunSpec:
    """The setting measured for the bundled set, or a colour run of 64 pixels for a folder."""
    if source == FASHION:
        return RunSpec(FASHION, clusters)
    name = Path(source).resolve().name[:64] or "run"
    train = TrainConfig(budget_samples=64_000)
    return RunSpec(name, clusters, preset="tiny-cpu", image_size=64, image_channels=3, train=train)


def prepare_run(
    source: str | Path,
    out: Path,
    spec: RunSpec,
    on_progress: Callable[[Progress], None] | None = None,
    models: Path | None = None,
) -> PreparedRun:
    """Make a run. The same source, spec and thread count give the same bytes on one machine.

    Args:
        source: "fashion", the bundled set, or a folder of captioned pictures.
        out: must not exist, or be empty.
        spec: what the run is.
        on_progress: called as each phase begins, and at the end.
        models: the user's folder of pretrained parts (`training.hub`).

    Raises:
        ConfigError: a name this program does not know, or sizes that do not fit together.
        ModelMissingError: the weights of a pretrained part are not to be had.
        DataError: no usable picture, too few for K clusters, `out` in use.
    """
    report = _Reporter(on_progress, spec.clusters)
    check_parts(spec)
    _check_out(out)
    report("read")
    pictures = _read(source, spec)
    if len(pictures) < spec.clusters * MIN_PICTURES:
        raise DataError(
            f"{spec.clusters} clusters need at least {spec.clusters * MIN_PICTURES} pictures, "
            f"got {len(pictures)} ({len(pictures.skipped)} skipped)"
        )
    report("codec")
    found = Models(models)
    text_pins = load_text_encoder(spec.text, found).pins
    codec = create_codec(spec, pictures.images, found)
    preset(spec.preset).net_config(codec.latent, 1)  # raises if the latents do not fit
    report("cluster")
    clusters, owners = _cluster(pictures.images, spec, found)
    report("write")
    infos = _write_clusters(out, _Encoded(pictures, codec, owners), spec, report)
    counts = _counts(pictures.captions, owners, spec.clusters)
    parts = _Parts(codec, clusters, text_pins)
    _write_shared(out, spec, parts, counts)
    report("write")
    return PreparedRun(spec, out, infos, SkipReport.of(pictures.skipped), models)


class _Reporter:
    """Counts phases and written clusters into one monotone number."""

    def __init__(self, callback: Callable[[Progress], None] | None, clusters: int) -> None:
        self._callback = callback
        self._total = 4 + clusters
        self._done = -1

    def __call__(self, phase: Phase) -> None:
        self._done += 1
        if self._callback is not None:
            self._callback(Progress(phase, self._done, self._total))


@dataclass(frozen=True, slots=True, eq=False)
class _Encoded:
    pictures: Pictures
    codec: Codec
    owners: Tensor


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists already and is not an empty folder")
    out.mkdir(parents=True, exist_ok=True)


def _read(source: str | Path, spec: RunSpec) -> Pictures:
    pictures = read_all(open_source(source), PictureShape(spec.image_size, spec.image_channels))
    if pictures.skipped:
        logger.warning("left out %s", SkipReport.of(pictures.skipped))
    return pictures


def _cluster(images: Tensor, spec: RunSpec, models: Models) -> tuple[ClusterMap, Tensor]:
    extractor = create_extractor(spec, images, models)
    features = extractor(images)
    fine, coarse = two_stage(features, spec.clusters, spec.seed)
    return ClusterMap(extractor, fine, coarse), coarse[nearest(features, fine)]


def _write_clusters(
    out: Path, encoded: _Encoded, spec: RunSpec, report: _Reporter
) -> tuple[ClusterInfo, ...]:
    """One folder per cluster; rows keep the source's order."""
    root = out / "clusters"
    root.mkdir()
    infos = []
    for k in range(spec.clusters):
        rows = (encoded.owners == k).nonzero()[:, 0]
        texts = [encoded.pictures.captions[i] for i in rows.tolist()]
        latents = encoded.codec.encode(encoded.pictures.images[rows]).half()
        write_cluster(root / str(k), k, encoded.codec, latents, texts)
        infos.append(ClusterInfo(k, len(rows), root / str(k)))
        report("write")
    return tuple(infos)


def write_cluster(folder: Path, k: int, codec: Codec, latents: Tensor, captions: list[str]) -> None:
    """Write the folder of one cluster.

    Args:
        folder: must not exist.
        k: the cluster's number.
        codec: made the latents.
        latents: float16 [N, C, H, W].
        captions: N of them.
    """
    unique = sorted(set(captions))
    place = {caption: i for i, caption in enumerate(unique)}
    index = ClusterIndex(SCHEMA, k, codec.digest, codec.latent, (), tuple(unique))
    pointers = torch.tensor([place[caption] for caption in captions], dtype=torch.int64)
    write_folder(folder, cluster_files(index, latents, pointers))


def _counts(captions: tuple[str, ...], owners: Tensor, clusters: int) -> CaptionCounts:
    """Caption counts per cluster; rare captions of a large set are summed up."""
    per_cluster = [Counter[str]() for _ in range(clusters)]
    for caption, k in zip(captions, owners.tolist(), strict=True):
        per_cluster[k][caption] += 1
    total = sum(per_cluster, Counter[str]())
    ranked = sorted(total, key=lambda caption: (-total[caption], caption))
    listed = tuple(sorted(ranked[:MAX_CAPTIONS]))
    counts = tuple(tuple(found[caption] for caption in listed) for found in per_cluster)
    other = tuple(found.total() - sum(row) for found, row in zip(per_cluster, counts, strict=True))
    return CaptionCounts(listed, counts, other)


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    codec: NewCodec
    clusters: ClusterMap
    text_pins: Mapping[str, str]


def _write_shared(out: Path, spec: RunSpec, parts: _Parts, counts: CaptionCounts) -> None:
    codec, clusters = parts.codec, parts.clusters
    tensors = {
        **clusters.extractor.tensors(),
        "fine": clusters.fine,
        "coarse": clusters.coarse.to(torch.int32),
    }
    files = {
        CODEC_FILE: codec.stored(),
        CLUSTERS_FILE: pack_tensors(tensors),
        CAPTIONS_FILE: canonical_json(to_json(counts)),
    }
    files = {name: files[name] for name in shared_files(spec)}
    rows = tuple(sum(row) + rest for row, rest in zip(counts.counts, counts.other, strict=True))
    facts = RunFacts(
        schema=SCHEMA,
        spec=spec,
        latent=codec.latent,
        rows=rows,
        fine=len(clusters.fine),
        features=clusters.extractor.dim,
        pixels=clusters.extractor.pixels,
        digests={name: digest_of(data) for name, data in files.items()},
        models={**codec.pins, **clusters.extractor.pins, **parts.text_pins},
    )
    files[RUN_FILE] = canonical_json(to_json(facts))
    write_folder(out / "shared", files)
