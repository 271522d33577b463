"""Encoded pictures on their way to a run: batches on disk that outlive an interruption.

Batch number n holds the source's entries n * batch to (n + 1) * batch, whichever of them are
usable, so that any batch can be made again alone and is the same then.  A batch's file is written
whole or not at all, and named after its own hash.

spool.json                        what was encoded, and how (`Plan`)
codec-<sha256>.safetensors        fitted parts, as they were when the first batch was encoded
extractor-<sha256>.safetensors
batch-000000-<sha256>.safetensors latents, features, captions, and what was left out
"""

import hashlib
import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training.errors import ConfigError, DiskError, OtherSpoolError, TensorFileError
from training.files import digest_of, sweep, write_file
from training.jsonio import canonical_json, from_json, read_json, to_json
from training.sources.data import SkipGroup, SkipReport
from training.tensors import pack_tensors, read_header, read_tensors

PLAN_FILE: Final = "spool.json"
_SHAPES: Final = {
    "latents": ("F16", 4),
    "features": ("F32", 2),
    "captions": ("U8", 1),
    "lengths": ("I64", 1),
    "skipped": ("U8", 1),
}
"""Type and rank of a batch's tensors."""

_BATCH: Final = re.compile(r"batch-(\d{6,})-([0-9a-f]{64})\.safetensors")


