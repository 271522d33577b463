"""What is known of adapters without torch: which layers they change, and their files' names.

A node that makes or checks an offer compares names and shapes; only training builds a net.
"""

from dataclasses import dataclass
from typing import Final

from training.config import preset
from training.errors import ConfigError

SELF_ATTENTION: Final = "attn1"
CROSS_ATTENTION: Final = "attn2"
ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD: Final = ("ff.net.0.proj", "ff.net.2")
TARGETS: Final = {"attention": ATTENTION, "attention+ff": (*ATTENTION, *FEED_FORWARD)}
"""What may be adapted, by name: the ends of the layers' names (self- and cross-attention alike)."""

FEED_FORWARD_WIDTH: Final = 4
"""Inner features of a block's feed-forward part, in widths of the net."""

PROBE_WEIGHTS_FILE: Final = "probe.safetensors"
PROBE_FILE: Final = "probe.json"
PROBE_FILES: Final = (PROBE_WEIGHTS_FILE, PROBE_FILE)
"""A probe batch, in a folder of its own or beside the adapter it was held out from."""


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """One adapted layer: its name in the net and its numbers of inputs and outputs."""

    name: str
    in_features: int
    out_features: int

    def __str__(self) -> str:
        return f"{self.name} ({self.in_features} to {self.out_features})"


def adaptable_layers(preset_name: str, targets: str) -> tuple[ModuleShape, ...]:
    """The layers that an adapter of an expert changes, in the net's order.

    The same as `training.lora.modules.AdapterShape.modules`, which asks the net itself.

    Args:
        preset_name: of the expert's net, a name of `training.config.PRESETS`.
        targets: a name of `TARGETS`.

    Raises:
        ConfigError: an unknown name.
    """
    check_targets(targets)
    found, width = preset(preset_name), preset(preset_name).width
    inner = FEED_FORWARD_WIDTH * width
    block = [
        (f"{part}.{end}", width, width)
        for part in (SELF_ATTENTION, CROSS_ATTENTION)
        for end in ATTENTION
    ]
    if targets != "attention":
        block += [(FEED_FORWARD[0], width, inner), (FEED_FORWARD[1], inner, width)]
    return tuple(
        ModuleShape(f"transformer_blocks.{layer}.{name}", inputs, outputs)
        for layer in range(found.layers)
        for name, inputs, outputs in block
    )


def check_targets(targets: str) -> None:
    """Refuse a name that is not one of `TARGETS`.

    Raises:
        ConfigError: naming those there are.
    """
    if targets not in TARGETS:
        known = ", ".join(TARGETS)
        raise ConfigError(f"unknown LoRA targets {targets!r:.40}; known: {known}")
