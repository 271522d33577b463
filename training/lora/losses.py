"""The loss an adapter is judged by: the expert's own, on fixed draws of rows, times and noise.

The same draws without the adapter and with it, so that the difference is far surer than either
number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from training.errors import ProbeError
from training.experts.batches import Batch
from training.experts.gradients import FP32, Objective, sample_losses
from training.experts.loaded import Expert
from training.experts.memory import available_bytes, fitting_batch, sample_bytes
from training.lora.modules import AdapterShape, adapted
from training.parts.text import TextEncoder

PART: Final = 32
"""Draws that are computed at a time."""


def even_draws(latents: Tensor, captions: Sequence[str], count: int, seed: int) -> Batch:
    """Fixed draws over some rows: times spread evenly over 0..1, captions never dropped.

    Args:
        latents: [N, C, H, W].
        captions: N of them.
        count: of draws; the rows are gone through as often as that takes.
        seed: of times and noise; the same on every machine.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(latents)).repeat(-(-count // len(latents)))[:count]
    times = (torch.randperm(count, generator=generator) + 0.5) / count
    data = latents[rows].float()
    noise = torch.randn(data.shape, generator=generator)
    return Batch(data, noise, times, tuple(captions[i] for i in rows.tolist()))


@torch.no_grad()
def mean_loss(
    net: nn.Module, text: TextEncoder, draws: Batch, objective: Objective, part: int = PART
) -> float:
    """Mean squared error over all draws.

    Args:
        net: on its device.
        text: encodes the captions.
        draws: on the CPU.
        objective: what the net predicts, in which arithmetic.
        part: draws at a time.
    """
    device = next(net.parameters()).device
    losses = []
    for start in range(0, len(draws), part):
        batch = draws.part(start, start + part)
        states = text.encode(batch.captions).to(device)
        losses.append(sample_losses(net, batch.to(device), states, objective))
    return float(torch.cat(losses).double().mean())


def probe_loss(expert: Expert, text: TextEncoder, draws: Batch) -> float:
    """An expert's loss on a probe's draws, always in float32: others compute it again elsewhere.

    Args:
        expert: with an adapter on, or without.
        text: of its run.
        draws: `Probe.draws`.

    Raises:
        ProbeError: it is not finite.
    """
    loss = mean_loss(expert.net, text, draws, probe_objective(expert))
    if not math.isfinite(loss):
        raise ProbeError(f"the loss on the probe is {loss}")
    return loss


def probe_objective(expert: Expert) -> Objective:
    """What is measured on a probe: the expert's own objective, in float32."""
    return Objective(expert.objective, precision=FP32)


def with_weights(
    expert: Expert, shape: AdapterShape, weights: Mapping[str, Tensor], scaling: float
) -> Expert:
    """An expert with an adapter's weights on; the given one is unchanged and shares its own.

    Args:
        expert: of shape `shape.net`.
        shape: of the adapter.
        weights: as `AdapterShape.schema` names them.
        scaling: what B A is multiplied by.
    """
    net = adapted(expert.net, shape, weights, scaling)
    return replace(expert, net=net.eval().requires_grad_(False))


def fitting_part(net: nn.Module, latent: tuple[int, int, int], width: int, wanted: int) -> int:
    """Samples at a time whose gradients fit a CPU's memory.

    A GPU says so itself when they do not, and `experts.gradients` takes fewer.

    Args:
        net: on its device; parameters that need gradients are counted.
        latent: channels, height, width.
        width: of the text's token states.
        wanted: at most so many.

    Raises:
        TooLargeError: not even one sample fits.
    """
    available = available_bytes()
    if next(net.parameters()).device.type != "cpu" or available is None:
        return wanted
    learned = sum(parameter.nbytes for parameter in net.parameters() if parameter.requires_grad)
    return fitting_batch(wanted, sample_bytes(net, latent, width), learned, available)