_NOTHING: Final = torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class Plan:
    """What makes two spools hold the same batches.

    Args:
        schema: 1.
        source: what a person calls it.
        fingerprint: of the source.
        entries: of the source, good and bad.
        batch: entries per batch.
        image_size: pixels a side.
        image_channels: 1 or 3.
        codec: its name.
        extractor: its name.
        models: sha256 of the pretrained files of both.
    """

    schema: int
    source: str
    fingerprint: str
    entries: int
    batch: int
    image_size: int
    image_channels: int
    codec: str
    extractor: str
    models: dict[str, str]

    @property
    def batches(self) -> int:
        """How many there are."""
        return -(-self.entries // self.batch)

    def positions(self, number: int) -> range:
        """The source's positions that a batch holds."""
        return range(number * self.batch, min((number + 1) * self.batch, self.entries))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some encoded pictures.

    Args:
        latents: float16 [N, C, H, W].
        features: float32 [N, D].
        captions: N of them.
        skipped: what of the batch's entries was left out.
    """

    latents: Tensor
    features: Tensor
    captions: tuple[str, ...]
    skipped: SkipReport


@dataclass(frozen=True, slots=True, eq=False)
class SpooledBatch:
    """A batch's file that was found whole; its captions as numbers into the spool's list."""

    path: Path
    rows: int
    captions: "array[int]"
    skipped: SkipReport


class Spool:
    """A folder of batches. Made by `open_spool_folder`.

    Attributes:
        folder: where it lies.
        plan: what it holds.
        captions: every caption once, in order of appearance.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self.captions: list[str] = []
        self._numbers: dict[str, int] = {}
        self._batches: dict[int, SpooledBatch] = {}

    def missing(self) -> Iterator[int]:
        """Numbers of the batches that are still to be made, rising."""
        return (number for number in range(self.plan.batches) if number not in self._batches)

    def batches(self) -> list[SpooledBatch]:
        """Those there are, by number."""
        return [self._batches[number] for number in sorted(self._batches)]

    @property
    def rows(self) -> int:
        """Pictures in all batches."""
        return sum(batch.rows for batch in self._batches.values())

    @property
    def skipped(self) -> SkipReport:
        """What was left out of all batches."""
        return sum((batch.skipped for batch in self.batches()), SkipReport())

    def add(self, number: int, batch: Batch) -> None:
        """Store a batch.

        Raises:
            DiskError: the disk is full; nothing of the batch is left then.
        """
        texts = [caption.encode() for caption in batch.captions]
        skipped = json.dumps([[g.reason, g.count, g.examples] for g in batch.skipped.groups])
        data = pack_tensors(
            {
                "latents": batch.latents,
                "features": batch.features,
                "captions": _bytes_tensor(b"".join(texts)),
                "lengths": torch.tensor([len(text) for text in texts], dtype=torch.int64),
                "skipped": _bytes_tensor(skipped.encode()),
            }
        )
        path = self.folder / f"batch-{number:06d}-{digest_of(data)}.safetensors"
        write_here(path, data)
        self._register(number, path, batch.captions, batch.skipped)

    def part(self, kind: str) -> Path | None:
        """The file of a fitted part, if it is there and whole."""
        for path in self.folder.glob(f"{kind}-*.safetensors"):
            if _hash_in_name(path) == _hash_of(path):
                return path
        return None

    def add_part(self, kind: str, data: bytes) -> Path:
        """Store a fitted part.

        Raises:
            DiskError: the disk is full.
        """
        path = self.folder / f"{kind}-{digest_of(data)}.safetensors"
        write_here(path, data)
        return path

    def clear(self) -> None:
        """Forget all batches and parts: they were made with a part that is lost."""
        for path in self.folder.glob("*.safetensors"):
            path.unlink()
        for known in (self._batches, self._numbers, self.captions):
            known.clear()

    def scan(self) -> None:
        """Register the batches on disk; a damaged one is deleted, to be made again."""
        for path in sorted(self.folder.glob("batch-*.safetensors")):
            match = _BATCH.fullmatch(path.name)
            if match is None or match[2] != _hash_of(path):
                path.unlink()
                continue
            found = read_batch(path)
            self._register(int(match[1]), path, found.captions, found.skipped)

    def _register(
        self, number: int, path: Path, captions: tuple[str, ...], skipped: SkipReport
    ) -> None:
        numbers = array("i", (self._number(caption) for caption in captions))
        self._batches[number] = SpooledBatch(path, len(captions), numbers, skipped)

    def _number(self, caption: str) -> int:
        number = self._numbers.setdefault(caption, len(self.captions))
        if number == len(self.captions):
            self.captions.append(caption)
        return number


def open_spool_folder(folder: Path, plan: Plan) -> Spool:
    """Begin a spool, or go on with the one that lies there.

    Args:
        folder: made if it is not there.
        plan: what is to be encoded.

    Raises:
        OtherSpoolError: what lies there is of another source or encoded otherwise; says in what.
        DiskError: the folder cannot be made.
    """
    path = folder / PLAN_FILE
    if path.exists():
        _check_same(folder, plan)
        sweep(folder)
    else:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise DiskError(folder, error) from error
        write_here(path, canonical_json(to_json(plan)))
    spool = Spool(folder, plan)
    spool.scan()
    return spool


def read_batch(path: Path) -> Batch:
    """A batch's file.

    Raises:
        TensorFileError: it is not one, or was cut short since it was found whole.
    """
    schema = read_header(path)
    shapes = {name: (spec.dtype, len(spec.shape)) for name, spec in schema.items()}
    if shapes != _SHAPES:
        raise TensorFileError(path, "not a batch of encoded pictures")
    found = read_tensors(path, schema)
    data = bytes(found["captions"].numpy())
    ends = list(accumulate(found["lengths"].tolist(), initial=0))
    try:
        captions = tuple(data[a:b].decode() for a, b in pairwise(ends))
        groups = json.loads(bytes(found["skipped"].numpy()))
    except ValueError as error:
        raise TensorFileError(path, f"not a batch of encoded pictures: {error}") from error
    skipped = SkipReport(tuple(SkipGroup(r, n, tuple(names)) for r, n, names in groups))
    return Batch(found["latents"], found["features"], captions, skipped)


def write_here(path: Path, data: bytes) -> None:
    """`write_file`, its error said as ours.

    Raises:
        DiskError: the disk is full or may not be written.
    """
    try:
        write_file(path, data)
    except OSError as error:
        raise DiskError(path, error) from error


def _hash_in_name(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else _NOTHING


def _check_same(folder: Path, plan: Plan) -> None:
    try:
        found = from_json(Plan, read_json(folder / PLAN_FILE), PLAN_FILE)
    except ConfigError as error:
        raise OtherSpoolError(f"{folder}: {error}; delete the folder to start over") from error
    names = [field.name for field in fields(Plan)]
    changed = [n for n in names if getattr(found, n) != getattr(plan, n)]
    if not changed:
        return
    if changed == ["fingerprint"] or set(changed) == {"fingerprint", "entries"}:
        what = f"files of {plan.source} have changed since"
    else:
        what = "; ".join(
            f"{n} is {getattr(plan, n)}, it was {getattr(found, n)}"
            for n in changed
            if n not in ("fingerprint", "models")
        )
    raise OtherSpoolError(
        f"{folder} holds pictures encoded by an earlier, unfinished command: {what}. Repeat that "
        f"command to finish it, or delete the folder to start over"
    )
