"""Which experts draw a picture, and with what weight: pure functions on a table of probabilities.

Knows nothing about networks, latents or text.  The identity behind it: if p_k is the posterior of
cluster k given x_t, then sum_k p_k v_k is the velocity of all the data together
(arXiv 2501.05450, eq. 8), so dropping experts means renormalising p over those that are left.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch
from torch import Tensor

from training.errors import TrainingError

LEAST_TOTAL: Final = 1e-300
"""A row that sums to no more is nothing: below it doubles lose the digits a quotient needs."""
MIN_WEIGHT: Final = 1e-3
"""An expert below this share changes no pixel by one grey level, yet costs a whole forward."""


class NoExpertError(TrainingError):
    """No expert that could draw this is reachable."""


class Strategy(StrEnum):
    """How experts are chosen from their probabilities."""

    STICKY = "sticky"
    """Draw one expert per picture, keep it to the end: exact ancestral sampling of the mixture."""
    TOP1 = "top1"
    """The likeliest expert of every step."""
    TOP2 = "top2"
    """The two likeliest experts of every step, renormalised: what the Paris paper found best."""
    TOPK = "topk"
    """The `top_k` likeliest experts of every step, renormalised."""
    THRESHOLD = "threshold"
    """Every expert whose probability is at least `threshold`, and the likeliest in any case."""
    ALL = "all"
    """Every expert, weighted by its probability."""
    RELAY = "relay"
    """One expert, drawn as by `sticky`, opens the picture; then the two likeliest of every step.
    Near pure noise nothing tells clusters apart, and the two largest would always begin."""
    CONTRAST = "contrast"
    """One expert, drawn as by `sticky`, pushed away from what the likeliest other one would do:
    guidance by a worse model (arXiv 2406.02507), where the worse model is a neighbour."""
    RANDOM = "random"
    """A fresh draw of one expert at every step: the papers' worst case, for comparison only."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy and its parameter.

    Attributes:
        strategy: how experts are chosen.
        focus: in 0..1; `sticky` leaves out experts below this part of the best one's probability.
        top_k: how many `topk` keeps, at least 1.
        threshold: the least probability that `threshold` keeps, in 0..1.

    Raises:
        ValueError: for a parameter out of range.
    """

    strategy: Strategy
    focus: float = 0.0
    top_k: int = 2
    threshold: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.focus <= 1:
            raise ValueError(f"focus must be 0 to 1, got {self.focus}")
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be 0 to 1, got {self.threshold}")


@dataclass(frozen=True, slots=True)
class Mixture:
    """Weights of experts for a batch of pictures.

    Attributes:
        clusters: the cluster of each column.
        weights: [B, E] float64, rows sum to 1; a zero means that the expert is not asked, and one
            below zero that the picture is pushed away from its answer.
        dropped: probability that fell on clusters without a reachable expert, mean over the batch.
    """

    clusters: tuple[int, ...]
    weights: Tensor
    dropped: Mapping[int, float]

    def shares(self) -> dict[int, float]:
        """Share of each expert that is asked for anything, largest first."""
        means = shares_of(self.weights).mean(dim=0).tolist()
        named = [
            (cluster, mean) for cluster, mean in zip(self.clusters, means, strict=True) if mean
        ]
        return dict(sorted(named, key=lambda item: (-item[1], item[0])))


def mix(
    probabilities: Tensor,
    clusters: Sequence[int],
    reachable: Collection[int],
    choice: Choice,
    uniforms: Tensor,
) -> Mixture:
    """Weights of the reachable experts.

    Args:
        probabilities: [B, E], >= 0; column e belongs to `clusters[e]`; rows need not sum to 1.
        clusters: distinct cluster numbers, E of them.
        reachable: clusters whose expert answers now; others are dropped and renormalised away.
        choice: how to choose among the reachable.
        uniforms: [B] in [0, 1), one random number per picture; `sticky` and `random` use it.

    Raises:
        NoExpertError: if no cluster of the table is reachable.
        ValueError: if the shapes disagree or a probability is negative or not finite.
    """
    table = _checked(probabilities, clusters, uniforms)
    is_reachable = torch.tensor([cluster in reachable for cluster in clusters], dtype=torch.bool)
    if not is_reachable.any():
        raise NoExpertError(f"none of the clusters {sorted(clusters)} has a reachable expert")
    lost = (table / table.sum(dim=1, keepdim=True).clamp_min(LEAST_TOTAL)).mean(dim=0)
    dropped = {
        cluster: share
        for cluster, share, here in zip(clusters, lost.tolist(), is_reachable, strict=True)
        if not here
    }
    weights = choose(_renormalised(table, is_reachable), choice, uniforms)
    return Mixture(tuple(clusters), weights, dropped)


def choose(probabilities: Tensor, choice: Choice, uniforms: Tensor) -> Tensor:
    """Turn probabilities [B, E] (rows sum to 1) into weights [B, E] (rows sum to 1)."""
    width = probabilities.shape[1]
    match choice.strategy:
        case Strategy.STICKY | Strategy.CONTRAST:
            return one_hot(draw(probabilities, uniforms, choice.focus), width)
        case Strategy.RANDOM:
            return one_hot(draw(probabilities, uniforms), width)
        case Strategy.THRESHOLD:
            least = probabilities.amax(dim=1, keepdim=True).clamp_max(choice.threshold)
            return _without_tiny(torch.where(probabilities >= least, probabilities, 0.0))
        case Strategy.TOP1 | Strategy.TOP2 | Strategy.RELAY | Strategy.TOPK | Strategy.ALL:
            counts = {Strategy.TOP1: 1, Strategy.TOPK: choice.top_k, Strategy.ALL: width}
            return _keep_largest(probabilities, counts.get(choice.strategy, 2))


def draw(probabilities: Tensor, uniforms: Tensor, focus: float = 0.0) -> Tensor:
    """Inverse-transform draw of one column per row: [B, E], [B] in [0, 1) -> [B] int64.

    Never draws a column of probability below `MIN_WEIGHT`, nor below `focus` times the row's
    largest: an expert that hardly saw such data draws it badly.
    """
    least = (focus * probabilities.amax(dim=1, keepdim=True)).clamp_min(MIN_WEIGHT)
    kept = torch.where(probabilities < least, 0.0, probabilities)
    edges = kept.cumsum(dim=1)
    target = uniforms.to(edges.dtype)[:, None] * edges[:, -1:]
    columns = torch.searchsorted(edges, target, right=True).squeeze(1)
    last = kept.shape[1] - 1 - (kept > 0).int().flip(1).argmax(dim=1)
    return columns.minimum(last)


def contrasted(weights: Tensor, probabilities: Tensor, contrast: float) -> Tensor:
    """Push each row away from its likeliest column without a weight.

    Args:
        weights: [B, E], rows sum to 1.
        probabilities: [B, E]; a column of zeros is not there.
        contrast: how far, at least 0.

    Returns:
        [B, E], rows sum to 1: 1 + contrast times the weights, less `contrast` at that column.
    """
    others = torch.where(weights > 0, 0.0, probabilities)
    rival = one_hot(others.argmax(dim=1), weights.shape[1])
    has_rival = (others > 0).any(dim=1, keepdim=True)
    return torch.where(has_rival, (1 + contrast) * weights - contrast * rival, weights)


def shares_of(weights: Tensor) -> Tensor:
    """Part of each expert in what is drawn: [B, E] weights of any sign -> [B, E], rows sum to 1."""
    sizes = weights.abs()
    return sizes / sizes.sum(dim=1, keepdim=True)


def one_hot(columns: Tensor, width: int) -> Tensor:
    """Weights [B, width] float64 with a 1 at each row's column [B]."""
    return torch.nn.functional.one_hot(columns, width).double()


