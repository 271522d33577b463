"""The adapters of one drawing: those asked for or, if nothing is said, those in use."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.api import Json
from node.errors import ErrorCode, NodeError
from node.home import Home
from node.lora_shelf import SHORT_ID, LoraFacts, base_of, find_on_shelf
from node.lora_use import InUse, in_use
from p2p.ids import BlobId, ClusterId


@dataclass(frozen=True, slots=True)
class LoraWish:
    """An adapter asked for: what it is called, and how strong it is to be."""

    id: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ChosenLora:
    """An adapter that a drawing is to have, on exactly one checkpoint.

    Attributes:
        sha256: its id.
        folder: where it lies.
        cluster: whose expert it is for.
        base: CID of the checkpoint that it is for.
        scale: its strength; 1 is as trained.
        offer: CID of the offer it was bought under; empty for one's own.
    """

    sha256: str
    folder: Path
    cluster: ClusterId
    base: BlobId
    scale: float
    offer: str = ""

    def to_json(self) -> Json:
        """{id, cluster, base, scale}, and offer if it was bought: for events and receipts."""
        row: Json = {"id": self.sha256, "cluster": self.cluster, "base": self.base}
        row["scale"] = self.scale
        return {**row, "offer": self.offer} if self.offer else row


def choose_loras(home: Home, wishes: Sequence[LoraWish] | None) -> tuple[ChosenLora, ...]:
    """The adapters of one drawing. Blocks: reads their facts from the disk.

    Args:
        home: whose shelf.
        wishes: those asked for; None for those in use.

    Raises:
        NodeError: `NOT_FOUND`; `USAGE` for two that are for one expert; `REFUSED` for one whose
            checkpoint was never published; `VERIFICATION_FAILED` for one that is broken, or has
            been replaced since it was put to use.
    """
    if wishes is None:
        chosen = [_still_there(home, entry) for entry in in_use(home)]
    else:
        chosen = [_chosen(find_on_shelf(home, wish.id), wish.scale) for wish in wishes]
    found: dict[ClusterId, ChosenLora] = {}
    for each in chosen:
        other = found.setdefault(each.cluster, each)
        if other is not each:
            raise NodeError(
                ErrorCode.USAGE,
                f"Two LoRAs are asked for on the expert of cluster {each.cluster}: "
                f"{other.folder.name} and {each.folder.name}.",
                "choose one of them",
            )
    return tuple(chosen)


def _still_there(home: Home, entry: InUse) -> ChosenLora:
    off = f"paris-node lora use --off {entry.name}    or draw without: --no-lora"
    try:
        facts = find_on_shelf(home, entry.name)
    except NodeError as error:
        raise NodeError(error.code, f"{entry.name} is in use, but: {error.message}", off) from error
    if facts.sha256 != entry.sha256:
        raise NodeError(
            ErrorCode.VERIFICATION_FAILED,
            f"The LoRA {entry.name} is not the one put to use: it is {facts.id}, not "
            f"{entry.sha256[:SHORT_ID]}.",
            f"paris-node lora use {entry.name}    to use it as it is now",
        )
    return _chosen(facts, entry.scale)


def _chosen(facts: LoraFacts, scale: float) -> ChosenLora:
    return ChosenLora(facts.sha256, facts.folder, facts.cluster, base_of(facts), scale, facts.offer)
