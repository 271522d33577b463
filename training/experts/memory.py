"""How many samples at a time fit the memory of a CPU: an estimate, because there is no error.

On a GPU memory that runs out raises, and `experts.gradients` halves the batch.  A process that
takes too much of the machine's memory is killed instead, so there the size is bounded beforehand.
"""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from training.errors import TooLargeError
from training.experts.gradients import halved
from training.experts.nets import predict
from training.parts.text import TextStates

BACKWARD: Final = 1.5
"""Peak of a backward pass over what its forward kept: gradients of the layer under way.
Measured on S/2 and B/2 with scripts/bench_train_sizes."""
SHARE: Final = 0.8
"""Part of the available memory that training may take: others live here too."""
LONGEST_TEXT: Final = 77
"""Tokens of the longest captions (CLIP's)."""
_STATE_COPIES: Final = 3
"""Gradients and the optimizer's two moments, each as large as the weights."""


def sample_bytes(net: nn.Module, latent: tuple[int, int, int], text_dim: int) -> int:
    """Bytes that training on one more sample takes: what a forward keeps, and the backward's part.

    Args:
        net: on the CPU.
        latent: channels, height, width.
        text_dim: width of the text's token states.
    """
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    dtype = next(net.parameters()).dtype
    text = TextStates(
        torch.zeros(1, LONGEST_TEXT, text_dim, dtype=dtype), torch.ones(1, LONGEST_TEXT)
    )
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = predict(net, torch.zeros(1, *latent, dtype=dtype), torch.full((1,), 0.5), text)
    del output
    return int(BACKWARD * sum(kept.values()))


def fitting_batch(batch: int, each: int, weights: int, available: int) -> int:
    """The largest micro-batch that is likely to fit.

    Args:
        batch: samples per optimizer step.
        each: bytes one sample takes.
        weights: bytes of the net's weights.
        available: bytes of memory that can be had.

    Raises:
        TooLargeError: not even one sample fits.
    """
    left = available - _STATE_COPIES * weights
    if each > left:
        needed = _STATE_COPIES * weights + each
        raise TooLargeError(
            f"training needs about {needed / 2**30:.1f} GiB of memory besides the net's own, "
            f"{available / 2**30:.1f} GiB are available: train a run of a smaller preset, or free "
            "memory"
        )
    size = batch
    while size > 1 and size * each > SHARE * left:
        size = halved(size)
    return size


def available_bytes(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Memory that can be had without pushing anybody out; None where the system does not say.

    The least of what the machine has left and what the control groups around this process (a
    container, a systemd unit) still allow.
    """
    found = [
        size for size in (_machine_bytes(proc), _allowed_bytes(proc, cgroups)) if size is not None
    ]
    return min(found) if found else None


def _machine_bytes(proc: Path) -> int | None:
    for line in _text(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _allowed_bytes(proc: Path, cgroups: Path) -> int | None:
    """What is left of the tightest limit of version 2 control groups, from ours upwards."""
    lines = _text(proc / "self" / "cgroup").splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return None
    left = []
    group = cgroups / own
    for folder in (group, *group.parents):
        limit, used = _text(folder / "memory.max").strip(), _text(folder / "memory.current").strip()
        if limit.isdigit() and used.isdigit():
            left.append(max(0, int(limit) - int(used)))
        if folder == cgroups:
            break
    return min(left) if left else None


def _text(path: Path) -> str:
    """A system file's text; empty where there is no such file."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""
