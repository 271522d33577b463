"""Which arithmetic a machine trains in, and why: a pure choice from what is known of its device."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from training.experts.gradients import BF16, FP32

WORTH_WIDTH: Final = 384
"""bf16's speed against fp32's, one training step on one thread of a Xeon with amx_bf16: tiny-cpu
(128 wide) 0.65, S/2 (384) 1.6, B/2 (768) 2.2.  Timing a layer at the start instead chose now one,
now the other."""
_CPU_FLAG: Final = "amx_bf16"
"""As Linux names it: a matrix unit.  avx512_bf16 alone has not been measured."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What decides about the arithmetic.

    Args:
        kind: "cpu", "cuda" or "mps".
        name: for people.
        has_bf16: it computes bf16 in hardware.
    """

    kind: str
    name: str
    has_bf16: bool


@dataclass(frozen=True, slots=True)
class Precision:
    """`FP32` or `BF16`, with the reason as a sentence."""

    name: str
    reason: str


def choose_precision(wanted: str, facts: DeviceFacts, width: int) -> Precision:
    """The arithmetic to train in.

    Args:
        wanted: "auto", or what to use whatever the device.
        facts: about the device.
        width: of the net's layers: on a CPU narrow ones lose by bf16.
    """
    if wanted != "auto":
        slow = "" if facts.has_bf16 or wanted == FP32 else f", though {facts.name} only imitates it"
        return Precision(wanted, f"{wanted} as set{slow}")
    if facts.kind not in ("cuda", "cpu"):
        return Precision(FP32, f"fp32 because bf16 is not tried on {facts.kind}")
    if not facts.has_bf16:
        return Precision(FP32, f"fp32 because {facts.name} has no bf16 in hardware")
    if facts.kind == "cpu" and width < WORTH_WIDTH:
        return Precision(FP32, f"fp32 because layers {width} wide are faster in it on a CPU")
    return Precision(BF16, f"bf16 because {facts.name} computes it in hardware")


def describe_device(device: torch.device) -> DeviceFacts:
    """What there is to know about a device."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return DeviceFacts("cuda", torch.cuda.get_device_name(device), has_bf16)
    if device.type != "cpu":
        return DeviceFacts(device.type, device.type, has_bf16=False)
    return DeviceFacts("cpu", *cpu_facts(_cpu_info()))


def cpu_facts(info: str) -> tuple[str, bool]:
    """Name of a CPU and whether it has a matrix unit for bf16, from Linux' description of it."""
    name, flags = "this CPU", set()
    for line in info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip() or name
        if key.strip() == "flags":
            flags |= set(value.split())
    return name, _CPU_FLAG in flags


def _cpu_info() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if platform.system() == "Linux" and path.exists() else ""
