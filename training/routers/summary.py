"""What a cluster publishes about its latents: a small mixture of Gaussians of low rank.

It lets anyone compute p(k | x_t, t) (see `training.routers.router`) without seeing a picture of the
cluster.  It does leak first and second moments; its size is bounded, and an owner may withhold it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training.errors import TensorFileError
from training.tensors import TensorSpec, check_header, pack_tensors, read_tensors

COMPONENTS: Final = 16
RANK: Final = 32
MIN_ROWS_PER_COMPONENT: Final = 48
"""Fewer pictures than this do not carry the 32 directions of a covariance."""
KMEANS_ROUNDS: Final = 12
SHRINKAGE: Final = 0.5
"""Part of each component's covariance taken from all components together: 100 pictures say little
about 256 directions. On pictures held out (Fashion-MNIST, K = 4) routing at t = 0.1 is then right
.874 of the time instead of .828, at t = 0.3 .892 instead of .888, above it the same; 0.8 and 1 are
worse again, and so are 4 components instead of 16."""
VARIANCE_FLOOR: Final = 1e-4
"""Relative to the mean variance of the cluster: keeps densities finite on constant data."""
MAX_SUMMARY_BYTES: Final = 5 << 18
"""1.25 MiB: 16 components x 33 rows of 512 numbers, with room for the header."""
MAX_COUNT: Final = 10**9
MAX_VALUE: Final = 1e8
"""Variances of latents are near 1; this keeps every later product finite in float32."""
MAX_MEAN: Final = 1e4
TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class GaussSummary:
    """Mixture of G Gaussians in D dimensions, covariance U diag(l) U' + tail (I - U U').

    Attributes:
        count: pictures in the cluster, n_k >= 1.
        weights: [G], > 0, sum 1.
        means: [G, D].
        eigenvectors: [G, R, D], rows orthonormal.
        eigenvalues: [G, R], > 0.
        tails: [G], > 0, variance along every other direction.
    """

    count: int
    weights: Tensor
    means: Tensor
    eigenvectors: Tensor
    eigenvalues: Tensor
    tails: Tensor

    @property
    def dimensions(self) -> int:
        """D, the numbers of one flattened latent."""
        return self.means.shape[1]


def fit_summary(latents: Tensor, seed: int = 0) -> GaussSummary:
    """Fit k-means components, then the largest directions of each: about a second for 2,500.

    Args:
        latents: [N, ...], clean latents of one cluster, N >= 1.
        seed: of the k-means start; the same latents and seed give the same summary.

    Raises:
        ValueError: if there is no latent, or one is not finite.
    """
    rows = latents.flatten(1).float()
    if not len(rows) or not torch.isfinite(rows).all():
        raise ValueError(f"latents {tuple(latents.shape)}: expected one or more, all finite")
    groups = max(1, min(COMPONENTS, len(rows) // MIN_ROWS_PER_COMPONENT))
    members = _assign(rows, groups, seed)
    floor = VARIANCE_FLOOR * float(rows.var(dim=0, correction=0).mean()) + 1e-8
    rank = min(RANK, rows.shape[1] - 1)
    parts = [part for group in range(groups) if len(part := rows[members == group])]
    scatters = [_scatter(part) for part in parts]
    pooled = torch.stack(scatters).sum(dim=0) / len(rows)
    fitted = [
        _fit_component(
            part, (1 - SHRINKAGE) * scatter / len(part) + SHRINKAGE * pooled, rank, floor
        )
        for part, scatter in zip(parts, scatters, strict=True)
    ]
    sizes = torch.tensor([float(item.size) for item in fitted])
    return GaussSummary(
        count=len(rows),
        weights=sizes / sizes.sum(),
        means=torch.stack([item.mean for item in fitted]),
        eigenvectors=torch.stack([item.eigenvectors for item in fitted]),
        eigenvalues=torch.stack([item.eigenvalues for item in fitted]),
        tails=torch.stack([item.tail for item in fitted]),
    )


def _assign(rows: Tensor, groups: int, seed: int) -> Tensor:
    """Component of each row by Lloyd's k-means from `groups` distinct rows: [N, D] -> [N]."""
    generator = torch.Generator().manual_seed(seed)
    centres = rows[torch.randperm(len(rows), generator=generator)[:groups]]
    norms = rows.square().sum(dim=1, keepdim=True)
    members = torch.zeros(len(rows), dtype=torch.int64)
    for _ in range(KMEANS_ROUNDS):
        distances = norms - 2 * rows @ centres.T + centres.square().sum(dim=1)
        nearest = distances.argmin(dim=1)
        if torch.equal(nearest, members):
            break
        members = nearest
        sums = torch.zeros_like(centres).index_add_(0, members, rows)
        sizes = torch.bincount(members, minlength=groups)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    return members


