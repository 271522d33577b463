"""A prepared run as a folder: `shared/`, what every node holds, read and checked.

run.json               the spec, cluster sizes, and the sha256 of the files beside it
codec.safetensors      pictures <-> latents
clusters.safetensors   feature extractor, fine centroids, fine -> coarse map
captions.json          how often each caption occurs in each cluster: p(k | caption)
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from torch import Tensor

from training.centroids import nearest
from training.codecs import PatchPca, check_codec
from training.config import SCHEMA, RunSpec
from training.errors import ConfigError, DataError
from training.features import PixelPca, check_extractor
from training.files import digest_of
from training.jsonio import from_json, parse_json
from training.nets import NetShape
from training.tensors import TensorSpec, read_tensors
from training.text import TextEncoder, check_text, load_text_encoder

RUN_FILE: Final = "run.json"
CODEC_FILE: Final = "codec.safetensors"
CLUSTERS_FILE: Final = "clusters.safetensors"
CAPTIONS_FILE: Final = "captions.json"
SHARED_FILES: Final = (CODEC_FILE, CLUSTERS_FILE, CAPTIONS_FILE)
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
        digests: sha256 of each file of `SHARED_FILES`.
    """

    schema: int
    spec: RunSpec
    latent: tuple[int, int, int]
    rows: tuple[int, ...]
    fine: int
    features: int
    pixels: int
    digests: dict[str, str]


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

    extractor: PixelPca
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
    """

    def __init__(self, folder: Path, facts: RunFacts, digest: str) -> None:
        self.folder = folder
        self.facts = facts
        self.digest = digest

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
        """sha256 of the stored codec."""
        return self.facts.digests[CODEC_FILE]

    @cached_property
    def codec(self) -> PatchPca:
        """Pictures <-> latents.

        Raises:
            DataError: if the file was altered.
            TensorFileError: if it is not a codec of this run.
        """
        self._check(CODEC_FILE)
        spec = self.spec
        codec = PatchPca.load(self.folder / CODEC_FILE, spec.image_size, spec.image_channels)
        if codec.latent != self.facts.latent:
            raise DataError(f"{CODEC_FILE}: latents {codec.latent}, {RUN_FILE} says otherwise")
        return codec

    @cached_property
    def text(self) -> TextEncoder:
        """The text encoder; its weights are read on first use."""
        return load_text_encoder(self.spec.text)

    @cached_property
    def clusters(self) -> ClusterMap:
        """The clustering.

        Raises:
            DataError: if the file was altered or names a cluster out of range.
            TensorFileError: if it is malformed.
        """
        self._check(CLUSTERS_FILE)
        facts = self.facts
        schema = {
            "mean": TensorSpec("F32", (facts.pixels,)),
            "directions": TensorSpec("F32", (facts.features, facts.pixels)),
            "fine": TensorSpec("F32", (facts.fine, facts.features)),
            "coarse": TensorSpec("I32", (facts.fine,)),
        }
        found = read_tensors(self.folder / CLUSTERS_FILE, schema)
        coarse = found["coarse"].long()
        if int(coarse.min()) < 0 or int(coarse.max()) >= self.spec.clusters:
            raise DataError(f"{CLUSTERS_FILE}: a centroid belongs to no cluster of this run")
        return ClusterMap(PixelPca(found["mean"], found["directions"]), found["fine"], coarse)

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


def load_run(shared: Path) -> Run:
    """Open a run's shared folder; its files are read and checked as they are used.

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
    return Run(shared, facts, digest_of(data))


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
    if set(facts.digests) != set(SHARED_FILES):
        return f"digests must name exactly {', '.join(SHARED_FILES)}"
    if not (0 < facts.fine <= MAX_FINE and 0 < facts.features <= MAX_FEATURES):
        return "impossible centroid counts"
    if not (0 < facts.pixels <= 2**20 and all(0 < side <= 4096 for side in facts.latent)):
        return "impossible sizes"
    return ""
