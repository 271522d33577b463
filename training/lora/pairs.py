"""Where a small change of an expert's weights would lower its loss, in a few directions a layer.

With G = dL/dW [out, in] at the base, an adapter changes the loss by <G, scaling (A B)^T> to first
order.  G's largest singular pairs (sigma, right in R^in, left in R^out) make that a few numbers
right^T A B left, which an adapter's owner can prove without showing A and B.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.experts.batches import Batch
from training.experts.gradients import Gradients
from training.experts.loaded import Expert
from training.lora.arrays import UNIT
from training.lora.layers import ModuleShape
from training.lora.losses import PART, fitting_part, probe_objective
from training.parts.text import TextEncoder

MAX_ENTRY: Final = 2047
"""Of a question's integers: |x| < 2^11.  Larger ones (e1 + 2^40 e2) read several rows at once, so
that whoever answers refuses them."""

_OVERSAMPLING: Final = 8
_ROUNDS: Final = 8
"""Of subspace iteration: with both, four values of our gradients are right to six digits."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One singular pair of a gradient, as integers to ask with.

    With y = right_in^T A_int B_int left_out, exact integers in units of 2^-12, the loss changes by
    scaling * weight * y.

    Args:
        sigma: the singular value.
        weight: sigma / (both vectors' integer scales) * 2^-24.
        inputs: int16 [in], at most `MAX_ENTRY` in size.
        outputs: int16 [out], likewise.
    """

    sigma: float
    weight: float
    inputs: NDArray[np.int16]
    outputs: NDArray[np.int16]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """The largest singular pairs of one layer's gradient.

    Args:
        pairs: the largest first.
        captured: part of the gradient's squared norm that they hold, 0..1.
    """

    pairs: tuple[Pair, ...]
    captured: float


def probe_gradients(
    expert: Expert, text: TextEncoder, draws: Batch, layers: Sequence[ModuleShape]
) -> dict[str, Tensor]:
    """The gradient of `probe_loss` by the weights of some layers, without an adapter.

    Args:
        expert: the base; it is not changed.
        text: of its run.
        draws: `Probe.draws`.
        layers: of the base.

    Returns:
        float32 [out, in] on the CPU, by the layer's name.

    Raises:
        DivergedError: the loss or its gradients are not finite.
        TooLargeError: not even one sample fits the memory.
    """
    net = _learning(expert.net, layers)
    part = fitting_part(net, expert.info.latent, text.dim, PART)
    Gradients(net, text, probe_objective(expert), part).fill(draws)
    found: dict[str, Tensor] = {}
    for layer in layers:
        weight = net.get_parameter(f"{layer.name}.weight")
        found[layer.name] = (torch.zeros_like(weight) if weight.grad is None else weight.grad).cpu()
    return found


def probe_pairs(gradient: Tensor, count: int) -> Pairs:
    """The largest singular pairs of a gradient, as integers.

    Args:
        gradient: [out, in].
        count: of pairs; no more than the smaller side are given.
    """
    wanted = min(count, *gradient.shape)
    size = min(wanted + _OVERSAMPLING, *gradient.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, sigma, right = torch.svd_lowrank(gradient.double(), q=size, niter=_ROUNDS)
    pairs = tuple(_pair(float(sigma[i]), right[:, i], left[:, i]) for i in range(wanted))
    whole = float(gradient.double().square().sum())
    held = float(sigma[:wanted].square().sum())
    return Pairs(pairs, min(1.0, held / whole) if whole else 1.0)


def weight_norms(net: nn.Module, layers: Sequence[ModuleShape]) -> dict[str, float]:
    """Frobenius norm of each layer's weight: what an adapter's size is compared with."""
    return {
        layer.name: float(net.get_parameter(f"{layer.name}.weight").double().norm())
        for layer in layers
    }


def _learning(net: nn.Module, layers: Sequence[ModuleShape]) -> nn.Module:
    """A net that shares every weight with `net`, in which only those of `layers` need gradients."""
    shared: dict[int, Tensor] = {id(t): t for t in (*net.parameters(), *net.buffers())}
    for layer in layers:
        weight = net.get_parameter(f"{layer.name}.weight")
        shared[id(weight)] = nn.Parameter(weight.detach())
    return copy.deepcopy(net, shared)


def _pair(sigma: float, inputs: Tensor, outputs: Tensor) -> Pair:
    inputs_int, inputs_scale = _integers(inputs)
    outputs_int, outputs_scale = _integers(outputs)
    weight = sigma / (inputs_scale * outputs_scale * UNIT**2)
    return Pair(sigma, weight, inputs_int, outputs_int)


def _integers(vector: Tensor) -> tuple[NDArray[np.int16], float]:
    """A unit vector times the returned scale, rounded."""
    scale = MAX_ENTRY / float(vector.abs().max())
    return (vector * scale).round().to(torch.int16).numpy(), scale
