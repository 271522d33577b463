"""The figures of bench_verification as plain tables, and the targets with whether they hold.

CPU-seconds are of all threads and of the work alone, after the libraries are loaded; MB are 10^6
bytes, kB 10^3.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
TARGET_SHAPE = [1152, 4, 1152]
TINY = "fashion-tiny, all"


@dataclass(frozen=True)
class Target:
    """A figure that was to be reached."""

    name: str
    value: float
    limit: float

    @property
    def is_met(self) -> bool:
        """Whether it was."""
        return self.value <= self.limit


def report(figures: Mapping[str, Any]) -> str:
    """The whole report, of the parts that were measured."""
    where = figures["machine"]
    lines = [
        f"{where['cpu']}, {where['cores']} cores, Python {where['python']}, ezkl "
        f"{figures['ezkl']}, load {where['load_at_start']} at the start, {where['load_at_end']} "
        f"at the end; {figures['seconds']} s in all: "
        + ", ".join(f"{part} {seconds}" for part, seconds in figures["part_seconds"].items()),
    ]
    for part, table in _TABLES.items():
        if part in figures:
            lines += ["", *table(figures[part])]
    found = targets(figures)
    if found:
        lines += ["", "targets"]
        lines += [
            f"  {'met   ' if t.is_met else 'missed'}  {t.name}: {t.value:.4g} (at most {t.limit:g})"
            for t in found
        ]
    lines.append(f"{sum(t.is_met for t in found)} of {len(found)} targets met")
    return "\n".join(lines) + "\n"


def targets(figures: Mapping[str, Any]) -> list[Target]:
    """What was to be reached, as far as it was measured."""
    found = []
    for row in figures.get("shapes", ()):
        if list(row["shape"]) == TARGET_SHAPE:
            wire = _wire(row) / 1e3
            found += [
                Target("prove, CPU-s", row["prove"]["cpu_s"], 2.5),
                Target("verify, warm, ms", row["warm"]["warm_ms"], 35),
                Target(
                    "verify, with process start, ms (the command)",
                    1e3 * row["command"]["wall_s"],
                    200,
                ),
                Target("wire of a module, kB (proof and 16 values)", wire, 4.2),
                Target("most memory of the prover, MB", row["prove"]["rss_mb"], 150),
                Target("most memory of the verifier, MB", row["command"]["rss_mb"], 150),
            ]
    for row in figures.get("salt", ()):
        if list(row["shape"]) == TARGET_SHAPE:
            found += [
                Target("prove, with salt / without", row["prove_ratio"], 1.5),
                Target("verify, with salt / without", row["verify_ratio"], 1.5),
            ]
    for row in figures.get("adapters", ()):
        if row["name"] == TINY:
            found.append(Target("the tiny adapter from keys to verified, s", row["whole_s"], 60))
    return found


def _shapes(rows: Sequence[Row]) -> list[str]:
    lines = [
        "one layer; medians of fresh processes; CPU-s of the work (prove: seconds beside them, "
        "and CPU-s of the whole process)",
        f"  {'in, r, out':>14} {'k':>3} {'cols':>4} {'set up':>7} {'commit':>7} {'prove':>6} "
        f"{'s':>6} {'whole':>6}   {'verify ms: warm':>15} {'child':>6} {'command':>7}   "
        f"{'proof B':>7} {'wire B':>6} {'commit B':>8}   {'MB prove':>8} {'verify':>6} {'n':>3}",
    ]
    for row in rows:
        prove, warm, once, command = (
            row[name] for name in ("prove", "warm", "verify_once", "command")
        )
        lines.append(
            f"  {_shape(row):>14} {row['logrows']:3} {row['columns']:4} "
            f"{row['set_up']['cpu_s']:7.2f} {row['commit']['cpu_s']:7.3f} {prove['cpu_s']:6.2f} "
            f"{prove['wall_s']:6.2f} {prove['start_cpu_s']:6.2f}   {warm['warm_ms']:15.1f} "
            f"{1e3 * once['start_wall_s']:6.0f} {1e3 * command['wall_s']:7.0f}   "
            f"{prove['proof_bytes']:7} {_wire(row):6} {row['commit']['commitment_bytes']:8}   "
            f"{prove['rss_mb']:8.0f} {command['rss_mb']:6.0f} {row['repeats']:3}"
        )
    python = 1e3 * rows[0]["python_wall_s"]
    return [*lines, f"  starting Python alone takes {python:.0f} ms of the last two"]


def _salt(rows: Sequence[Row]) -> list[str]:
    lines = [
        "salt on and off, straight through the library, in turns: CPU-s, verify in CPU-ms",
        f"  {'in, r, out':>14} {'k on':>5} {'off':>3} {'prove on':>9} {'off':>6} {'ratio':>6} "
        f"{'verify on':>10} {'off':>6} {'ratio':>6}",
    ]
    for row in rows:
        on, off = row["salted"], row["bare"]
        lines.append(
            f"  {_shape(row):>14} {on['logrows']:5} {off['logrows']:3} "
            f"{on['prove']['cpu_s']:9.2f} {off['prove']['cpu_s']:6.2f} {row['prove_ratio']:6.2f} "
            f"{on['verify']['warm_cpu_ms']:10.1f} {off['verify']['warm_cpu_ms']:6.1f} "
            f"{row['verify_ratio']:6.2f}"
        )
    return lines


def _adapters(rows: Sequence[Row]) -> list[str]:
    lines = [
        "whole adapters, rank 4, one process for each step; CPU-s (seconds)",
        f"  {'':18} {'layers':>6} {'keys':>12} {'commit':>12} {'prove all':>13} "
        f"{'users keys':>12} {'verify all':>12}  {'all s':>6}  {'offer B':>8} {'proofs B':>8} "
        f"{'delivery':>8}",
    ]
    for row in rows:
        steps = [
            f"{row[name]['cpu_s']:.1f} ({row[name]['wall_s']:.1f})"
            for name in ("maker_keys", "commit", "prove", "user_keys", "verify")
        ]
        lines.append(
            f"  {row['name']:18} {row['modules']:6} {steps[0]:>12} {steps[1]:>12} {steps[2]:>13} "
            f"{steps[3]:>12} {steps[4]:>12}  {row['whole_s']:6.1f}  {row['offer_bytes']:8} "
            f"{row['proofs_bytes']:8} {row['delivery_bytes']:8}"
        )
    return lines


def _rows(part: Mapping[str, Any]) -> list[str]:
    shape = ", ".join(map(str, part["shape"]))
    lines = [
        f"delta = X A B at ({shape}), X public: the paper's circuit (arXiv 2501.13965) in the same "
        "library with the same settings, without salt; CPU-s, verify in ms",
        f"  {'':30} {'tokens':>6} {'k':>3} {'set up':>7} {'prove':>7} {'MB':>6} {'verify':>7} "
        f"{'proof B':>8} {'n':>2}",
    ]
    for row in part["paper"]:
        name = "ezkl's check of products" if row["freivalds"] else "row by row"
        start = f"  {name + (' *' if row['is_test_srs'] else ''):30} {row['tokens']:6}"
        if "failed" in row:
            lines.append(f"{start} {row['logrows']:3} not done: {row['failed'][:120]}")
            continue
        lines.append(
            f"{start} {row['logrows']:3} {row['set_up']['cpu_s']:7.2f} "
            f"{row['prove']['cpu_s']:7.2f} {row['prove']['rss_mb']:6.0f} "
            f"{row['verify']['warm_ms']:7.0f} {row['prove']['proof_bytes']:8} {row['repeats']:2}"
        )
    lines += [
        "  * stands on a test SRS made by this run, for this comparison only",
        f"  {'ours':30} {'tokens':>6} {'':3} {'':7} {'prove':>7} {'MB':>6} "
        f"{'verify':>7} {'proof B':>8} {'n':>2}   reading X and D, and folding them, ms",
    ]
    for row in part["ours"]:
        fold = row["fold"]
        lines.append(
            f"  {'delta statement':30} {row['tokens']:6} {'':3} {'':7} "
            f"{row['prove']['cpu_s']:7.2f} {row['prove']['rss_mb']:6.0f} "
            f"{row['verify']['warm_ms']:7.0f} {row['prove']['proof_bytes']:8} {row['repeats']:2}   "
            f"{fold['statement_ms']:.1f} + "
            f"{fold['fold_ms']:.1f}"
        )
    return [*lines, *_growth(part), *_beside_ours(part)]


def _growth(part: Mapping[str, Any]) -> list[str]:
    """What each further token takes."""
    lines = []
    ways = {
        "row by row": [r for r in part["paper"] if not r["freivalds"] and "failed" not in r],
        "ezkl's check of products": [
            r for r in part["paper"] if r["freivalds"] and "failed" not in r
        ],
        "ours": part["ours"],
    }
    for name, rows in ways.items():
        if len(rows) > 1:
            first, last = rows[0], rows[-1]
            tokens = last["tokens"] - first["tokens"]
            prove = 1e3 * (last["prove"]["cpu_s"] - first["prove"]["cpu_s"]) / tokens
            verify = (last["verify"]["warm_ms"] - first["verify"]["warm_ms"]) / tokens
            lines.append(
                f"  growth, {name}: {prove:.0f} CPU-ms of proving, {verify:.1f} ms of verifying "
                "a token"
            )
    return lines


def _beside_ours(part: Mapping[str, Any]) -> list[str]:
    """How many times our cost the paper's circuit has, at the most tokens both were measured at."""
    ours = {row["tokens"]: row for row in part["ours"]}
    rows = [r for r in part["paper"] if "failed" not in r and r["tokens"] in ours]
    if not rows:
        return []
    most = max(row["tokens"] for row in rows)
    best = min((r for r in rows if r["tokens"] == most), key=lambda r: float(r["prove"]["cpu_s"]))
    own = ours[most]
    prove = best["prove"]["cpu_s"] / own["prove"]["cpu_s"]
    verify = best["verify"]["warm_ms"] / own["verify"]["warm_ms"]
    return [
        f"  the cheaper of the paper's at {most} tokens takes {prove:.1f} x our proving, "
        f"{verify:.1f} x our verifying"
    ]


