"""The codec `patch-pca`: closed form, fitted on the run's own pictures, stored with the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from training.config import LatentShape
from training.errors import ConfigError
from training.parts.linear import principal_components
from training.tensors import TensorSpec, pack_tensors, read_tensors

PATCH: Final = 8
"""Pixels a side of one patch: the reduction of the usual image autoencoders."""

CHANNELS: Final = 16
NOISE_STD: Final = 0.1
"""The decoder is fitted for latents with this much noise: a sampled latent is never exact. On drawn
pictures 0.1 gave the lowest Frechet distance: 12.9, 12.1, 11.7, 12.3, 14.2 for 0.02, 0.05, 0.1,
0.2, 0.3 (bundled run, guidance 3); a decoder that sees the whole grid gave 12.2, random ReLU
features 13.3."""

FIT_ROWS: Final = 20_000
"""Pictures the codec is fitted on, evenly spaced; more changes nothing visible."""

FULL_GRID: Final = 8
"""Up to this grid each position has its own decoder; above, positions share by kind of border."""


@dataclass(frozen=True, slots=True, eq=False)
class PatchPca:
    """Each 8x8 patch becomes 16 numbers; a ridge regression from 3x3 latents paints it back.

    The latents are half-whitened (divided by the square root of their deviation): fully whitened
    ones give the net's loss mostly to detail nobody sees.

    Args:
        image_size: pixels a side.
        image_channels: 1 or 3.
        mean: [P], P = channels * 64, the mean patch, pixels in 0..1.
        basis: [P, 16], patch -> latent.
        decoder: [D, 16 * 9 + 1, P] one matrix per position or per kind of border.
    """

    image_size: int
    image_channels: int
    mean: Tensor
    basis: Tensor
    decoder: Tensor

    @property
    def latent(self) -> LatentShape:
        """16 channels on a grid of patches."""
        return (CHANNELS, self.image_size // PATCH, self.image_size // PATCH)

    @property
    def digest(self) -> str:
        """sha256 of the stored form."""
        return sha256(self.stored()).hexdigest()

    @classmethod
    def fit(cls, images: Tensor) -> "PatchPca":
        """Fit on uint8 pictures [N, C, S, S], S divisible by 8.

        Raises:
            ConfigError: if the side does not divide.
        """
        count, channels, size, _ = images.shape
        _check_size(size)
        chosen = images[:: max(1, count // FIT_ROWS)]
        patches = _patches(chosen)
        rows = patches.flatten(0, 2)
        mean, directions, deviations = principal_components(rows, CHANNELS)
        # Variance of channel c becomes s_c / g; g makes the average variance one.
        shrink = (deviations.clamp_min(1e-4) * deviations.mean().clamp_min(1e-4)).sqrt()
        basis = (directions / shrink[:, None]).T.float()
        latents = _project(patches, mean.float(), basis)
        decoder = _fit_decoder(latents, patches)
        # Stored in half precision; what is stored is what is used, here and everywhere.
        return cls(size, channels, mean.float(), basis, decoder.half().float())

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> float32 [B, 16, S / 8, S / 8]."""
        expected = (self.image_channels, self.image_size, self.image_size)
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"expected uint8 pictures {expected}, got {tuple(images.shape[1:])}")
        latents = [
            _project(_patches(block), self.mean, self.basis) for block in torch.split(images, 1024)
        ]
        return torch.cat(latents) if latents else torch.empty(0, *self.latent)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 16, S / 8, S / 8] -> float32 [B, C, S, S] in 0..1."""
        kinds = _position_kinds(self.latent[1])
        features = _neighbourhoods(latents.float())
        patches = torch.einsum("nijf,ijfp->nijp", features, self.decoder[kinds])
        count, grid = len(latents), self.latent[1]
        tiles = patches.reshape(count, grid, grid, self.image_channels, PATCH, PATCH)
        images = tiles.permute(0, 3, 1, 4, 2, 5)
        shape = (count, self.image_channels, self.image_size, self.image_size)
        return images.reshape(shape).clamp(0, 1)

    @property
    def pins(self) -> Mapping[str, str]:
        """It uses no pretrained file."""
        return {}

    def stored(self) -> bytes:
        """The stored form; `load` reads it back exactly."""
        tensors = {"mean": self.mean, "basis": self.basis, "decoder": self.decoder.half()}
        return pack_tensors(tensors)

    @classmethod
    def load(cls, path: Path, image_size: int, image_channels: int) -> "PatchPca":
        """Read a stored codec.

        Raises:
            TensorFileError: if the file is not a codec for this picture size.
            ConfigError: if the size does not divide.
        """
        _check_size(image_size)
        pixels = image_channels * PATCH * PATCH
        kinds = int(_position_kinds(image_size // PATCH).max()) + 1
        schema = {
            "mean": TensorSpec("F32", (pixels,)),
            "basis": TensorSpec("F32", (pixels, CHANNELS)),
            "decoder": TensorSpec("F16", (kinds, CHANNELS * 9 + 1, pixels)),
        }
        found = read_tensors(path, schema)
        decoder = found["decoder"].float()
        return cls(image_size, image_channels, found["mean"], found["basis"], decoder)


def _check_size(size: int) -> None:
    if size % PATCH:
        raise ConfigError(f"patch-pca needs a picture side divisible by {PATCH}, got {size}")


def _patches(images: Tensor) -> Tensor:
    """uint8 [N, C, S, S] -> float32 [N, g, g, C * 64] in 0..1."""
    count, channels, size, _ = images.shape
    grid = size // PATCH
    tiles = images.reshape(count, channels, grid, PATCH, grid, PATCH).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(count, grid, grid, channels * PATCH * PATCH).float() / 255


def _project(patches: Tensor, mean: Tensor, basis: Tensor) -> Tensor:
    latents: Tensor = (patches - mean) @ basis
    return latents.permute(0, 3, 1, 2).contiguous()


def _neighbourhoods(latents: Tensor) -> Tensor:
    """[N, 16, g, g] -> [N, g, g, 145]: each position's 3x3 latents (zero outside), and 1."""
    count, channels, grid, _ = latents.shape
    unfolded = functional.unfold(latents, kernel_size=3, padding=1)
    features = unfolded.reshape(count, channels * 9, grid, grid).permute(0, 2, 3, 1)
    return torch.cat([features, torch.ones(count, grid, grid, 1)], dim=-1)


