"""Routers: which cluster does a noisy latent belong to?  And the gauss router, in closed form.

Whatever a router is made of, it answers with log p(x_t | k), so that a caption always enters the
same way, as the prior: p(k | x_t, t, caption) ~ p(x_t | k) p(k | caption).

Gauss: each cluster publishes a small mixture of Gaussians of its own latents.  Noising is linear,
so the density of x_t is known exactly at every t:

    p(x_t | k) = sum_m pi_m N(x_t; (1-t) mu_m, (1-t)^2 S_m + t^2 I)
    p(k | x_t) = softmax_k( log n_k + log p(x_t | k) )

An expert that joins adds one summary; nothing is retrained and nobody needs all the data.  Knows
nothing about experts, text encoders or files of a run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor

from training.summary import GaussSummary

FREEZE_BELOW_T: Final = 0.3
"""Below this t the closed form is over-confident (measured): keep the decision made above it."""
LEAST_PRIOR: Final = 1e-30


class Router(Protocol):
    """What a sampler needs of a router; experts that are missing renormalise outside."""

    @property
    def clusters(self) -> tuple[int, ...]:
        """The cluster of each column."""
        ...

    def log_likelihood(self, x_t: Tensor, t: float) -> Tensor:
        """Log p(x_t | k) up to a constant per row: [B, C, H, W] at t in (0, 1] -> [B, E]."""
        ...

    def probabilities(self, x_t: Tensor, t: float, prior: Tensor | None = None) -> Tensor:
        """p(k | x_t, t), rows sum to 1.

        Args:
            x_t: [B, C, H, W] noisy latents.
            t: time in (0, 1]; 1 is pure noise, where the answer is nearly the prior.
            prior: [B, E] p(k | caption), columns as `clusters`; default: p(k) of all the data.

        Returns:
            [B, E].
        """
        ...


def posterior(log_likelihood: Tensor, log_prior: Tensor) -> Tensor:
    """Bayes' rule over clusters: [B, E] and [B, E] or [E], logarithms, -> [B, E], rows sum to 1."""
    return (log_likelihood + log_prior).softmax(dim=1)


def log_of(prior: Tensor) -> Tensor:
    """Logarithm of probabilities; nothing is ruled out so far that sums lose their meaning."""
    return prior.float().clamp_min(LEAST_PRIOR).log()


