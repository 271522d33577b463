import io

import pytest
import torch
from PIL import Image
from torch import Tensor

from training.drawing.pictures import CAPTION_WIDTH, MARGIN, caption_grid, encode_png, to_image


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return image


def random_picture(channels: int, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(0, 256, (channels, side, side), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_png_keeps_every_pixel(channels: int, mode: str) -> None:
    picture = random_picture(channels)
    image = opened(encode_png(picture))
    assert (image.mode, image.size) == (mode, (8, 8))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    assert torch.equal(pixels.reshape(8, 8, channels).permute(2, 0, 1), picture)


def test_png_is_deterministic_and_can_be_enlarged() -> None:
    assert encode_png(random_picture(3)) == encode_png(random_picture(3))
    assert opened(encode_png(random_picture(3), scale=3)).size == (24, 24)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(1, 4, 4),
        torch.zeros(2, 4, 4, dtype=torch.uint8),
        torch.zeros(4, 4, dtype=torch.uint8),
    ],
)
def test_other_tensors_are_no_pictures(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        to_image(wrong)


def test_grid_has_a_row_per_caption_with_ink_left_of_its_pictures() -> None:
    black = torch.zeros(2, 1, 10, 10, dtype=torch.uint8)
    image = opened(caption_grid([("a bag", black), ("a very long caption " * 9, black[:1])], 3))
    pitch = 30 + MARGIN
    assert image.size == (CAPTION_WIDTH + 2 * pitch + MARGIN, 2 * pitch + MARGIN)
    pixels = torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8)
    pixels = pixels.reshape(image.height, image.width)
    for row in range(2):
        band = pixels[row * pitch : (row + 1) * pitch]
        assert int(band[:, :CAPTION_WIDTH].min()) < 100
    assert int(pixels[:, CAPTION_WIDTH - MARGIN : CAPTION_WIDTH].min()) == 255
    assert int(pixels[MARGIN + 15, CAPTION_WIDTH + pitch + 15]) == 0
    assert int(pixels[MARGIN + pitch + 15, CAPTION_WIDTH + pitch + 15]) == 255


def test_grid_shows_colour() -> None:
    red = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    red[:, 0] = 255
    image = opened(caption_grid([("red", red)], 1))
    assert image.getpixel((CAPTION_WIDTH + 4, MARGIN + 4)) == (255, 0, 0)


def test_grid_of_nothing_or_of_mixed_sizes_is_refused() -> None:
    small = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    for rows in ([], [("a", small[:0])], [("a", small), ("b", small.repeat(1, 1, 2, 2))]):
        with pytest.raises(ValueError, match="one size"):
            caption_grid(rows)
