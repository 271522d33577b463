"""The second stage of clustering: fine centroids grouped into K clusters under a capacity.

Plain k-means makes clusters of very uneven size; an expert of a cluster ten times smaller than
another learns from ten times less. Here a cluster stops growing at `CAPACITY` times its fair share.
"""

from typing import Final

import torch
from torch import Tensor

from training.clustering.centroids import distances, plus_plus
from training.errors import DataError

ITERATIONS: Final = 50
RESTARTS: Final = 8
CAPACITY: Final = 1.4
"""No coarse cluster holds more than this times N / K: every expert gets something to learn. (A
fine centroid is never cut, so one that is larger than the room left may exceed it.)"""


def group(
    fine: Tensor,
    counts: Tensor,
    clusters: int,
    generator: torch.Generator,
    capacity: float = CAPACITY,
) -> Tensor:
    """Group fine centroids into clusters of comparable size; the cheapest of `RESTARTS` tries.

    Args:
        fine: float32 [F, D], distinct.
        counts: float32 [F], the rows of each, positive.
        clusters: K <= F.
        generator: of the starts.
        capacity: times N / K; infinity lets clusters be of any size.

    Returns:
        the cluster of each fine centroid, int64 [F]; each cluster has at least one.

    Raises:
        DataError: fewer than K distinct centroids.
    """
    room = capacity * float(counts.sum()) / clusters
    starts = [plus_plus(fine, counts, clusters, generator) for _ in range(RESTARTS)]
    distinct = min(map(len, starts))
    if distinct < clusters:
        raise DataError(
            f"{clusters} clusters need as many different pictures, found only {distinct}"
        )
    tries = [_balanced(fine, counts, start, room) for start in starts]
    return min(tries, key=lambda found: found[1])[0]


def _balanced(fine: Tensor, counts: Tensor, centres: Tensor, room: float) -> tuple[Tensor, float]:
    """One try from these centres; returns owners int64 [F] and the weighted cost."""
    owners = _assign(fine, counts, centres, room)
    for _ in range(ITERATIONS):
        centres = _means(fine, counts, owners, len(centres))
        moved = _assign(fine, counts, centres, room)
        if torch.equal(moved, owners):
            break
        owners = moved
    centres = _means(fine, counts, owners, len(centres))
    cost = (fine - centres[owners]).square().sum(1) * counts
    return owners, float(cost.double().sum())


def _means(rows: Tensor, weights: Tensor, owners: Tensor, count: int) -> Tensor:
    """Weighted mean of each group; none is empty."""
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, owners, weights.double())
    sums = torch.zeros(count, rows.shape[1], dtype=torch.float64)
    sums.index_add_(0, owners, rows.double() * weights.double()[:, None])
    return (sums / total[:, None]).float()


def _assign(fine: Tensor, counts: Tensor, centres: Tensor, capacity: float) -> Tensor:
    """Nearest centre with room left; those who would lose most choose first; none stays empty."""
    gaps = distances(fine, centres)
    clusters = len(centres)
    owners = torch.full((len(fine),), -1, dtype=torch.int64)
    room = torch.full((clusters,), capacity)
    for k in range(clusters):  # each centre keeps one of its own, so that no cluster is empty
        free = gaps[:, k].masked_fill(owners >= 0, float("inf"))
        own = int(free.argmin())
        owners[own] = k
        room[k] -= counts[own]
    two = gaps.topk(min(2, clusters), largest=False).values
    regret = two[:, -1] - two[:, 0]
    for index in torch.argsort(regret, descending=True, stable=True).tolist():
        if owners[index] >= 0:
            continue
        order = torch.argsort(gaps[index], stable=True)
        fits = order[room[order] >= counts[index]]
        k = int(fits[0]) if len(fits) else int(room.argmax())
        owners[index] = k
        room[k] -= counts[index]
    return owners
