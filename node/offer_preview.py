"""What offering an adapter would tell the world, said before it is offered: no node, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.errors import ErrorCode, NodeError
from node.home import Home
from node.lora_budget import Leak, ModuleSize, adapter_leak
from node.lora_shelf import LORA_FILE, find_on_shelf


@dataclass(frozen=True, slots=True)
class Preview:
    """How much of an adapter's freedom answers can tell, in per cent.

    Attributes:
        name: of its folder.
        layers: it changes.
        now: by the offer's own proof.
        later: by all the numbers that may be asked, whoever asks.
        with_rows: the same with all the rows that may be asked in delta mode.
    """

    name: str
    layers: int
    now: float
    later: float
    with_rows: float


def preview(home: Home, lora: str, *, now: int, scalars: int, rows: int) -> Preview:
    """What an offer of an adapter on the shelf would tell.

    Args:
        home: whose shelf.
        lora: what it is called.
        now: scalars of each layer that the offer's proof tells.
        scalars: of each layer, in all.
        rows: of each layer, in delta mode.

    Raises:
        NodeError: `NOT_FOUND`; `VERIFICATION_FAILED` for one that is broken.
    """
    facts = find_on_shelf(home, lora)
    sizes = _sizes(facts.folder)

    def percent(leak: Leak) -> float:
        return adapter_leak(sizes, dict.fromkeys(sizes, leak)).percent

    return Preview(
        name=facts.name,
        layers=len(sizes),
        now=percent(Leak(now)),
        later=percent(Leak(scalars)),
        with_rows=percent(Leak(scalars, rows)),
    )


def _sizes(folder: Path) -> dict[str, ModuleSize]:
    from training.errors import ConfigError  # noqa: PLC0415
    from training.jsonio import read_json  # noqa: PLC0415
    from training.lora.layers import adaptable_layers  # noqa: PLC0415

    try:
        said: Mapping[str, Any] = read_json(folder / LORA_FILE)
        rank = int(said["rank"])
        return {
            layer.name: ModuleSize(layer.in_features, rank, layer.out_features)
            for layer in adaptable_layers(said["base"]["preset"], said["targets"])
        }
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise NodeError(
            ErrorCode.VERIFICATION_FAILED,
            f"The LoRA {folder.name} cannot be read: {error!r}.",
            f"get it again, or remove {folder}",
        ) from error
