"""Are a run's clusters balanced enough to train, and do they mean anything?

Reported, never used to cluster: labels, where a data set has them, appear here alone.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from training.clustering.balance import CAPACITY
from training.clustering.kmeans import HERE, Job, row_sample, take
from training.clustering.rows import Rows
from training.errors import DataError
from training.jsonio import to_json

SILHOUETTE_ROWS: Final = 2000
"""Compared pair by pair: 32 MB of distances; its standard error is then about 0.005."""


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """What a clustering is like.

    Args:
        rows: N.
        features: D.
        sizes: rows of each cluster.
        smallest_share: of N.
        largest_share: of N; the capacity rule aims at `capacity_share` at most.
        capacity_share: `CAPACITY` / K.
        silhouette: mean over `silhouette_rows` rows of (b - a) / max(a, b), a the mean distance to
            rows of its own cluster and b to those of the nearest other: 1 far apart, 0 touching.
            None for a single cluster.  Source: Rousseeuw 1987.
        silhouette_rows: the rows of the sample it was measured on.
        nmi: normalised mutual information of clusters and labels, 0 to 1; None without labels.
    """

    rows: int
    features: int
    sizes: tuple[int, ...]
    smallest_share: float
    largest_share: float
    capacity_share: float
    silhouette: float | None
    silhouette_rows: int
    nmi: float | None

    def as_json(self) -> dict[str, object]:
        """For a report or a benchmark's file."""
        return to_json(self)


def cluster_report(
    rows: Rows, owners: Tensor, clusters: int, labels: Tensor | None = None, job: Job = HERE
) -> ClusterReport:
    """Measure a clustering; memory is bounded, but for one number per row.

    Args:
        rows: N feature rows.
        owners: the cluster of each, integers [N].
        clusters: K.
        labels: what the rows really are, integers [N], if somebody knows.
        job: who reads the rows.

    Raises:
        DataError: a cluster without rows.
        ValueError: owners or labels of another number than the rows.
    """
    if len(owners) != len(rows) or (labels is not None and len(labels) != len(rows)):
        raise ValueError(f"{len(owners)} owners for {len(rows)} rows, or labels of another number")
    sizes = owners.bincount(minlength=clusters).tolist()
    if 0 in sizes:
        raise DataError(f"cluster {sizes.index(0)} got no pictures: ask for fewer clusters")
    silhouette, measured = _silhouette(rows, owners, job)
    return ClusterReport(
        rows=len(rows),
        features=rows.width,
        sizes=tuple(sizes),
        smallest_share=min(sizes) / len(rows),
        largest_share=max(sizes) / len(rows),
        capacity_share=CAPACITY / clusters,
        silhouette=silhouette,
        silhouette_rows=measured,
        nmi=None if labels is None else _nmi(owners, labels),
    )


def _silhouette(rows: Rows, owners: Tensor, job: Job) -> tuple[float | None, int]:
    """Over a sample of rows; None if it has one cluster, or no two rows of any."""
    from sklearn.metrics import silhouette_score  # noqa: PLC0415

    numbers = row_sample(len(rows), SILHOUETTE_ROWS, seed=0)
    of_sample = owners[numbers]
    seen = int((of_sample.bincount() > 0).sum())
    if not 2 <= seen < len(numbers):
        return None, len(numbers)
    sample = take(rows, numbers, job)
    return float(silhouette_score(sample.double().numpy(), of_sample.numpy())), len(numbers)


def _nmi(owners: Tensor, labels: Tensor) -> float:
    from sklearn.metrics import normalized_mutual_info_score  # noqa: PLC0415

    return float(normalized_mutual_info_score(labels.numpy(), owners.to(torch.int64).numpy()))
