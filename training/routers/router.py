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
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor

from training.errors import ConfigError
from training.routers.summary import GaussSummary

FREEZE_BELOW_T: Final = 0.3
"""Below this t the bare closed form is over-confident: keep the decision made above it.

With fitted temperatures it need not be: squared error of the mixture's velocity on pictures held
out (Fashion-MNIST, K = 4, mean over ten t), bare / frozen / tempered / both: all experts .6019 /
.6016 / .5982 / .5990, the two best .6064 / .6061 / .6028 / .6035; with captions .5821 / .5817 /
.5788 / .5793 and .5826 / .5823 / .5795 / .5799.
"""
LEAST_PRIOR: Final = 1e-30
MIN_TEMPERATURE: Final = 0.125
MAX_TEMPERATURE: Final = 256.0
MAX_BUCKETS: Final = 100
MAX_TIMES: Final = 64
"""Times whose terms are kept: more than the steps of a usual drawing."""


class Router(Protocol):
    """What a sampler needs of a router; experts that are missing renormalise outside."""

    @property
    def clusters(self) -> tuple[int, ...]:
        """The cluster of each column."""
        ...

    @property
    def freeze_below(self) -> float:
        """Below this t its answers are worse than the one it gave there: keep that."""
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


@dataclass(frozen=True, slots=True)
class Tempering:
    """How much a router's evidence is believed at each time: p(x_t | k) ^ (1 / T).

    Args:
        temperatures: T of equal buckets of t in 0..1, the first at the data; above 1 takes
            confidence away.  Between the buckets' middles log T is interpolated.

    Raises:
        ConfigError: for none, or one out of `MIN_TEMPERATURE`..`MAX_TEMPERATURE`.
    """

    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.temperatures or len(self.temperatures) > MAX_BUCKETS:
            raise ConfigError(f"tempering: {len(self.temperatures)} of 1..{MAX_BUCKETS} buckets")
        for value in self.temperatures:
            if not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
                raise ConfigError(
                    f"tempering: temperature {value:g}, expected {MIN_TEMPERATURE:g} to "
                    f"{MAX_TEMPERATURE:g}"
                )

    def at(self, t: float) -> float:
        """The temperature at a time in 0..1."""
        place = min(max(t * len(self.temperatures) - 0.5, 0.0), len(self.temperatures) - 1.0)
        low = int(place)
        high = min(low + 1, len(self.temperatures) - 1)
        logs = math.log(self.temperatures[low]), math.log(self.temperatures[high])
        return math.exp(logs[0] + (place - low) * (logs[1] - logs[0]))


class GaussRouter:
    """p(k | x_t, t) over the clusters whose summaries are at hand; missing ones are absent.

    Each cluster is evaluated by itself, so that what one publishes never changes another's density,
    not even in its last digit.
    """

    def __init__(
        self, summaries: Mapping[int, GaussSummary], tempering: Tempering | None = None
    ) -> None:
        """Prepare the densities of all clusters.

        Args:
            summaries: by cluster.
            tempering: fitted on latents held out; by default the evidence is taken at its word.

        Raises:
            ValueError: if there is none, or they describe latents of different sizes.
        """
        if not summaries:
            raise ValueError("a router needs the summary of at least one cluster")
        self.clusters: tuple[int, ...] = tuple(sorted(summaries))
        self.tempering = tempering
        self.freeze_below = FREEZE_BELOW_T if tempering is None else 0.0
        ordered = [summaries[cluster] for cluster in self.clusters]
        sizes = {summary.dimensions for summary in ordered}
        if len(sizes) != 1:
            raise ValueError(f"summaries of different latent sizes: {sorted(sizes)}")
        self._dimensions = sizes.pop()
        self._log_counts = torch.tensor([math.log(summary.count) for summary in ordered])
        self._densities = [_Density(summary) for summary in ordered]

    def log_likelihood(self, x_t: Tensor, t: float) -> Tensor:
        """Logarithm of p(x_t | k), tempered: noisy latents [B, ...] at t in (0, 1] -> [B, E].

        Raises:
            ValueError: for latents of another size.
        """
        flat = x_t.flatten(1).float()
        if flat.shape[1] != self._dimensions:
            raise ValueError(f"latents of {flat.shape[1]} numbers, expected {self._dimensions}")
        norms = flat.square().sum(dim=1, keepdim=True)
        found = torch.cat([density(flat, norms, t) for density in self._densities], dim=1)
        return found if self.tempering is None else found / self.tempering.at(t)

    def probabilities(self, x_t: Tensor, t: float, prior: Tensor | None = None) -> Tensor:
        """p(k | x_t, t): see `Router`; without a prior the clusters' sizes are it."""
        log_prior = self._log_counts if prior is None else log_of(prior)
        return posterior(self.log_likelihood(x_t, t), log_prior)


