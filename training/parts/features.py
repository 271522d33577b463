"""What clustering looks at: a short vector per picture, found without labels or captions.

`pixel-pca` is fitted on the run's own pictures and stored with the run; the others are pretrained
networks that every node brings itself.
"""

from collections.abc import Mapping
from typing import Final, Protocol

from torch import Tensor

from training.config import RunSpec
from training.errors import ConfigError
from training.parts.dinov2 import Dinov2
from training.parts.efficientnet import EfficientNetLite0
from training.parts.hub import DINOV2, EFFICIENTNET, Models
from training.parts.network_input import PIXELS
from training.parts.pixel_pca import PixelPca
from training.tensors import TensorSpec

PIXEL_PCA: Final = "pixel-pca"
EXTRACTORS: Final = (PIXEL_PCA, EFFICIENTNET.name, DINOV2.name)


class Extractor(Protocol):
    """What the rest of the package needs of an extractor."""

    @property
    def dim(self) -> int:
        """Numbers per feature vector."""
        ...

    @property
    def pixels(self) -> int:
        """Numbers it reads per picture, after its own resizing."""
        ...

    @property
    def pins(self) -> Mapping[str, str]:
        """sha256 of the pretrained files it is made of, as `run.json` records them."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """What the run's shared folder holds of it, beside the centroids."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, S, S] -> float32 features [N, dim]."""
        ...


def extractor_is_fitted(name: str) -> bool:
    """Whether the extractor called `name` is fitted on a sample of the run's pictures."""
    return name == PIXEL_PCA


def create_extractor(spec: RunSpec, sample: Tensor, models: Models) -> Extractor:
    """The extractor of a new run.

    Args:
        spec: of the run.
        sample: uint8 [N, C, S, S], pictures to fit it on; looked at only if `extractor_is_fitted`.
        models: where pretrained weights are found.

    Raises:
        ConfigError: an unknown name.
        ModelMissingError: pretrained weights that are not to be had.
    """
    if spec.extractor == PIXEL_PCA:
        return PixelPca.fit(sample)
    return _pretrained(spec.extractor, models)


def stored_schema(name: str, features: int, pixels: int) -> dict[str, TensorSpec]:
    """What the shared folder holds of the extractor called `name`, beside the centroids."""
    if name != PIXEL_PCA:
        return {}
    return {
        "mean": TensorSpec("F32", (pixels,)),
        "directions": TensorSpec("F32", (features, pixels)),
    }


def open_extractor(name: str, stored: Mapping[str, Tensor], models: Models) -> Extractor:
    """The extractor of a run that exists.

    Args:
        name: which.
        stored: the tensors of `stored_schema`.
        models: where pretrained weights are found, and their pins.

    Raises:
        ConfigError: an unknown name.
        ModelMissingError: pretrained weights that are not to be had, or others than the run's.
    """
    if name == PIXEL_PCA:
        return PixelPca(stored["mean"], stored["directions"])
    return _pretrained(name, models)


def pixels_read(name: str, image_size: int, image_channels: int) -> int:
    """Numbers the extractor called `name` reads of a picture of this size."""
    if name != PIXEL_PCA:
        return PIXELS
    return PixelPca.pixels_of(image_size, image_channels)


def check_extractor(name: str) -> None:
    """Refuse an extractor this program does not have.

    Raises:
        ConfigError: naming the ones it has.
    """
    if name not in EXTRACTORS:
        raise ConfigError(f"unknown extractor {name!r}; known: {', '.join(EXTRACTORS)}")


def _pretrained(name: str, models: Models) -> Extractor:
    check_extractor(name)
    return EfficientNetLite0(models) if name == EFFICIENTNET.name else Dinov2(models)
