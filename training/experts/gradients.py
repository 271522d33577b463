"""Gradients of a whole batch, taken in parts that fit the memory.

The one place where a loss is computed: experts and adapters are both trained through it.  A part
that does not fit is halved and the batch begun again, so that the step that follows is the one the
full batch would have made, up to rounding.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from training.errors import DivergedError, TooLargeError
from training.experts.batches import Batch
from training.experts.nets import predict
from training.experts.team import Alone, Team
from training.flow import interpolate, velocity_target, vp_interpolate
from training.parts.text import TextEncoder, TextStates

logger = logging.getLogger(__name__)

BF16: Final = "bf16"
FP32: Final = "fp32"


@dataclass(frozen=True, slots=True)
class Objective:
    """What a net learns, and in which arithmetic.

    Args:
        name: "fm" or "ddpm-eps".
        clip_norm: gradients are scaled down to this norm; 0 leaves them alone.
        precision: `FP32`, or `BF16` for autocast around the net.
    """

    name: str = "fm"
    clip_norm: float = 0.0
    precision: str = FP32


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """What one batch taught.

    Args:
        mean: over the batch.
        each: of every sample, in order.
        grad_norm: of all gradients together, before clipping.
    """

    mean: float
    each: tuple[float, ...]
    grad_norm: float


def sample_losses(net: nn.Module, batch: Batch, text: TextStates, objective: Objective) -> Tensor:
    """Mean squared error of each sample, with its graph.

    Source: arXiv 2210.02747, eq. 23 (for `fm`); arXiv 2006.11239, eq. 14 (for `ddpm-eps`).

    Args:
        net: a PixArt transformer.
        batch: B samples, on the net's device.
        text: states and masks of the batch's captions, there too.
        objective: what to predict.

    Returns:
        [B], at least float32.
    """
    if objective.name == "fm":
        x = interpolate(batch.data, batch.noise, batch.times)
        target = velocity_target(batch.data, batch.noise)
    else:
        x, target = vp_interpolate(batch.data, batch.noise, batch.times), batch.noise
    with torch.autocast(x.device.type, torch.bfloat16, enabled=objective.precision == BF16):
        output = predict(net, x, batch.times, text)
    return (output.to(target.dtype) - target).square().flatten(1).mean(dim=1)


class Gradients:
    """Fills the gradients of a net's trained parameters, batch by batch.

    Args:
        net: a PixArt transformer on its device; parameters that need no gradient are left alone.
        text: encodes the captions.
        objective: what to learn.
        micro_batch: samples per forward to begin with; halved when memory runs out.
        team: the processes that share the batch; this one alone if not given.
    """

    def __init__(
        self,
        net: nn.Module,
        text: TextEncoder,
        objective: Objective,
        micro_batch: int,
        team: Team | None = None,
    ) -> None:
        self._net, self._text, self._objective = net, text, objective
        self._team = team or Alone()
        self._parameters = [p for p in net.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self.micro_batch = micro_batch

    def fill(self, batch: Batch) -> BatchLoss:
        """Gradients of the batch's mean loss, clipped.

        Raises:
            DivergedError: the loss or the gradients are not finite; no weight is changed.
            TooLargeError: a single sample does not fit the memory.
        """
        losses = self._accumulate(batch)
        self._team.sum_gradients(self._parameters)
        each = tuple(self._team.whole(losses, len(batch)).tolist())
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        mean = math.fsum(each) / len(each)
        if not math.isfinite(mean):
            raise DivergedError(f"the loss is {mean}")
        if not math.isfinite(norm):
            raise DivergedError(f"the loss is {mean}, the norm of its gradients {norm}")
        if 0 < self._objective.clip_norm < norm:
            torch._foreach_mul_(gradients, self._objective.clip_norm / norm)
        return BatchLoss(mean, each, norm)

    def _accumulate(self, batch: Batch) -> Tensor:
        """Gradients of this process' rows, added up; their losses."""
        own = batch.part(*self._team.rows(len(batch)))
        while True:
            self._clear()
            losses: list[Tensor] = []
            reason = ""
            try:
                losses.extend(self._parts(own, len(batch)))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0] or type(error).__name__
            if not self._team.is_any(bool(reason)):
                return torch.cat(losses)
            losses.clear()
            self._shrink(reason, len(batch))  # out here: the error's traceback holds the graph

    def _parts(self, own: Batch, total: int) -> Iterator[Tensor]:
        """The losses of one part after another, each after its backward pass."""
        for start in range(0, len(own), self.micro_batch):
            part = own.part(start, start + self.micro_batch).to(self._device)
            text = self._text.encode(part.captions).to(self._device)
            losses = sample_losses(self._net, part, text, self._objective)
            (losses.sum() / total).backward()  # type: ignore[no-untyped-call]
            yield losses.detach()

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _shrink(self, reason: str, batch: int) -> None:
        self._clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        size = min(self.micro_batch, -(-batch // self._team.size))  # the same in every process
        if size == 1:
            raise TooLargeError(
                f"one sample at a time does not fit the memory of {self._device}: train a run of "
                f"a smaller preset there, or free memory ({reason or 'another process ran out'})"
            )
        self.micro_batch = halved(size)
        logger.info("memory of %s: %d samples at a time, not %d", self._device, halved(size), size)


def halved(size: int) -> int:
    """The next smaller micro-batch: parts stay as equal as they can be."""
    return (size + 1) // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text
