"""A prepared run as a folder: `shared/`, what every node holds, read and checked.

run.json               the spec, cluster sizes, and the sha256 of the files beside it
codec.safetensors      pictures <-> latents; only of a codec fitted on the run's own pictures
clusters.safetensors   fine centroids, fine -> coarse map; the feature extractor, if fitted likewise
captions.json          how often each caption occurs in each cluster: p(k | caption)

Pretrained parts are not in it: `run.json` pins their files by sha256, and each node brings them.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from torch import Tensor

from training.clustering.centroids import nearest
from training.config import SCHEMA, RunSpec
from training.errors import ConfigError, DataError
from training.experts.nets import NetShape
from training.files import digest_of
from training.jsonio import added, from_json, parse_json
from training.parts.codecs import Codec, check_codec, codec_is_fitted, open_codec
from training.parts.features import (
    Extractor,
    check_extractor,
    open_extractor,
    pixels_read,
    stored_schema,
)
from training.parts.hub import PARTS, Models, part_digest, pin_names
from training.parts.text import TEXT_DIMS, TextEncoder, check_text, load_text_encoder
from training.routers.caption_summary import CaptionSummary, load_caption_summary
from training.tensors import TensorSpec, read_tensors

RUN_FILE: Final = "run.json"
CODEC_FILE: Final = "codec.safetensors"
CLUSTERS_FILE: Final = "clusters.safetensors"
CAPTIONS_FILE: Final = "captions.json"
MEANINGS_FILE: Final = "caption-summary.safetensors"
"""Only in runs of many different captions."""
UNPINNED: Final = "minilm-l6"
"""The one pretrained part that runs had before their files were pinned."""

MAX_FINE: Final = 65_536
MAX_FEATURES: Final = 4096


@dataclass(frozen=True, slots=True)
class RunFacts:
    """`run.json`.

    Args:
        schema: 1.
        spec: what the run is.
        latent: channels, height, width of its latents.
        rows: pictures of each cluster, by number.
        fine: fine centroids.
        features: numbers per feature vector.
        pixels: numbers the extractor reads per picture.
        digests: sha256 of each file of `shared_files`, and of `MEANINGS_FILE` if there is one.
        models: "part/file" -> sha256 of every file of the pretrained parts; None in runs made
            before they were pinned.
    """

    schema: int
    spec: RunSpec
    latent: tuple[int, int, int]
    rows: tuple[int, ...]
    fine: int
    features: int
    pixels: int
    digests: dict[str, str]
    models: dict[str, str] | None = added(None)  # noqa: RUF009  a field, not a value


@dataclass(frozen=True, slots=True)
class CaptionCounts:
    """How often each caption occurs in each cluster.

    Args:
        captions: the most frequent ones, at most `MAX_CAPTIONS`, sorted.
        counts: per cluster, per caption.
        other: per cluster, rows whose caption is not listed.
    """

    captions: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    other: tuple[int, ...]

    def by_cluster(self) -> dict[int, dict[str, int]]:
        """Cluster -> caption -> its pictures there, without the zeros."""
        return {
            k: {caption: n for caption, n in zip(self.captions, row, strict=True) if n}
            for k, row in enumerate(self.counts)
        }


@dataclass(frozen=True, slots=True, eq=False)
class ClusterMap:
    """Which cluster a picture belongs to; needs no data but the picture.

    Args:
        extractor: pictures to features.
        fine: float32 [F, D] centroids.
        coarse: int64 [F], the cluster of each.
    """

    extractor: Extractor
    fine: Tensor
    coarse: Tensor

    def assign(self, images: Tensor) -> Tensor:
        """The cluster of each picture, by its nearest fine centroid.

        Args:
            images: uint8 [N, C, S, S], as the run's pictures are prepared.

        Returns:
            int64 [N].
        """
        return self.coarse[nearest(self.extractor(images), self.fine)]


class Run:
    """A run's shared folder. Parts are read, checked against `run.json`, when first used.

    Args:
        folder: the shared folder.
        facts: its `run.json`.
        digest: sha256 of `run.json`: the run's identity for training.
        models: the user's folder of pretrained parts.
    """

    def __init__(
        self, folder: Path, facts: RunFacts, digest: str, models: Path | None = None
    ) -> None:
        self.folder = folder
        self.facts = facts
        self.digest = digest
        self._models = Models(models, facts.models or {})

    @property
    def spec(self) -> RunSpec:
        """What the run is."""
        return self.facts.spec

    @property
    def shape(self) -> NetShape:
        """What fixes every tensor of its experts."""
        return NetShape(self.spec.preset, self.facts.latent, self.spec.text)

    @property
    def codec_digest(self) -> str:
        """Of the stored codec, or of the files of a pretrained one."""
        if codec_is_fitted(self.spec.codec):
            return self.facts.digests[CODEC_FILE]
        return part_digest(self.spec.codec, self.facts.models or {})

    @cached_property
    def codec(self) -> Codec:
        """Pictures <-> latents.

        Raises:
            DataError: if the file was altered.
            ModelMissingError: if pretrained weights are not to be had, or are others.
            TensorFileError: if it is not a codec of this run.
        """
        if codec_is_fitted(self.spec.codec):
            self._check(CODEC_FILE)
        codec = open_codec(self.spec, self.folder / CODEC_FILE, self._models)
        if codec.latent != self.facts.latent:
            raise DataError(f"{CODEC_FILE}: latents {codec.latent}, {RUN_FILE} says otherwise")
        return codec

    @cached_property
    def text(self) -> TextEncoder:
        """The text encoder; its weights are read on first use."""
        return load_text_encoder(self.spec.text, self._models)

    @cached_property
    def clusters(self) -> ClusterMap:
        """The clustering.

        Raises:
            DataError: if the file was altered or names a cluster out of range.
            ModelMissingError: if pretrained weights are not to be had, or are others.
            TensorFileError: if it is malformed.
        """
        self._check(CLUSTERS_FILE)
        facts = self.facts
        schema = {
            **stored_schema(self.spec.extractor, facts.features, facts.pixels),
            "fine": TensorSpec("F32", (facts.fine, facts.features)),
            "coarse": TensorSpec("I32", (facts.fine,)),
        }
        found = read_tensors(self.folder / CLUSTERS_FILE, schema)
        coarse = found["coarse"].long()
        if int(coarse.min()) < 0 or int(coarse.max()) >= self.spec.clusters:
            raise DataError(f"{CLUSTERS_FILE}: a centroid belongs to no cluster of this run")
        extractor = open_extractor(self.spec.extractor, found, self._models)
        if extractor.dim != facts.features:
            raise DataError(
                f"{CLUSTERS_FILE}: centroids of {facts.features} numbers, "
                f"the extractor gives {extractor.dim}"
            )
        return ClusterMap(extractor, found["fine"], coarse)

    @cached_property
    def caption_summary(self) -> CaptionSummary | None:
        """What each cluster's captions mean; None in a run of few different captions.

        Raises:
            DataError: if the file was altered.
            TensorFileError: if it is malformed.
        """
        if MEANINGS_FILE not in self.facts.digests:
            return None
        self._check(MEANINGS_FILE)
        path, width = self.folder / MEANINGS_FILE, TEXT_DIMS[self.spec.text]
        return load_caption_summary(path, self.spec.clusters, width)

    @cached_property
    def caption_counts(self) -> CaptionCounts:
        """How often each caption occurs in each cluster.

        Raises:
            DataError: if the file was altered or does not fit the run.
        """
        data = self._check(CAPTIONS_FILE)
        try:
            counts = from_json(CaptionCounts, parse_json(data, CAPTIONS_FILE), CAPTIONS_FILE)
        except ConfigError as error:
            raise DataError(str(error)) from error
        columns = {len(row) for row in counts.counts}
        sums = tuple(
            sum(row) + rest if min((*row, rest)) >= 0 else -1
            for row, rest in zip(counts.counts, counts.other, strict=False)
        )
        if columns != {len(counts.captions)} or sums != self.facts.rows:
            raise DataError(
                f"{CAPTIONS_FILE}: its table does not fit {self.spec.clusters} clusters"
            )
        return counts

    def _check(self, name: str) -> bytes:
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"run folder: {name} cannot be read: {error.strerror}") from error
        if digest_of(data) != self.facts.digests[name]:
            raise DataError(f"run folder: {name} does not match {RUN_FILE}: it was altered")
        return data


def shared_files(spec: RunSpec) -> tuple[str, ...]:
    """The files beside `run.json` of a run with these parts."""
    fitted = (CODEC_FILE,) if codec_is_fitted(spec.codec) else ()
    return (*fitted, CLUSTERS_FILE, CAPTIONS_FILE)


def load_run(shared: Path, models: Path | None = None) -> Run:
    """Open a run's shared folder; its files are read and checked as they are used.

    Args:
        shared: the folder.
        models: the user's folder of pretrained parts (`training.parts.hub`).

    Raises:
        DataError: if there is no run, or one this program cannot use.
    """
    path = shared / RUN_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"no run in {shared}: {RUN_FILE}: {error.strerror}") from error
    try:
        facts = from_json(RunFacts, parse_json(data, RUN_FILE), RUN_FILE)
        check_parts(facts.spec)
    except ConfigError as error:
        raise DataError(f"this run cannot be used: {error}") from error
    problem = _problem(facts)
    if problem:
        raise DataError(f"this run cannot be used: {RUN_FILE}: {problem}")
    return Run(shared, facts, digest_of(data), models)


def check_parts(spec: RunSpec) -> None:
    """Refuse a run whose codec, extractor or text encoder this program does not have.

    Raises:
        ConfigError: naming what there is.
    """
    check_codec(spec.codec)
    check_extractor(spec.extractor)
    check_text(spec.text)


def _problem(facts: RunFacts) -> str:
    """Why these facts cannot be used; empty if they can."""
    if facts.schema != SCHEMA:
        return f"schema {facts.schema}, this program reads {SCHEMA}"
    if len(facts.rows) != facts.spec.clusters or not all(n > 0 for n in facts.rows):
        return f"row counts {list(facts.rows)[:8]} do not fit {facts.spec.clusters} clusters"
    return _parts_problem(facts) or _sizes_problem(facts)


def _parts_problem(facts: RunFacts) -> str:
    files = shared_files(facts.spec)
    if set(facts.digests) - {MEANINGS_FILE} != set(files):
        return f"digests must name exactly {', '.join(files)}"
    if not _pins_fit(facts):
        return f"models must name exactly {', '.join(sorted(_pinned(facts.spec)))}"
    return ""


def _sizes_problem(facts: RunFacts) -> str:
    if not (0 < facts.fine <= MAX_FINE and 0 < facts.features <= MAX_FEATURES):
        return "impossible centroid counts"
    if not (0 < facts.pixels <= 2**20 and all(0 < side <= 4096 for side in facts.latent)):
        return "impossible sizes"
    spec = facts.spec
    expected = pixels_read(spec.extractor, spec.image_size, spec.image_channels)
    if facts.pixels != expected:
        return f"{facts.pixels} pixels, {spec.extractor} reads {expected}"
    return ""


def _pinned(spec: RunSpec) -> frozenset[str]:
    """The pins that a run with these parts must have."""
    parts = (PARTS[name] for name in (spec.codec, spec.extractor, spec.text) if name in PARTS)
    return frozenset().union(*(pin_names(part) for part in parts))


def _pins_fit(facts: RunFacts) -> bool:
    """Whether every pretrained part is pinned; `UNPINNED` alone may be left out, as it once was."""
    expected = _pinned(facts.spec)
    if facts.models is None:
        return expected <= pin_names(PARTS[UNPINNED])
    return set(facts.models) == expected
