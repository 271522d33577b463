"""What is asked of a sampler, what it asks of experts, and what it gives back: plain values.

An `ExpertQuery` carries captions, not encoded text: a node far away encodes them itself (a caption
is 30 bytes, its token states are up to 118 KB).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from torch import Tensor

from training.config import LatentShape
from training.drawing.mixture import Choice, Strategy
from training.errors import ConfigError

MAX_PICTURES: Final = 4096
MAX_STEPS: Final = 1000
MAX_GUIDANCE: Final = 30.0
MAX_CONTRAST: Final = 3.0
MAX_AUTOGUIDANCE: Final = 5.0
MAX_SEED: Final = 2**63 - 1
DEFAULT_FOCUS: Final = 0.4
"""Caption accuracy .841 -> .895, groups .950 -> .980, Frechet distance unchanged (13.2), for the
bundled run of 4 x 24k samples: an expert that saw few pictures of a caption draws odd ones."""


OPENING_T: Final = 0.95
"""`relay` keeps the drawn expert above this t: with 10 evaluations, for the first of them."""
CONTRAST_T: Final = (0.3, 0.9)
"""`contrast` pushes between these t: above, clusters differ by their means alone; below, a
neighbour's answer on this picture is no longer a worse answer but a wrong one."""
DEFAULT_CONTRAST: Final = 0.3
AUTOGUIDANCE_T: Final = (0.3, 0.9)
"""Where an expert is pushed away from its earlier self.  Source: arXiv 2404.07724 for an interval;
this one as for `contrast`."""


class Sampler(StrEnum):
    """How velocities are integrated."""

    EULER = "euler"
    """First order: one evaluation per step."""
    AB2 = "ab2"
    """Two-step Adams-Bashforth on a uniform grid, second order at the cost of Euler.

    RMS distance to the exact solution, bundled run, 60 pictures, guidance 4, at 6 / 10 / 20
    evaluations: **ab2 .083 / .029 / .021**; Euler .135 / .085 / .059; Heun .165 / .076 / .028; AB3
    .115 / .043 / .023; a Heun step first, then AB2 .071 / .038; diffusers' UniPC .107 / .036 /
    .018 and DPM-Solver++(2M) .122 / .072 / .041, both on flow sigmas.  AB2 on other grids, at 6 /
    10: shift 1.5 .091 / .035, shift 0.7 .108 / .074, t^0.8 .083 / .034, t^1.3 .109 / .085, cosine
    .188 / .086, logit-spaced .092 / .072.

    FID of 500 such pictures (sticky, floor 0.94, two seeds of noise) at 6: ab2 10.02 and 10.68,
    Heun first 10.02 and 10.61, UniPC 9.85 and 10.42, Euler 10.48 and 11.00; at 10 ab2 10.21 and
    10.89, Euler 10.30 and 10.95 (UniPC 10.12, one seed); caption accuracy within .01 of each other
    everywhere.  UniPC's 2 % at 6 are gone at 10: no reason for a second multistep solver."""
    HEUN = "heun"
    """Second order without a memory: N evaluations make N/2 steps.  No velocity is asked at t = 0:
    the last step is the midpoint rule, or for an odd N one of Euler's."""


