#!/usr/bin/env python3
"""What the training loop costs beside the arithmetic: samples/s of it and of a bare loop.

The bare loop is the shortest torch program that trains the same net on the same rows: no reports,
no checkpoints, no resumable randomness. Both take turns, and the median of the rounds is printed.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional

from training.clusters import Cluster
from training.loop import StepReport, train
from training.nets import build_net, predict
from training.prepare import default_spec, prepare_run
from training.run import Run
from training.text import UNCONDITIONAL

WARMUP_STEPS = 10


def bare_rate(cluster: Cluster, run: Run, steps: int) -> float:
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
    config = replace(config, budget_samples=wanted, save_samples=wanted)
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=250, help="optimizer steps per round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = prepare_run("fashion", Path(folder) / "run", default_spec("fashion"))
        cluster = Cluster.load(made.clusters[0].folder)
        rates = {"bare loop": bare_rate, "training.loop": loop_rate}
        medians = median_rates(rates, cluster, made.load(), options.steps, options.rounds)
    bare = medians["bare loop"]
    for name, rate in medians.items():
        print(f"{name:16} {rate:8.0f} samples/s   {100 * (1 - rate / bare):+5.1f} % overhead")


if __name__ == "__main__":
    main()