def _quantised(part: Mapping[str, Any]) -> list[str]:
    lines = [
        f"an adapter of rank {part['rank']} trained on {part['samples']} samples of boots, its "
        f"expert ({part['expert_samples']} samples) never saw any; {part['modules']} layers, "
        f"{part['weights']} weights, the largest {part['largest'] / 4096:.3f}",
        f"  {'':12} {'probe loss':>11} {'held-out loss':>14} {'gain lost':>12} "
        f"{'||dW-dW32||/||dW32||':>21}",
    ]
    base, trained = part["losses"]["base"], part["losses"]["float32"]
    gain = base["held_out"] - trained["held_out"]
    for name, row in part["losses"].items():
        lost = (row["held_out"] - trained["held_out"]) / gain
        shown = "" if name == "base" else f"{lost:12.4%} {row['change_error']:21.5f}"
        lines.append(f"  {name:12} {row['probe']:11.6f} {row['held_out']:14.6f} {shown}")
    return lines


def _floor(part: Mapping[str, Any]) -> list[str]:
    shape, parts = ", ".join(map(str, part["shape"])), part["parts"]
    ours, bare = parts["ours"]["cpu_s"], parts["bare"]
    own_check = parts["verify_ms"] / 1e3
    rest = ours - bare["cpu_s"] - own_check  # of medians: below zero where it drowns in noise
    proof, points = bare["proof_bytes"], bare["points"]
    halved = proof - 32 * points
    return [
        f"what a proof of ({shape}) is made of, CPU-s",
        f"  {ours:6.2f}  all: statement in, checked proof out",
        f"  {bare['native_cpu_s']:6.2f}  the library's prover: "
        f"{1e3 * bare['native_cpu_s'] / points:.0f} ms for each of the proof's {points} points",
        f"  {bare['compile_cpu_s']:6.2f}  compiling the model with the weights",
        f"  {bare['witness_cpu_s']:6.2f}  the witness",
        f"  {own_check:6.2f}  checking the proof before it leaves",
        f"  {rest:6.2f}  the rest, as medians differ: statement, signs, folding, salt, ONNX, files",
        f"  of a verification's {parts['verify_ms']:.1f} CPU-ms the library takes "
        f"{parts['verify_native_ms']:.1f}, reading the statement {parts['statement_ms']:.1f}, "
        f"folding {parts['fold_ms']:.1f}",
        f"  its {proof} bytes are {points} points of 64 and {(proof - 64 * points) // 32} scalars "
        f"of 32: {halved} with points compressed; the first {64 * part['columns']} are the "
        "commitment, which is not sent again",
        "  tried: CPU-s; verify in CPU-ms; 'ours' is the layout of verification.circuit",
        f"  {'in, r, out':>14} {'k':>3} {'inner':>5} {'set up':>7} {'prove':>6} {'verify':>7} "
        f"{'proof B':>8} {'points':>6} "
        f"{'ms each':>7} {'MB':>5}",
        *(_tried(row) for row in part["by_size"]),
        _tried(part["empty"]) + "  an empty circuit",
        *(_tried(row) for row in part["layouts"]),
    ]


def _tried(row: Row) -> str:
    start = f"  {_shape(row):>14} {row['logrows']:3} {row['inner']:5}"
    if "failed" in row:
        return f"{start} not done: {row['failed'][-100:]}"
    prove = row["prove"]
    return (
        f"{start} {row['set_up']['cpu_s']:7.2f} {prove['cpu_s']:6.2f} "
        f"{row['verify']['warm_cpu_ms']:7.1f} {prove['proof_bytes']:8} {prove['points']:6} "
        f"{1e3 * prove['native_cpu_s'] / prove['points']:7.1f} {prove['rss_mb']:5.0f}"
        f"{'  ours' if row['is_ours'] else ''}"
    )


def _shape(row: Row) -> str:
    return ", ".join(map(str, row["shape"]))


def _wire(row: Row) -> int:
    return int(row["prove"]["proof_bytes"] + row["prove"]["values_bytes"])


_TABLES: Mapping[str, Callable[[Any], list[str]]] = {
    "shapes": _shapes,
    "salt": _salt,
    "adapters": _adapters,
    "rows": _rows,
    "quantised": _quantised,
    "floor": _floor,
}
