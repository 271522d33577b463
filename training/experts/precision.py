"""Which arithmetic a machine trains in, and why: a pure choice from what is known of its device."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch.nn import functional

from training.experts.gradients import BF16, FP32

WORTH: Final = 1.1
"""bf16 must be this much faster on a CPU: it costs digits, and a busy machine's clock wavers."""
_CPU_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""As Linux names them: Intel and AMD, Intel's matrix unit, ARM."""
_ROWS: Final = 512
_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What decides about the arithmetic.

    Args:
        kind: "cpu", "cuda" or "mps".
        name: for people.
        has_bf16: it computes bf16 in hardware.
        bf16_speedup: fp32's time over bf16's for one layer, measured here; None on other devices
            and where there is no bf16.
    """

    kind: str
    name: str
    has_bf16: bool
    bf16_speedup: float | None = None


@dataclass(frozen=True, slots=True)
class Precision:
    """`FP32` or `BF16`, with the reason as a sentence."""

    name: str
    reason: str


def choose_precision(wanted: str, facts: DeviceFacts) -> Precision:
    """The arithmetic to train in.

    Args:
        wanted: "auto", or what to use whatever the device.
        facts: about the device.
    """
    if wanted != "auto":
        slow = "" if facts.has_bf16 or wanted == FP32 else f", though {facts.name} only imitates it"
        return Precision(wanted, f"{wanted} as set{slow}")
    if facts.kind == "cuda":
        if facts.has_bf16:
            return Precision(BF16, f"bf16 because {facts.name} computes it in hardware")
        return Precision(FP32, f"fp32 because {facts.name} has no bf16 in hardware")
    if facts.kind != "cpu":
        return Precision(FP32, f"fp32 because bf16 is not tried on {facts.kind}")
    return _choose_on_cpu(facts)


def _choose_on_cpu(facts: DeviceFacts) -> Precision:
    if not facts.has_bf16 or facts.bf16_speedup is None:
        return Precision(FP32, f"fp32 because {facts.name} has neither avx512_bf16 nor amx_bf16")
    speed = f"bf16 measured {facts.bf16_speedup:.2f}x as fast on {facts.name}"
    if facts.bf16_speedup < WORTH:
        return Precision(FP32, f"fp32 because {speed}")
    return Precision(BF16, f"bf16 because {speed}")


def describe_device(device: torch.device, width: int) -> DeviceFacts:
    """What there is to know about a device; on a CPU that has bf16 it takes a short measurement.

    Args:
        device: where to train.
        width: of the net's layers: small ones gain less.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return DeviceFacts("cuda", torch.cuda.get_device_name(device), has_bf16)
    if device.type != "cpu":
        return DeviceFacts(device.type, device.type, has_bf16=False)
    name, has_bf16 = cpu_facts(_cpu_info())
    return DeviceFacts("cpu", name, has_bf16, bf16_speedup(width) if has_bf16 else None)


def cpu_facts(info: str) -> tuple[str, bool]:
    """Name of a CPU and whether it computes bf16 in hardware, from Linux' description of it."""
    name, flags = "this CPU", set()
    for line in info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip() or name
        if key.strip() in ("flags", "Features"):
            flags |= set(value.split())
    return name, bool(flags & _CPU_FLAGS)


def bf16_speedup(width: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """fp32's time over bf16's for one layer forth and back, the best of some tries each."""
    x = torch.ones(_ROWS, width)
    weight = torch.ones(4 * width, width, requires_grad=True)

    def seconds(*, is_bf16: bool) -> float:
        began = clock()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            out = functional.linear(x, weight)
        torch.autograd.grad(out.float().sum(), weight)
        return clock() - began

    times = [(seconds(is_bf16=False), seconds(is_bf16=True)) for _ in range(_TRIES)]
    return min(plain for plain, _ in times) / max(min(short for _, short in times), 1e-9)


def _cpu_info() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if platform.system() == "Linux" and path.exists() else ""
