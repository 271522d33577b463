"""Is a router as sure as it is right?  Reliability per time, and the temperatures that mend it.

Measured on latents that the router was not made from: pictures held out, or pictures drawn from the
experts when there are none.  One half fits the temperatures, the other is reported, before and
after.  Source of temperature and expected calibration error: arXiv 1706.04599.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from training.errors import DataError
from training.flow import interpolate
from training.routers.router import (
    LEAST_PRIOR,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Router,
    Tempering,
    posterior,
)

BUCKETS: Final = 10
BINS: Final = 10
DRAWS: Final = 2
"""Times per bucket, each with noise of its own."""
MAX_ROWS: Final = 2_000
"""Measured at most: the error of a bucket's accuracy is then below half a percent."""
MIN_ROWS: Final = 20
CHUNK: Final = 500
SEARCH_STEPS: Final = 40
GOLDEN: Final = (math.sqrt(5) - 1) / 2
OVERCONFIDENT_BY: Final = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class LabelledLatents:
    """Clean latents of known clusters.

    Args:
        latents: float [N, C, H, W].
        clusters: int64 [N], the cluster's number of each.

    Raises:
        DataError: if the two do not fit together.
    """

    latents: Tensor
    clusters: Tensor

    def __post_init__(self) -> None:
        if self.clusters.shape != self.latents.shape[:1] or self.latents.ndim != 4:
            raise DataError(
                f"labelled latents: {tuple(self.latents.shape)} with {tuple(self.clusters.shape)} "
                "clusters, expected [N, C, H, W] and [N]"
            )

    def __len__(self) -> int:
        return len(self.clusters)

    def select(self, rows: Tensor) -> "LabelledLatents":
        """The rows named by an int64 index."""
        return LabelledLatents(self.latents[rows], self.clusters[rows])


@dataclass(frozen=True, slots=True)
class Bin:
    """Decisions of like confidence: if it is calibrated, so many of them are right."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How sure and how right a router is over one set of decisions.

    Args:
        confidence: mean probability of the cluster it names.
        error: expected calibration error over `BINS` bins of equal width.
        nll: mean negative log-probability of the true cluster, nats.
        bins: those that hold a decision, by rising confidence.
    """

    confidence: float
    error: float
    nll: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class Bucket:
    """A stretch of time.

    Args:
        low: its least t.
        high: its largest t.
        count: decisions measured.
        accuracy: how often the likeliest cluster is the true one.
        temperature: fitted, on other rows.
        before: without the temperature.
        after: with it.
    """

    low: float
    high: float
    count: int
    accuracy: float
    temperature: float
    before: Reliability
    after: Reliability

    @property
    def is_overconfident(self) -> bool:
        """Whether the bare router claims clearly more than it keeps."""
        return self.before.confidence - self.accuracy > OVERCONFIDENT_BY


@dataclass(frozen=True, slots=True)
class Calibration:
    """A router's report, bucket by bucket of t from data to noise."""

    buckets: tuple[Bucket, ...]

    @property
    def tempering(self) -> Tempering:
        """The fitted temperatures."""
        return Tempering(tuple(bucket.temperature for bucket in self.buckets))

    @property
    def error_before(self) -> float:
        """Expected calibration error, mean over t."""
        return sum(bucket.before.error for bucket in self.buckets) / len(self.buckets)

    @property
    def error_after(self) -> float:
        """The same with the temperatures."""
        return sum(bucket.after.error for bucket in self.buckets) / len(self.buckets)


def calibrate(router: Router, rows: LabelledLatents, seed: int = 0) -> Calibration:
    """Fit a temperature per bucket of t on one half of the rows and report on the other.

    Args:
        router: without tempering of its own: temperatures would be fitted on top of it.
        rows: not those it was made from; at least `MIN_ROWS`; more than `MAX_ROWS` are thinned.
        seed: of the noise.

    Raises:
        DataError: too few rows, or a cluster that the router does not know.
    """
    if len(rows) < MIN_ROWS:
        raise DataError(f"calibration needs {MIN_ROWS} latents held out, got {len(rows)}")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(rows), generator=generator)[:MAX_ROWS]
    rows = rows.select(chosen)
    truth = columns_of(router, rows.clusters)
    log_prior = (torch.bincount(truth, minlength=len(router.clusters)).float() + 0.5).log()
    is_fitted = torch.arange(len(rows)) % 2 == 0
    buckets = []
    for number in range(BUCKETS):
        low, high = number / BUCKETS, (number + 1) / BUCKETS
        evidence = torch.stack(list(_evidence(router, rows.latents, (low, high), generator)))
        fit, test = _Scores.split(evidence, truth, log_prior, is_fitted)
        temperature = fit.best_temperature()
        accuracy = float((test.probabilities(1.0).argmax(1) == test.truth).float().mean())
        before, after = test.reliability(1.0), test.reliability(temperature)
        buckets.append(
            Bucket(low, high, len(test.truth), accuracy, temperature, before, after)
        )  # fmt: skip
    return Calibration(tuple(buckets))


