"""Loading transformers and diffusers without their noise and without the network.

Both are imported only when a model is built: together they cost seconds. Their warnings concern
optional parts that this package does not use.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@contextmanager
def _offline_and_quiet() -> Iterator[None]:
    """No look-ups on the net, no progress bars, no advice on standard error."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
def bert_classes() -> tuple[Any, Any, Any]:
    """The classes `BertConfig` and `BertModel` of transformers, and the tokenizer's."""
    with _offline_and_quiet():
        from tokenizers import Tokenizer  # noqa: PLC0415
        from transformers.models.bert.configuration_bert import BertConfig  # noqa: PLC0415
        from transformers.models.bert.modeling_bert import BertModel  # noqa: PLC0415

        logging.getLogger("transformers").setLevel(logging.ERROR)
        return BertConfig, BertModel, Tokenizer


@cache
def accelerator_class() -> Any:  # noqa: ANN401
    """The class `Accelerator` of accelerate."""
    with _offline_and_quiet():
        from accelerate import Accelerator  # noqa: PLC0415

        return Accelerator
