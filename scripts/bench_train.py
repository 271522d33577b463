#!/usr/bin/env python3
"""What training costs beside the arithmetic: samples/s of three ways to train one expert.

hand-written   the shortest torch program that trains the same net on the same rows: no reports, no
               checkpoints, no resumable randomness
bare loop      training.loop, alone in this process, with its saves
in a node      the trainer process of a running node, which publishes those saves, claims and
               renews, and serves its API meanwhile
They take turns on one thread; the median of the rounds is printed.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional

from bench_machine import machine
from bench_train_node import ENDLESS_SAMPLES, TrainingNode
from training.clusters import Cluster
from training.loop import SavedCheckpoint, train
from training.nets import build_net, predict
from training.prepare import default_spec, prepare_run
from training.run import Run
from training.text import UNCONDITIONAL

WARMUP_STEPS = 100


def hand_written_rate(cluster: Cluster, run: Run, steps: int) -> float:
    """Samples/s of the shortest loop that does the same arithmetic."""
    config = run.spec.train
    torch.set_num_threads(config.threads)
    net = build_net(run.shape, seed=0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, fused=True)
    average = [parameter.detach().clone() for parameter in net.parameters()]
    latents = cluster.latents()
    table = run.text.encode([*cluster.captions, UNCONDITIONAL])
    began = 0.0
    for step in range(WARMUP_STEPS + steps):
        if step == WARMUP_STEPS:
            began = time.perf_counter()
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
    return steps * config.batch / (time.perf_counter() - began)


def loop_rate(cluster: Cluster, run: Run, saves: int) -> float:
    """Samples/s of `training.loop.train` from its first save to the one `saves` later."""
    first: tuple[int, float] | None = None
    left = saves
    with tempfile.TemporaryDirectory() as state:
        for event in train(cluster, run, run.spec.train, state_dir=Path(state)):
            if not isinstance(event, SavedCheckpoint):
                continue
            if first is None:
                first = (event.samples, time.perf_counter())
                continue
            left -= 1
            if not left:
                return (event.samples - first[0]) / (time.perf_counter() - first[1])
    raise ValueError(f"the budget ends before {saves} saves")


def measure(rates: Mapping[str, Callable[[], float]], rounds: int) -> list[dict[str, float]]:
    """Samples/s of each, round by round; they take turns, so that a busy machine slows all."""
    rows = []
    for _ in range(rounds):
        rows.append({name: rate() for name, rate in rates.items()})
        print("  ".join(f"{name} {rate:.0f}" for name, rate in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--saves", type=int, default=2, help="save intervals per measurement")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    where = machine()
    with tempfile.TemporaryDirectory() as folder:
        spec = default_spec("fashion", clusters=1)
        spec = replace(spec, train=replace(spec.train, budget_samples=ENDLESS_SAMPLES))
        made = prepare_run("fashion", Path(folder) / "run", spec)
        cluster, run = Cluster.load(made.clusters[0].folder), made.load()
        node = TrainingNode(Path(folder), spec.train.save_samples)
        steps = options.saves * spec.train.save_samples // spec.train.batch
        rates = {
            "hand-written": lambda: hand_written_rate(cluster, run, steps),
            "bare loop": lambda: loop_rate(cluster, run, options.saves),
            "in a node": lambda: node.rate(options.saves),
        }
        rows = measure(rates, options.rounds)
    print(f"{where['cpu']}, {where['cores']} cores, load {where['load_at_start']} at the start")
    print(f"medians of {options.rounds} rounds of {steps} steps, one thread")
    for name in rates:
        rate = statistics.median(row[name] for row in rows)
        share = statistics.median(row[name] / row["bare loop"] for row in rows)
        print(f"  {name:13} {rate:6.0f} samples/s   {share:.3f} of the bare loop of its round")
    if options.json:
        options.json.write_text(json.dumps({"machine": where, "samples_per_s": rows}) + "\n")


if __name__ == "__main__":
    main()
