"""Pictures of any source as latents of a run that exists: for adapters, and to look at a codec."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.data import (
    PictureShape,
    SkipReport,
    Source,
    batches_of,
    no_usable_picture,
    read_pictures,
)
from training.errors import DataError
from training.run import Run
from training.sources import open_source

BATCH_BYTES = 32 * 2**20
MAX_BATCH = 1024
MIN_BATCH = 16


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
