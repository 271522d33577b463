"""Measures of drawn pictures: do they show what was asked, and are they spread like real ones?

Pure arithmetic on pictures and on the judge's features (`drawing.classifier`); knows nothing about
how the pictures were made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from training.drawing.classifier import (
    CLASSES,
    GROUP_NAMES,
    GROUPS,
    PICTURE_SIZE,
    PictureClassifier,
)

CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class CaptionScore:
    """How often pictures show their caption.

    Attributes:
        count: pictures judged.
        caption_accuracy: share whose class is the caption's.
        group_accuracy: share whose group (`GROUP_NAMES`) is the caption's.
        per_caption: caption -> share of its pictures with the right class.
        per_group: group -> share of its pictures in the right group.
    """

    count: int
    caption_accuracy: float
    group_accuracy: float
    per_caption: dict[str, float]
    per_group: dict[str, float]


def as_judged(pictures: Tensor) -> Tensor:
    """Pictures as the judge was trained: uint8 [N, C, H, W] -> float [N, 1, 28, 28] in [0, 1].

    Dark things on white become bright on black, as the judge's data are; colours are averaged; a
    32-pixel picture is a padded 28-pixel one and loses its margin; other sizes are resized.

    Raises:
        ValueError: for another type or rank.
    """
    if pictures.dtype != torch.uint8 or pictures.ndim != 4:
        raise ValueError(f"pictures: got {pictures.dtype} {tuple(pictures.shape)}, expected uint8")
    grey = 1 - pictures.float().mean(dim=1, keepdim=True) / 255
    if grey.shape[-2:] == (PICTURE_SIZE + 4, PICTURE_SIZE + 4):
        return grey[..., 2:-2, 2:-2]
    if grey.shape[-2:] == (PICTURE_SIZE, PICTURE_SIZE):
        return grey
    return functional.interpolate(grey, (PICTURE_SIZE, PICTURE_SIZE), mode="area")


@torch.inference_mode()
def judge(net: PictureClassifier, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Classes [N] int64 and features [N, 64] of uint8 pictures [N, C, H, W]."""
    net.eval()
    features = torch.cat([net.features(part) for part in torch.split(as_judged(pictures), CHUNK)])
    return net.decide(features).argmax(dim=1), features


def score_captions(
    net: PictureClassifier, pictures: Tensor, captions: Sequence[str]
) -> CaptionScore:
    """Judge `pictures` [N, C, H, W] uint8 against the captions they were drawn from.

    Raises:
        ValueError: for no pictures, a number of captions that differs, or a caption that is not one
            of `CLASSES`.
    """
    if not len(captions) or len(captions) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures and {len(captions)} captions")
    unknown = sorted(set(captions) - set(CLASSES))
    if unknown:
        raise ValueError(f"caption {unknown[0]!r} is none of the judge's classes {CLASSES}")
    asked = torch.tensor([CLASSES.index(caption) for caption in captions])
    group_of = torch.tensor(GROUPS)
    seen, _ = judge(net, pictures)
    hits = (seen == asked).double()
    group_hits = (group_of[seen] == group_of[asked]).double()
    present = sorted(set(asked.tolist()))
    groups = sorted(set(group_of[asked].tolist()))
    return CaptionScore(
        count=len(captions),
        caption_accuracy=float(hits.mean()),
        group_accuracy=float(group_hits.mean()),
        per_caption={CLASSES[index]: float(hits[asked == index].mean()) for index in present},
        per_group={
            GROUP_NAMES[index]: float(group_hits[group_of[asked] == index].mean())
            for index in groups
        },
    )


def frechet_distance(left: Tensor, right: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features, [N, F] and [M, F].

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), the trace of the root as the sum of the roots of
    the eigenvalues of S1^(1/2) S2 S1^(1/2), in float64.  Source: arXiv 1706.08500, eq. 6.

    The scale is that of the features: compare only distances made with the same judge, and only of
    similar N (a small sample has a bias upward: see `held_out_floor`).

    Raises:
        ValueError: for fewer than two rows, or widths that differ.
    """
    if min(len(left), len(right)) < 2 or left.shape[1:] != right.shape[1:]:
        raise ValueError(f"features {tuple(left.shape)} and {tuple(right.shape)}")
    mean_left, cov_left = _moments(left)
    mean_right, cov_right = _moments(right)
    values, vectors = torch.linalg.eigh(cov_left)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    roots = torch.linalg.eigvalsh(root @ cov_right @ root).clamp_min(0).sqrt()
    spread = cov_left.trace() + cov_right.trace() - 2 * roots.sum()
    return float((mean_left - mean_right).square().sum() + spread)


def held_out_floor(features: Tensor, count: int, seed: int = 0) -> float:
    """Frechet distance of two disjoint random sets of real pictures, `count` and the rest.

    No generator can be told from real pictures below this: the floor of the measure.

    Raises:
        ValueError: if fewer than two pictures stay on a side.
    """
    if not 2 <= count <= len(features) - 2:
        raise ValueError(f"count: got {count}, expected 2 to {len(features) - 2}")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    return frechet_distance(features[order[:count]], features[order[count:]])


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    rows = features.double()
    return rows.mean(dim=0), torch.cov(rows.T)
