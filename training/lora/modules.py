"""Which layers of an expert an adapter changes, and putting one on a net without touching it.

A LoRA adds (alpha / r) B A to a frozen layer's weight W [out, in]: A [r, in], B [out, r].
Source: arXiv 2106.09685, section 4.1.  The layers and names are PEFT's; diffusers gives PixArt no
`add_adapter`, so PEFT's `inject_adapter_in_model` is called on the net itself.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from training.errors import ConfigError
from training.experts.nets import NetShape
from training.lora.layers import TARGETS, ModuleShape, check_targets
from training.parts.libraries import peft_parts
from training.tensors import TensorSpec

MAX_RANK: Final = 64
MAX_WEIGHT: Final = 32767 / 4096
"""Adapter entries stay within what 16 bits at 2^-12 can hold; trained ones lie far below 1."""

MAX_SCALE: Final = 16.0
"""Of `scale` and of alpha / rank: beyond it an adapter is noise, or means to be."""

PREFIX: Final = "base_model.model."
"""PEFT puts this before every name in an adapter's file."""

_ADAPTER: Final = "default"


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """What fixes every tensor of an adapter.

    Args:
        net: of the expert it belongs to.
        targets: a name of `TARGETS`.
        rank: 1 to `MAX_RANK`, and no larger than any layer.

    Raises:
        ConfigError: an unknown name, or a rank that is out of range or exceeds a layer.
    """

    net: NetShape
    targets: str
    rank: int

    def __post_init__(self) -> None:
        check_targets(self.targets)
        if not 1 <= self.rank <= MAX_RANK:
            raise ConfigError(f"a LoRA's rank must lie in 1..{MAX_RANK}, got {self.rank}")
        for module in self.modules():
            if self.rank > min(module.in_features, module.out_features):
                raise ConfigError(
                    f"rank {self.rank} exceeds layer {module.name} of {module.in_features} inputs "
                    f"and {module.out_features} outputs: choose a smaller one"
                )

    def modules(self) -> tuple[ModuleShape, ...]:
        """The adapted layers, in the net's order; no weight is allocated."""
        ends = tuple(f".{end}.weight" for end in TARGETS[self.targets])
        return tuple(
            ModuleShape(name.removesuffix(".weight"), spec.shape[1], spec.shape[0])
            for name, spec in self.net.schema().items()
            if name.endswith(ends)
        )

    def schema(self) -> dict[str, TensorSpec]:
        """Names, dtypes and shapes in `adapter_model.safetensors`, as PEFT names them."""
        found: dict[str, TensorSpec] = {}
        for module in self.modules():
            name_a, name_b = weight_names(module)
            found[name_a] = TensorSpec("F32", (self.rank, module.in_features))
            found[name_b] = TensorSpec("F32", (module.out_features, self.rank))
        return found


def fresh_weights(shape: AdapterShape, seed: int) -> dict[str, Tensor]:
    """Weights to begin training with, by their names in the file; the net is unchanged by them.

    A is uniform within 1 / sqrt(in) (PEFT's own start), B is zero. The same seed gives the same
    weights on every machine.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for module in shape.modules():
        name_a, name_b = weight_names(module)
        uniform = torch.rand(shape.rank, module.in_features, generator=generator)
        weights[name_a] = (2 * uniform - 1) / math.sqrt(module.in_features)
        weights[name_b] = torch.zeros(module.out_features, shape.rank)
    return weights


def adapted(
    net: nn.Module, shape: AdapterShape, weights: Mapping[str, Tensor], scaling: float
) -> nn.Module:
    """A net with an adapter on; it shares every weight of `net`, which stays as it was.

    Args:
        net: an expert's net of shape `shape.net`, frozen.
        shape: of the adapter.
        weights: as `AdapterShape.schema` names them; copied.
        scaling: what B A is multiplied by: alpha / rank, times the strength wanted.
    """
    config_class, inject = peft_parts()
    shared = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    twin = copy.deepcopy(net, shared)
    config = config_class(
        r=shape.rank, lora_alpha=shape.rank, target_modules=list(TARGETS[shape.targets])
    )
    result: nn.Module = inject(config, twin, _ADAPTER)
    parameters = adapter_parameters(result, shape)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for module in shape.modules():
        result.get_submodule(module.name).set_scale(_ADAPTER, scaling)  # type: ignore[operator]
    return result


def adapter_parameters(net: nn.Module, shape: AdapterShape) -> dict[str, nn.Parameter]:
    """The adapter's parameters of an `adapted` net, by their names in the file."""
    found: dict[str, nn.Parameter] = {}
    for module in shape.modules():
        for name, part in zip(weight_names(module), ("lora_A", "lora_B"), strict=True):
            found[name] = net.get_parameter(f"{module.name}.{part}.{_ADAPTER}.weight")
    return found


def set_enabled(net: nn.Module, shape: AdapterShape, *, is_on: bool) -> None:
    """Switch the adapter of an `adapted` net; off, the net answers exactly as the base does."""
    for module in shape.modules():
        net.get_submodule(module.name).enable_adapters(is_on)  # type: ignore[operator]


def merged(
    net: nn.Module, shape: AdapterShape, weights: Mapping[str, Tensor], scaling: float
) -> nn.Module:
    """A net of its own whose weights are W + scaling B A: as fast as the base, nothing to switch.

    Equals the `adapted` net up to rounding.
    """
    twin = copy.deepcopy(net)
    for module in shape.modules():
        name_a, name_b = weight_names(module)
        weight = twin.get_parameter(f"{module.name}.weight")
        delta = weights[name_b].double() @ weights[name_a].double() * scaling
        with torch.no_grad():
            weight.copy_((weight.double() + delta.to(weight.device)).to(weight.dtype))
    return twin


def weight_names(module: ModuleShape) -> tuple[str, str]:
    """The names of a layer's A and B in an adapter's file."""
    return f"{PREFIX}{module.name}.lora_A.weight", f"{PREFIX}{module.name}.lora_B.weight"
