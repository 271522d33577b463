"""How an adapter is trained, and the rows it is trained on."""

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import torch
from torch import Tensor

from training.config import TrainConfig
from training.errors import ConfigError, DataError
from training.lora.layers import check_targets
from training.lora.modules import MAX_RANK, MAX_SCALE

MIN_ROWS: Final = 2
"""One to train on, one to measure on."""

HELD_OUT_PART: Final = 8
"""One row in so many is held out."""

MAX_HELD_OUT: Final = 256
WARMUP_STEPS: Final = 20
"""At most; a fifth of a short training."""

MAX_LICENCE_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """How one adapter is trained; the defaults are those measured on the bundled run.

    Rank 4 on an expert of tops that never saw a boot, 350 pictures of boots: loss on 50 others
    1.318 -> 0.821 with 4,000 samples at 2e-3 (smudges), -> 0.716 with 8,000 at 4e-3 (boots).

    Args:
        rank: 1 to `MAX_RANK`.
        alpha: B A is multiplied by alpha / rank; None for the rank itself.
        targets: a name of `TARGETS`.
        samples: training ends here.
        batch: samples per optimizer step.
        learning_rate: peak of the schedule.
        caption_drop: probability of training a sample without its caption, for guidance.
        seed: of weights, order, noise and times.
        save_samples: what an interruption may cost at most.
        threads: of torch.
        licence: of the adapter, in the trainer's words.

    Raises:
        ConfigError: for what cannot be meant.
    """

    rank: int = 4
    alpha: float | None = None
    targets: str = "attention+ff"
    samples: int = 8_000
    batch: int = 32
    learning_rate: float = 4e-3
    caption_drop: float = 0.1
    seed: int = 0
    save_samples: int = 2_000
    threads: int = 1
    licence: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise ConfigError(f"a LoRA's rank must lie in 1..{MAX_RANK}, got {self.rank}")
        check_targets(self.targets)
        if not 0 < self.strength <= MAX_SCALE:
            raise ConfigError(
                f"alpha must lie above 0 and at most {MAX_SCALE:g} times the rank, got {self.alpha}"
            )
        if len(self.licence) > MAX_LICENCE_CHARS:
            raise ConfigError(f"a licence must have at most {MAX_LICENCE_CHARS} characters")
        if self.samples < 1 or self.batch < 1:
            raise ConfigError(f"samples and batch must be at least 1: {self.samples}, {self.batch}")
        self.train_config("fm")

    @property
    def strength(self) -> float:
        """What B A is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def train_config(self, objective: str) -> TrainConfig:
        """The same as the settings of a training, for what both have in common.

        Args:
            objective: of the expert.

        Raises:
            ConfigError: for what cannot be meant.
        """
        return TrainConfig(
            batch=self.batch,
            learning_rate=self.learning_rate,
            warmup_steps=min(WARMUP_STEPS, self.samples // self.batch // 5),
            caption_drop=self.caption_drop,
            budget_samples=self.samples,
            save_samples=self.save_samples,
            seed=self.seed,
            threads=self.threads,
            objective=objective,
        )


@dataclass(frozen=True, slots=True, eq=False)
class LoraRows:
    """Captioned latents to train an adapter on.

    Args:
        latents: float16 [N, C, H, W], by the run's codec.
        captions: N of them.

    Raises:
        DataError: fewer than `MIN_ROWS`, not one caption each, or a latent that is not finite.
    """

    latents: Tensor
    captions: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.latents)
        if len(self.captions) != count:
            raise DataError(f"{len(self.captions)} captions for {count} latents")
        if count < MIN_ROWS:
            raise DataError(
                f"a LoRA needs at least {MIN_ROWS} pictures (one is held out to measure on), "
                f"got {count}"
            )
        finite = self.latents.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            raise DataError(f"the latent of picture {int(finite.long().argmin())} is not finite")

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def fingerprint(self) -> str:
        """sha256 over latents and captions: the same pictures in the same order give the same."""
        digest = sha256(self.latents.contiguous().numpy().tobytes())
        digest.update(json.dumps(self.captions).encode())
        return digest.hexdigest()


def split(rows: LoraRows, seed: int) -> tuple[Tensor, Tensor]:
    """Which rows to train on and which to hold out: one in `HELD_OUT_PART`, drawn by the seed.

    Returns:
        Two int64 indices that share no row, neither empty.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    held = min(MAX_HELD_OUT, max(1, len(rows) // HELD_OUT_PART))
    return order[held:].sort().values, order[:held].sort().values
