"""Captioned pictures as a source gives them: by position, one at a time, bad ones with a reason.

A source is anything that lists its entries in a fixed order and reads any of them again; where they
lie is the business of `training.sources.detect`.  Nothing here holds more than the caller asks for.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from training.errors import DataError, UnusableError
from training.sources.decode import clean_caption, decode_picture, printable

MAX_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry that did not become a picture, and why.

    Args:
        name: of the file or row, as it may be shown.
        reason: one of few phrases.
        detail: what was found; empty if the reason says all.
    """

    name: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SkipGroup:
    """The entries left out for one reason: how many, and the first few by name."""

    reason: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count:,} {self.reason}: {', '.join(self.examples)}{more}"


@dataclass(frozen=True, slots=True)
class SkipReport:
    """What was left out, by reason, the most frequent first; adds up."""

    groups: tuple[SkipGroup, ...] = ()

    @property
    def count(self) -> int:
        """All entries left out."""
        return sum(group.count for group in self.groups)

    @classmethod
    def of(cls, skipped: Iterable[Skipped]) -> "SkipReport":
        """Count them by reason."""
        counts: Counter[str] = Counter()
        examples: dict[str, list[str]] = {}
        for item in skipped:
            counts[item.reason] += 1
            shown = examples.setdefault(item.reason, [])
            if len(shown) < MAX_EXAMPLES:
                shown.append(f"{item.name} ({item.detail})" if item.detail else item.name)
        groups = (SkipGroup(reason, n, tuple(examples[reason])) for reason, n in counts.items())
        return cls(_ranked(groups))

    def __add__(self, other: "SkipReport") -> "SkipReport":
        merged = {group.reason: group for group in self.groups}
        for group in other.groups:
            mine = merged.get(group.reason)
            if mine is None:
                merged[group.reason] = group
                continue
            examples = (*mine.examples, *group.examples)[:MAX_EXAMPLES]
            merged[group.reason] = SkipGroup(group.reason, mine.count + group.count, examples)
        return SkipReport(_ranked(merged.values()))

    def __str__(self) -> str:
        return "; ".join(map(str, self.groups))


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One captioned picture as a source holds it.

    Args:
        name: of the file or row, for messages.
        caption: as found.
        content: a picture file's bytes, or pixels uint8 [C, S, S] of a source that has them.
    """

    name: str
    caption: object
    content: bytes | Tensor


class Source(Protocol):
    """Where pictures come from: entries in a fixed order, each readable again."""

    @property
    def name(self) -> str:
        """What a person would call it."""
        ...

    @property
    def fingerprint(self) -> str:
        """sha256; another one if a file of it was added, taken away or changed."""
        ...

    def __len__(self) -> int:
        """Entries, good and bad."""
        ...

    def read(self, positions: range) -> Iterator[Entry | Skipped]:
        """The entry at each position, in order; exactly `len(positions)` of them.

        Args:
            positions: rising, within `range(len(self))`.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Captioned pictures in memory.

    Args:
        images: uint8 [N, C, H, W].
        captions: one per picture.
        skipped: entries left out, with reasons.
    """

    images: Tensor
    captions: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError("pictures must be uint8 [N, C, H, W]")
        if len(self.captions) != len(self.images):
            raise ValueError(f"{len(self.captions)} captions for {len(self.images)} pictures")

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True, slots=True)
class PictureShape:
    """What pictures are made into: pixels a side, and 1 (grey) or 3 (colour) channels."""

    size: int
    channels: int

    @property
    def tensor(self) -> tuple[int, int, int]:
        """Shape of one picture."""
        return (self.channels, self.size, self.size)

    @property
    def size_bytes(self) -> int:
        """Bytes of one picture."""
        return self.channels * self.size * self.size


def read_pictures(source: Source, positions: range, shape: PictureShape) -> Pictures:
    """Read, decode and resize some entries of a source; all of them are held in memory.

    Returns:
        The usable ones, in order; perhaps none.

    Raises:
        DataError: if the source's own pixels have another shape.
    """
    return decode_entries(source, source.read(positions), shape)


def decode_entries(
    source: Source, entries: Iterable[Entry | Skipped], shape: PictureShape
) -> Pictures:
    """The usable ones among entries that were read, decoded and resized; see `read_pictures`."""
    images: list[Tensor] = []
    captions: list[str] = []
    skipped: list[Skipped] = []
    for found in entries:
        if isinstance(found, Skipped):
            skipped.append(found)
            continue
        try:
            caption = clean_caption(found.caption)
            images.append(_pixels(source, found, shape))
            captions.append(caption)
        except UnusableError as error:
            skipped.append(Skipped(printable(found.name), error.reason, error.detail))
    stacked = torch.stack(images) if images else torch.empty(0, *shape.tensor, dtype=torch.uint8)
    return Pictures(stacked, tuple(captions), tuple(skipped))


def read_all(source: Source, shape: PictureShape) -> Pictures:
    """Every usable picture of a small source, in memory.

    Raises:
        DataError: not one usable picture in it; the message holds reasons.
    """
    pictures = read_pictures(source, range(len(source)), shape)
    if not len(pictures):
        raise no_usable_picture(source, SkipReport.of(pictures.skipped))
    return pictures


def no_usable_picture(source: Source, skipped: SkipReport) -> DataError:
    """The error for a source without one, with the reasons."""
    return DataError(
        f"{source.name}: no usable picture ({skipped.count} skipped) {skipped}".rstrip()
    )


def batches_of(positions: range, batch: int) -> Iterator[range]:
    """`positions` in consecutive parts of at most `batch`."""
    for start in range(0, len(positions), batch):
        yield positions[start : start + batch]


def _pixels(source: Source, found: Entry, shape: PictureShape) -> Tensor:
    if isinstance(found.content, bytes):
        return decode_picture(found.content, shape.size, shape.channels)
    if tuple(found.content.shape) != shape.tensor:
        channels, side, _ = found.content.shape
        kind = "grey" if channels == 1 else "in colour"
        raise DataError(f"{source.name}: the set is {side} pixels a side and {kind}")
    return found.content


def _ranked(groups: Iterable[SkipGroup]) -> tuple[SkipGroup, ...]:
    return tuple(sorted(groups, key=lambda group: (-group.count, group.reason)))


def parts_of(positions: range, ends: Sequence[int]) -> Iterator[tuple[int, range]]:
    """Cut rising positions of a whole that is made of parts.

    Args:
        positions: into the whole.
        ends: where each part ends in it, rising.

    Yields:
        The number of each part that is touched, and the positions within it.
    """
    left = positions
    while left:
        number = bisect_right(ends, left[0])
        first = ends[number - 1] if number else 0
        inside = range(left[0], min(ends[number], left.stop), left.step)
        yield number, range(inside.start - first, inside.stop - first, inside.step)
        left = left[len(inside) :]
