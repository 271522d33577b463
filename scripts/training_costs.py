"""What training and drawing cost beside their arithmetic, and how exact the conversions are."""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench_train import hand_written_rate, loop_rate, measure
from training.clusters import Cluster
from training.drawing.mixture import combine
from training.experts.loaded import load_expert
from training.flow import EpsilonNet, velocity_from_epsilon
from training.run import load_run
from training_arms import ONE_CAPTION
from training_scores import Drawing, open_ensemble

ROUNDS = 3
STEPS = 200
PICTURES = 300
SIZES = ("S/2", "B/2")


def training_cost(folder: Path, steps: int = STEPS) -> dict[str, float]:
    """Samples/s of `experts.loop`, saves included, and of a hand-written loop of the same net.

    They take turns; medians over the rounds.
    """
    run, cluster = load_run(folder / "shared"), Cluster.load(folder / "clusters" / "0")
    samples = steps * run.spec.train.batch
    config = replace(run.spec.train, budget_samples=2 * samples, save_samples=samples)
    rows = measure(
        {
            "hand_written": lambda: hand_written_rate(cluster, run, config, steps),
            "loop": lambda: loop_rate(cluster, run, config, saves=1),
        },
        ROUNDS,
    )
    found = {
        f"{name}_samples_per_s": statistics.median(row[name].wall for row in rows)
        for name in rows[0]
    }
    ratio = statistics.median(row["loop"].wall / row["hand_written"].wall for row in rows)
    return found | {"ratio": ratio}


def drawing_cost(monolith: Drawing) -> dict[str, float]:
    """CPU-seconds per picture of a whole drawing over evaluations times one forward."""
    torch.set_num_threads(1)
    ensemble, run, _ = open_ensemble(monolith)
    expert = load_expert(monolith.experts[0], run)
    batch = 100
    x_t = torch.randn(batch, *run.facts.latent)
    text = run.text.encode([ONE_CAPTION] * batch)
    times = torch.full((batch,), 0.5)
    ratios = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(monolith.options.steps * PICTURES // batch):
            expert.velocity(x_t, times, text.states, text.mask)
        forwards = time.process_time() - began
        began = time.process_time()
        ensemble.generate_batch([ONE_CAPTION] * PICTURES, 0, monolith.options)
        ratios.append(((time.process_time() - began), forwards))
    return {
        "ms_per_picture": statistics.median(whole for whole, _ in ratios) / PICTURES * 1e3,
        "ratio": statistics.median(whole / forwards for whole, forwards in ratios),
    }


def sizes() -> list[dict[str, Any]]:
    """One step and one picture of the larger presets, each in a process of its own."""
    program = Path(__file__).with_name("bench_train_sizes.py")
    with tempfile.NamedTemporaryFile(suffix=".json") as found:
        subprocess.run(
            [sys.executable, program, "--presets", *SIZES, "--json", found.name], check=True
        )
        rows: list[dict[str, Any]] = json.loads(Path(found.name).read_text())["presets"]
    return rows


def exactness() -> dict[str, float]:
    """Largest errors in float64 on Gaussians, whose velocity is known in closed form.

    `epsilon`: the velocity converted from the exact noise predictor of the variance-preserving
    path. `mixture`: sum_k p_k v_k of two clusters against the velocity of both together.
    """
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(64, 2, 2, 2, generator=generator, dtype=torch.float64)
    times = torch.rand(64, generator=generator, dtype=torch.float64) * 0.84 + 0.01
    means, deviations = (-1.0, 1.5), (0.5, 0.8)
    epsilon = mixture = 0.0
    for mean, deviation in zip(means, deviations, strict=True):
        converted = velocity_from_epsilon(_predictor(mean, deviation), x_t, times)
        gap = converted - _velocity(x_t, times, mean, deviation)
        epsilon = max(epsilon, float(gap.abs().max()))
    parts = torch.stack(
        [_velocity(x_t, times, *one) for one in zip(means, deviations, strict=True)]
    )
    densities = torch.stack(
        [_log_density(x_t, times, *one) for one in zip(means, deviations, strict=True)], dim=1
    )
    whole = _mixture_velocity(x_t, times, means, deviations)
    mixture = float((combine(densities.softmax(dim=1), parts) - whole).abs().max())
    return {"epsilon": epsilon, "mixture": mixture}


def _moments(t: torch.Tensor, mean: float, deviation: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of x_t for data N(mean, deviation^2), shaped to broadcast."""
    keep = (1 - t)[:, None, None, None]
    return keep * mean, keep.square() * deviation**2 + t[:, None, None, None].square()


def _velocity(x_t: torch.Tensor, t: torch.Tensor, mean: float, deviation: float) -> torch.Tensor:
    """E[eps - x0 | x_t] for Gaussian data."""
    centre, variance = _moments(t, mean, deviation)
    times = t[:, None, None, None]
    rest = (x_t - centre) / variance
    return times * rest - (mean + (1 - times) * deviation**2 * rest)


def _predictor(mean: float, deviation: float) -> EpsilonNet:
    """E[eps | x_s] on the variance-preserving path at s, for Gaussian data."""

    def predict(x_s: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        angle = (s * (math.pi / 2))[:, None, None, None]
        keep, noise = angle.cos(), angle.sin()
        return noise * (x_s - keep * mean) / (keep.square() * deviation**2 + noise.square())

    return predict


def _log_density(x_t: torch.Tensor, t: torch.Tensor, mean: float, deviation: float) -> torch.Tensor:
    centre, variance = _moments(t, mean, deviation)
    return -0.5 * ((x_t - centre).square() / variance + variance.log()).flatten(1).sum(dim=1)


def _mixture_velocity(
    x_t: torch.Tensor, t: torch.Tensor, means: tuple[float, ...], deviations: tuple[float, ...]
) -> torch.Tensor:
    """E[eps - x0 | x_t] of equal clusters, by the score of their density (no velocities mixed).

    v = -(x_t + t s) / (1 - t) - t s with s = grad log p(x_t): from E[eps | x_t] = -t s.
    """
    at = x_t.clone().requires_grad_()
    parts = [_log_density(at, t, *one) for one in zip(means, deviations, strict=True)]
    (score,) = torch.autograd.grad(torch.stack(parts).logsumexp(dim=0).sum(), at)
    times = t[:, None, None, None]
    noise = -times * score
    return noise - (x_t - times * noise) / (1 - times)
