"""Pictures of any source as labelled latents of a run: what a router is trained on.

A picture's cluster is that of its nearest fine centroid, which every node holds, so whoever has
pictures like the run's can train a router for it.
"""

from pathlib import Path

import torch
from torch import Tensor

from training.preparation.encode import pictures_per_batch
from training.routers.calibration import LabelledLatents
from training.run import Run
from training.sources.data import (
    PictureShape,
    SkipReport,
    batches_of,
    no_usable_picture,
    read_pictures,
)
from training.sources.detect import open_source


def labelled_pictures(source: str | Path, run: Run) -> LabelledLatents:
    """Encode a source's pictures and find the cluster of each.

    Args:
        source: what `open_source` takes: a folder, a table, a tar, or "fashion".
        run: its codec, picture size and centroids are used.

    Raises:
        DataError: not one usable picture.
    """
    opened = open_source(source)
    shape = PictureShape(run.spec.image_size, run.spec.image_channels)
    latents: list[Tensor] = []
    clusters: list[Tensor] = []
    skipped = SkipReport()
    for positions in batches_of(range(len(opened)), pictures_per_batch(shape)):
        pictures = read_pictures(opened, positions, shape)
        skipped += SkipReport.of(pictures.skipped)
        if len(pictures):
            latents.append(run.codec.encode(pictures.images).float())
            clusters.append(run.clusters.assign(pictures.images))
    if not latents:
        raise no_usable_picture(opened, skipped)
    return LabelledLatents(torch.cat(latents), torch.cat(clusters))


def joined(parts: list[LabelledLatents]) -> LabelledLatents:
    """Several sets as one."""
    return LabelledLatents(
        torch.cat([part.latents for part in parts]), torch.cat([part.clusters for part in parts])
    )