def _position_kinds(grid: int) -> Tensor:
    """int64 [g, g]: which decoder paints each position."""
    if grid <= FULL_GRID:
        return torch.arange(grid * grid).reshape(grid, grid)
    line = torch.ones(grid, dtype=torch.int64)
    line[0], line[-1] = 0, 2
    return line[:, None] * 3 + line[None, :]


def _fit_decoder(latents: Tensor, patches: Tensor) -> Tensor:
    """Ridge regression, closed form: least squares when each latent carries noise of NOISE_STD.

    Adding noise of variance s^2 to the inputs of N rows adds N s^2 to the diagonal of their Gram
    matrix (not to the constant's entry).  Source: Bishop 1995, Training with noise is Tikhonov
    regularization.
    """
    grid = patches.shape[1]
    kinds = _position_kinds(grid)
    width, pixels = CHANNELS * 9 + 1, patches.shape[-1]
    decoders = int(kinds.max()) + 1
    gram = torch.zeros(decoders, width, width, dtype=torch.float64)
    target = torch.zeros(decoders, width, pixels, dtype=torch.float64)
    for latent_block, patch_block in zip(
        torch.split(latents, 1024), torch.split(patches, 1024), strict=True
    ):
        features = _neighbourhoods(latent_block).double()
        wanted = patch_block.double()
        for kind in range(decoders):
            chosen = kinds == kind
            x, y = features[:, chosen].flatten(0, 1), wanted[:, chosen].flatten(0, 1)
            gram[kind] += x.T @ x
            target[kind] += x.T @ y
    rows = gram[:, -1:, -1:]
    noise = torch.eye(width, dtype=torch.float64) * NOISE_STD**2
    noise[-1, -1] = 0
    solved: Tensor = torch.linalg.solve(gram + rows * noise, target)
    return solved.float()