class GaussRouter:
    """p(k | x_t, t) over the clusters whose summaries are at hand; missing ones are absent."""

    def __init__(self, summaries: Mapping[int, GaussSummary]) -> None:
        """Stack the summaries of all clusters for one batched evaluation.

        Raises:
            ValueError: if there is none, or they describe latents of different sizes.
        """
        if not summaries:
            raise ValueError("a router needs the summary of at least one cluster")
        self.clusters: tuple[int, ...] = tuple(sorted(summaries))
        ordered = [summaries[cluster] for cluster in self.clusters]
        sizes = {summary.dimensions for summary in ordered}
        if len(sizes) != 1:
            raise ValueError(f"summaries of different latent sizes: {sorted(sizes)}")
        self._dimensions = sizes.pop()
        self._log_counts = torch.tensor([math.log(summary.count) for summary in ordered])
        self._components = max(len(summary.weights) for summary in ordered)
        rank = max(summary.eigenvalues.shape[1] for summary in ordered)
        padded = [_pad(summary, self._components, rank) for summary in ordered]
        self._log_weights = torch.cat([item.weights for item in padded]).log()
        self._means = torch.cat([item.means for item in padded])
        self._tails = torch.cat([item.tails for item in padded])
        self._eigenvalues = torch.cat([item.eigenvalues for item in padded])
        vectors = torch.cat([item.eigenvectors for item in padded])  # [G, R, D]
        self._projection = vectors.flatten(0, 1).T.contiguous()  # [D, G * R]
        self._projected_means = torch.einsum("grd,gd->gr", vectors, self._means)
        self._mean_norms = self._means.square().sum(dim=1)

    def log_likelihood(self, x_t: Tensor, t: float) -> Tensor:
        """Logarithm of p(x_t | k): noisy latents [B, ...] at t in (0, 1] -> [B, E].

        Low-rank algebra: S = U diag(l) U' + tail (I - U U'), so the quadratic form needs only the
        squared distance and the projections on U; O(B D G R) in one matrix product.
        """
        flat = x_t.flatten(1).float()
        if flat.shape[1] != self._dimensions:
            raise ValueError(f"latents of {flat.shape[1]} numbers, expected {self._dimensions}")
        keep, noise = 1.0 - t, t * t
        spread = keep * keep * self._eigenvalues + noise  # [G, R]
        tail = keep * keep * self._tails + noise  # [G]
        rank = spread.shape[1]
        distance = (
            flat.square().sum(dim=1, keepdim=True)
            - 2 * keep * flat @ self._means.T
            + keep * keep * self._mean_norms
        )  # [B, G]
        along = (flat @ self._projection).reshape(len(flat), *spread.shape)
        along = (along - keep * self._projected_means).square()  # [B, G, R]
        quadratic = distance / tail + torch.einsum(
            "bgr,gr->bg", along, 1 / spread - 1 / tail[:, None]
        )
        log_volume = spread.log().sum(dim=1) + (self._dimensions - rank) * tail.log()
        density = self._log_weights - 0.5 * (quadratic + log_volume)
        density = density - 0.5 * self._dimensions * math.log(2 * math.pi)
        return density.reshape(len(flat), len(self.clusters), -1).logsumexp(dim=2)

    def probabilities(self, x_t: Tensor, t: float, prior: Tensor | None = None) -> Tensor:
        """p(k | x_t, t): [B, ...] -> [B, E], rows sum to 1.

        Args:
            x_t: noisy latents.
            t: time in (0, 1]; 1 is pure noise, where the answer is the prior.
            prior: [B, E] p(k | caption), columns as `clusters`; default: the clusters' sizes.
        """
        log_prior = self._log_counts if prior is None else log_of(prior)
        return posterior(self.log_likelihood(x_t, t), log_prior)


@dataclass(frozen=True, slots=True, eq=False)
class RouterRoutes:
    """p(k | x_t, caption): a router's likelihood with the caption's probabilities as prior."""

    router: Router
    prior: Tensor
    is_static: bool = field(default=False, init=False)

    @classmethod
    def join(cls, router: Router, clusters: Sequence[int], table: Tensor) -> "RouterRoutes":
        """Bring the columns of `table` [B, K] (of `clusters`) into the router's order."""
        columns = [list(clusters).index(cluster) for cluster in router.clusters]
        return cls(router, table[:, columns])

    @property
    def clusters(self) -> tuple[int, ...]:
        """Those the router knows."""
        return self.router.clusters

    def probabilities(self, x_t: Tensor, t: float) -> Tensor:
        """[B, C, H, W] -> [B, E]."""
        return self.router.probabilities(x_t, t, self.prior)


def _pad(summary: GaussSummary, components: int, rank: int) -> GaussSummary:
    """Add empty components, and directions as wide as the tail: the density stays the same."""
    more = components - len(summary.weights)
    wider = rank - summary.eigenvalues.shape[1]
    tails = torch.cat([summary.tails, torch.ones(more)])
    eigenvalues = torch.cat([summary.eigenvalues, torch.ones(more, rank - wider)])
    eigenvalues = torch.cat([eigenvalues, tails[:, None].expand(-1, wider)], dim=1)
    size = summary.dimensions
    vectors = torch.cat([summary.eigenvectors, torch.zeros(more, rank - wider, size)])
    return GaussSummary(
        count=summary.count,
        weights=torch.cat([summary.weights, torch.zeros(more)]),
        means=torch.cat([summary.means, torch.zeros(more, size)]),
        eigenvectors=torch.cat([vectors, torch.zeros(components, wider, size)], dim=1),
        eigenvalues=eigenvalues,
        tails=tails,
    )