class RouterName(StrEnum):
    """What tells which experts fit."""

    CAPTION = "caption"
    """p(k | caption), the same at every step."""
    GAUSS = "gauss"
    """p(k | x_t, caption) in closed form from the clusters' summaries."""
    LEARNED = "learned"
    """A net trained on the noisy latents of all clusters."""
    SYNTHETIC = "synthetic"
    """A net trained on what the experts draw, so nobody needs all the data."""


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """How to draw; the defaults are those measured best for the bundled run.

    Attributes:
        strategy: how experts are chosen.
        sampler: how velocities are integrated.
        steps: evaluations per picture.
        guidance: classifier-free guidance; 1 draws from the conditional model as it is, 0 from the
            unconditional one.
        focus: `sticky` leaves out experts that saw less than this part of what the best one saw of
            the caption; 0 draws exactly from p(k | caption), 1 always takes the best.
        top_k: how many experts `topk` asks.
        threshold: the least probability of an expert that `threshold` asks.
        router: what tells which experts fit; None takes the best there is.
        contrast: how far `contrast` pushes a picture away from the likeliest other expert.
        autoguidance: how far every expert is pushed away from its earlier self, if it has one
            (arXiv 2406.02507); 0 is not at all.

    Raises:
        ConfigError: for a value out of range.
    """

    strategy: Strategy = Strategy.STICKY
    sampler: Sampler = Sampler.AB2
    steps: int = 10
    guidance: float = 4.0
    focus: float = DEFAULT_FOCUS
    top_k: int = 2
    threshold: float = 0.1
    router: RouterName | None = None
    contrast: float = DEFAULT_CONTRAST
    autoguidance: float = 0.0

    def __post_init__(self) -> None:
        try:
            Choice(self.strategy, self.focus, self.top_k, self.threshold)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not 1 <= self.steps <= MAX_STEPS:
            raise ConfigError(f"steps must be 1 to {MAX_STEPS}, got {self.steps}")
        if not 0 <= self.guidance <= MAX_GUIDANCE:
            raise ConfigError(f"guidance must be 0 to {MAX_GUIDANCE:g}, got {self.guidance}")
        if not 0 <= self.contrast <= MAX_CONTRAST:
            raise ConfigError(f"contrast must be 0 to {MAX_CONTRAST:g}, got {self.contrast}")
        if not 0 <= self.autoguidance <= MAX_AUTOGUIDANCE:
            limit, got = f"{MAX_AUTOGUIDANCE:g}", self.autoguidance
            raise ConfigError(f"autoguidance must be 0 to {limit}, got {got}")

    def choice_at(self, t: float) -> Choice:
        """The strategy that holds at time t, with its parameter."""
        is_opening = self.strategy is Strategy.RELAY and t > OPENING_T
        strategy = Strategy.STICKY if is_opening else self.strategy
        return Choice(strategy, self.focus, self.top_k, self.threshold)

    def contrast_at(self, t: float) -> float:
        """How far the picture is pushed away from the likeliest other expert at time t."""
        low, high = CONTRAST_T
        is_pushed = self.strategy is Strategy.CONTRAST and low <= t <= high
        return self.contrast if is_pushed else 0.0

    def autoguidance_at(self, t: float) -> float:
        """How far experts are pushed away from their earlier selves at time t."""
        low, high = AUTOGUIDANCE_T
        return self.autoguidance if low <= t <= high else 0.0


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """What to draw: one caption and one seed per picture.

    Attributes:
        captions: one per picture.
        seeds: one per picture, 0 to 2^63 - 1; a picture depends on its own seed and caption, never
            on the others.
        shape: (C, H, W) of a latent.
        options: how to draw them.

    Raises:
        ConfigError: for no pictures, a number of seeds that differs, or a seed out of range.
    """

    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    shape: LatentShape
    options: SampleOptions = field(default_factory=SampleOptions)

    def __post_init__(self) -> None:
        if not self.captions or len(self.captions) != len(self.seeds):
            raise ConfigError(f"{len(self.captions)} captions and {len(self.seeds)} seeds")
        if not all(0 <= seed <= MAX_SEED for seed in self.seeds):
            raise ConfigError(f"a seed must be 0 to {MAX_SEED}")


@dataclass(frozen=True, slots=True)
class ExpertQuery:
    """One expert's part of one evaluation.

    Attributes:
        cluster: whose expert is asked.
        rows: [b], which pictures of the plan these are.
        x_t: [b, C, H, W] noisy latents, float32.
        t: time in (0, 1], the same for all rows.
        captions: one per row.
        guidance: classifier-free guidance to apply, conditional and not in one batch.
        step: 0-based index of the evaluation.
        steps: how many there are.
        autoguidance: how far to push away from the expert's earlier self.
    """

    cluster: int
    rows: Tensor
    x_t: Tensor
    t: float
    captions: tuple[str, ...]
    guidance: float
    step: int
    steps: int
    autoguidance: float = 0.0


@dataclass(frozen=True, slots=True)
class Denoised:
    """The end of a drawing.

    Attributes:
        latents: [B, C, H, W], clean.
        shares: mean weight of each expert over all evaluations and pictures; sums to 1.
        lost: experts that did not answer on the way.
    """

    latents: Tensor
    shares: Mapping[int, float]
    lost: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One caption, `n` pictures of it with the seeds seed, seed + 1, ...

    Raises:
        ConfigError: for n or the seed out of range.
    """

    prompt: str
    n: int = 1
    seed: int = 0
    options: SampleOptions = field(default_factory=SampleOptions)

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_PICTURES:
            raise ConfigError(f"n must be 1 to {MAX_PICTURES}, got {self.n}")


@dataclass(frozen=True, slots=True)
class Route:
    """Who will draw, judged by the captions alone.

    Attributes:
        experts: cluster -> share of the work, largest first.
        missing: cluster -> share that fell on an expert that is not here.
        starters: cluster -> share of the work near pure noise, where other experts stand in for
            those that predict noise; empty if it is as in `experts`.
        unaided: clusters whose expert predicts noise and yet draws near pure noise too, for want of
            another: expect worse pictures.
        unguided: clusters whose expert has no earlier self, where autoguidance is asked for.
    """

    experts: Mapping[int, float]
    missing: Mapping[int, float]
    starters: Mapping[int, float] = field(default_factory=dict)
    unaided: tuple[int, ...] = ()
    unguided: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """`step` of `steps` evaluations are done."""

    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Images:
    """Some of the pictures, finished, and who drew them; the last ones end the drawing.

    Attributes:
        pngs: PNG bytes, one per picture.
        shares: cluster -> share of the work done; sums to 1.
        first: which of the request's pictures the first of these is, from 0.
    """

    pngs: tuple[bytes, ...]
    shares: Mapping[int, float]
    first: int = 0


SampleEvent = Route | Step | Images
