"""Pictures as pretrained image networks want them: colour, 224 pixels a side, centred."""

from collections.abc import Callable
from typing import Final, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

SIDE: Final = 224
Network: TypeAlias = Callable[[Tensor], Tensor]
PIXELS: Final = 3 * SIDE * SIDE
"""Numbers such a network reads per picture."""


def network_input(images: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """Resize with a bicubic filter and normalise; nothing is cropped.

    Args:
        images: uint8 [N, C, S, S]; grey ones become colour.
        mean: of each channel, in 0..255.
        deviation: of each channel, in 0..255.

    Returns:
        float32 [N, 3, 224, 224].

    Raises:
        ValueError: if these are not pictures.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"expected uint8 pictures [N, 1 or 3, H, W], got {images.dtype} {tuple(images.shape)}"
        )
    pixels = images.float().expand(-1, 3, -1, -1)
    if pixels.shape[-2:] != (SIDE, SIDE):
        resized = functional.interpolate(
            pixels, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True
        )
        pixels = resized.clamp(0, 255)
    centre = torch.tensor(mean, device=pixels.device).reshape(1, 3, 1, 1)
    spread = torch.tensor(deviation, device=pixels.device).reshape(1, 3, 1, 1)
    return (pixels - centre) / spread


@torch.no_grad()
def features_of(images: Tensor, blocks_of: int, width: int, network: Network) -> Tensor:
    """A network's features of many pictures, a block at a time, in float32 whatever the context.

    Args:
        images: uint8 [N, C, S, S].
        blocks_of: pictures at once.
        width: D, of the features.
        network: pictures uint8 [n, C, S, S] -> features [n, D].

    Returns:
        [N, D]; N may be 0.
    """
    if not len(images):
        return torch.empty(0, width)
    with torch.autocast(images.device.type, enabled=False):
        return torch.cat([network(block) for block in torch.split(images, blocks_of)])
