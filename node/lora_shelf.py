"""The shelf of adapters as their own files tell of them, read without torch.

What is said here is not checked against the weights: whoever puts an adapter on a net reads it with
`training.lora.files.read_lora`, which checks every part.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.errors import ErrorCode, NodeError
from node.home import Home
from p2p.errors import DecodeError
from p2p.ids import BlobId, ClusterId, parse_blob_id
from p2p.limits import MAX_CLUSTERS

LORA_FILE: Final = "lora.json"
PURCHASE_FILE: Final = "purchase.json"
"""Beside an adapter that was bought: {"offer": CID of the signed offer, ...}."""
SHORT_ID: Final = 12
"""Characters of an adapter's sha256 that name it for a person."""
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class LoraFacts:
    """An adapter on the shelf.

    Attributes:
        folder: where it lies.
        sha256: of its weights: its id.
        cluster: whose expert it is for.
        base: CID of the checkpoint that it is for; empty if that was never published.
        weights: sha256 of that checkpoint's weights.
        offer: CID of the offer it was bought under; empty for one's own.
    """

    folder: Path
    sha256: str
    cluster: ClusterId
    base: str
    weights: str
    offer: str

    @property
    def id(self) -> str:
        """Its first characters of sha256, which name it for a person."""
        return self.sha256[:SHORT_ID]

    @property
    def name(self) -> str:
        """Its folder's."""
        return self.folder.name


def lora_folders(home: Home) -> Iterator[Path]:
    """Folders on the shelf, by name; whatever is in them."""
    if home.loras.is_dir():
        for folder in sorted(home.loras.iterdir()):
            if not folder.name.startswith(".") and folder.is_dir():
                yield folder


def read_facts(folder: Path) -> LoraFacts:
    """What an adapter says of itself.

    Raises:
        NodeError: `VERIFICATION_FAILED` if it cannot be read, or says what cannot be.
    """
    from training.errors import ConfigError  # noqa: PLC0415
    from training.jsonio import read_json  # noqa: PLC0415

    try:
        said = read_json(folder / LORA_FILE)
        bought = read_json(folder / PURCHASE_FILE) if (folder / PURCHASE_FILE).exists() else said
    except ConfigError as error:
        raise _broken(folder, str(error)) from error
    base = said.get("base")
    if not isinstance(base, Mapping):
        raise _broken(folder, f"{LORA_FILE} names no base")
    facts = (
        *(said.get("sha256"), base.get("cluster"), base.get("cid"), base.get("model_digest")),
        bought.get("offer", ""),
    )
    match facts:
        case (str(sha256), int(cluster), str(cid), str(weights), str(offer)) if (
            _is_digest(sha256)
            and _is_digest(weights)
            and type(cluster) is int
            and 0 <= cluster < MAX_CLUSTERS
        ):
            return LoraFacts(folder, sha256, ClusterId(cluster), cid, weights, offer)
    raise _broken(folder, f"its id, base, cluster or offer cannot be: {facts!r:.200}")


def find_on_shelf(home: Home, wanted: str) -> LoraFacts:
    """An adapter by its folder's name, the beginning of its sha256, or the offer it was bought by.

    Raises:
        NodeError: `NOT_FOUND`; `VERIFICATION_FAILED` for a folder of that name that is broken.
    """
    for folder in lora_folders(home):
        if folder.name == wanted:
            return read_facts(folder)
    found = [facts for facts in _readable(home) if wanted and _is_called(facts, wanted)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} LoRAs here have an id like" if found else "There is no LoRA"
    raise NodeError(
        ErrorCode.NOT_FOUND,
        f"{what} {wanted!r:.80}.",
        f"see those here: paris-node lora list    others must lie in {home.loras}",
    )


def base_of(facts: LoraFacts) -> BlobId:
    """The CID of an adapter's checkpoint; a node finds checkpoints by nothing else.

    Raises:
        NodeError: `REFUSED` if it was never published; `VERIFICATION_FAILED` if it is no CID.
    """
    if not facts.base:
        raise NodeError(
            ErrorCode.REFUSED,
            f"The LoRA {facts.name} was trained on a checkpoint that was never published "
            f"(weights {facts.weights[:SHORT_ID]}): no node draws with that.",
            "train one on a published expert: paris-node lora train DATA --expert CID",
        )
    try:
        return parse_blob_id(facts.base)
    except DecodeError as error:
        raise NodeError(
            ErrorCode.VERIFICATION_FAILED,
            f"The LoRA {facts.name} names no checkpoint as its base: {error}.",
            f"get it again, or remove {facts.folder}",
        ) from error


def _is_called(facts: LoraFacts, wanted: str) -> bool:
    return facts.sha256.startswith(wanted) or facts.offer == wanted


def _readable(home: Home) -> Iterator[LoraFacts]:
    for folder in lora_folders(home):
        try:
            yield read_facts(folder)
        except NodeError:
            continue  # `paris-node lora list` tells of it


def _is_digest(text: str) -> bool:
    return len(text) == 64 and _HEX.issuperset(text)


def _broken(folder: Path, why: str) -> NodeError:
    return NodeError(
        ErrorCode.VERIFICATION_FAILED,
        f"The LoRA {folder.name} cannot be read: {why}.",
        f"get it again, or remove {folder}",
    )