def combine(weights: Tensor, velocities: Tensor) -> Tensor:
    """Velocity of the mixture: [B, E] weights, [E, B, ...] velocities -> [B, ...].

    Computed in the wider of the two types and returned in the velocities' type.
    """
    return torch.einsum("be,eb...->b...", weights, velocities.to(weights.dtype)).to(
        velocities.dtype
    )


def _checked(probabilities: Tensor, clusters: Sequence[int], uniforms: Tensor) -> Tensor:
    batch = len(uniforms)
    if probabilities.shape != (batch, len(clusters)) or len(set(clusters)) != len(clusters):
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)}: expected {batch} pictures x "
            f"{len(clusters)} distinct clusters"
        )
    if not torch.isfinite(probabilities).all() or (probabilities < 0).any():
        raise ValueError("probabilities must be finite and >= 0")
    return probabilities.double()


def _renormalised(table: Tensor, is_reachable: Tensor) -> Tensor:
    """Rows over the reachable columns, summing to 1.

    A row whose probability lies wholly on missing experts becomes uniform over those that are here:
    a poor picture and a report of it beat no picture.
    """
    kept = torch.where(is_reachable, table, 0.0)
    total = kept.sum(dim=1, keepdim=True)
    uniform = is_reachable.double() / is_reachable.sum()
    return torch.where(total > LEAST_TOTAL, kept / total.clamp_min(LEAST_TOTAL), uniform)


def _keep_largest(probabilities: Tensor, count: int) -> Tensor:
    """Zero all but the `count` largest of each row and those below `MIN_WEIGHT`; renormalise."""
    largest = probabilities.topk(min(count, probabilities.shape[1]), dim=1)
    kept = torch.zeros_like(probabilities).scatter(1, largest.indices, largest.values)
    return _without_tiny(kept)


def _without_tiny(kept: Tensor) -> Tensor:
    """Renormalise the rows; weights below `MIN_WEIGHT` become zero."""
    kept = kept / kept.sum(dim=1, keepdim=True)
    kept = torch.where(kept < MIN_WEIGHT, 0.0, kept)
    return kept / kept.sum(dim=1, keepdim=True)
