#!/usr/bin/env python3
"""What proofs about adapters cost: setting up, committing, proving, verifying; bytes and memory.

shapes     one layer of each shape, through the doors a node uses
salt       the same circuits with the salt that hides the weights and without
adapters   a layer of each block of XL/2, and all of the bundled run's expert, from keys to verified
rows       beside ours, the circuit of arXiv 2501.13965, delta = X A B, at 1, 4 and 16 tokens
quantised  the loss of a trained adapter in float32 and in the 16-bit integers it is sold in
floor      what the time of a proof is made of, and other layouts that were tried

Every figure comes from a fresh process with one job; medians. In less than 15 minutes on two cores.
Where a circuit is larger than the SRS that are shipped, it stands on a test SRS made in a temporary
folder, for this comparison only.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_machine import machine
from verification.circuit import EZKL_VERSION, Shape, circuit_of
from verification.srs import SHIPPED
from verification_bench import Workbench, plain
from verification_compare import measure_deltas, measure_rows, measure_salt
from verification_floor import Tries, measure_floor
from verification_meter import Figures
from verification_shapes import measure_adapter, measure_shape, whole_adapters
from verification_spawn import child, say
from verification_tables import report

LARGE_LOGROWS = 13
"""From here on a figure is a median of fewer processes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Args:
        shapes: of `shapes`.
        repeats: fresh processes a figure is a median of.
        large_repeats: the same for what takes many seconds.
        rounds: verifications in a warm process.
        salt: shapes measured with salt and without.
        adapters: names of `verification_shapes.whole_adapters`.
        modules: of each, at most.
        compared: the shape of `rows` and `floor`.
        row_sizes: tokens, and the k at which the paper's circuit is cheapest of those it fits.
        delta_tokens: of our proofs of deltas.
        expert_samples: the base of `quantised` is trained on.
        lora_samples: its adapter is.
        draws: its held-out loss is a mean of.
        also_laid_out: shapes that `floor` lays out at the next k.
        sizes: k that `floor` lays the smallest shape out at.
    """

    shapes: tuple[Shape, ...]
    repeats: int
    large_repeats: int
    rounds: int
    salt: tuple[Shape, ...]
    adapters: tuple[str, ...]
    modules: int
    compared: Shape
    row_sizes: tuple[tuple[int, int], ...]
    delta_tokens: tuple[int, ...]
    expert_samples: int
    lora_samples: int
    draws: int
    also_laid_out: tuple[Shape, ...]
    sizes: tuple[int, ...]


FULL = Plan(
    shapes=(
        Shape(64, 4, 64),
        Shape(64, 4, 256),
        Shape(128, 4, 128),
        Shape(384, 4, 384),
        Shape(768, 4, 768),
        Shape(1152, 4, 1152),
        Shape(1152, 4, 4608),
        Shape(1152, 16, 1152),
        Shape(1152, 16, 4608),
    ),
    repeats=5,
    large_repeats=3,
    rounds=51,
    salt=(Shape(64, 4, 64), Shape(384, 4, 384), Shape(1152, 4, 1152)),
    adapters=("XL/2, attn1.to_q", "fashion-tiny, all"),
    modules=1_000,
    compared=Shape(1152, 4, 1152),
    row_sizes=((1, 13), (4, 14), (16, 16)),
    delta_tokens=(1, 4, 16, 256),
    expert_samples=16_000,
    lora_samples=8_000,
    draws=2_048,
    also_laid_out=(Shape(384, 4, 384), Shape(768, 4, 768)),
    sizes=tuple(SHIPPED),
)
QUICK = Plan(
    shapes=(Shape(64, 4, 64),),
    repeats=1,
    large_repeats=1,
    rounds=5,
    salt=(Shape(64, 4, 64),),
    adapters=("fashion-tiny, all",),
    modules=2,
    compared=Shape(64, 4, 64),
    row_sizes=((1, 10), (4, 10)),
    delta_tokens=(1, 4),
    expert_samples=640,
    lora_samples=320,
    draws=128,
    also_laid_out=(),
    sizes=(10,),
)
"""Every part of the benchmark in a minute; its figures mean little."""


def main() -> int:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small run that only shows it works")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    figures: Figures = {"machine": machine(), "ezkl": EZKL_VERSION, "plan": asdict(plan)}
    figures |= {"seconds": 0, "part_seconds": {}}
    began = time.perf_counter()
    for part in options.only or PARTS:
        with tempfile.TemporaryDirectory(prefix="paris-bench-") as folder:
            figures[part] = PARTS[part](plan, Path(folder))
        before, figures["seconds"] = figures["seconds"], round(time.perf_counter() - began)
        figures["part_seconds"][part] = figures["seconds"] - before
        figures["machine"]["load_at_end"] = round(os.getloadavg()[0], 2)
        if options.json:  # each time: what was measured is kept if a later part fails
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(report(figures), end="")
    return 0


def shapes(plan: Plan, folder: Path) -> list[Figures]:
    """The part `shapes`."""
    found = []
    for shape in plan.shapes:
        with tempfile.TemporaryDirectory(dir=folder) as place:  # a large key has 300 MB
            found.append(measure_shape(shape, Path(place), _repeats(plan, shape), plan.rounds))
    return found


def salt(plan: Plan, folder: Path) -> list[Figures]:
    """The part `salt`."""
    return measure_salt(plan.salt, Workbench(folder), plan.repeats, 11)


def adapters(plan: Plan, folder: Path) -> list[Figures]:
    """The part `adapters`."""
    known = whole_adapters()
    return [
        measure_adapter(name, known[name][: plan.modules], folder / str(number))
        for number, name in enumerate(plan.adapters)
    ]


def rows(plan: Plan, folder: Path) -> Figures:
    """The part `rows`."""
    shape, repeats = plan.compared, plan.large_repeats
    return {
        "shape": plain(shape),
        "paper": measure_rows(shape, dict(plan.row_sizes), Workbench(folder), repeats),
        "ours": measure_deltas(shape, plan.delta_tokens, folder, repeats),
    }


def quantised(plan: Plan, folder: Path) -> Figures:
    """The part `quantised`."""
    say("training an expert and an adapter, and rounding it")
    sizes = {"expert_samples": plan.expert_samples, "samples": plan.lora_samples}
    return child("quantised", "quantised", {"folder": folder, "draws": plan.draws, **sizes})


def floor(plan: Plan, folder: Path) -> Figures:
    """The part `floor`."""
    bench, place = Workbench(folder), folder / "ours"
    tries = Tries(plan.compared, plan.also_laid_out, plan.sizes, plan.large_repeats)
    return measure_floor(tries, bench, place)


PARTS: Mapping[str, Callable[[Plan, Path], Any]] = {
    "shapes": shapes,
    "salt": salt,
    "adapters": adapters,
    "rows": rows,
    "quantised": quantised,
    "floor": floor,
}


def _repeats(plan: Plan, shape: Shape) -> int:
    return plan.large_repeats if circuit_of(shape).logrows >= LARGE_LOGROWS else plan.repeats


if __name__ == "__main__":
    sys.exit(main())
