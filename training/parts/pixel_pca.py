"""The extractor `pixel-pca`: principal components of small pictures, stored with the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from training.parts.linear import principal_components

SIDE: Final = 32
"""Pictures are averaged down to this side first: clusters are about shape, not texture."""

COMPONENTS: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class PixelPca:
    """Principal components of small pictures.

    Args:
        mean: [P], P = C * side * side, pixels in 0..1.
        directions: [D, P] orthonormal.
    """

    mean: Tensor
    directions: Tensor

    @classmethod
    def fit(cls, images: Tensor) -> "PixelPca":
        """Fit on uint8 pictures [N, C, S, S]."""
        rows = _rows(images)
        count = min(COMPONENTS, rows.shape[1], max(1, len(rows) - 1))
        mean, directions, _ = principal_components(rows, count)
        return cls(mean.float(), directions.float())

    @staticmethod
    def pixels_of(image_size: int, image_channels: int) -> int:
        """Numbers it reads of a picture of this size."""
        return image_channels * min(SIDE, image_size) ** 2

    @property
    def dim(self) -> int:
        """Components kept."""
        return len(self.directions)

    @property
    def pixels(self) -> int:
        """Numbers it reads per picture."""
        return len(self.mean)

    @property
    def pins(self) -> Mapping[str, str]:
        """It uses no pretrained file."""
        return {}

    def tensors(self) -> Mapping[str, Tensor]:
        """What `PixelPca` is built from again."""
        return {"mean": self.mean, "directions": self.directions}

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, S, S] -> float32 features [N, D]."""
        rows = _rows(images)
        if rows.shape[1] != len(self.mean):
            raise ValueError(f"pictures of {rows.shape[1]} numbers, expected {len(self.mean)}")
        return torch.cat(
            [(block - self.mean) @ self.directions.T for block in torch.split(rows, 4096)]
        )


def _rows(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError("expected uint8 pictures [N, C, H, W]")
    blocks = [
        functional.adaptive_avg_pool2d(block.float() / 255, min(SIDE, block.shape[-1])).flatten(1)
        for block in torch.split(images, 4096)
    ]
    return torch.cat(blocks)
