"""Captions to token states: what a text encoder is, and the ones there are.

A caption is encoded alone, never padded into a batch: its states do not depend on its neighbours,
which keeps a resumed training bit-exact.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.errors import ConfigError, ModelMissingError
from training.parts import clip, minilm
from training.parts.hub import CLIP, MINILM, ModelFiles, ModelPart, Models
from training.parts.libraries import tokenizer_class

TEXT_DIMS: Final = {MINILM.name: minilm.WIDTH, CLIP.name: clip.WIDTH}
"""Text encoders by name, with the width of their token states."""

UNCONDITIONAL: Final = ""
"""The caption that means no caption."""

CACHE_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class TextStates:
    """What an expert is conditioned on.

    Args:
        states: float32 [B, L, D] token states; zero where the mask is zero.
        mask: float32 [B, L], 1 for a token, 0 for padding.
    """

    states: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.states)

    def select(self, index: Tensor) -> "TextStates":
        """The rows named by an int64 index."""
        return TextStates(self.states[index], self.mask[index])

    def to(self, device: torch.device) -> "TextStates":
        """The same on another device."""
        return TextStates(self.states.to(device), self.mask.to(device))


class TextEncoder(Protocol):
    """What the rest of the package needs of a text encoder."""

    @property
    def dim(self) -> int:
        """Width of the token states."""
        ...

    def encode(self, captions: Sequence[str]) -> TextStates:
        """Token states and mask of each caption, [B, L, dim] and [B, L]."""
        ...


class PretrainedText:
    """A pretrained text encoder; each caption's states are kept. Its files are read on first use.

    Args:
        part: which one.
        models: where its weights are, and which ones are meant.
    """

    def __init__(self, part: ModelPart, models: Models) -> None:
        self._part, self._models = part, models
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cached_bytes = 0

    @property
    def dim(self) -> int:
        """Width of the token states."""
        return TEXT_DIMS[self._part.name]

    @property
    def pins(self) -> Mapping[str, str]:
        """sha256 of its files, by name.

        Raises:
            ModelMissingError: if they are not to be had, or are others than the run's.
        """
        return self._files.pins

    def encode(self, captions: Sequence[str]) -> TextStates:
        """Token states of each caption, cached per caption; "" is the unconditional one.

        Args:
            captions: at least one; longer ones are cut (at 64 tokens by `minilm-l6`, at 77 by
                `clip-vit-l14`).

        Raises:
            ModelMissingError: if the weights are not to be had, or are others than the run's.
            ValueError: for no captions.
        """
        if not captions:
            raise ValueError("encode needs at least one caption")
        unique = list(dict.fromkeys(captions))
        rows = [self._states(caption) for caption in unique]
        padded = pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(padded.shape[1])[None, :] < lengths[:, None]).float()
        place = {caption: i for i, caption in enumerate(unique)}
        return TextStates(padded, mask).select(torch.tensor([place[c] for c in captions]))

    def _states(self, caption: str) -> Tensor:
        if caption in self._cache:
            self._cache.move_to_end(caption)
            return self._cache[caption]
        tokenizer, network = self._loaded
        ids = torch.tensor([tokenizer.encode(caption).ids])
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            states = network(ids).clone()
        self._cache[caption] = states
        self._cached_bytes += states.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes
        return states

    @cached_property
    def _files(self) -> ModelFiles:
        return self._models.find(self._part)

    @cached_property
    def _loaded(self) -> tuple[Any, Callable[[Tensor], Tensor]]:
        """The tokenizer and the network."""
        if self._part is CLIP:
            return _tokenizer(self._files, clip.MAX_TOKENS), clip.load_clip(self._files)
        return _tokenizer(self._files, minilm.MAX_TOKENS), minilm.load_minilm(self._files)


def _tokenizer(files: ModelFiles, longest: int) -> Any:  # noqa: ANN401  (tokenizers is untyped)
    try:
        tokenizer = tokenizer_class().from_buffer(files.paths["tokenizer.json"].read_bytes())
    except (OSError, ValueError) as error:
        raise ModelMissingError(f"{files.part.title}: tokenizer.json: {error}") from error
    tokenizer.enable_truncation(longest)
    tokenizer.no_padding()
    return tokenizer


def load_text_encoder(name: str, models: Models | None = None) -> PretrainedText:
    """The encoder called `name`; its weights are read on first use.

    Args:
        name: one of `TEXT_DIMS`.
        models: where weights are found, and which ones are meant; by default any on this machine.

    Raises:
        ConfigError: naming the encoders there are.
    """
    check_text(name)
    part = CLIP if name == CLIP.name else MINILM
    return PretrainedText(part, models if models is not None else Models())


def check_text(name: str) -> None:
    """Refuse a text encoder this program does not have.

    Raises:
        ConfigError: naming the ones it has.
    """
    if name not in TEXT_DIMS:
        raise ConfigError(f"unknown text encoder {name!r}; known: {', '.join(TEXT_DIMS)}")
