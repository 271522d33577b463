"""Batches of one cluster, drawn so that nothing but two counters has to be stored.

All randomness is a function of (seed, cluster, counter): the batch of a step is the same whether
training ran through or was resumed there, in whatever process.
"""

from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from training.clusters import Cluster
from training.config import TrainConfig
from training.parts.text import UNCONDITIONAL


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one optimizer step sees.

    Args:
        data: clean latents, float32 [B, C, H, W].
        noise: standard normal, same shape.
        times: [B] in 0..1.
        captions: B of them; a dropped one is `UNCONDITIONAL`.
    """

    data: Tensor
    noise: Tensor
    times: Tensor
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.times)

    def part(self, start: int, stop: int) -> "Batch":
        """Rows start .. stop."""
        rows = slice(start, stop)
        return Batch(self.data[rows], self.noise[rows], self.times[rows], self.captions[rows])

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return Batch(
            self.data.to(device), self.noise.to(device), self.times.to(device), self.captions
        )


class Batches:
    """The batches of a cluster, by sample and step counters; they are made on the CPU.

    Args:
        cluster: its data.
        config: batch size, seed, caption drop, and how times are drawn.
    """

    def __init__(self, cluster: Cluster, config: TrainConfig) -> None:
        self._cluster, self._config = cluster, config
        self._order = _Order(len(cluster), config.seed, cluster.number)

    def take(self, samples: int, step: int) -> Batch:
        """The batch of step number `step`, when `samples` were seen before it."""
        config, cluster = self._config, self._cluster
        rows = self._order.take(samples, config.batch)
        generator = torch.Generator().manual_seed(
            derive_seed(config.seed, cluster.number, "step", step)
        )
        data = cluster.stored[rows].float()
        noise = torch.randn(data.shape, generator=generator)
        times = _draw_times(config, generator)
        is_dropped = torch.rand(config.batch, generator=generator) < config.caption_drop
        pointers = cluster.caption_of[rows].masked_fill(is_dropped, -1).tolist()
        chosen = tuple(cluster.captions[i] if i >= 0 else UNCONDITIONAL for i in pointers)
        return Batch(data, noise, times, chosen)


def derive_seed(seed: int, cluster: int, purpose: str, counter: int) -> int:
    """A 63-bit seed of its own for every use."""
    text = f"{seed}/{cluster}/{purpose}/{counter}"
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1


class _Order:
    """Which rows a sample counter means: one shuffled pass over the data after another."""

    def __init__(self, rows: int, seed: int, cluster: int) -> None:
        self._rows, self._seed, self._cluster = rows, seed, cluster
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def take(self, start: int, count: int) -> Tensor:
        """Row numbers of samples start .. start + count, int64 [count]."""
        taken = []
        while count > 0:
            epoch, offset = divmod(start, self._rows)
            part = self._of(epoch)[offset : offset + count]
            taken.append(part)
            start += len(part)
            count -= len(part)
        return torch.cat(taken)

    def _of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(
                derive_seed(self._seed, self._cluster, "epoch", epoch)
            )
            self._permutation = torch.randperm(self._rows, generator=generator)
            self._epoch = epoch
        return self._permutation


def _draw_times(config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Times [B] in 0..1 to train at.

    Logit-normal against uniform on the bundled run (4 x 24k samples, 1,000 pictures, two trainings
    of the former): caption accuracy .895 -> .92, Frechet distance 13.2 -> 11.5, at the same cost.
    """
    if config.times == "logit-normal":
        return torch.randn(config.batch, generator=generator).sigmoid()
    return torch.rand(config.batch, generator=generator)
