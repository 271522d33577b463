"""Pictures of any source as latents: into a spool for a new run, or in memory for one that exists.

Bounded in memory: a sample to fit what is fitted, then one batch of pictures at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training.errors import DataError
from training.parts.codecs import NewCodec
from training.parts.features import Extractor
from training.preparation.spool import Batch, Spool
from training.run import Run
from training.sources.data import (
    Pictures,
    PictureShape,
    Skipped,
    SkipReport,
    Source,
    batches_of,
    decode_entries,
    no_usable_picture,
    read_pictures,
)
from training.sources.detect import open_source

BATCH_BYTES: Final = 32 * 2**20
MIN_BATCH, MAX_BATCH = 16, 1024
SAMPLE_PICTURES: Final = 20_000
"""What codec and extractor are fitted on, evenly spread; more changes nothing visible."""

SAMPLE_BYTES: Final = 64 * 2**20
"""Of the sample's pixels; as patches in floating point they take four times as much."""

Report = Callable[[int, int], None]
"""Told how many pictures are done, of how many."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPictures:
    """Latents with captions, in memory.

    Args:
        latents: float16 [N, C, H, W].
        captions: N of them.
        skipped: what was left out, by reason.
    """

    latents: Tensor
    captions: tuple[str, ...]
    skipped: SkipReport


def pictures_per_batch(shape: PictureShape) -> int:
    """How many pictures are decoded and encoded at once: as many as keep to `BATCH_BYTES`."""
    return max(MIN_BATCH, min(MAX_BATCH, BATCH_BYTES // shape.size_bytes))


def encode_source(
    source: Source | str | Path, run: Run, *, max_pictures: int | None = None
) -> EncodedPictures:
    """Encode a source's pictures with a run's codec; only latents are held, pictures by the batch.

    Args:
        source: one that is open, or what `open_source` takes.
        run: its codec and picture size are used.
        max_pictures: refuse a source with more entries.

    Raises:
        DataError: not one usable picture, more than `max_pictures`, or pixels of another shape.
    """
    opened = open_source(source) if isinstance(source, (str, Path)) else source
    if max_pictures is not None and len(opened) > max_pictures:
        raise DataError(f"{opened.name}: {len(opened)} pictures, at most {max_pictures} here")
    shape = PictureShape(run.spec.image_size, run.spec.image_channels)
    latents: list[Tensor] = []
    captions: list[str] = []
    skipped = SkipReport()
    for positions in batches_of(range(len(opened)), pictures_per_batch(shape)):
        pictures = read_pictures(opened, positions, shape)
        latents.append(run.codec.encode(pictures.images).half())
        captions += pictures.captions
        skipped += SkipReport.of(pictures.skipped)
    if not captions:
        raise no_usable_picture(opened, skipped)
    return EncodedPictures(torch.cat(latents), tuple(captions), skipped)


def sample_pictures(source: Source, shape: PictureShape, report: Report) -> Tensor:
    """Usable pictures evenly spread over a source: all of a small one.

    Positions are visited in rounds, each evenly spread; a second one only if most of the first
    cannot be used.

    Returns:
        uint8 [N, C, S, S], N at most `SAMPLE_PICTURES`, fewer if pictures are large.

    Raises:
        DataError: not one usable picture.
    """
    limit = max(MIN_BATCH, min(SAMPLE_PICTURES, SAMPLE_BYTES // shape.size_bytes))
    rounds = max(1, -(-len(source) // limit))
    images: list[Tensor] = []
    found, skipped = 0, SkipReport()
    for first in range(rounds):
        for positions in batches_of(range(first, len(source), rounds), pictures_per_batch(shape)):
            pictures = read_pictures(source, positions, shape)
            images.append(pictures.images)
            found += len(pictures)
            skipped += SkipReport.of(pictures.skipped)
            report(min(found, limit), min(len(source), limit))
        if found * 2 >= limit:
            break
    if not found:
        raise no_usable_picture(source, skipped)
    return torch.cat(images)[:limit]


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """What new pictures go through; pretrained networks work on the device, fitted parts here.

    Args:
        codec: pictures to latents.
        extractor: pictures to features.
        device: a torch device name.
    """

    codec: NewCodec
    extractor: Extractor
    device: str = "cpu"

    def latents(self, images: Tensor) -> Tensor:
        """uint8 [N, C, S, S] -> float16 [N, *latent] in main memory."""
        return self.codec.encode(self._placed(images, self.codec.pins)).half().cpu()

    def features(self, images: Tensor) -> Tensor:
        """uint8 [N, C, S, S] -> float32 [N, D] in main memory."""
        return self.extractor(self._placed(images, self.extractor.pins)).float().cpu()

    def _placed(self, images: Tensor, pins: Mapping[str, str]) -> Tensor:
        return images.to(self.device) if pins else images


def fill_spool(source: Source, spool: Spool, encoder: Encoder, report: Report) -> None:
    """Encode what a spool still lacks.

    Args:
        source: the spool's.
        spool: filled batch by batch.
        encoder: what the pictures go through.
        report: told of entries, skipped ones too.

    Raises:
        DiskError: the disk is full; what is in the spool by then is whole.
    """
    plan = spool.plan
    shape = PictureShape(plan.image_size, plan.image_channels)
    missing = list(spool.missing())
    done = plan.entries - sum(len(plan.positions(number)) for number in missing)
    report(done, plan.entries)
    for numbers in _consecutive(missing):
        start, stop = plan.positions(numbers[0]).start, plan.positions(numbers[-1]).stop
        entries = source.read(range(start, stop))  # one stream: sources are slow to begin
        for number in numbers:
            size = len(plan.positions(number))
            pictures = decode_entries(source, islice(entries, size), shape)
            spool.add(number, encode_batch(pictures, encoder))
            done += size
            report(done, plan.entries)


def encode_batch(pictures: Pictures, encoder: Encoder) -> Batch:
    """A spool's batch; a picture that codec or extractor turns into no number is left out."""
    latents, features = encoder.latents(pictures.images), encoder.features(pictures.images)
    is_finite = latents.flatten(1).isfinite().all(1) & features.isfinite().all(1)
    skipped = list(pictures.skipped)
    captions = pictures.captions
    if not bool(is_finite.all()):
        kept = is_finite.tolist()
        skipped += [
            Skipped(f"picture of {caption!r:.40}", "encoded as NaN or infinite numbers")
            for caption, is_kept in zip(captions, kept, strict=True)
            if not is_kept
        ]
        captions = tuple(c for c, is_kept in zip(captions, kept, strict=True) if is_kept)
    return Batch(latents[is_finite], features[is_finite], captions, SkipReport.of(skipped))


def _consecutive(numbers: list[int]) -> Iterator[list[int]]:
    """Rising numbers in runs without a gap."""
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run
