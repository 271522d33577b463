"""Adapters in use: which ones every drawing on this machine gets unless it says otherwise.

Kept in one small file beside the adapters, so that it can be changed whether or not a node runs
here; the node reads it at each drawing. At most one adapter an expert: of two, nobody has measured
what they do together.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Final

from node.errors import ErrorCode, NodeError
from node.home import Home
from node.lora_shelf import LoraFacts, base_of
from p2p.limits import MAX_CLUSTERS

MAX_LORA_SCALE: Final = 16.0
"""As `training.lora.modules.MAX_SCALE`: beyond it an adapter is noise, or means to be."""
_SCHEMA: Final = 1
_FILE: Final = "in_use.json"
_MAX_BYTES: Final = 2**20
"""An entry is some 250 bytes, and there are at most `MAX_CLUSTERS`."""


@dataclass(frozen=True, slots=True)
class InUse:
    """An entry of the file.

    Attributes:
        name: of its folder on the shelf.
        sha256: its id: a folder of that name that holds another adapter is not used.
        cluster: whose expert it is for.
        scale: its strength.
        offer: CID of the offer it was bought under; empty for one's own.
    """

    name: str
    sha256: str
    cluster: int
    scale: float
    offer: str

    def is_called(self, wanted: str) -> bool:
        """Whether a person may mean it by that."""
        return bool(wanted) and (
            wanted in (self.name, self.offer) or self.sha256.startswith(wanted)
        )


def in_use(home: Home) -> tuple[InUse, ...]:
    """What is in use, by cluster.

    Raises:
        NodeError: `FAILED` if the file is not one that we wrote.
    """
    try:
        with (home.loras / _FILE).open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise _bad_file(home, error.strerror or "unreadable") from error
    try:
        said = json.loads(raw) if len(raw) <= _MAX_BYTES else None
    except (ValueError, RecursionError) as error:
        raise _bad_file(home, "it is not JSON") from error
    if not isinstance(said, dict) or said.keys() != {"schema", "in_use"}:
        raise _bad_file(home, "it is not what this program writes")
    if said["schema"] != _SCHEMA or not isinstance(said["in_use"], list):
        raise _bad_file(home, f"its schema is {said['schema']!r:.20}, expected {_SCHEMA}")
    entries = tuple(_entry(home, item) for item in said["in_use"])
    if len({entry.cluster for entry in entries}) != len(entries):
        raise _bad_file(home, "it names two LoRAs for one expert")
    return entries


def use(home: Home, facts: LoraFacts, scale: float) -> InUse | None:
    """Put an adapter of the shelf to use, in place of another one for its expert.

    Returns:
        What it replaced; None if nothing, or itself.

    Raises:
        NodeError: `USAGE` for a scale out of range; `REFUSED` if no drawing could have it;
            `RESOURCE` if the disk refuses.
    """
    if not _is_scale(scale):
        raise NodeError(
            ErrorCode.USAGE,
            f"A LoRA's scale lies within {MAX_LORA_SCALE:g} of 0, not at {scale}.",
            f"paris-node lora use {facts.name} --scale 0.8",
        )
    base_of(facts)
    entry = InUse(facts.name, facts.sha256, facts.cluster, scale, facts.offer)
    with _changing(home):
        before = in_use(home)
        others = [each for each in before if each.cluster != entry.cluster]
        _write(home, sorted([*others, entry], key=lambda each: each.cluster))
    return next(
        (each for each in before if each.cluster == entry.cluster and each.sha256 != entry.sha256),
        None,
    )


def put_away(home: Home, wanted: str) -> tuple[InUse, ...]:
    """No longer use an adapter, which need not be on the shelf any more.

    Returns:
        What was put away.

    Raises:
        NodeError: `NOT_FOUND` if none of those in use is called so; `RESOURCE`.
    """
    with _changing(home):
        before = in_use(home)
        gone = tuple(each for each in before if each.is_called(wanted))
        if not gone:
            raise NodeError(
                ErrorCode.NOT_FOUND,
                f"No LoRA in use is called {wanted!r:.80}.",
                "see those in use: paris-node lora use",
            )
        _write(home, [each for each in before if each not in gone])
    return gone


def put_all_away(home: Home) -> None:
    """Use none; mends a broken file too.

    Raises:
        NodeError: `RESOURCE` if the disk refuses.
    """
    with _changing(home):
        (home.loras / _FILE).unlink(missing_ok=True)


@contextmanager
def _changing(home: Home) -> Iterator[None]:
    """One command at a time reads the file and writes it anew."""
    try:
        home.loras.mkdir(exist_ok=True)
        descriptor = os.open(home.loras, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise NodeError(
            ErrorCode.RESOURCE,
            f"{home.loras / _FILE} cannot be written: {error.strerror}.",
            "free some space",
        ) from error


def _write(home: Home, entries: Sequence[InUse]) -> None:
    from training.files import write_file  # noqa: PLC0415

    text = json.dumps({"schema": _SCHEMA, "in_use": [asdict(entry) for entry in entries]})
    write_file(home.loras / _FILE, text.encode())


_FIELDS: Final = {field.name for field in fields(InUse)}


def _entry(home: Home, item: object) -> InUse:
    if not isinstance(item, Mapping) or item.keys() != _FIELDS:
        raise _bad_file(home, f"an entry is {item!r:.60}")
    match item:
        case {
            "name": str(name),
            "sha256": str(sha256),
            "cluster": int(cluster),
            "scale": int(scale) | float(scale),
            "offer": str(offer),
        } if (
            len(sha256) == 64
            and not isinstance(cluster, bool)
            and 0 <= cluster < MAX_CLUSTERS
            and not isinstance(scale, bool)
            and _is_scale(scale)
        ):
            return InUse(name, sha256, cluster, float(scale), offer)
    raise _bad_file(home, f"an entry has a field that cannot be: {dict(item)!r:.200}")


def _is_scale(scale: float) -> bool:
    return -MAX_LORA_SCALE <= scale <= MAX_LORA_SCALE  # false for NaN


def _bad_file(home: Home, why: str) -> NodeError:
    return NodeError(
        ErrorCode.FAILED,
        f"The list of LoRAs in use, {home.loras / _FILE}, cannot be read: {why}.",
        "use none: paris-node lora use --off",
    )
