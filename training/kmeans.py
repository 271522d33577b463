"""Two-stage k-means: many fine centroids, then their grouping into K balanced clusters.

Fine centroids are what a run publishes: any node assigns its own pictures by the nearest one, and
no data leaves it.  Source: the two-stage clustering of arXiv 2501.05450, section 3.
"""

from typing import Final

import torch
from torch import Tensor

from training.errors import DataError

FINE_MAX: Final = 256
ROWS_PER_FINE: Final = 16
"""A fine centroid of fewer rows is noise."""

ITERATIONS: Final = 50
RESTARTS: Final = 8
CAPACITY: Final = 1.4
"""No coarse cluster holds more than this times N / K: every expert gets something to learn."""


def two_stage(features: Tensor, clusters: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cluster features without labels.

    Args:
        features: float32 [N, D].
        clusters: K.
        seed: the same features and seed give the same result.

    Returns:
        fine centroids float32 [F, D] and the coarse cluster of each, int64 [F]; every coarse
        cluster owns at least one fine centroid that owns at least one row.

    Raises:
        DataError: if the rows have fewer than K distinct values.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = max(clusters, min(FINE_MAX, len(features) // ROWS_PER_FINE))
    fine, counts = kmeans(features, torch.ones(len(features)), wanted, generator)
    if len(fine) < clusters:
        raise DataError(
            f"{clusters} clusters need as many different pictures, found only {len(fine)}"
        )
    best: tuple[float, Tensor] | None = None
    for _ in range(RESTARTS):
        coarse, cost = _balanced(fine, counts, clusters, generator)
        if best is None or cost < best[0]:
            best = (cost, coarse)
    if best is None:
        raise AssertionError("no restart ran")
    return fine, best[1]


def nearest(features: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid, int64 [N]; the lower index wins a tie."""
    blocks = [_distances(block, centroids).argmin(1) for block in torch.split(features, 8192)]
    return torch.cat(blocks) if blocks else torch.empty(0, dtype=torch.int64)


def kmeans(
    features: Tensor, weights: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from a k-means++ start.

    Args:
        features: [N, D].
        weights: [N], positive.
        count: centroids wanted.
        generator: of the start.

    Returns:
        centroids [F, D] and their weights [F], F <= count: centroids without rows are dropped.
    """
    centroids = _plus_plus(features, weights, count, generator)
    owners = nearest(features, centroids)
    for _ in range(ITERATIONS):
        centroids, _ = _means(features, weights, owners, len(centroids))
        moved = nearest(features, centroids)
        if torch.equal(moved, owners):
            break
        owners = moved
    return _means(features, weights, owners, len(centroids))


def _means(rows: Tensor, weights: Tensor, owners: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Weighted mean and weight of each non-empty group."""
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, owners, weights.double())
    sums = torch.zeros(count, rows.shape[1], dtype=torch.float64)
    sums.index_add_(0, owners, rows.double() * weights.double()[:, None])
    filled = total > 0
    return (sums[filled] / total[filled, None]).float(), total[filled].float()


def _plus_plus(rows: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Start far apart: each next centre is drawn by its weighted squared distance."""
    chosen = [int(torch.multinomial(weights.double(), 1, generator=generator))]
    gap = (rows - rows[chosen[0]]).square().sum(1).double()
    while len(chosen) < count:
        odds = gap * weights
        if float(odds.sum()) <= 1e-12:
            break  # every remaining row equals a centre
        chosen.append(int(torch.multinomial(odds, 1, generator=generator)))
        gap = torch.minimum(gap, (rows - rows[chosen[-1]]).square().sum(1).double())
    return rows[chosen]


def _balanced(
    fine: Tensor, counts: Tensor, clusters: int, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Group fine centroids under a capacity; returns owners int64 [F] and the weighted cost."""
    centres = _plus_plus(fine, counts, clusters, generator)
    if len(centres) < clusters:
        raise DataError(f"{clusters} clusters need as many different pictures")
    owners = _assign(fine, counts, centres)
    for _ in range(ITERATIONS):
        centres, _ = _means(fine, counts, owners, clusters)
        moved = _assign(fine, counts, centres)
        if torch.equal(moved, owners):
            break
        owners = moved
    centres, _ = _means(fine, counts, owners, clusters)
    cost = (fine - centres[owners]).square().sum(1) * counts
    return owners, float(cost.double().sum())


def _assign(fine: Tensor, counts: Tensor, centres: Tensor) -> Tensor:
    """Nearest centre with room left; those who would lose most choose first; none stays empty."""
    distances = _distances(fine, centres)
    clusters = len(centres)
    owners = torch.full((len(fine),), -1, dtype=torch.int64)
    room = torch.full((clusters,), CAPACITY * float(counts.sum()) / clusters)
    for k in range(clusters):  # each centre keeps one of its own, so that no cluster is empty
        free = distances[:, k].masked_fill(owners >= 0, float("inf"))
        own = int(free.argmin())
        owners[own] = k
        room[k] -= counts[own]
    two = distances.topk(min(2, clusters), largest=False).values
    regret = two[:, -1] - two[:, 0]
    for index in torch.argsort(regret, descending=True, stable=True).tolist():
        if owners[index] >= 0:
            continue
        order = torch.argsort(distances[index], stable=True)
        fits = order[room[order] >= counts[index]]
        k = int(fits[0]) if len(fits) else int(room.argmax())
        owners[index] = k
        room[k] -= counts[index]
    return owners


def _distances(rows: Tensor, centres: Tensor) -> Tensor:
    """Squared distances [N, F]."""
    squares = rows.square().sum(1)[:, None] + centres.square().sum(1)[None, :]
    return (squares - 2 * rows @ centres.T).clamp_min(0)
