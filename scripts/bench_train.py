#!/usr/bin/env python3
"""What training costs beside the arithmetic: samples/s of three ways to train one expert.

hand-written   the shortest torch program that trains the same net on the same rows: no reports, no
               checkpoints, no resumable randomness
bare loop      training.experts.loop, alone in this process, with its saves
in a node      the trainer process of a running node, which publishes those saves, claims and
               renews, and serves its API meanwhile
They take turns on one thread; the median of the rounds is printed.  Samples per CPU-second stand
beside samples per second: on a machine that does other work too, only they can be compared (the
trainer in a node is another process, of which only the wall clock is known).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional

from bench_machine import machine
from bench_train_node import ENDLESS_SAMPLES, TrainingNode
from training.clusters import Cluster
from training.config import TrainConfig
from training.experts.loop import SavedCheckpoint, train
from training.experts.nets import build_net, predict
from training.parts.text import UNCONDITIONAL
from training.preparation.prepare import default_spec, prepare_run
from training.run import Run

WARMUP_STEPS = 100


@dataclass(frozen=True)
class Rate:
    """Samples per second of the wall clock, and per second of this process' CPU time."""

    wall: float
    cpu: float | None


class Stopwatch:
    """Wall and CPU time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def rate(self, samples: int) -> Rate:
        """Of so many samples since then."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Rate(samples / wall, samples / cpu)


def hand_written_rate(cluster: Cluster, run: Run, config: TrainConfig, steps: int) -> Rate:
    """The shortest loop that does the same arithmetic."""
    torch.set_num_threads(config.threads)
    net = build_net(run.shape, seed=0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, fused=True)
    average = [parameter.detach().clone() for parameter in net.parameters()]
    latents = cluster.latents()
    table = run.text.encode([*cluster.captions, UNCONDITIONAL])
    watch = Stopwatch()
    for step in range(WARMUP_STEPS + steps):
        if step == WARMUP_STEPS:
            watch = Stopwatch()
        rows = torch.randint(len(cluster), (config.batch,))
        data = latents[rows]
        noise, times = torch.randn_like(data), torch.rand(config.batch)
        is_dropped = torch.rand(config.batch) < config.caption_drop
        captions = cluster.caption_of[rows].masked_fill(is_dropped, len(cluster.captions))
        mix = times[:, None, None, None]
        output = predict(net, (1 - mix) * data + mix * noise, times, table.select(captions))
        loss = functional.mse_loss(output, noise - data)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        parameters = [parameter.detach() for parameter in net.parameters()]
        torch._foreach_lerp_(average, parameters, 1 - config.ema_decay)
    return watch.rate(steps * config.batch)


def loop_rate(cluster: Cluster, run: Run, config: TrainConfig, saves: int) -> Rate:
    """`training.experts.loop.train` from its first save to the one `saves` later."""
    first: tuple[int, Stopwatch] | None = None
    left = saves
    with tempfile.TemporaryDirectory() as state:
        for event in train(cluster, run, config, state_dir=Path(state)):
            if not isinstance(event, SavedCheckpoint):
                continue
            if first is None:
                first = (event.samples, Stopwatch())
                continue
            left -= 1
            if not left:
                return first[1].rate(event.samples - first[0])
    raise ValueError(f"the budget ends before {saves} saves")


def measure(rates: Mapping[str, Callable[[], Rate]], rounds: int) -> list[dict[str, Rate]]:
    """Rates of each, round by round; they take turns, so that a busy machine slows all."""
    rows = []
    for _ in range(rounds):
        rows.append({name: rate() for name, rate in rates.items()})
        print("  ".join(f"{name} {rate.wall:.0f}" for name, rate in rows[-1].items()), flush=True)
    return rows


def print_medians(rows: list[dict[str, Rate]], base: str) -> None:
    """Each way's medians, and its share of `base` in the same round."""
    for name in rows[0]:
        wall = statistics.median(row[name].wall for row in rows)
        share = statistics.median(row[name].wall / row[base].wall for row in rows)
        line = f"  {name:13} {wall:6.0f} samples/s  {share:.3f} of {base}"
        pairs = [(row[name].cpu, row[base].cpu) for row in rows]
        known = [(own, other) for own, other in pairs if own is not None and other is not None]
        if known:
            cpu = statistics.median(own for own, _ in known)
            cpu_share = statistics.median(own / other for own, other in known)
            line += f"   {cpu:6.0f} per CPU-s  {cpu_share:.3f}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--saves", type=int, default=2, help="save intervals per measurement")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--no-node", action="store_true", help="leave out the node")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    where = machine()
    with tempfile.TemporaryDirectory() as folder:
        spec = default_spec("fashion", clusters=1)
        spec = replace(spec, train=replace(spec.train, budget_samples=ENDLESS_SAMPLES))
        made = prepare_run("fashion", Path(folder) / "run", spec)
        cluster, run, config = Cluster.load(made.clusters[0].folder), made.load(), spec.train
        steps = options.saves * spec.train.save_samples // spec.train.batch
        rates: dict[str, Callable[[], Rate]] = {
            "hand-written": lambda: hand_written_rate(cluster, run, config, steps),
            "bare loop": lambda: loop_rate(cluster, run, config, options.saves),
        }
        if not options.no_node:
            node = TrainingNode(Path(folder), spec.train.save_samples)
            rates["in a node"] = lambda: Rate(node.rate(options.saves), None)
        rows = measure(rates, options.rounds)
    print(f"{where['cpu']}, {where['cores']} cores, load {where['load_at_start']} at the start")
    print(f"medians of {options.rounds} rounds of {steps} steps, one thread")
    print_medians(rows, "hand-written")
    if options.json:
        found = [{name: asdict(rate) for name, rate in row.items()} for row in rows]
        options.json.write_text(json.dumps({"machine": where, "samples_per_s": found}) + "\n")


if __name__ == "__main__":
    main()
