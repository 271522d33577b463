"""Two-stage k-means: many fine centroids, then their grouping into K balanced clusters.

Fine centroids are what a run publishes: any node assigns its own pictures by the nearest one, and
no data leaves it.  Source: the two-stage clustering of arXiv 2501.05450, section 3.

Rows are read in blocks, so memory does not grow with their number, and the result does not depend
on how they are cut, on threads, or on which machine summed which block: assignment is exact
(`training.clustering.centroids`), and sums are of integers, which add up to the same in any order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import frexp
from typing import Final

import torch
from torch import Tensor

from training.clustering.balance import group
from training.clustering.centroids import TILE_NUMBERS, TILE_ROWS, nearest, plus_plus
from training.clustering.mapping import LOCAL, Mapper
from training.clustering.rows import MAX_ROWS, MemoryRows, Rows, cut, pieces
from training.errors import DataError

FINE_MAX: Final = 256
ROWS_PER_FINE: Final = 16
"""A fine centroid of fewer rows is noise."""

ITERATIONS: Final = 51
"""Passes over rows that are all in the sample; fewer if nothing moves any more."""

FULL_PASSES: Final = 10
"""Passes over all rows, once the passes over their sample have found the places."""

SAMPLE_ROWS: Final = 65_536
SAMPLE_BYTES: Final = 64 * 2**20
"""256 rows for each of 256 fine centroids, less if rows are wide: a start draws over it 256 times,
and needs three times its memory."""

LARGEST: Final = 2.0**50
"""A feature beyond this overflows float32 when squared and summed."""


@dataclass(frozen=True, slots=True)
class Job:
    """Who does the work and how it is cut, which change no bit of the result; how long it goes on.

    Args:
        mapper: runs functions on blocks.
        block_rows: rows of a block; None takes what fits in 64 MiB.
        full_passes: over all rows, if they are more than the sample.
    """

    mapper: Mapper = LOCAL
    block_rows: int | None = None
    full_passes: int = FULL_PASSES


HERE: Final = Job()


def two_stage(
    features: Tensor | Rows, clusters: int, seed: int, job: Job = HERE
) -> tuple[Tensor, Tensor]:
    """Cluster features without labels.

    Up to `SAMPLE_ROWS` rows (`SAMPLE_BYTES`) all of them are used throughout. Of more, the start
    and its first passes see a sample, one row drawn from each of as many equal stretches: sources
    are often stored class by class, so that a head would miss classes, where stretches take each
    class by its share. Then up to `Job.full_passes` passes see all rows.

    Args:
        features: floating-point [N, D], or rows in files.
        clusters: K.
        seed: the same features and seed give the same result.
        job: who works.

    Returns:
        fine centroids float32 [F, D] and the coarse cluster of each, int64 [F]; every coarse
        cluster owns at least one fine centroid, which owned rows when it was last moved.

    Raises:
        DataError: K below 1, fewer than K distinct rows (in the sample), a row that is NaN,
            infinite or beyond `LARGEST`, named by its number.
    """
    rows = MemoryRows(features) if isinstance(features, Tensor) else features
    generator = torch.Generator().manual_seed(seed)
    fine, counts = fine_stage(rows, clusters, generator, job)
    return fine, group(fine, counts, clusters, generator)


def fine_stage(
    rows: Rows, clusters: int, generator: torch.Generator, job: Job = HERE
) -> tuple[Tensor, Tensor]:
    """The first of the two stages.

    Args:
        rows: N of them.
        clusters: fewer fine centroids than this are an error.
        generator: of the start; its seed draws the sample.
        job: who works.

    Returns:
        fine centroids float32 [F, D] and how many rows are nearest to each, float32 [F].

    Raises:
        DataError: see `two_stage`.
    """
    if not 1 <= clusters <= len(rows) <= MAX_ROWS:
        raise DataError(f"{clusters} clusters of {len(rows)} rows: expected 1 to {len(rows)}")
    survey = _survey(rows, clusters, generator.initial_seed(), job)
    sample = survey.sample
    wanted = max(clusters, min(FINE_MAX, len(rows) // ROWS_PER_FINE))
    fine = plus_plus(sample, torch.ones(len(sample)), wanted, generator)
    passes = ITERATIONS
    if len(sample) < len(rows):
        fine, _ = _lloyd(MemoryRows(sample), fine, _Lloyd(ITERATIONS, survey.largest), HERE)
        passes = job.full_passes
    fine, counts = _lloyd(rows, fine, _Lloyd(passes, survey.largest), job)
    if len(fine) < clusters:
        where = f" in {len(sample)} of {len(rows)}" if len(sample) < len(rows) else ""
        raise DataError(
            f"{clusters} clusters need as many different pictures, found only {len(fine)}{where}"
        )
    return fine, counts


def assign(rows: Rows, fine: Tensor, coarse: Tensor, job: Job = HERE) -> Iterator[Tensor]:
    """The cluster of every row, in their order, by the nearest fine centroid.

    Args:
        rows: N of them.
        fine: float32 [F, D].
        coarse: int64 [F].
        job: who works.

    Returns:
        int64 tensors whose lengths add up to N.
    """
    yield from job.mapper.map_blocks(_assign_block, cut(rows, job.block_rows), fine, coarse)


def row_sample(rows: int, wanted: int, seed: int) -> Tensor:
    """Numbers of at most `wanted` rows, one drawn from each equal stretch: int64, ascending."""
    count = min(rows, wanted)
    edges = torch.arange(count + 1) * rows // count
    generator = torch.Generator().manual_seed(seed)
    within = torch.rand(count, dtype=torch.float64, generator=generator) * edges.diff()
    return edges[:-1] + within.long()


def take(rows: Rows, numbers: Tensor, job: Job = HERE) -> Tensor:
    """The rows with these ascending numbers, float32 [S, D], in one pass over all."""
    return _looked_at(rows, numbers, job).sample


@dataclass(frozen=True, slots=True)
class _Lloyd:
    """How a k-means is run: at most `passes`; no number of the rows is above `largest`."""

    passes: int
    largest: float


@dataclass(frozen=True, slots=True, eq=False)
class _Survey:
    """Largest magnitude among rows; those asked for, float32 [S, D]; the first bad row, or -1."""

    largest: float
    sample: Tensor
    bad: int = -1


def _survey(rows: Rows, clusters: int, seed: int, job: Job) -> _Survey:
    fits = max(clusters, min(SAMPLE_ROWS, SAMPLE_BYTES // (4 * rows.width)))
    return _looked_at(rows, row_sample(len(rows), fits, seed), job)


def _looked_at(rows: Rows, numbers: Tensor, job: Job) -> _Survey:
    """One pass that refuses bad rows and keeps those asked for."""
    begin, largest, kept = 0, 0.0, []
    blocks = list(cut(rows, job.block_rows))
    starts = torch.tensor([0, *map(len, blocks)]).cumsum(0)
    edges = torch.searchsorted(numbers, starts).tolist()
    jobs = ((block, numbers[edges[i] : edges[i + 1]] - starts[i]) for i, block in enumerate(blocks))
    for block, found in zip(blocks, job.mapper.map_blocks(_look, jobs), strict=True):
        if found.bad >= 0:
            raise DataError(
                f"features: row {begin + found.bad} holds NaN, an infinity or a number beyond "
                f"{LARGEST:.0e}: leave that picture out, or mend its extractor"
            )
        begin += len(block)
        largest = max(largest, found.largest)
        kept.append(found.sample)
    return _Survey(largest, torch.cat(kept))


def _look(job: tuple[Rows, Tensor]) -> _Survey:
    """Survey one block: (its rows, which of them to keep)."""
    rows, numbers = job
    largest, kept, begin = 0.0, [torch.empty(0, rows.width)], 0
    for tile in pieces(rows, _tile_rows(rows.width)):
        reach = tile.abs().amax(1)
        is_bad = ~(reach <= LARGEST)  # NaN is not below anything
        if bool(is_bad.any()):
            return _Survey(largest, kept[0], begin + int(is_bad.long().argmax()))
        largest = max(largest, float(reach.max()))
        inside = numbers[(numbers >= begin) & (numbers < begin + len(tile))] - begin
        kept.append(tile[inside])
        begin += len(tile)
    return _Survey(largest, torch.cat(kept))


def _lloyd(rows: Rows, centroids: Tensor, how: _Lloyd, job: Job) -> tuple[Tensor, Tensor]:
    """Move centroids to the means of their rows until none moves.

    Returns:
        centroids [F, D] and their numbers of rows, float32 [F]; those without rows are dropped.
    """
    scale = 2.0 ** (62 - len(rows).bit_length() - frexp(how.largest)[1])
    counts = torch.zeros(len(centroids))
    for _ in range(how.passes):
        sums = torch.zeros(centroids.shape, dtype=torch.int64)
        owned = torch.zeros(len(centroids), dtype=torch.int64)
        blocks = cut(rows, job.block_rows)
        for block_sums, block_owned in job.mapper.map_blocks(_sum, blocks, centroids, scale):
            sums += block_sums
            owned += block_owned
        filled = owned > 0
        means = (sums[filled].double() / scale / owned[filled, None].double()).float()
        counts = owned[filled].float()
        if torch.equal(means, centroids):
            break
        centroids = means
    return centroids, counts


def _sum(rows: Rows, centroids: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Sums of the rows nearest to each centroid, in units of 1 / scale, and their numbers.

    Integers add up to the same in any order. `scale` is the power of two that lets N of the
    largest numbers fit 63 bits, so rounding is 2^-42 of the largest feature at a million rows.

    Returns:
        int64 [F, D] and [F].
    """
    sums = torch.zeros(centroids.shape, dtype=torch.int64)
    owned = torch.zeros(len(centroids), dtype=torch.int64)
    for tile in pieces(rows, _tile_rows(rows.width)):
        owners = nearest(tile, centroids)
        owned += owners.bincount(minlength=len(centroids))
        sums.index_add_(0, owners, tile.double().mul_(scale).round_().long())
    return sums, owned


def _assign_block(rows: Rows, fine: Tensor, coarse: Tensor) -> Tensor:
    tiles = [coarse[nearest(tile, fine)] for tile in pieces(rows, _tile_rows(rows.width))]
    return torch.cat(tiles)


def _tile_rows(width: int) -> int:
    """Rows worked on at a time: their float64 copy stays below 32 MB."""
    return max(1, min(TILE_ROWS, 2 * TILE_NUMBERS // width))