def columns_of(router: Router, clusters: Tensor) -> Tensor:
    """The router's column of each cluster number: int64 [N] -> [N].

    Raises:
        DataError: naming a cluster that the router does not know.
    """
    known = torch.tensor(router.clusters)
    is_same = clusters[:, None] == known
    strangers = clusters[~is_same.any(dim=1)]
    if len(strangers):
        raise DataError(
            f"a latent of cluster {int(strangers[0])}, the router knows {list(router.clusters)}"
        )
    return is_same.long().argmax(dim=1)


def reliability(probabilities: Tensor, truth: Tensor) -> Reliability:
    """Confidence against accuracy.

    Args:
        probabilities: [N, E], rows sum to 1.
        truth: int64 [N], the true column of each.
    """
    confidence, decided = probabilities.max(dim=1)
    hits = (decided == truth).float()
    places = (confidence * BINS).long().clamp_max(BINS - 1)
    bins = tuple(
        Bin(
            int((places == place).sum()),
            float(confidence[places == place].mean()),
            float(hits[places == place].mean()),
        )
        for place in sorted(set(places.tolist()))
    )
    gaps = sum(part.count * abs(part.confidence - part.accuracy) for part in bins)
    likelihood = probabilities.gather(1, truth[:, None]).clamp_min(LEAST_PRIOR).log()
    return Reliability(float(confidence.mean()), gaps / len(truth), -float(likelihood.mean()), bins)


def _evidence(
    router: Router, latents: Tensor, bucket: tuple[float, float], generator: torch.Generator
) -> Iterator[Tensor]:
    """Log-likelihoods [N, E] of all rows at `DRAWS` times of a bucket."""
    low, high = bucket
    for draw in range(DRAWS):
        t = low + (high - low) * (draw + 0.5) / DRAWS
        noise = torch.randn(latents.shape, generator=generator)
        x_t = interpolate(latents, noise, torch.full((len(latents),), t))
        parts = [router.log_likelihood(part, t) for part in torch.split(x_t, CHUNK)]
        yield torch.cat(parts).double()


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    """Log-likelihoods [N, E], true columns [N], log p(k) [E]."""

    evidence: Tensor
    truth: Tensor
    log_prior: Tensor

    @classmethod
    def split(
        cls, evidence: Tensor, truth: Tensor, log_prior: Tensor, is_first: Tensor
    ) -> tuple["_Scores", "_Scores"]:
        """Two sets of rows; evidence [draws, N, E]."""
        first, second = (
            cls(evidence[:, part].flatten(0, 1), truth[part].repeat(len(evidence)), log_prior)
            for part in (is_first, ~is_first)
        )
        return first, second

    def probabilities(self, temperature: float) -> Tensor:
        return posterior(self.evidence / temperature, self.log_prior)

    def reliability(self, temperature: float) -> Reliability:
        return reliability(self.probabilities(temperature), self.truth)

    def nll(self, temperature: float) -> float:
        scores = (self.evidence / temperature + self.log_prior).log_softmax(dim=1)
        return -float(scores.gather(1, self.truth[:, None]).mean())

    def best_temperature(self) -> float:
        """Least NLL by golden section in log T: it is convex in 1 / T, so there is one minimum."""
        low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        at_left, at_right = self.nll(math.exp(left)), self.nll(math.exp(right))
        for _ in range(SEARCH_STEPS):
            if at_left <= at_right:
                high, right, at_right = right, left, at_left
                left = high - GOLDEN * (high - low)
                at_left = self.nll(math.exp(left))
            else:
                low, left, at_left = left, right, at_right
                right = low + GOLDEN * (high - low)
                at_right = self.nll(math.exp(right))
        return math.exp((low + high) / 2)
