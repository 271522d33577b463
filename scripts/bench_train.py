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
from bench_train_node import TrainingNode
from training.clusters import Cluster
from training.loop import StepReport, train
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


def loop_rate(cluster: Cluster, run: Run, steps: int) -> float:
    """Samples/s of `training.loop.train`, its checkpoints included."""
    config = run.spec.train
    wanted = (WARMUP_STEPS + steps) * config.batch
    config = replace(config, budget_samples=wanted)
    began = 0.0
    with tempfile.TemporaryDirectory() as state:
        for event in train(cluster, run, config, state_dir=Path(state)):
            if isinstance(event, StepReport) and event.step == WARMUP_STEPS:
                began = time.perf_counter()
        return steps * config.batch / (time.perf_counter() - began)


def median_rates(
    rates: Mapping[str, Callable[[Cluster, Run, int], float]],
    cluster: Cluster,
    run: Run,
    steps: int,
    rounds: int,
) -> dict[str, float]:
    """The median samples/s of each loop; they take turns, so that a busy machine slows all."""
    seen: dict[str, list[float]] = {name: [] for name in rates}
    for _ in range(rounds):
        for name, rate in rates.items():
            seen[name].append(rate(cluster, run, steps))
    return {name: statistics.median(values) for name, values in seen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=375, help="optimizer steps per round")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = default_spec("fashion", clusters=1)
        made = prepare_run("fashion", Path(folder) / "run", spec)
        cluster = Cluster.load(made.clusters[0].folder)
        node = TrainingNode(Path(folder), spec.train.save_samples)
        rates = {
            "hand-written": hand_written_rate,
            "bare loop": loop_rate,
            "in a node": lambda _cluster, _run, steps: node.rate(steps * spec.train.batch),
        }
        medians = median_rates(rates, cluster, made.load(), options.steps, options.rounds)
    where = machine()
    print(f"{where['cpu']}, {where['cores']} cores, load {where['load_at_start']} at the start")
    print(f"median of {options.rounds} rounds of {options.steps} steps, one thread")
    for name, rate in medians.items():
        print(
            f"{name:13} {rate:7.0f} samples/s   {rate / medians['bare loop']:.3f} of the bare loop"
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": where, "samples_per_s": medians}) + "\n")


if __name__ == "__main__":
    main()
