#!/usr/bin/env python3
"""How well isolated experts draw, beside one net trained on the same samples.

Fashion-MNIST's 60,000 pictures, K = 4 and 8 clusters, two seeds. Every arm of a seed sees the same
number of samples in all: K experts that never exchange anything; a monolith of the same batch, so
of K times the steps of an expert ("K x steps"); a monolith of the same steps, so of K times the
batch ("equal steps", the protocol of arXiv 2501.05450). Then every strategy, router and sampler
draws, and a classifier's features tell how far the pictures are from real ones (Frechet distance,
on the classifier's own scale) and whether they show their caption.

Leaves in bench-out/training/: results.json, table.txt, and figures (PNG).
"""

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from bench_machine import machine
from training.config import TrainConfig
from training.drawing.plan import RouterName
from training.run import load_run
from training_arms import Arm, Trained, make_run, read_split, split_evenly, train_arm
from training_costs import drawing_cost, exactness, sizes, training_cost
from training_drawings import MONOLITH, Materials, captioned, captions_of, samplers, strategies
from training_figures import draw_figures
from training_routers import RouterJob, make_router, measure_routers, summarise, time_gauss
from training_scores import Drawing, Reference, Score, draw_and_score
from training_tables import report

T = TypeVar("T")

BATCH = 32
RATES = {"expert": 8e-3, "monolith": 8e-3, "equal steps": 8e-3}
"""Peak learning rates, the best of 2e-3, 4e-3 and 8e-3 for each kind of arm (seed 0, distances):
monolith 7.2, 6.28, 6.29; experts by sticky at K = 4 -, 6.6, 5.4, at K = 8 -, 8.0, 6.4."""


@dataclass(frozen=True)
class Scale:
    """How much is trained and drawn."""

    samples: int = 120_000
    text_samples: int = 96_000
    pictures: int = 3_000
    text_pictures: int = 1_000
    router_samples: int = 48_000
    router_drawn: int = 4_000
    clusters: tuple[int, ...] = (4, 8)
    seeds: tuple[int, ...] = (0, 1)


QUICK = Scale(3_200, 3_200, 200, 100, 3_200, 400, (2,), (0,))
"""Every part of the benchmark in two minutes; its figures mean nothing."""


