"""The figures of `bench_training`: what was drawn, who drew it, and how training went.

All are PNG files beside the results; a person must recognise what they show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor

from training.clusters import Cluster
from training.drawing.pictures import caption_grid
from training.drawing.plan import RouterName, SamplePlan
from training.drawing.sampler import Routes, denoise
from training.experts.losses import read_curve
from training.sources.bundled import FASHION_CAPTIONS
from training_arms import ONE_CAPTION, Trained
from training_drawings import MONOLITH
from training_scores import FIRST_SEED, Drawing, Score, as_pixels, open_ensemble

IN_ROW = 12
STRIPS = 6
BEST_GUIDANCE = 4.0

Scored = Sequence[tuple[Drawing, Score]]


def draw_figures(
    out: Path, results: Mapping[str, Any], scores: Scored, trained: Mapping[str, Trained]
) -> None:
    """Write every figure."""
    mpl.use("Agg")
    seed = results["scale"]["seeds"][0]
    for k in results["scale"]["clusters"]:
        chosen = {
            d.label: (d, s)
            for d, s in scores
            if (d.facts["table"], d.facts["clusters"], d.facts["seed"]) == ("strategies", k, seed)
        }
        rows = [(label, score.shown[:IN_ROW]) for label, (_, score) in chosen.items()]
        (out / f"strategies-{k}.png").write_bytes(caption_grid(rows, scale=2))
        sticky = chosen["sticky"][0]
        (out / f"clusters-{k}.png").write_bytes(_sheets(sticky))
        _strips(chosen["top-2, gauss"][0], out / f"routing-{k}.png")
    (out / "captions.png").write_bytes(_captions(scores))
    _losses(trained, results["scale"]["clusters"], seed, out / "losses.png")
    _confidence(results["routers"], out / "calibration.png")


def _sheets(sticky: Drawing) -> bytes:
    """Real pictures of each cluster above those its expert draws."""
    rows = []
    for k, path in sticky.experts.items():
        alone = replace(sticky, experts={k: path})
        ensemble, run, _ = open_ensemble(alone)
        drawn = ensemble.generate_batch([ONE_CAPTION] * IN_ROW, FIRST_SEED, sticky.options)
        real = Cluster.load(sticky.run / "clusters" / str(k)).latents()
        step = max(1, len(real) // IN_ROW)
        rows.append((f"cluster {k}, real", as_pixels(run.codec.decode(real[::step][:IN_ROW]))))
        rows.append((f"expert {k}", drawn.pictures))
    return caption_grid(rows, scale=2)


def _captions(scores: Scored) -> bytes:
    """What the captioned experts draw, a row a caption."""
    shown = next(
        score.shown
        for drawing, score in scores
        if drawing.facts.get("guidance") == BEST_GUIDANCE and drawing.label != MONOLITH
    )
    classes = len(FASHION_CAPTIONS)
    rows = [(caption, shown[i::classes]) for i, caption in enumerate(FASHION_CAPTIONS)]
    return caption_grid([row for row in rows if len(row[1])], scale=2)


class _Watched:
    """Routes that remember what they answered."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self.seen: list[tuple[float, Tensor]] = []

    @property
    def clusters(self) -> tuple[int, ...]:
        return self._routes.clusters

    @property
    def is_static(self) -> bool:
        return self._routes.is_static

    @property
    def freeze_below(self) -> float:
        return self._routes.freeze_below

    def probabilities(self, x_t: Tensor, t: float) -> Tensor:
        found = self._routes.probabilities(x_t, t)
        self.seen.append((t, found))
        return found


def _strips(drawing: Drawing, path: Path) -> None:
    """p(k | x_t, t) of a few pictures on their way from noise to data."""
    ensemble, run, _ = open_ensemble(drawing)
    options = replace(drawing.options, steps=40)
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + STRIPS))
    plan = SamplePlan((ONE_CAPTION,) * STRIPS, seeds, run.facts.latent, options)
    watched = _Watched(ensemble.routes(plan))
    dialogue = denoise(plan, watched, ensemble.clusters)
    try:
        queries = next(dialogue)
        while True:
            queries = dialogue.send([ensemble.answer(query) for query in queries])
    except StopIteration as end:
        pictures = as_pixels(run.codec.decode(end.value.latents))
    times = [t for t, _ in watched.seen]
    table = torch.stack([found for _, found in watched.seen])
    figure, axes = pyplot.subplots(
        STRIPS, 2, figsize=(7, 1.1 * STRIPS), width_ratios=(6, 1), squeeze=False
    )
    for i in range(STRIPS):
        left, right = axes[i]
        left.stackplot(
            times, table[:, i].T.numpy(), labels=[f"expert {k}" for k in watched.clusters]
        )
        left.set(xlim=(1, times[-1]), ylim=(0, 1), yticks=())
        left.tick_params(labelbottom=i == STRIPS - 1)
        right.imshow(pictures[i, 0].numpy(), cmap="gray", vmin=0, vmax=255)
        right.axis("off")
    axes[-1][0].set_xlabel("t, from noise (left) to where the decision is kept")
    axes[0][0].legend(loc="upper center", ncols=4, fontsize=7, bbox_to_anchor=(0.5, 1.9))
    _save(figure, path)


def _losses(trained: Mapping[str, Trained], clusters: Sequence[int], seed: int, path: Path) -> None:
    """Loss against samples, of the monolith and of each expert."""
    figure, axes = pyplot.subplots(
        1, len(clusters), figsize=(5 * len(clusters), 3.4), squeeze=False
    )
    for axis, k in zip(axes[0], clusters, strict=True):
        arms = {f"expert {c}": f"k{k}.{c}-{seed}" for c in range(k)}
        arms |= {"monolith": f"mono-{seed}", "equal steps": f"wide{k}-{seed}"}
        for label, arm in arms.items():
            lines: list[dict[str, Any]] = read_curve(trained[arm].curve)
            samples = [line["samples"] for line in lines]
            is_expert = label.startswith("expert")
            axis.plot(
                samples, [line["loss"] for line in lines], label=label,
                linewidth=1 if is_expert else 2, linestyle="-" if is_expert else "--",
            )  # fmt: skip
        axis.set(title=f"K = {k}", xlabel="samples", xscale="log", ylim=(0.3, 1.2))
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("loss, smoothed")
    _save(figure, path)


def _confidence(measured: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy and confidence by t of each router, first seed."""
    first = [row for row in measured if row["seed"] == measured[0]["seed"]]
    figure, axes = pyplot.subplots(1, len(first), figsize=(5 * len(first), 3.4), squeeze=False)
    for axis, row in zip(axes[0], first, strict=True):
        for colour, name in enumerate((RouterName.GAUSS, RouterName.LEARNED, RouterName.SYNTHETIC)):
            buckets = row[name]["buckets"]
            middles = [(bucket["low"] + bucket["high"]) / 2 for bucket in buckets]
            drawn = (
                ("-", "accuracy", [bucket["accuracy"] for bucket in buckets]),
                (":", "confidence", [bucket["before"]["confidence"] for bucket in buckets]),
                ("--", "tempered", [bucket["after"]["confidence"] for bucket in buckets]),
            )
            for style, shown, values in drawn:
                axis.plot(middles, values, style, color=f"C{colour}", label=f"{name}, {shown}")
        axis.set(title=f"K = {row['clusters']}", xlabel="t (0 is data)", ylim=(0, 1))
        axis.legend(fontsize=6)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
