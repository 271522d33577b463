"""Labelled latents without data: each cluster's expert draws what its cluster holds.

Captions are drawn as often as the run counted them in the cluster, and clusters by their sizes, so
the set stands in for all the data; who trains a router on it needs the published experts alone.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor

from training.drawing.answers import VelocityNet, answer_query
from training.drawing.mixture import Strategy
from training.drawing.plan import Denoised, SampleOptions, SamplePlan
from training.drawing.sampler import StaticRoutes, denoise
from training.errors import ConfigError
from training.parts.text import UNCONDITIONAL
from training.routers.calibration import LabelledLatents
from training.run import Run

CHUNK: Final = 100
OPTIONS: Final = SampleOptions(strategy=Strategy.STICKY, guidance=1.0)
"""Guidance 1 draws the cluster as it is; more would draw only its most typical pictures."""
SEEDS: Final = 2**40
"""First seed of each draw's own range: far from those of pictures for people."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """`done` of `total` pictures are drawn."""

    done: int
    total: int


def draw_labelled(
    run: Run,
    experts: Mapping[int, VelocityNet],
    count: int,
    seed: int = 0,
) -> Generator[Drawn, None, LabelledLatents]:
    """Have experts draw latents of their clusters; a generator that reports and then returns them.

    Closing it stops the work within one `CHUNK` of pictures.

    Args:
        run: the run.
        experts: by cluster; only these clusters are drawn, by their sizes.
        count: latents in all; every cluster gets at least one.
        seed: the same seed and experts give the same latents on one machine.

    Raises:
        ConfigError: fewer than two experts, or one of a cluster that the run does not have.
    """
    if len(experts) < 2 or not set(experts) <= set(range(run.spec.clusters)) or count < 1:
        raise ConfigError(
            f"drawing {count} latents with experts of clusters {sorted(experts)}: expected two or "
            f"more of {run.spec.clusters}"
        )
    rows = {cluster: run.facts.rows[cluster] for cluster in sorted(experts)}
    shares = {k: max(1, round(count * n / sum(rows.values()))) for k, n in rows.items()}
    total, done = sum(shares.values()), 0
    latents, clusters = [], []
    for cluster, share in shares.items():
        for start in range(0, share, CHUNK):
            size = min(CHUNK, share - start)
            first = SEEDS * (seed + 1) + done
            captions = _captions(run, cluster, size, first)
            seeds = tuple(range(first, first + size))
            latents.append(_draw(run, (cluster, experts[cluster]), captions, seeds))
            clusters.append(torch.full((size,), cluster))
            done += size
            yield Drawn(done, total)
    return LabelledLatents(torch.cat(latents), torch.cat(clusters))


def all_drawn(drawing: Generator[Drawn, None, LabelledLatents]) -> LabelledLatents:
    """The latents of a drawing, its reports unheard."""
    while True:
        try:
            next(drawing)
        except StopIteration as end:
            return cast("LabelledLatents", end.value)


def _captions(run: Run, cluster: int, size: int, seed: int) -> tuple[str, ...]:
    """Captions as frequent as in the cluster; the rare ones that are not listed go without."""
    counts = run.caption_counts
    weights = torch.tensor((*counts.counts[cluster], counts.other[cluster]), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    picked = torch.multinomial(weights, size, replacement=True, generator=generator)
    names = (*counts.captions, UNCONDITIONAL)
    return tuple(names[index] for index in picked.tolist())


def _draw(
    run: Run, expert: tuple[int, VelocityNet], captions: tuple[str, ...], seeds: tuple[int, ...]
) -> Tensor:
    """Clean latents [B, C, H, W] of one expert."""
    cluster, net = expert
    plan = SamplePlan(captions, seeds, run.facts.latent, OPTIONS)
    routes = StaticRoutes((cluster,), torch.ones(len(seeds), 1))
    dialogue = denoise(plan, routes, (cluster,))
    try:
        queries = next(dialogue)
        while True:
            queries = dialogue.send([answer_query(net, run.text, query) for query in queries])
    except StopIteration as end:
        return cast("Denoised", end.value).latents
