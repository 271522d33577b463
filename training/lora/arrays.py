"""An adapter's numbers as it is sold: 16-bit integers at 2^-12, without torch.

The raw form is what lies between a node and the program that knows torch: for each layer in the
net's order A [in, r], then B [r, out], both row-major and little-endian, and nothing else.  A is
PEFT's lora_A transposed, B its lora_B transposed: a layer's output changes by
`alpha / rank * x A B`.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.errors import LoraError
from training.lora.layers import ModuleShape

UNIT: Final = 4096
"""The integer that stands for 1."""

INTEGER_BYTES: Final = 2

ModuleArrays = tuple[NDArray[np.int16], NDArray[np.int16]]
"""A [in, r] and B [r, out] of one layer."""

Arrays = Mapping[str, ModuleArrays]
"""By the layer's name in the net."""


def arrays_size(layers: Sequence[ModuleShape], rank: int) -> int:
    """Bytes of the raw form."""
    return INTEGER_BYTES * rank * sum(m.in_features + m.out_features for m in layers)


def pack_arrays(layers: Sequence[ModuleShape], arrays: Arrays) -> bytes:
    """The raw form of an adapter's integers.

    Args:
        layers: in the net's order.
        arrays: of every one of them.
    """
    parts = (part for layer in layers for part in arrays[layer.name])
    return b"".join(part.astype("<i2").tobytes() for part in parts)


def unpack_arrays(data: bytes, layers: Sequence[ModuleShape], rank: int) -> dict[str, ModuleArrays]:
    """The integers of a raw form.

    Raises:
        LoraError: another number of bytes than these layers have at this rank.
    """
    expected = arrays_size(layers, rank)
    if len(data) != expected:
        raise LoraError(f"{len(data)} bytes, {len(layers)} layers of rank {rank} have {expected}")
    values = np.frombuffer(data, dtype="<i2").astype(np.int16)
    found: dict[str, ModuleArrays] = {}
    place = 0
    for layer in layers:
        middle = place + layer.in_features * rank
        end = middle + rank * layer.out_features
        found[layer.name] = (
            values[place:middle].reshape(layer.in_features, rank),
            values[middle:end].reshape(rank, layer.out_features),
        )
        place = end
    return found
