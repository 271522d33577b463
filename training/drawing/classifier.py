"""The judge of a demo's pictures: a small convolutional net trained on real labelled clothes.

It measures, it never teaches: experts, clusters and routers must not see it (a router or clustering
made with the judge's features would flatter every score).  Reads its weights with a strict header
check; knows nothing about latents, prompts or experts.
"""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.sources.bundled import FASHION_CAPTIONS
from training.tensors import pack_tensors, read_tensors, spec_of

CLASSES: Final = FASHION_CAPTIONS
"""Fashion-MNIST's ten labels in their order, as the captions name them."""
GROUP_NAMES: Final = ("tops", "trousers", "dresses", "footwear", "bags")
GROUPS: Final = (0, 1, 0, 2, 0, 3, 0, 3, 4, 3)
"""Group of each class: t-shirt, pullover, coat and shirt are tops; sandal, sneaker and ankle boot
are footwear. Within a group people disagree too; across groups a mistake is plain to see."""
PICTURE_SIZE: Final = 28
FEATURE_SIZE: Final = 64


class PictureClassifier(nn.Module):
    """Three convolutions and two linear layers; 108,402 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1, bias=False),
            nn.BatchNorm2d(48),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(48, 96, 3, padding=1, bias=False),
            nn.BatchNorm2d(96),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.project = nn.Linear(96 * 3 * 3, FEATURE_SIZE)
        self.decide = nn.Linear(FEATURE_SIZE, len(CLASSES))

    def features(self, pictures: Tensor) -> Tensor:
        """Activations before the last layer: [N, 1, 28, 28] in [0, 1] -> [N, 64], all >= 0."""
        projected: Tensor = self.project(self.convolutions(pictures * 2 - 1))
        return functional.relu(projected)

    def forward(self, pictures: Tensor) -> Tensor:
        """Class scores: [N, 1, 28, 28] in [0, 1], dark background -> logits [N, 10]."""
        logits: Tensor = self.decide(self.features(pictures))
        return logits


def pack_classifier(net: PictureClassifier) -> bytes:
    """The weights as they are stored: half precision, without batch counters; 219 KB."""
    return pack_tensors({name: value.half() for name, value in _stored(net).items()})


def load_classifier(path: Path) -> PictureClassifier:
    """The judge from its file, ready to be asked.

    Raises:
        TensorFileError: if the file is not exactly these weights.
    """
    net = PictureClassifier()
    stored = _stored(net)
    loaded = read_tensors(path, {name: spec_of(value.half()) for name, value in stored.items()})
    with torch.no_grad():
        for name, value in stored.items():
            value.copy_(loaded[name])
    return net.eval()


def _stored(net: PictureClassifier) -> dict[str, Tensor]:
    """The tensors of `net` that are kept, sharing its memory."""
    state = net.state_dict()
    return {name: value for name, value in state.items() if value.is_floating_point()}