@dataclass(frozen=True, slots=True)
class _Component:
    """One Gaussian: its number of rows, mean [D], directions [R, D], variances [R] and the rest."""

    size: int
    mean: Tensor
    eigenvectors: Tensor
    eigenvalues: Tensor
    tail: Tensor


def _scatter(rows: Tensor) -> Tensor:
    """Sum of outer products around the mean: [n, D] -> [D, D] float64."""
    centred = (rows - rows.mean(dim=0)).double()
    return centred.T @ centred


def _fit_component(rows: Tensor, pooled: Tensor, rank: int, floor: float) -> _Component:
    """Mean of `rows` [n, D], n >= 1, and the `rank` largest directions of their covariance.

    It is shrunk towards that of all components, `pooled` [D, D].
    """
    covariance = (1 - SHRINKAGE) * _scatter(rows) / len(rows) + SHRINKAGE * pooled
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    values = values.clamp_min(floor)
    return _Component(
        size=len(rows),
        mean=rows.mean(dim=0),
        eigenvectors=vectors[:, -rank:].T.float().contiguous(),
        eigenvalues=values[-rank:].float(),
        tail=values[:-rank].mean().float(),
    )


def save_summary(summary: GaussSummary, path: Path) -> None:
    """Write a summary as one safetensors file; the same summary gives the same bytes."""
    path.write_bytes(pack_summary(summary))


def pack_summary(summary: GaussSummary) -> bytes:
    """The bytes of `save_summary`."""
    return pack_tensors(
        {
            "count": torch.tensor([summary.count]),
            "weights": summary.weights,
            "means": summary.means,
            "eigenvectors": summary.eigenvectors,
            "eigenvalues": summary.eigenvalues,
            "tails": summary.tails,
        }
    )


def load_summary(path: Path, dimensions: int) -> GaussSummary:
    """Read a summary from outside: size, names, types, shapes and values are checked.

    Args:
        path: the file.
        dimensions: D, the numbers of one latent of the run.

    Raises:
        TensorFileError: whatever is wrong, naming the file and the reason.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise TensorFileError(path, f"cannot be read: {error.strerror}") from error
    if size > MAX_SUMMARY_BYTES:
        raise TensorFileError(path, f"{size} bytes, expected at most {MAX_SUMMARY_BYTES}")
    found = check_header(path, path.read_bytes()).get("eigenvectors", TensorSpec("F32", ()))
    groups, rank = (*found.shape, 0, 0)[:2]
    if not (1 <= groups <= COMPONENTS and 1 <= rank <= min(RANK, dimensions - 1)):
        raise TensorFileError(path, f"{groups} components of rank {rank} are not allowed")
    loaded = read_tensors(path, _schema(groups, rank, dimensions))
    count = int(loaded.pop("count"))
    summary = GaussSummary(count=count, **loaded)
    _check_values(path, summary)
    return summary


def _schema(groups: int, rank: int, dimensions: int) -> dict[str, TensorSpec]:
    return {
        "count": TensorSpec("I64", (1,)),
        "weights": TensorSpec("F32", (groups,)),
        "means": TensorSpec("F32", (groups, dimensions)),
        "eigenvectors": TensorSpec("F32", (groups, rank, dimensions)),
        "eigenvalues": TensorSpec("F32", (groups, rank)),
        "tails": TensorSpec("F32", (groups,)),
    }


def _check_values(path: Path, summary: GaussSummary) -> None:
    """Refuse what would make a density NaN, or let a peer claim more than its share of space."""
    if not 1 <= summary.count <= MAX_COUNT:
        raise TensorFileError(path, f"count {summary.count}, expected 1 to {MAX_COUNT}")
    for name in ("weights", "eigenvalues", "tails"):
        values: Tensor = getattr(summary, name)
        if not bool((values > 0).all()) or float(values.max()) > MAX_VALUE:
            raise TensorFileError(path, f"{name} must lie above 0 and at most {MAX_VALUE:g}")
    if float(summary.means.abs().max()) > MAX_MEAN:
        raise TensorFileError(path, f"means must lie within {MAX_MEAN:g} of 0")
    if abs(float(summary.weights.sum()) - 1) > TOLERANCE:
        raise TensorFileError(path, f"weights sum to {float(summary.weights.sum()):g}, expected 1")
    gram = summary.eigenvectors @ summary.eigenvectors.transpose(1, 2)
    error = float((gram - torch.eye(gram.shape[1])).abs().max())
    if not error < TOLERANCE:
        raise TensorFileError(path, f"eigenvectors are not orthonormal (off by {error:g})")
