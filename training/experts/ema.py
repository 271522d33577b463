"""An exponential moving average of weights: what is published and sampled from."""

from collections.abc import Iterable

import torch
from torch import Tensor


def decay_at(update: int, limit: float) -> float:
    """min(limit, (1 + n) / (10 + n)): young averages forget fast."""
    return min(limit, (1 + update) / (10 + update))


class Ema:
    """The average of a list of parameters.

    Args:
        parameters: their present values are the start.
        limit: largest decay.
    """

    def __init__(self, parameters: Iterable[Tensor], limit: float) -> None:
        self.values = [parameter.detach().clone() for parameter in parameters]
        self.limit = limit

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor], count: int) -> None:
        """Move towards `parameters`; `count` updates were made before."""
        weight = 1.0 - decay_at(count, self.limit)
        torch._foreach_lerp_(self.values, [p.detach() for p in parameters], weight)
