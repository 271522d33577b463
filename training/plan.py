"""What is asked of a sampler, what it asks of experts, and what it gives back: plain values.

An `ExpertQuery` carries captions, not encoded text: a node far away encodes them itself (a caption
is 30 bytes, its token states are up to 118 KB).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from torch import Tensor

from training.mixture import Strategy

MAX_SAMPLER_STEPS: Final = 1000


class Sampler(StrEnum):
    """How velocities are integrated."""

    EULER = "euler"
    """First order: one evaluation per step."""
    AB2 = "ab2"
    """Two-step Adams-Bashforth, second order at the same cost: 10 steps beat 20 of Euler."""


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """What to draw: one caption and one seed per picture, and how.

    Attributes:
        captions: one per picture.
        seeds: one per picture; a picture depends on its own seed and caption, never on the others.
        shape: (C, H, W) of a latent.
        strategy: how experts are chosen.
        sampler: how velocities are integrated.
        steps: evaluations per picture, 1 to `MAX_SAMPLER_STEPS`.
        guidance: classifier-free guidance; 1 draws from the conditional model as it is.
    """

    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    shape: tuple[int, int, int]
    strategy: Strategy = Strategy.STICKY
    sampler: Sampler = Sampler.AB2
    steps: int = 10
    guidance: float = 4.0

    def __post_init__(self) -> None:
        if not self.captions or len(self.captions) != len(self.seeds):
            raise ValueError(f"{len(self.captions)} captions and {len(self.seeds)} seeds")
        if not 1 <= self.steps <= MAX_SAMPLER_STEPS:
            raise ValueError(f"steps: got {self.steps}, expected 1 to {MAX_SAMPLER_STEPS}")


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
    """

    cluster: int
    rows: Tensor
    x_t: Tensor
    t: float
    captions: tuple[str, ...]
    guidance: float
    step: int
    steps: int


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
