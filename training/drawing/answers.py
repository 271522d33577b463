"""How an expert answers a query of the sampler: captions encoded, guidance applied.

Knows nothing about who is asked, nor how answers are put together.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from training.drawing.plan import ExpertQuery
from training.parts.text import UNCONDITIONAL, TextEncoder, TextStates

TEXTS_KEPT: Final = 8
"""Batches of captions: as many as there are experts asked in turn, in most drawings."""


class VelocityNet(Protocol):
    """A trained expert (`training.experts.loaded.Expert`)."""

    @property
    def objective(self) -> str:
        """What it predicts, one of `training.config.OBJECTIVES`."""
        ...

    def velocity(self, x_t: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """[B, C, H, W], [B], [B, L, D], [B, L] -> [B, C, H, W]."""
        ...


class RememberedTexts:
    """A text encoder that keeps its last answers: the steps of a drawing ask the same over again.

    Args:
        encoder: what to ask the first time.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._kept: OrderedDict[tuple[str, ...], TextStates] = OrderedDict()

    @property
    def dim(self) -> int:
        """As the encoder's."""
        return self._encoder.dim

    def encode(self, captions: Sequence[str]) -> TextStates:
        """As the encoder's; the last `TEXTS_KEPT` batches are not encoded anew."""
        key = tuple(captions)
        if key not in self._kept:
            self._kept[key] = self._encoder.encode(captions)
            if len(self._kept) > TEXTS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def answer_query(
    expert: VelocityNet,
    encoder: TextEncoder,
    query: ExpertQuery,
    guide: VelocityNet | None = None,
) -> Tensor:
    """Velocities [b, C, H, W] that an expert gives to a query, guidance applied.

    Conditional and unconditional rows go through the net in one batch:
    v = v_unconditional + guidance (v_conditional - v_unconditional).  Source: arXiv 2207.12598.
    With a guide, the expert's earlier self, autoguidance (v_conditional - v_guide) comes on top,
    conditional rows alone.  Source: arXiv 2406.02507.
    """
    count, has_prompt_guidance = len(query.captions), query.guidance != 1
    captions = query.captions
    if has_prompt_guidance:
        captions += (UNCONDITIONAL,) * count
    text = encoder.encode(captions)
    t = torch.full((len(captions),), query.t)
    x_t = torch.cat([query.x_t, query.x_t]) if has_prompt_guidance else query.x_t
    answers = expert.velocity(x_t, t, text.states, text.mask)
    velocity = conditional = answers[:count]
    if has_prompt_guidance:
        unconditional = answers[count:]
        velocity = unconditional + query.guidance * (conditional - unconditional)
    if guide is None or not query.autoguidance:
        return velocity
    earlier = guide.velocity(query.x_t, t[:count], text.states[:count], text.mask[:count])
    return velocity + query.autoguidance * (conditional - earlier)
