"""The extractor `dinov2-vitl14`: what Paris clusters by; 300 million numbers, 1024 features.

transformers' `Dinov2Model` with the weights of facebook/dinov2-large.  The features are the class
token of the last layer, after the final normalisation.  Source: arXiv 2304.07193, section 7.1.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

from torch import Tensor

from training.errors import ModelMissingError
from training.parts.hub import DINOV2, ModelFiles, Models
from training.parts.libraries import dinov2_classes
from training.parts.network_input import PIXELS, features_of, network_input
from training.parts.weights import Naming, build_frozen, read_settings

MEAN: Final = (123.675, 116.28, 103.53)
DEVIATION: Final = (58.395, 57.12, 57.375)
"""Of ImageNet's pictures, which the network was trained with."""

BLOCK: Final = 16
MAX_WIDTH: Final = 4096
_SETTINGS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "hidden_act": str,
    "hidden_size": int,
    "image_size": int,
    "layer_norm_eps": float,
    "layerscale_value": (float, int),
    "mlp_ratio": (float, int),
    "num_attention_heads": int,
    "num_channels": int,
    "num_hidden_layers": int,
    "patch_size": int,
    "qkv_bias": bool,
    "use_swiglu_ffn": bool,
}
_NAMING: Final = Naming(
    # transformers renamed the attention's parts after these weights were published.
    renames=(
        (r"attention\.attention\.query\.", "attention.q_proj."),
        (r"attention\.attention\.key\.", "attention.k_proj."),
        (r"attention\.attention\.value\.", "attention.v_proj."),
        (r"attention\.output\.dense\.", "attention.o_proj."),
    )
)


class Dinov2:
    """Pictures to features [N, 1024]. Its weights are read on first use.

    Args:
        models: where the weights are, and which ones are meant.

    Raises:
        ModelMissingError: if the files are not to be had, or are others.
    """

    pixels = PIXELS

    def __init__(self, models: Models) -> None:
        self._files: ModelFiles = models.find(DINOV2)
        self._settings = read_settings(self._files, _SETTINGS)
        if not 0 < self._settings.get("hidden_size", 0) <= MAX_WIDTH:
            raise ModelMissingError(
                f"{DINOV2.title}: config.json: hidden_size is "
                f"{self._settings.get('hidden_size')}, expected 1 to {MAX_WIDTH}"
            )

    @property
    def dim(self) -> int:
        """1024 for the published network."""
        width: int = self._settings["hidden_size"]
        return width

    @property
    def pins(self) -> Mapping[str, str]:
        """sha256 of its files, by name."""
        return self._files.pins

    def tensors(self) -> Mapping[str, Tensor]:
        """Nothing of it is stored with the run."""
        return {}

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, S, S] -> float32 features [N, 1024]."""
        return features_of(images, BLOCK, self.dim, self._features)

    def _features(self, block: Tensor) -> Tensor:
        pixels = network_input(block, MEAN, DEVIATION)
        found: Tensor = self._net.to(pixels.device)(pixel_values=pixels).last_hidden_state[:, 0]
        return found

    @cached_property
    def _net(self) -> Any:  # noqa: ANN401  (transformers is untyped)
        config, network = dinov2_classes()
        return build_frozen(
            lambda: network(config(**self._settings)), self._files, "model.safetensors", _NAMING
        )
