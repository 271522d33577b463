"""Measuring an adapter that is elsewhere: its deltas x A B are asked for, layer by layer.

Activations leave as integers |x| < 2^11, deltas come back as exact integers.  Whoever answers
learns the activations; whoever asks learns the adapter, row by row (VERIFICATION: 256 tokens give
most of it), so that rows that are alike are asked once.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.errors import ProbeError
from training.experts.batches import Batch
from training.experts.loaded import Expert
from training.lora.arrays import UNIT
from training.lora.layers import ModuleShape
from training.lora.losses import probe_loss
from training.lora.pairs import MAX_ENTRY
from training.parts.text import TextEncoder

_SMALLEST: Final = 1e-30
"""Inputs below it are as good as zero."""

Delta = Callable[[str, NDArray[np.int16]], NDArray[np.int64]]
"""(layer's name, X [T, in]) -> X A_int B_int [T, out], exact."""


@dataclass(frozen=True, slots=True, eq=False)
class Remote:
    """An adapter that answers from elsewhere.

    Args:
        layers: that it changes.
        scaling: alpha / rank.
        delta: asks it.
    """

    layers: Sequence[ModuleShape]
    scaling: float
    delta: Delta


def probe_loss_with(
    expert: Expert, text: TextEncoder, draws: Batch, remote: Remote
) -> tuple[float, int]:
    """The loss with a remote adapter on; up to the rounding of activations that with it in hand.

    Args:
        expert: the base; it is as before afterwards.
        text: of its run.
        draws: `Probe.draws`, few.
        remote: the adapter.

    Returns:
        The loss, and the rows that were asked of the layer most was asked of.

    Raises:
        ProbeError: an answer of another shape, or a loss that is not finite.
    """
    rows: Counter[str] = Counter()
    with _answered(expert.net, remote, rows):
        loss = probe_loss(expert, text, draws)
    return loss, max(rows.values(), default=0)


@contextmanager
def _answered(net: nn.Module, remote: Remote, rows: Counter[str]) -> Iterator[None]:
    """A net to whose layers the remote adapter's deltas are added."""
    handles = [
        net.get_submodule(layer.name).register_forward_hook(partial(_add, remote, layer, rows))
        for layer in remote.layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(
    remote: Remote,
    layer: ModuleShape,
    rows: Counter[str],
    module: nn.Module,
    args: tuple[Tensor, ...],
    output: Tensor,
) -> Tensor:
    """A layer's output with the delta of its input: a forward hook."""
    flat = args[0].detach().reshape(-1, layer.in_features).double().cpu()
    largest = float(flat.abs().max())
    if not math.isfinite(largest):
        raise ProbeError(f"layer {layer.name}: the deltas before it are out of all proportion")
    scale = MAX_ENTRY / max(largest, _SMALLEST)
    integers = (flat * scale).round().to(torch.int16).numpy()
    asked, place = np.unique(integers, axis=0, return_inverse=True)
    rows[layer.name] += len(asked)
    answer = remote.delta(layer.name, asked)
    if answer.shape != (len(asked), layer.out_features) or answer.dtype != np.int64:
        raise ProbeError(
            f"layer {layer.name}: deltas {answer.dtype} {list(answer.shape)}, "
            f"expected int64 {[len(asked), layer.out_features]}"
        )
    delta = answer[place.reshape(-1)] * (remote.scaling / (scale * UNIT**2))
    return output + torch.from_numpy(delta).to(output).reshape(output.shape)
