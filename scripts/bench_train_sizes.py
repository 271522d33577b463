#!/usr/bin/env python3
"""What a preset costs on this machine: one optimizer step, one picture, the memory of both.

Each preset is measured in a process of its own, on sd-vae latents (4x32x32) and text states of
CLIP's width, with random weights and rows: time and memory do not depend on them.  A picture is ten
evaluations with guidance, two rows each.  The estimate by which the trainer bounds its micro-batch
on a CPU stands beside what the step really took.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench_machine import machine
from training.experts.batches import Batch
from training.experts.ema import Ema
from training.experts.gradients import Gradients, Objective
from training.experts.memory import sample_bytes
from training.experts.nets import NetShape, build_net, predict
from training.parts.text import TEXT_DIMS, TextStates

TEXT = "clip-vit-l14"
LATENT = (4, 32, 32)
TOKENS = 77
EVALUATIONS = 10
MIB = 2**20


class RandomText:
    """Text states of the right shape for any caption."""

    dim = TEXT_DIMS[TEXT]

    def encode(self, captions: Sequence[str]) -> TextStates:
        """[B, 77, 768] states, every token counts."""
        return TextStates(
            torch.randn(len(captions), TOKENS, self.dim), torch.ones(len(captions), TOKENS)
        )


def seconds(call: Callable[[], None]) -> dict[str, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {
        "wall_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
    }


def peak_mib() -> float:
    """The most this process ever had in memory."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 0)


def measure(preset: str, batch: int, micro: int) -> dict[str, Any]:
    """Figures of one preset, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = build_net(NetShape(preset, LATENT, TEXT), seed=0).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    ema = Ema(net.parameters(), 0.999)
    text = RandomText()
    data, noise = torch.randn(2, batch, *LATENT)
    rows = Batch(data, noise, torch.rand(batch), ("",) * batch)
    gradients = Gradients(net, text, Objective(), micro)
    weights = sum(p.nbytes for p in net.parameters())
    estimate = sample_bytes(net, LATENT, text.dim)
    before = peak_mib()

    def step() -> None:
        gradients.fill(rows)
        optimizer.step()
        ema.update(net.parameters(), 0)

    figures: dict[str, Any] = {
        "preset": preset,
        "parameters": sum(p.numel() for p in net.parameters()),
        "batch": batch,
        "micro_batch": micro,
        "weights_mib": round(weights / MIB),
        "before_step_mib": before,
        "step": seconds(step),
        "step_peak_mib": peak_mib(),
        "estimate_mib": round((3 * weights + micro * estimate) / MIB),
    }
    net.eval()
    states = text.encode(("", "a boat"))
    x = torch.randn(2, *LATENT)

    def picture() -> None:
        with torch.no_grad():
            for _ in range(EVALUATIONS):
                predict(net, x, torch.full((2,), 0.5), states)

    return {**figures, "picture": seconds(picture)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=["tiny-cpu", "S/2", "B/2"])
    parser.add_argument("--batch", type=int, default=2, help="samples of the step")
    parser.add_argument("--micro", type=int, default=2, help="samples at a time")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure(options.presets[0], options.batch, options.micro)))
        return
    where, rows = machine(), []
    print(f"{where['cpu']}, {where['cores']} cores, load {where['load_at_start']}; one thread")
    print("preset    parameters   step: CPU-s  peak MiB (estimate)   picture: CPU-s")
    for preset in options.presets:
        arguments = ["--presets", preset, "--batch", str(options.batch)]
        done = subprocess.run(
            [sys.executable, __file__, "--alone", *arguments, "--micro", str(options.micro)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        row = json.loads(done.stdout)
        rows.append(row)
        estimate = row["before_step_mib"] + row["estimate_mib"]
        print(
            f"{preset:9} {row['parameters']:>11,}  {row['step']['cpu_s']:>11.2f}"
            f"  {row['step_peak_mib']:>8.0f} ({estimate:.0f}) {row['picture']['cpu_s']:>20.2f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": where, "presets": rows}) + "\n")


if __name__ == "__main__":
    main()
