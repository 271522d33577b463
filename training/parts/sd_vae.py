"""The codec `sd-vae-ft-mse`: Stable Diffusion's autoencoder, 8 pixels a side to 4 numbers.

diffusers' `AutoencoderKL` with the weights of stabilityai/sd-vae-ft-mse.  A picture's latent is the
mean of the posterior times 0.18215, as in Paris (arXiv 2510.03434) and DiT: no random draw, so the
same picture gives the same latent everywhere.  Always float32, whatever mode the caller is in.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from training.config import LatentShape
from training.errors import ConfigError, ModelMissingError
from training.parts.hub import SD_VAE, ModelFiles, Models, part_digest
from training.parts.libraries import autoencoder_class
from training.parts.weights import Naming, build_frozen, read_settings

REDUCTION: Final = 8
CHANNELS: Final = 4
SCALE: Final = 0.18215
"""Brings latents to about unit variance.  Source: arXiv 2112.10752, appendix G, for this model."""

TILE: Final = 512
"""Pictures of a larger side go through in overlapping tiles of this side: 1024 pixels at once need
over 8 GB.  Part of what a latent is: tiles are blended, so it must be the same everywhere."""

BLOCK_PIXELS: Final = 4 * 256 * 256
"""Pixels that go through together: about 1 GB of activations."""

_WEIGHTS: Final = "diffusion_pytorch_model.safetensors"
_SETTINGS: Final = {
    "act_fn": str,
    "block_out_channels": list,
    "down_block_types": list,
    "in_channels": int,
    "latent_channels": int,
    "layers_per_block": int,
    "norm_num_groups": int,
    "out_channels": int,
    "scaling_factor": float,
    "up_block_types": list,
}
_NAMING: Final = Naming(
    # The published file is older than diffusers' own attention layer.
    renames=(
        (r"\.query\.", ".to_q."),
        (r"\.key\.", ".to_k."),
        (r"\.value\.", ".to_v."),
        (r"\.proj_attn\.", ".to_out.0."),
    )
)


class SdVae:
    """Pictures <-> latents [4, S / 8, S / 8]. Its weights are read on first use.

    Args:
        image_size: pixels a side, divisible by 8.
        image_channels: 1 or 3; grey pictures are encoded as colour and averaged when decoded.
        models: where the weights are, and which ones are meant.

    Raises:
        ConfigError: if the side does not divide.
        ModelMissingError: if the files are not to be had, or are others.
    """

    def __init__(self, image_size: int, image_channels: int, models: Models) -> None:
        if image_size % REDUCTION:
            raise ConfigError(
                f"{SD_VAE.name} needs a picture side divisible by {REDUCTION}, got {image_size}"
            )
        self._size, self._channels = image_size, image_channels
        self._files: ModelFiles = models.find(SD_VAE)

    @property
    def latent(self) -> LatentShape:
        """4 channels on a grid of 8x8 pixels."""
        return (CHANNELS, self._size // REDUCTION, self._size // REDUCTION)

    @property
    def pins(self) -> Mapping[str, str]:
        """sha256 of its files, by name."""
        return self._files.pins

    @property
    def digest(self) -> str:
        """sha256 over `pins`."""
        return part_digest(SD_VAE.name, self.pins)

    def stored(self) -> bytes:
        """Nothing of it is stored with the run."""
        return b""

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> float32 [B, 4, S / 8, S / 8], about unit variance.

        Raises:
            ModelMissingError: if the weights are not those of this network.
            ValueError: for pictures of another shape or type.
        """
        expected = (self._channels, self._size, self._size)
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"expected uint8 pictures {expected}, got {images.dtype} {tuple(images.shape[1:])}"
            )
        if not len(images):
            return torch.empty(0, *self.latent)
        return torch.cat([self._encode(block) for block in torch.split(images, self._block)])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """[B, 4, S / 8, S / 8] -> float32 [B, C, S, S] in 0..1.

        Raises:
            ModelMissingError: if the weights are not those of this network.
        """
        if not len(latents):
            return torch.empty(0, self._channels, self._size, self._size)
        blocks = torch.split(latents.float(), self._block)
        return torch.cat([self._decode(block) for block in blocks])

    @property
    def _block(self) -> int:
        return max(1, BLOCK_PIXELS // self._size**2)

    def _encode(self, images: Tensor) -> Tensor:
        pixels = images.float().expand(-1, 3, -1, -1) / 127.5 - 1
        with torch.autocast(pixels.device.type, enabled=False):
            mode: Tensor = self._net.to(pixels.device).encode(pixels).latent_dist.mode()
        return mode * SCALE

    def _decode(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            pixels: Tensor = self._net.to(latents.device).decode(latents / SCALE).sample
        images = (pixels / 2 + 0.5).clamp(0, 1)
        return images if self._channels == 3 else images.mean(1, keepdim=True)

    @cached_property
    def _net(self) -> Any:  # noqa: ANN401  (diffusers is untyped)
        settings = read_settings(self._files, _SETTINGS)
        _check(settings)
        construct = autoencoder_class()
        net: Any = build_frozen(lambda: construct(**settings), self._files, _WEIGHTS, _NAMING)
        net.enable_tiling()
        net.tile_sample_min_size = TILE
        net.tile_latent_min_size = TILE // REDUCTION
        return net


def _check(settings: Mapping[str, Any]) -> None:
    """Refuse an autoencoder of another kind; absent settings take diffusers' defaults."""
    facts = (
        ("latent_channels", settings.get("latent_channels", CHANNELS), CHANNELS),
        ("in_channels", settings.get("in_channels", 3), 3),
        ("out_channels", settings.get("out_channels", 3), 3),
        ("scaling_factor", settings.get("scaling_factor", SCALE), SCALE),
        ("levels", len(settings.get("block_out_channels", ())), 4),
    )
    for name, got, expected in facts:
        if got != expected:
            raise ModelMissingError(
                f"{SD_VAE.title}: config.json: {name} is {got}, expected {expected}: "
                "this is another autoencoder"
            )
