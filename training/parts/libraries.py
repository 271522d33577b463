"""Loading transformers, diffusers and peft without their noise and without the network.

They are imported only when a model is built: together they cost seconds. Their warnings concern
optional parts that this package does not use.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

_OFFLINE: Final = "HF_HUB_OFFLINE"
_TRUE: Final = frozenset({"1", "on", "yes", "true"})
"""What the hub's own client takes for yes, in any case."""


def is_offline() -> bool:
    """Whether the user's settings forbid downloads from the Hugging Face hub."""
    return os.environ.get(_OFFLINE, "").strip().lower() in _TRUE


@contextmanager
def _offline_and_quiet() -> Iterator[None]:
    """No look-ups on the net, no progress bars, no advice on standard error.

    The libraries read the environment once, when they are imported: what the user set is put back
    after that, for programs started later and for `is_offline`.
    """
    before = os.environ.get(_OFFLINE)
    os.environ[_OFFLINE] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is None:
            del os.environ[_OFFLINE]
        else:
            os.environ[_OFFLINE] = before


@cache
def pixart_class() -> Any:  # noqa: ANN401  (diffusers is untyped)
    """The class `PixArtTransformer2DModel` of diffusers."""
    with _offline_and_quiet():
        from diffusers.models.transformers.pixart_transformer_2d import (  # noqa: PLC0415
            PixArtTransformer2DModel,
        )

        logging.getLogger("diffusers").setLevel(logging.ERROR)
        return PixArtTransformer2DModel


@cache
def autoencoder_class() -> Any:  # noqa: ANN401
    """The class `AutoencoderKL` of diffusers."""
    with _offline_and_quiet():
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # noqa: PLC0415

        logging.getLogger("diffusers").setLevel(logging.ERROR)
        return AutoencoderKL


@cache
def bert_classes() -> tuple[Any, Any]:
    """The classes `BertConfig` and `BertModel` of transformers."""
    with _offline_and_quiet():
        from transformers.models.bert.configuration_bert import BertConfig  # noqa: PLC0415
        from transformers.models.bert.modeling_bert import BertModel  # noqa: PLC0415

        logging.getLogger("transformers").setLevel(logging.ERROR)
        return BertConfig, BertModel


@cache
def clip_text_classes() -> tuple[Any, Any]:
    """The classes `CLIPTextConfig` and `CLIPTextModel` of transformers."""
    with _offline_and_quiet():
        from transformers.models.clip.configuration_clip import CLIPTextConfig  # noqa: PLC0415
        from transformers.models.clip.modeling_clip import CLIPTextModel  # noqa: PLC0415

        logging.getLogger("transformers").setLevel(logging.ERROR)
        return CLIPTextConfig, CLIPTextModel


@cache
def clip_tokenizer_class() -> Any:  # noqa: ANN401
    """The class `CLIPTokenizer` of transformers."""
    with _offline_and_quiet():
        from transformers.models.clip.tokenization_clip import CLIPTokenizer  # noqa: PLC0415

        logging.getLogger("transformers").setLevel(logging.ERROR)
        return CLIPTokenizer


@cache
def dinov2_classes() -> tuple[Any, Any]:
    """The classes `Dinov2Config` and `Dinov2Model` of transformers."""
    with _offline_and_quiet():
        from transformers.models.dinov2.configuration_dinov2 import Dinov2Config  # noqa: PLC0415
        from transformers.models.dinov2.modeling_dinov2 import Dinov2Model  # noqa: PLC0415

        logging.getLogger("transformers").setLevel(logging.ERROR)
        return Dinov2Config, Dinov2Model


@cache
def tokenizer_class() -> Any:  # noqa: ANN401
    """The class `Tokenizer` of tokenizers."""
    with _offline_and_quiet():
        from tokenizers import Tokenizer  # noqa: PLC0415

        return Tokenizer


@cache
def accelerator_class() -> Any:  # noqa: ANN401
    """The class `Accelerator` of accelerate."""
    with _offline_and_quiet():
        from accelerate import Accelerator  # noqa: PLC0415

        return Accelerator


def cached_hub_file(repository: str, name: str) -> Path | None:
    """A file of a repository's newest snapshot in the local Hugging Face cache, if it is there."""
    with _offline_and_quiet():
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

        found = try_to_load_from_cache(repository, name)
    return Path(found) if isinstance(found, str) else None


@cache
def peft_parts() -> tuple[Any, Any]:
    """The class `LoraConfig` of peft and its function `inject_adapter_in_model`."""
    with _offline_and_quiet():
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415

        return LoraConfig, inject_adapter_in_model