@dataclass
class Bench:
    """One run of the benchmark.

    Args:
        scale: how much.
        data: folder of the gzipped IDX files.
        out: where results go.
        pool: of processes of one thread each.
    """

    scale: Scale
    data: Path
    out: Path
    pool: ProcessPoolExecutor
    began: float = field(default_factory=time.monotonic)
    results: dict[str, Any] = field(default_factory=dict)
    scores: list[tuple[Drawing, Score]] = field(default_factory=list)

    def play(self) -> dict[str, Any]:
        """All of it."""
        self.results |= {"machine": machine(), "scale": asdict(self.scale), "rates": RATES}
        runs = self._prepare()
        trained = self._train(runs)
        summaries = {name: summarise(runs[name], self._work / f"sum-{name}") for name in runs}
        routers = self._make_routers(runs, trained)
        self._measure_routers(runs, summaries, routers)
        checkpoints = {name: item.checkpoint for name, item in trained.items()}
        self._draw(Materials(runs, checkpoints, summaries, routers))
        draw_figures(self.out, self.results, self.scores, trained)
        self._measure_costs(runs)
        return self.results

    @property
    def _work(self) -> Path:
        return self.out / "work"

    @property
    def _reference(self) -> Path:
        return self._work / "reference.safetensors"

    def _say(self, text: str) -> None:
        """Say what is done, and keep the results so far."""
        self.results["seconds"] = round(time.monotonic() - self.began)
        print(f"[{self.results['seconds']:6} s] {text}", flush=True)
        (self.out / "results.json").write_text(json.dumps(self.results, indent=1) + "\n")

    def _each(self, function: Callable[..., T], jobs: Iterable[tuple[Any, ...]]) -> list[T]:
        """`function` of each job, as many at a time as the pool has processes; in order."""
        futures: list[Future[T]] = [self.pool.submit(function, *job) for job in jobs]
        return [future.result() for future in futures]

    def _prepare(self) -> dict[str, Path]:
        """The runs: unconditional ones of 1 and each K, captioned ones of 1 and the first K."""
        split = read_split(self.data, "train")
        plain = {str(k): k for k in (1, *self.scale.clusters)}
        text = {f"text-{k}": k for k in (1, self.scale.clusters[0])}
        silent = TrainConfig(caption_drop=0.0)
        jobs = [(split, self._work / f"run-{n}", k, silent, False) for n, k in plain.items()]
        jobs += [(split, self._work / f"run-{n}", k, TrainConfig(), True) for n, k in text.items()]
        runs = dict(zip((*plain, *text), self._each(make_run, jobs), strict=True))
        codec = load_run(runs["1"] / "shared").codec
        reference = Reference.of(split, codec)
        reference.save(self._reference)
        held_out = Reference.of(read_split(self.data, "t10k"), codec)
        self.results["floor"] = reference.floor(held_out)
        sizes = {n: load_run(folder / "shared").facts.rows for n, folder in runs.items()}
        self.results["cluster_sizes"] = sizes
        self._say(f"runs prepared, clusters of {sizes}")
        return runs

    def _arms(self, runs: Mapping[str, Path]) -> list[Arm]:
        scale, arms = self.scale, []
        for seed in scale.seeds:
            arms.append(
                Arm(f"mono-{seed}", runs["1"], 0, scale.samples, BATCH, RATES["monolith"], seed)
            )
            for k in scale.clusters:
                wide = (f"wide{k}-{seed}", runs["1"], 0, scale.samples, BATCH * k)
                arms.append(Arm(*wide, RATES["equal steps"], seed))
                arms += self._experts(f"k{k}", runs[str(k)], k, scale.samples, seed)
        k, seed = scale.clusters[0], scale.seeds[0]
        text = (f"text-mono-{seed}", runs["text-1"], 0, scale.text_samples, BATCH)
        arms.append(Arm(*text, RATES["monolith"], seed))
        arms += self._experts(f"text{k}", runs[f"text-{k}"], k, scale.text_samples, seed)
        return arms

    def _experts(self, name: str, run: Path, k: int, samples: int, seed: int) -> list[Arm]:
        share = split_evenly(samples, k, BATCH)
        return [
            Arm(f"{name}.{c}-{seed}", run, c, share, BATCH, RATES["expert"], seed) for c in range(k)
        ]

    def _train(self, runs: Mapping[str, Path]) -> dict[str, Trained]:
        arms = sorted(self._arms(runs), key=lambda arm: -arm.samples)
        self._say(f"training {len(arms)} nets, {sum(arm.samples for arm in arms):,} samples")
        found = self._each(train_arm, [(arm, self._work / "arms") for arm in arms])
        self.results["training"] = [
            {
                "arm": item.arm.name,
                "samples": item.arm.samples,
                "batch": item.arm.batch,
                "loss": item.loss,
                "cpu_s": item.cpu_s,
                "samples_per_cpu_s": item.arm.samples / item.cpu_s,
            }
            for item in found
        ]
        self._say("trained")
        return {item.arm.name: item for item in found}

    def _make_routers(
        self, runs: Mapping[str, Path], trained: Mapping[str, Trained]
    ) -> dict[tuple[int, int], dict[RouterName, Path]]:
        scale, jobs = self.scale, []
        for k in scale.clusters:
            for seed in scale.seeds:
                experts = {c: trained[f"k{k}.{c}-{seed}"].checkpoint for c in range(k)}
                for kind in (RouterName.LEARNED, RouterName.SYNTHETIC):
                    folder = self._work / "routers" / f"{kind}-{k}-{seed}"
                    size = (scale.router_samples, scale.router_drawn)
                    jobs.append(RouterJob(kind, runs[str(k)], experts, seed, *size, folder))
        (self._work / "routers").mkdir()
        made = self._each(make_router, [(job,) for job in jobs])
        self.results["router_training"] = [
            {"router": item.job.folder.name, "cpu_s": item.cpu_s} for item in made
        ]
        found: dict[tuple[int, int], dict[RouterName, Path]] = {}
        for job in jobs:
            k = int(job.folder.name.split("-")[1])
            found.setdefault((k, job.seed), {})[job.kind] = job.folder
        self._say("routers trained")
        return found

    def _measure_routers(
        self,
        runs: Mapping[str, Path],
        summaries: Mapping[str, Mapping[int, Path]],
        routers: Mapping[tuple[int, int], Mapping[RouterName, Path]],
    ) -> None:
        keys = list(routers)
        held_out = read_split(self.data, "t10k")
        jobs = [(runs[str(k)], summaries[str(k)], routers[k, s], held_out) for k, s in keys]
        found = self._each(measure_routers, jobs)
        self.results["routers"] = [
            {"clusters": k, "seed": s, **item} for (k, s), item in zip(keys, found, strict=True)
        ]
        self.results["gauss_ms_per_image"] = {
            str(k): time_gauss(runs[str(k)], summaries[str(k)], (1, 16, 100))
            for k in self.scale.clusters
        }
        self._say("routers measured")

    def _draw(self, materials: Materials) -> None:
        scale, drawings = self.scale, []
        for seed in scale.seeds:
            for k in scale.clusters:
                drawings += strategies(materials, k, seed)
            drawings += samplers(materials, scale.clusters[0], seed)
        drawings += captioned(materials, scale.clusters[0], scale.seeds[0])
        self._say(f"drawing in {len(drawings)} ways")
        captions = [captions_of(d, scale.pictures, scale.text_pictures) for d in drawings]
        jobs = [(*job, self._reference) for job in zip(drawings, captions, strict=True)]
        found = self._each(draw_and_score, jobs)
        self.scores = list(zip(drawings, found, strict=True))
        self.results["drawn"] = [
            {"label": drawing.label, **drawing.facts, **score.figures}
            for drawing, score in self.scores
        ]
        self._say("drawn")

    def _measure_costs(self, runs: Mapping[str, Path]) -> None:
        """Alone on the machine, as far as this program is concerned."""
        monolith = next(drawing for drawing, _ in self.scores if drawing.label == MONOLITH)
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        self.results["costs"] = {
            "training": training_cost(runs["text-1"]),
            "drawing": drawing_cost(monolith),
            "sizes": sizes(),
            "exactness": exactness(),
            "peak_mib": {
                "this": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "largest child": children // 1024,
            },
        }
        self._say("costs measured")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path("bench-out/training"))
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--quick", action="store_true", help="check the benchmark, not the method")
    options = parser.parse_args()
    if not (options.data / "train-images-idx3-ubyte.gz").exists():
        print(f"{options.data}: no Fashion-MNIST; install Debian's dataset-fashion-mnist, or name "
              "a folder with its four IDX files: --data FOLDER", file=sys.stderr)  # fmt: skip
        return 1
    shutil.rmtree(options.out / "work", ignore_errors=True)
    (options.out / "work").mkdir(parents=True)
    scale = QUICK if options.quick else Scale()
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        bench = Bench(scale, options.data, options.out, pool)
        results = bench.play()
    table = report(results)
    (options.out / "table.txt").write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
