"""The extractor `efficientnet-lite0`: a network of 4.6 million numbers that comes as a wheel.

EfficientNet-B0 without squeeze-and-excitation and with ReLU6, as Google published it for small
devices (github.com/tensorflow/tpu, models/official/efficientnet/lite); ImageNet top-1 74.8 %.
Source of the blocks: arXiv 1905.11946, table 1.  The features are the mean over positions before
the classifying layer.
"""

import io
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.errors import ModelMissingError
from training.parts.hub import EFFICIENTNET, ModelFiles, Models
from training.parts.network_input import PIXELS, features_of, network_input

WIDTH: Final = 1280
CLASSES: Final = 1000
MEAN: Final = (127.0, 127.0, 127.0)
DEVIATION: Final = (128.0, 128.0, 128.0)
BLOCK: Final = 32
"""Pictures that go through together: about 0.2 GB of activations."""

_STAGES: Final = (
    # kernel, stride, expansion, inputs, outputs, blocks
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)
_NORM_EPSILON: Final = 1e-3


class _SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does: out = ceil(in / stride), the odd pixel last."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        edges = []
        for size in (x.shape[-1], x.shape[-2]):
            missing = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            edges += [missing // 2, missing - missing // 2]
        return super().forward(functional.pad(x, edges) if any(edges) else x)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return _SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=_NORM_EPSILON)


class _Block(nn.Module):
    """Expand, convolve each channel, project; names as the published weights have them."""

    def __init__(self, stage: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        kernel, stride, expansion, inputs, outputs, _ = stage
        middle = inputs * expansion
        self._expands = expansion != 1
        self._adds = stride == 1 and inputs == outputs
        if self._expands:
            self._expand_conv = _conv(inputs, middle, 1)
            self._bn0 = _norm(middle)
        self._depthwise_conv = _conv(middle, middle, kernel, stride, groups=middle)
        self._bn1 = _norm(middle)
        self._project_conv = _conv(middle, outputs, 1)
        self._bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        if self._expands:
            hidden = functional.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = functional.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        result: Tensor = x + hidden if self._adds else hidden
        return result


class EfficientNet(nn.Module):
    """The whole network, with its classifying layer."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _conv(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks = []
        for kernel, stride, expansion, inputs, outputs, repeats in _STAGES:
            blocks.append(_Block((kernel, stride, expansion, inputs, outputs, 1)))
            again = (kernel, 1, expansion, outputs, outputs, 1)
            blocks += [_Block(again) for _ in range(repeats - 1)]
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _conv(320, WIDTH, 1)
        self._bn1 = _norm(WIDTH)
        self._fc = nn.Linear(WIDTH, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """[N, 3, 224, 224] -> [N, 1280], none negative."""
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        found: Tensor = functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 224, 224] -> scores of the 1000 ImageNet classes [N, 1000]."""
        scores: Tensor = self._fc(self.features(x))
        return scores


class EfficientNetLite0:
    """Pictures to features [N, 1280]. Its weights are read on first use.

    Args:
        models: where the weights are, and which ones are meant.

    Raises:
        ModelMissingError: if the file is not to be had, or is another.
    """

    dim = WIDTH
    pixels = PIXELS

    def __init__(self, models: Models) -> None:
        self._files: ModelFiles = models.find(EFFICIENTNET)

    @property
    def pins(self) -> Mapping[str, str]:
        """sha256 of its files, by name."""
        return self._files.pins

    def tensors(self) -> Mapping[str, Tensor]:
        """Nothing of it is stored with the run."""
        return {}

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, S, S] -> float32 features [N, 1280]."""
        return features_of(images, BLOCK, WIDTH, self._features)

    def _features(self, block: Tensor) -> Tensor:
        pixels = network_input(block, MEAN, DEVIATION)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.network.to(pixels.device).features(pixels)

    @cached_property
    def network(self) -> EfficientNet:
        """The network, in evaluation mode; a quarter faster with the channels innermost."""
        with torch.device("meta"):
            net = EfficientNet()
        net.load_state_dict(read_pinned_pickle(self._files), assign=True)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net.eval().requires_grad_(False)


def read_pinned_pickle(files: ModelFiles) -> dict[str, Tensor]:
    """The one place where a pickle is read: the published file has no other form.

    Only bytes whose sha256 is the constant in `parts.hub` are given to torch, and torch is told
    to build nothing but tensors from them.

    Raises:
        ModelMissingError: for any other file.
    """
    (name,) = EFFICIENTNET.files
    data = files.paths[name].read_bytes()
    got, expected = sha256(data).hexdigest(), EFFICIENTNET.known[name]
    if got != expected:
        raise ModelMissingError(
            f"{EFFICIENTNET.title}: {name} was altered: sha256 {got}, expected {expected}"
        )
    weights: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return weights