@dataclass(frozen=True, slots=True)
class _AtTime:
    """A cluster's density at one t: log p = x W + |x|^2 n + c + (x U)^2 g, by component."""

    linear: Tensor  # W [D, G]
    norm: Tensor  # n [G]
    constant: Tensor  # c [G]
    gains: Tensor  # g [G * R, G], zero but where a direction belongs to the component


class _Density:
    """Log p(x_t | k) of one cluster.

    Low-rank algebra: with S = U diag(l) U' + tail (I - U U') the quadratic form needs only |x|^2,
    one linear map and the squares of the projections on U: O(B D G R), in one matrix product that
    does not depend on t.
    """

    def __init__(self, summary: GaussSummary) -> None:
        self._summary = summary
        vectors = summary.eigenvectors  # [G, R, D]
        self._projection = vectors.flatten(0, 1).T.contiguous()  # [D, G * R]
        self._projected_means = torch.einsum("grd,gd->gr", vectors, summary.means)
        self._at: OrderedDict[float, _AtTime] = OrderedDict()

    def __call__(self, flat: Tensor, norms: Tensor, t: float) -> Tensor:
        """[B, D] with their squared norms [B, 1] -> [B, 1]."""
        if t == 1:  # pure noise: every cluster's density is the same
            return -0.5 * (norms + flat.shape[1] * math.log(2 * math.pi))
        at = self._time(t)
        squares = (flat @ self._projection).square_()  # [B, G * R]
        density = torch.addmm(at.constant, flat, at.linear).addmm_(squares, at.gains)
        return density.addcmul_(norms, at.norm).logsumexp(dim=1, keepdim=True)

    def _time(self, t: float) -> _AtTime:
        """The terms of one t, kept: samplers ask for the same few times again and again."""
        if t not in self._at:
            self._at[t] = self._computed(t)
            if len(self._at) > MAX_TIMES:
                self._at.popitem(last=False)
        return self._at[t]

    def _computed(self, t: float) -> _AtTime:
        summary, keep = self._summary, 1.0 - t
        spread = keep * keep * summary.eigenvalues.double() + t * t  # [G, R]
        tail = keep * keep * summary.tails.double() + t * t  # [G]
        extra = 1 / spread - 1 / tail[:, None]  # along U the variance is another than the tail
        means, projected = summary.means.double(), self._projected_means.double()
        pulled = torch.einsum("gr,gr,grd->gd", extra, projected, summary.eigenvectors.double())
        centre = means / tail[:, None] + pulled  # S^-1 mu
        quadratic = means.square().sum(1) / tail + (extra * projected.square()).sum(1)
        size, rank = means.shape[1], spread.shape[1]
        volume = spread.log().sum(dim=1) + (size - rank) * tail.log()
        constant = summary.weights.double().log() - 0.5 * (
            keep * keep * quadratic + volume + size * math.log(2 * math.pi)
        )
        own = torch.eye(len(means))[:, None, :]  # [G, 1, G]
        spread_out = -0.5 * extra.float()[:, :, None] * own  # [G, R, G]
        return _AtTime(
            linear=(keep * centre).T.float().contiguous(),
            norm=(-0.5 / tail).float(),
            constant=constant.float(),
            gains=spread_out.flatten(0, 1).contiguous(),
        )


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

    @property
    def freeze_below(self) -> float:
        """As the router says."""
        return self.router.freeze_below

    def probabilities(self, x_t: Tensor, t: float) -> Tensor:
        """[B, C, H, W] -> [B, E]."""
        return self.router.probabilities(x_t, t, self.prior)
