"""Routers of a benchmark's runs: made, timed, and measured for accuracy and confidence per time."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from training.clusters import Cluster
from training.drawing.plan import RouterName
from training.experts.checkpoint import read_published
from training.experts.loaded import load_expert
from training.routers.calibration import Calibration, LabelledLatents, calibrate
from training.routers.learned_router import LEARNED, SYNTHETIC, load_router, save_router
from training.routers.router import GaussRouter, Router
from training.routers.router_training import RouterSettings, TrainedRouter, labelled, train_router
from training.routers.summary import fit_summary, load_summary, save_summary
from training.routers.synthetic import all_drawn, draw_labelled
from training.run import Run, load_run
from training_arms import Split

TIMED_AT = (1.0, 0.7, 0.3)
TIMED_REPEATS = 5


@dataclass(frozen=True)
class RouterJob:
    """One router to train: on a run's data, or on what `experts` draw."""

    kind: RouterName
    run: Path
    experts: Mapping[int, Path]
    seed: int
    samples: int
    drawn: int
    folder: Path


@dataclass(frozen=True)
class MadeRouter:
    """A trained router, and what it cost in CPU-seconds, drawing included."""

    job: RouterJob
    cpu_s: float


def summarise(run: Path, out: Path) -> dict[int, Path]:
    """The routing summary of every cluster of a run."""
    opened = load_run(run / "shared")
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for k in range(opened.spec.clusters):
        found[k] = out / f"summary-{k}.safetensors"
        save_summary(fit_summary(Cluster.load(run / "clusters" / str(k)).latents()), found[k])
    return found


def make_router(job: RouterJob) -> MadeRouter:
    """Train one router and keep it."""
    torch.set_num_threads(1)
    began = time.process_time()
    run = load_run(job.run / "shared")
    settings = RouterSettings(kind=LEARNED if job.kind is RouterName.LEARNED else SYNTHETIC)
    train = replace(settings.train, seed=job.seed, budget_samples=job.samples)
    settings = replace(settings, train=train)
    if job.kind is RouterName.LEARNED:
        numbers = range(run.spec.clusters)
        rows = labelled([Cluster.load(job.run / "clusters" / str(k)) for k in numbers])
    else:
        experts = {k: load_expert(folder, run) for k, folder in job.experts.items()}
        digests = {
            str(k): read_published(folder, run)[0].model_digest for k, folder in job.experts.items()
        }
        settings = replace(settings, experts=digests)
        rows = all_drawn(draw_labelled(run, experts, job.drawn, job.seed))
    for event in train_router(rows, run, settings):
        if isinstance(event, TrainedRouter):
            save_router(event.router, job.folder)
    return MadeRouter(job, time.process_time() - began)


def _rows(run: Run, split: Split) -> LabelledLatents:
    """Pictures no router or expert saw, in the clusters where the run would put them."""
    return LabelledLatents(run.codec.encode(split.images), run.clusters.assign(split.images))


def measure_routers(
    prepared: Path,
    summaries: Mapping[int, Path],
    trained: Mapping[RouterName, Path],
    held_out: Split,
) -> dict[str, Any]:
    """Calibration per time of each router on held-out pictures, as JSON."""
    torch.set_num_threads(1)
    run = load_run(prepared / "shared")
    size = math.prod(run.facts.latent)
    fitted = {k: load_summary(path, size) for k, path in summaries.items()}
    rows = _rows(run, held_out)
    routers: dict[str, Router] = {"gauss": GaussRouter(fitted)}
    for name, folder in trained.items():
        routers[name] = load_router(folder, run).untempered()
    return {name: calibration_json(calibrate(router, rows)) for name, router in routers.items()}


def calibration_json(found: Calibration) -> dict[str, Any]:
    """A calibration as plain values, without its bins."""
    buckets = []
    for bucket in found.buckets:
        plain = asdict(bucket)
        for side in ("before", "after"):
            plain[side].pop("bins")
        buckets.append(plain)
    return {
        "error_before": found.error_before,
        "error_after": found.error_after,
        "buckets": buckets,
    }


def time_gauss(
    folder: Path, summaries: Mapping[int, Path], batches: Sequence[int]
) -> dict[str, float]:
    """Milliseconds per image and evaluation of the gauss router, by batch size."""
    torch.set_num_threads(1)
    run = load_run(folder / "shared")
    size = math.prod(run.facts.latent)
    router = GaussRouter({k: load_summary(path, size) for k, path in summaries.items()})
    found = {}
    for batch in batches:
        x_t = torch.randn(batch, *run.facts.latent)
        for t in TIMED_AT:
            router.probabilities(x_t, t)
        spent = []
        for _ in range(TIMED_REPEATS):
            began = time.perf_counter()
            for t in TIMED_AT:
                router.probabilities(x_t, t)
            spent.append((time.perf_counter() - began) / len(TIMED_AT) / batch * 1e3)
        found[str(batch)] = statistics.median(spent)
    return found
