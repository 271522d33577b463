"""Pictures as people see them: PNG bytes, and a grid with a caption before each row.

Takes uint8 pixels; knows nothing about latents or experts.
"""

import io
from collections.abc import Sequence
from typing import Final

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SCALE: Final = 3
"""Upscaling of small pictures, smooth: 32 pixels are a thumbnail nobody can judge."""
MARGIN: Final = 6
FONT_SIZE: Final = 15
CAPTION_WIDTH: Final = 150
MAX_CAPTION_LINES: Final = 4
PAPER: Final = (255, 255, 255)
INK: Final = (20, 20, 20)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def to_image(picture: Tensor) -> Image.Image:
    """A Pillow image of uint8 [C, H, W], C 1 (grey) or 3 (RGB).

    Raises:
        ValueError: for another type or shape.
    """
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] not in (1, 3):
        raise ValueError(
            f"picture: got {picture.dtype} {tuple(picture.shape)}, expected uint8 [1 or 3, H, W]"
        )
    pixels = picture.permute(1, 2, 0).contiguous().cpu()
    height, width, channels = pixels.shape
    mode = "L" if channels == 1 else "RGB"
    return Image.frombytes(mode, (width, height), pixels.numpy().tobytes())


def encode_png(picture: Tensor, scale: int = 1) -> bytes:
    """PNG bytes of uint8 [C, H, W], enlarged `scale` times: the same pixels give the same bytes."""
    return _png(_enlarge(to_image(picture), scale))


def caption_grid(rows: Sequence[tuple[str, Tensor]], scale: int = SCALE) -> bytes:
    """PNG bytes of a grid: one row per caption, the caption at the left.

    Args:
        rows: (caption, pictures uint8 [N, C, H, W]); rows may differ in length, not in H and W.
        scale: how often each picture is enlarged.

    Raises:
        ValueError: if there is no picture at all, or sizes differ.
    """
    sizes = {tuple(pictures.shape[-2:]) for _, pictures in rows if len(pictures)}
    if len(sizes) != 1:
        raise ValueError(f"a grid needs pictures of one size, got {sorted(sizes)}")
    height, width = (side * scale for side in sizes.pop())
    longest = max(len(pictures) for _, pictures in rows)
    font = ImageFont.load_default(FONT_SIZE)
    grid_width = CAPTION_WIDTH + longest * (width + MARGIN) + MARGIN
    grid_height = len(rows) * (height + MARGIN) + MARGIN
    grid = Image.new("RGB", (grid_width, grid_height), PAPER)
    pen = ImageDraw.Draw(grid)
    for index, (caption, pictures) in enumerate(rows):
        top = MARGIN + index * (height + MARGIN)
        lines = "\n".join(_wrap(caption, font, CAPTION_WIDTH - 2 * MARGIN))
        pen.multiline_text((MARGIN, top + height // 2), lines, fill=INK, font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            left = CAPTION_WIDTH + column * (width + MARGIN)
            grid.paste(_enlarge(to_image(picture), scale), (left, top))
    return _png(grid)


def _enlarge(image: Image.Image, scale: int) -> Image.Image:
    size = (image.width * scale, image.height * scale)
    return image if scale == 1 else image.resize(size, Image.Resampling.BICUBIC)


def _wrap(caption: str, font: Font, width: int) -> list[str]:
    """Lines of at most `width` pixels, and at most `MAX_CAPTION_LINES` of them."""
    lines: list[str] = []
    for word in caption.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > MAX_CAPTION_LINES:
        lines = [*lines[: MAX_CAPTION_LINES - 1], lines[MAX_CAPTION_LINES - 1] + " …"]
    return lines


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()
