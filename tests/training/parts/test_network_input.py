import numpy as np
import pytest
import torch
from PIL import Image

from training.parts.network_input import SIDE, network_input

MEAN, DEVIATION = (127.0,) * 3, (128.0,) * 3


@pytest.mark.parametrize("side", [64, 500])
def test_resizing_is_pillows_bicubic(side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(80, 176, (3, side, side), generator=generator).byte()
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    expected = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float()
    found = network_input(image[None], MEAN, DEVIATION)[0] * 128 + 127
    assert float((found - expected).abs().max()) <= 1.5  # Pillow rounds after each direction


def test_pictures_of_the_right_size_are_only_normalised() -> None:
    image = torch.full((2, 1, SIDE, SIDE), 255, dtype=torch.uint8)
    found = network_input(image, (127.0, 128.0, 255.0), (128.0, 64.0, 1.0))
    assert found.shape == (2, 3, SIDE, SIDE)
    assert found[0, :, 0, 0].tolist() == [1.0, 127 / 64, 0.0]


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 2, 8, 8)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected uint8 pictures"):
        network_input(torch.zeros(shape, dtype=torch.uint8), MEAN, DEVIATION)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        network_input(torch.zeros(1, 3, 8, 8), MEAN, DEVIATION)
