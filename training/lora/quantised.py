"""An adapter's weights as 16-bit integers at 2^-12 and back, and the folder of a bought one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training.config import SCHEMA
from training.errors import LoraError
from training.lora.arrays import UNIT, Arrays, ModuleArrays
from training.lora.files import HeldOutLoss, LoraBase, LoraInfo, write_lora
from training.lora.modules import AdapterShape, weight_names
from training.lora.probe import Probe

LARGEST: Final = 32767
"""Of both signs: an adapter's weights are bounded alike (`training.lora.modules.MAX_WEIGHT`)."""


@dataclass(frozen=True, slots=True)
class Bought:
    """What a buyer knows of an adapter: the facts of the signed offer it was bought under.

    Args:
        base: the checkpoint it belongs to.
        targets: which layers, a name of `training.lora.layers.TARGETS`.
        rank: of every layer's A B.
        alpha: A B is multiplied by alpha / rank.
        held_out: what the offer claims, on the rows of its probe.
        seed: of that probe's draws.
        licence: as offered.
        offer: CID of the offer.
    """

    base: LoraBase
    targets: str
    rank: int
    alpha: float
    held_out: HeldOutLoss
    seed: int
    licence: str
    offer: str

    @property
    def shape(self) -> AdapterShape:
        """What fixes the adapter's tensors.

        Raises:
            ConfigError: for an unknown name, or a rank out of range.
        """
        return AdapterShape(self.base.shape, self.targets, self.rank)


def quantise(shape: AdapterShape, weights: Mapping[str, Tensor]) -> dict[str, ModuleArrays]:
    """The integers nearest to an adapter's weights, in units of 2^-12.

    Args:
        shape: of the adapter.
        weights: as `AdapterShape.schema` names them.

    Returns:
        A [in, r] and B [r, out] of each layer, int16, in the net's order.

    Raises:
        LoraError: a weight that 16 bits cannot hold, or NaN.
    """
    found: dict[str, ModuleArrays] = {}
    for module in shape.modules():
        name_a, name_b = weight_names(module)
        found[module.name] = (
            _integers(name_a, weights[name_a]).T.contiguous().numpy(),
            _integers(name_b, weights[name_b]).T.contiguous().numpy(),
        )
    return found


def dequantise(shape: AdapterShape, arrays: Arrays) -> dict[str, Tensor]:
    """The weights that integers stand for: each exactly its integer / 4096, in float32.

    Args:
        shape: of the adapter.
        arrays: as `quantise` gives them.

    Returns:
        Weights as `AdapterShape.schema` names them.

    Raises:
        LoraError: a layer is missing or unknown, or its arrays have another shape.
    """
    modules = shape.modules()
    names = {module.name for module in modules}
    if arrays.keys() != names:
        odd = sorted(arrays.keys() ^ names)[0]
        raise LoraError(f"the arrays of layer {odd}: expected those of {len(names)} layers")
    found: dict[str, Tensor] = {}
    for module in modules:
        a, b = arrays[module.name]
        expected = (module.in_features, shape.rank), (shape.rank, module.out_features)
        if (a.shape, b.shape) != expected:
            raise LoraError(
                f"layer {module.name}: A {list(a.shape)} and B {list(b.shape)}, "
                f"expected {list(expected[0])} and {list(expected[1])}"
            )
        name_a, name_b = weight_names(module)
        found[name_a] = torch.from_numpy(a.T.copy()).float() / UNIT
        found[name_b] = torch.from_numpy(b.T.copy()).float() / UNIT
    return found


def quantised_folder(
    folder: Path, bought: Bought, arrays: Arrays, probe: Probe | None = None
) -> LoraInfo:
    """Write a bought adapter as a folder like that of one trained here.

    Its `lora.json` names the offer; how it was trained (samples, batch, rates, rows, data) only
    its seller knows: those facts are 0 or empty.

    Args:
        folder: must not exist; its parent must.
        bought: the offer's facts.
        arrays: as delivered.
        probe: the offer's, to lie beside it.

    Returns:
        The facts as written.

    Raises:
        ConfigError: a fact that nothing could have.
        LoraError: arrays of another shape, or a weight larger than an adapter may hold.
        OSError: the disk refuses; nothing is left then.
    """
    info = LoraInfo(
        schema=SCHEMA,
        base=bought.base,
        targets=bought.targets,
        rank=bought.rank,
        alpha=bought.alpha,
        modules=bought.shape.modules(),
        samples=0,
        batch=0,
        learning_rate=0.0,
        caption_drop=0.0,
        seed=bought.seed,
        rows=0,
        data="",
        held_out=bought.held_out,
        licence=bought.licence,
        sha256="",
        offer=bought.offer,
    )
    return write_lora(folder, info, dequantise(bought.shape, arrays), probe)


def _integers(name: str, weight: Tensor) -> Tensor:
    """int16, of the weight's shape."""
    units = (weight.detach().cpu().double() * UNIT).round()
    largest = float(units.abs().max())
    if not largest <= LARGEST:  # NaN is not, either
        raise LoraError(f"tensor {name} reaches {largest:g} / {UNIT}, at most {LARGEST} fits")
    return units.to(torch.int16)
