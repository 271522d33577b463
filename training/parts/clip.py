"""The text encoder `clip-vit-l14`: the text half of openai/clip-vit-large-patch14, as in Paris.

A caption is its own tokens, from start to end, at most 77; it is not padded.  CLIP's text half
looks only backwards, so these states equal those of the same caption padded to 77, and an expert
that masks padding out (PixArt's convention, and this package's) sees no difference.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from training.errors import ConfigError, ModelMissingError
from training.jsonio import read_json
from training.parts.hub import CLIP, ModelFiles
from training.parts.libraries import clip_text_classes
from training.parts.weights import Naming, build_frozen, chosen_settings

WIDTH: Final = 768
MAX_TOKENS: Final = 77
_SETTINGS: Final = {
    "eos_token_id": int,
    "hidden_act": str,
    "hidden_size": int,
    "intermediate_size": int,
    "layer_norm_eps": float,
    "max_position_embeddings": int,
    "num_attention_heads": int,
    "num_hidden_layers": int,
    "vocab_size": int,
}
_NAMING: Final = Naming(
    # Newer versions of transformers have dropped the outer name.
    renames=((r"^text_model\.(?!embeddings\.position_ids$)", ""),),
    # The published file holds both halves of CLIP; older ones also an index.
    unread=(
        "logit_scale",
        "text_projection.",
        "text_model.embeddings.position_ids",
        "vision_model.",
        "visual_projection.",
    ),
)


def load_clip(files: ModelFiles) -> Callable[[Tensor], Tensor]:
    """The network as a function: token ids int64 [1, L] -> states float32 [L, 768].

    Raises:
        ModelMissingError: the files are not those of such a network.
    """
    config, network = clip_text_classes()
    settings = _settings(files)
    if (width := settings.get("hidden_size")) != WIDTH:
        raise ModelMissingError(
            f"{CLIP.title}: config.json: hidden_size is {width}, expected {WIDTH}"
        )

    def construct() -> Any:  # noqa: ANN401  (transformers is untyped)
        return network(config(**settings, attn_implementation="eager"))

    net: Any = build_frozen(construct, files, "model.safetensors", _NAMING)

    def states(ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1])[None]
        found: Tensor = net(input_ids=ids, position_ids=positions).last_hidden_state[0]
        return found

    return states


def _settings(files: ModelFiles) -> dict[str, Any]:
    """Of the text half: a part of the whole model's settings, or all of a text encoder's own.

    In the published file the part called `text_config_dict` holds for what both parts name.
    """
    try:
        settings = read_json(files.paths["config.json"])
    except ConfigError as error:
        raise ModelMissingError(f"{CLIP.title}: {error}") from error
    parts = [settings.get(name) for name in ("text_config", "text_config_dict")]
    if any(isinstance(part, dict) for part in parts):
        settings = {key: value for part in parts if isinstance(part, dict)
                    for key, value in part.items()}  # fmt: skip
    return chosen_settings(files, settings, _SETTINGS)
