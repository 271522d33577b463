"""The processes that train one expert together, as the trainer sees them: usually one.

Each takes its rows of the batch; gradients and losses are summed, so that every process makes the
step that one alone would have made, up to rounding.  Gradients are summed after the backward pass
and not during it (as DistributedDataParallel does): whoever runs out of memory can say so before
anybody waits for its sum, and all begin again with smaller parts.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Final, Protocol, TypeVar

import torch
from torch import Tensor, nn

from training.errors import CrewError
from training.parts.libraries import accelerator_class

T = TypeVar("T")

SUM_BYTES: Final = 64 * 2**20
"""Gradients are summed in pieces of this size: large enough to be fast, small beside the net."""
PATIENCE: Final = timedelta(minutes=30)
"""How long one process waits for another in one sum: a save of a large net to a slow disk takes
minutes. That a process died is noticed long before (`training.experts.distributed`)."""


class Team(Protocol):
    """What the trainer needs of the processes it shares its batches with."""

    @property
    def size(self) -> int:
        """Processes."""
        ...

    @property
    def rank(self) -> int:
        """Which of them this is; 0 saves and reports."""
        ...

    def rows(self, batch: int) -> tuple[int, int]:
        """First and last-plus-one row of a batch that this process takes."""
        ...

    def is_any(self, flag: bool) -> bool:
        """Whether it is true of any of them."""
        ...

    def least(self, values: Sequence[int]) -> tuple[int, ...]:
        """The smallest of each value over the processes."""
        ...

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes."""
        ...

    def whole(self, losses: Tensor, batch: int) -> Tensor:
        """The losses of all rows of a batch, [B], from those of this process' rows."""
        ...


class Alone:
    """One process."""

    size: Final = 1
    rank: Final = 0

    def rows(self, batch: int) -> tuple[int, int]:
        """All of them."""
        return 0, batch

    def is_any(self, flag: bool) -> bool:
        """Itself."""
        return flag

    def least(self, values: Sequence[int]) -> tuple[int, ...]:
        """Themselves."""
        return tuple(values)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """They are the sum already."""

    def whole(self, losses: Tensor, batch: int) -> Tensor:
        """Themselves."""
        return losses


class Crew:
    """Several processes of one machine, joined through accelerate.

    Args:
        is_cpu: they have no GPUs.
    """

    def __init__(self, *, is_cpu: bool) -> None:
        self._accelerator = accelerator_class()(cpu=is_cpu)
        self._device: torch.device = self._accelerator.device
        self.size: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index

    def rows(self, batch: int) -> tuple[int, int]:
        """As equal as they can be; never empty unless there are more processes than rows."""
        return batch * self.rank // self.size, batch * (self.rank + 1) // self.size

    def is_any(self, flag: bool) -> bool:
        """Whether it is true of any process."""
        return float(self._sum(torch.tensor([float(flag)], device=self._device))[0]) > 0

    def least(self, values: Sequence[int]) -> tuple[int, ...]:
        """The smallest of each value over the processes."""
        mine = torch.tensor([values], dtype=torch.int64, device=self._device)
        found: Tensor = self._together(lambda: self._accelerator.gather(mine))
        return tuple(found.amin(dim=0).tolist())

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum, bit for bit the same in all processes."""
        for piece in _pieces([p.grad for p in parameters if p.grad is not None]):
            total = self._sum(torch.cat([gradient.flatten() for gradient in piece]))
            parts = torch.split(total, [gradient.numel() for gradient in piece])
            for gradient, part in zip(piece, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def whole(self, losses: Tensor, batch: int) -> Tensor:
        """The losses of all rows, in order."""
        row = torch.zeros(batch, dtype=losses.dtype, device=losses.device)
        start, stop = self.rows(batch)
        row[start:stop] = losses
        return self._sum(row)

    def _sum(self, tensor: Tensor) -> Tensor:
        total: Tensor = self._together(lambda: self._accelerator.reduce(tensor, "sum"))
        return total

    def _together(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except RuntimeError as error:  # what torch.distributed raises when a process is gone
            raise CrewError(
                f"a process of this training is gone, so process {self.rank} of {self.size} cannot "
                "go on: start it again, it continues from its last save"
            ) from error


def present_team(device: str) -> Team:
    """The processes this one was started with (`training.experts.distributed`), or itself alone."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Alone()
    return Crew(is_cpu=torch.device(device).type == "cpu")


def _pieces(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients in order, in groups of about `SUM_BYTES`."""
    piece: list[Tensor] = []
    size = 0
    for gradient in gradients:
        piece.append(gradient)
        size += gradient.nbytes
        if size >= SUM_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
