"""Drawing with what `bench_training` trained, and judging what was drawn.

Two Frechet distances on the judge's features: to the real pictures as they are, and to the real
pictures after the codec, which is the best that any net behind this codec could do. Each has its
floor: held-out real pictures, measured the same way.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.drawing.answers import VelocityNet
from training.drawing.classifier import FEATURE_SIZE, load_classifier
from training.drawing.ensemble import Ensemble
from training.drawing.evaluate import frechet_distance, judge, score_captions
from training.drawing.plan import RouterName, SampleOptions
from training.experts.loaded import load_expert
from training.parts.codecs import Codec
from training.routers.captions import CaptionPrior
from training.routers.learned_router import load_router
from training.routers.router import GaussRouter, Router
from training.routers.summary import load_summary
from training.run import Run, load_run
from training.tensors import TensorSpec, pack_tensors, read_tensors
from training_arms import Split

JUDGE = Path(__file__).parent / "data" / "classifier" / "classifier.safetensors"
SHOWN = 64
CHUNK = 1000
FIRST_SEED = 1_000_000
"""Of the pictures: the same for every way of drawing, so that differences are not luck."""


@dataclass(frozen=True)
class Reference:
    """Features of real pictures [N, 64]: as they are, and after the codec."""

    raw: Tensor
    coded: Tensor

    @classmethod
    def of(cls, split: Split, codec: Codec) -> "Reference":
        """Judge a split twice."""
        net = load_classifier(JUDGE)
        raw, coded = [], []
        for block in torch.split(split.images, CHUNK):
            raw.append(judge(net, block)[1])
            coded.append(judge(net, as_pixels(codec.decode(codec.encode(block))))[1])
        return cls(torch.cat(raw), torch.cat(coded))

    def save(self, path: Path) -> None:
        """For other processes."""
        path.write_bytes(pack_tensors({"raw": self.raw, "coded": self.coded}))

    @classmethod
    def load(cls, path: Path, rows: int) -> "Reference":
        """What `save` wrote of `rows` pictures."""
        spec = TensorSpec("F32", (rows, FEATURE_SIZE))
        found = read_tensors(path, {"raw": spec, "coded": spec})
        return cls(found["raw"], found["coded"])

    def distances(self, features: Tensor) -> tuple[float, float]:
        """Frechet distance to the real pictures after the codec, and as they are."""
        return frechet_distance(features, self.coded), frechet_distance(features, self.raw)

    def floor(self, held_out: "Reference") -> dict[str, float]:
        """What pictures nobody trained on give: as they are, and after the codec."""
        return {
            "raw": frechet_distance(held_out.raw, self.raw),
            "coded": frechet_distance(held_out.coded, self.coded),
            "codec_alone_raw": frechet_distance(held_out.coded, self.raw),
        }


def as_pixels(pictures: Tensor) -> Tensor:
    """Float pictures in 0..1 -> uint8."""
    return (pictures * 255).round().to(torch.uint8)


class Counting:
    """An expert that counts how many latents it was asked about."""

    def __init__(self, expert: VelocityNet) -> None:
        self._expert = expert
        self.asked = 0

    @property
    def objective(self) -> str:
        """The expert's."""
        return self._expert.objective

    def velocity(self, x_t: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """The expert's answer."""
        self.asked += len(x_t)
        return self._expert.velocity(x_t, t, states, mask)


@dataclass(frozen=True)
class Drawing:
    """One way to draw, with everything it needs on disk.

    Args:
        label: of the row in the table.
        run: the prepared run.
        experts: checkpoint by cluster.
        summaries: routing summary by cluster; none for a monolith.
        routers: folder of each trained router.
        options: how to draw.
        facts: where the figures belong: table, clusters, seed, guidance.
    """

    label: str
    run: Path
    experts: Mapping[int, Path]
    summaries: Mapping[int, Path]
    routers: Mapping[RouterName, Path]
    options: SampleOptions
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """What one drawing gave: its figures, and the first pictures, uint8 [64, 1, 32, 32].

    Figures: `coded` and `raw` (Frechet distances), `accuracy` and `groups` (pictures taken for
    their caption, for its group; only with class captions), `forwards` (latents put through an
    expert, per picture), `cpu_ms` (per picture, one thread).
    """

    figures: Mapping[str, float]
    shown: Tensor


def open_ensemble(drawing: Drawing) -> tuple[Ensemble, Run, list[Counting]]:
    """The ensemble of a drawing, its experts and their earlier selves counted."""
    run = load_run(drawing.run / "shared")
    loaded = {k: load_expert(path, run) for k, path in drawing.experts.items()}
    experts = {k: Counting(expert) for k, expert in loaded.items()}
    guides = {k: Counting(one.guide) for k, one in loaded.items() if one.guide is not None}
    routers: dict[RouterName, Router] = {
        name: load_router(folder, run) for name, folder in drawing.routers.items()
    }
    if drawing.summaries:
        size = math.prod(run.facts.latent)
        summaries = {k: load_summary(path, size) for k, path in drawing.summaries.items()}
        routers[RouterName.GAUSS] = GaussRouter(summaries)
    prior = CaptionPrior(run.caption_counts.by_cluster(), run.text)
    ensemble = Ensemble(run.codec, run.text, prior, experts, routers, guides)
    return ensemble, run, [*experts.values(), *guides.values()]


def draw_and_score(drawing: Drawing, captions: Sequence[str], reference: Path) -> Score:
    """Draw every caption and judge the pictures."""
    torch.set_num_threads(1)
    ensemble, run, counters = open_ensemble(drawing)
    began = time.process_time()
    parts = []
    for start in range(0, len(captions), CHUNK):
        part = captions[start : start + CHUNK]
        parts.append(ensemble.generate_batch(part, FIRST_SEED + start, drawing.options).pictures)
    spent = time.process_time() - began
    pictures = torch.cat(parts)
    net = load_classifier(JUDGE)
    known = Reference.load(reference, sum(run.facts.rows))
    coded, raw = known.distances(judge(net, pictures)[1])
    figures = {
        "coded": coded,
        "raw": raw,
        "forwards": sum(counter.asked for counter in counters) / len(pictures),
        "cpu_ms": spent / len(pictures) * 1e3,
    }
    if len(set(captions)) > 1:
        found = score_captions(net, pictures, list(captions))
        figures |= {"accuracy": found.caption_accuracy, "groups": found.group_accuracy}
    return Score(figures, pictures[:SHOWN].clone())
