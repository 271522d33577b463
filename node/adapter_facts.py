"""What orders about adapters take and give; `node.adapters` carries them out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.lora.layers import ModuleShape


@dataclass(frozen=True, slots=True)
class Place:
    """Where an adapter's base lies, and how to compute.

    Args:
        shared: folder of the run.
        models: folder of pretrained parts.
        expert: folder of the checkpoint.
        threads: of torch.
        device: "auto" or a torch device name.
    """

    shared: Path
    models: Path
    expert: Path
    threads: int = 1
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Claimed:
    """What an adapter is and does, as it would be sold.

    Args:
        base_loss: on the adapter's own probe, without it.
        adapted_loss: with its integers.
        float_loss: with the weights it was trained to.
        rows: of the probe.
        seed: of the probe's draws.
        scaling: alpha / rank.
        rank: of every layer.
        alpha: its strength times the rank.
        targets: which layers it changes.
        licence: in its trainer's words.
        base: CID of the base's manifest; empty if it never was in the network.
        sha256: its id.
        offer: CID of the offer it was bought under; empty for one's own.
        modules: its layers, in the net's order.
    """

    base_loss: float
    adapted_loss: float
    float_loss: float
    rows: int
    seed: int
    scaling: float
    rank: int
    alpha: float
    targets: str
    licence: str
    base: str
    sha256: str
    offer: str
    modules: tuple[ModuleShape, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ModulePairs:
    """In which directions one layer's change would change the loss.

    The predicted change of the loss is scaling * sum(weights[i] * left[i] A_int B_int right[i]).

    Args:
        module: the layer's name.
        captured: part of the gradient's squared norm that the pairs hold.
        norm: Frobenius norm of the layer's weight in the base.
        weights: of each pair.
        left: int16 [pairs, in].
        right: int16 [pairs, out].
    """

    module: str
    captured: float
    norm: float
    weights: tuple[float, ...]
    left: NDArray[np.int16]
    right: NDArray[np.int16]


@dataclass(frozen=True, slots=True, eq=False)
class ProbePlan:
    """What to ask an adapter's owner, from one's own probe.

    Args:
        base_loss: on the probe, without an adapter.
        rows: of the probe.
        seed: of its draws.
        modules: in the net's order.
    """

    base_loss: float
    rows: int
    seed: int
    modules: tuple[ModulePairs, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """A probe's loss without an adapter and with it."""

    base_loss: float
    adapted_loss: float
    rows: int
    seed: int


@dataclass(frozen=True, slots=True)
class DeltaJob:
    """What to measure through another's deltas.

    Args:
        probe: folder of the probe.
        targets: which layers the adapter changes.
        scaling: alpha / rank.
        draws: of the probe; each is a picture's tokens in rows of every layer.
    """

    probe: Path
    targets: str
    scaling: float
    draws: int


@dataclass(frozen=True, slots=True)
class DeltaMeasured:
    """A few draws' loss without and with a remote adapter.

    Args:
        base_loss: without.
        adapted_loss: with.
        rows_used: asked of the layer that most was asked of.
    """

    base_loss: float
    adapted_loss: float
    rows_used: int


@dataclass(frozen=True, slots=True)
class Purchase:
    """A delivered adapter to be kept as a folder: the facts of its offer.

    Args:
        arrays: file of its integers, as `training.lora.arrays` lays them out.
        cid: of the base's manifest.
        offer: CID of the offer.
        targets: which layers it changes.
        rank: of every layer.
        alpha: its strength times the rank.
        rows: of the offer's probe.
        seed: of its draws.
        base_loss: claimed without it.
        adapted_loss: claimed with it.
        licence: as offered.
        probe: folder of the offer's probe, to lie beside it.
    """

    arrays: Path
    cid: str
    offer: str
    targets: str
    rank: int
    alpha: float
    rows: int
    seed: int
    base_loss: float
    adapted_loss: float
    licence: str
    probe: Path | None = None
