"""Pictures to latents and back: what a codec is, and the ones there are.

`patch-pca` is fitted on the run's own pictures and stored with the run; `sd-vae-ft-mse` is a
pretrained network that every node brings itself.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from torch import Tensor

from training.config import LatentShape, RunSpec
from training.errors import ConfigError
from training.parts.hub import SD_VAE, Models
from training.parts.patch_pca import PatchPca
from training.parts.sd_vae import SdVae

PATCH_PCA: Final = "patch-pca"
CODECS: Final = (PATCH_PCA, SD_VAE.name)


class Codec(Protocol):
    """What the rest of the package needs of a codec."""

    @property
    def latent(self) -> LatentShape:
        """Channels, height, width of its latents."""
        ...

    @property
    def digest(self) -> str:
        """Two codecs with one digest are the same codec."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> float32 latents [B, *latent], about unit variance."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, *latent] -> float32 pictures [B, C, S, S] in 0..1."""
        ...


class NewCodec(Codec, Protocol):
    """What the maker of a run needs of a codec besides."""

    @property
    def pins(self) -> Mapping[str, str]:
        """sha256 of the pretrained files it is made of, as `run.json` records them."""
        ...

    def stored(self) -> bytes:
        """What the run's shared folder holds of it; empty if nothing."""
        ...


def codec_is_fitted(name: str) -> bool:
    """Whether the codec called `name` is fitted on a sample of the run's pictures."""
    return name == PATCH_PCA


def create_codec(spec: RunSpec, sample: Tensor, models: Models) -> NewCodec:
    """The codec of a new run.

    Args:
        spec: of the run.
        sample: uint8 [N, C, S, S], pictures to fit it on; looked at only if `codec_is_fitted`.
        models: where pretrained weights are found.

    Raises:
        ConfigError: an unknown name, or a picture side that does not divide.
        ModelMissingError: pretrained weights that are not to be had.
    """
    check_codec(spec.codec)
    if spec.codec == PATCH_PCA:
        return PatchPca.fit(sample)
    return SdVae(spec.image_size, spec.image_channels, models)


def open_codec(spec: RunSpec, stored: Path, models: Models) -> NewCodec:
    """The codec of a run that exists.

    Args:
        spec: of the run.
        stored: its file in the shared folder, if the codec has one.
        models: where pretrained weights are found, and their pins.

    Raises:
        ConfigError: an unknown name, or a picture side that does not divide.
        ModelMissingError: pretrained weights that are not to be had, or others than the run's.
        TensorFileError: the stored file is not this codec.
    """
    check_codec(spec.codec)
    if spec.codec == PATCH_PCA:
        return PatchPca.load(stored, spec.image_size, spec.image_channels)
    return SdVae(spec.image_size, spec.image_channels, models)


def check_codec(name: str) -> None:
    """Refuse a codec this program does not have.

    Raises:
        ConfigError: naming the ones it has.
    """
    if name not in CODECS:
        raise ConfigError(f"unknown codec {name!r}; known: {', '.join(CODECS)}")
