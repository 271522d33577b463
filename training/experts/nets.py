"""Nets of experts: diffusers' PixArt transformer, built from a preset's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from training.config import LatentShape, preset
from training.parts.libraries import pixart_class
from training.parts.text import TEXT_DIMS, TextStates, check_text
from training.tensors import TensorSpec, spec_of

TIME_SCALE: Final = 1000.0
"""The nets' time embedding was made for integer steps 0..1000."""


@dataclass(frozen=True, slots=True)
class NetShape:
    """What fixes every tensor of an expert: preset name, latent shape, text encoder name."""

    preset: str
    latent: LatentShape
    text: str

    def config(self) -> dict[str, object]:
        """The net's configuration, as diffusers takes it.

        Raises:
            ConfigError: for an unknown name, or a latent that does not fit the preset.
        """
        check_text(self.text)
        return preset(self.preset).net_config(self.latent, TEXT_DIMS[self.text])

    def schema(self) -> dict[str, TensorSpec]:
        """Names, dtypes and shapes of the weights, without allocating them."""
        return dict(_schema(self))

    def parameters(self) -> int:
        """Number of trained numbers."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in _construct(self).parameters())


def build_net(shape: NetShape, seed: int) -> nn.Module:
    """A fresh net in float32; the same seed gives the same weights on one machine.

    `proj_out` starts at zero (diffusers leaves it random): the first prediction is zero, not noise.

    Raises:
        ConfigError: for an unknown name, or a latent that does not fit the preset.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _construct(shape)
    nn.init.zeros_(net.proj_out.weight)  # type: ignore[arg-type, union-attr]
    nn.init.zeros_(net.proj_out.bias)  # type: ignore[arg-type, union-attr]
    return net


def predict(net: nn.Module, x: Tensor, time: Tensor, text: TextStates) -> Tensor:
    """The raw output of a net.

    Args:
        net: a PixArt transformer.
        x: [B, C, H, W].
        time: [B] in 0..1.
        text: [B, L, D] states and [B, L] mask.

    Returns:
        [B, C, H, W]: a velocity or a noise, as the net was trained.
    """
    output: Tensor = net(
        x,
        encoder_hidden_states=text.states,
        encoder_attention_mask=text.mask,
        timestep=time * TIME_SCALE,
        return_dict=False,
    )[0]
    return output


@cache
def _schema(shape: NetShape) -> Mapping[str, TensorSpec]:
    with torch.device("meta"):
        net = _construct(shape)
    return {name: spec_of(tensor) for name, tensor in net.state_dict().items()}


def _construct(shape: NetShape) -> nn.Module:
    net: nn.Module = pixart_class()(**shape.config())
    return net
