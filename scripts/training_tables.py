"""The figures of `bench_training` as a table in plain text, with the targets and whether they hold.

Figures over seeds are means; the spread behind +- is half the distance of the extremes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training_drawings import EQUAL_STEPS, MONOLITH, SELF_GUIDED

Row = Mapping[str, Any]
GAUSS_MS = 0.2
SPREAD = "{:.2f} +-{:.2f}"


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


def report(results: Mapping[str, Any]) -> str:
    """The whole report."""
    where, floor = results["machine"], results["floor"]
    seeds = results["scale"]["seeds"]
    lines = [
        f"{where['cpu']}, {where['cores']} cores, Python {where['python']}, "
        f"load {where['load_at_start']} at the start; {results['seconds']} s in all; "
        f"training seeds {', '.join(map(str, seeds))}",
        f"floor of the distance: {floor['coded']:.2f} after the codec, {floor['raw']:.2f} raw; "
        f"the codec alone, raw: {floor['codec_alone_raw']:.2f}",
    ]
    for k in results["scale"]["clusters"]:
        lines += ["", *_strategies(results["drawn"], k)]
    lines += ["", *_samplers(results["drawn"]), "", *_captions(results["drawn"])]
    lines += ["", *_routers(results["routers"])]
    lines += ["", *_costs(results), "", "targets"]
    lines += [
        f"  {'met   ' if t.is_met else 'missed'}  {t.name}: {t.value:.3g} (at most {t.limit:g})"
        for t in targets(results)
    ]
    return "\n".join(lines) + "\n"


def targets(results: Mapping[str, Any]) -> list[Target]:
    """What the benchmark was to reach."""
    found = []
    for k in results["scale"]["clusters"]:
        rows = _of(results["drawn"], table="strategies", clusters=k)
        for measure, shown in (("coded", "after the codec"), ("raw", "raw")):
            means = {label: _mean(part, measure) for label, part in _by(rows, "label").items()}
            ours = means.keys() - {MONOLITH, EQUAL_STEPS, SELF_GUIDED}
            best = min(ours, key=lambda label: means[label])
            for monolith, limit in ((MONOLITH, 1.05), (EQUAL_STEPS, 0.5)):
                ratio = means[best] / means[monolith]
                found.append(Target(f"K = {k}, {best} / {monolith}, {shown}", ratio, limit))
    drawn = _by(_of(results["drawn"], table="samplers"), "label")
    ratio = _mean(drawn["ab2 10"], "coded") / _mean(drawn["euler 20"], "coded")
    found.append(Target("ab2 at 10 / euler at 20", ratio, 1.0))
    costs = results["costs"]
    found += [
        Target(
            "hand-written loop / ours, samples/s",
            1 / costs["training"]["ratio"],
            1.18,
        ),
        Target("drawing / evaluations x one forward, CPU", costs["drawing"]["ratio"], 1.1),
        Target("noise to velocity, float64", costs["exactness"]["epsilon"], 1e-10),
        Target("sum of p v against v, float64", costs["exactness"]["mixture"], 1e-10),
    ]
    for k, times in results["gauss_ms_per_image"].items():
        name = f"gauss, K = {k}, ms per image and evaluation at batch 100"
        found.append(Target(name, times["100"], GAUSS_MS))
    return found


def _strategies(drawn: Sequence[Row], k: int) -> list[str]:
    rows = _of(drawn, table="strategies", clusters=k)
    return [
        f"K = {k}, unconditional, ab2 at 10 evaluations",
        f"  {'':26} {'distance':>14} {'raw':>14} {'forwards':>9} {'CPU ms':>7}   per image",
        *(
            f"  {label:26} {_spread(part, 'coded'):>14} {_spread(part, 'raw'):>14} "
            f"{_mean(part, 'forwards'):9.1f} {_mean(part, 'cpu_ms'):7.2f}"
            for label, part in _by(rows, "label").items()
        ),
    ]


def _samplers(drawn: Sequence[Row]) -> list[str]:
    rows = _of(drawn, table="samplers")
    return [
        "sticky, by sampler and evaluations",
        f"  {'':26} {'distance':>14} {'raw':>14}",
        *(
            f"  {label:26} {_spread(part, 'coded'):>14} {_spread(part, 'raw'):>14}"
            for label, part in _by(rows, "label").items()
        ),
    ]


def _captions(drawn: Sequence[Row]) -> list[str]:
    rows = _of(drawn, table="captions")
    lines = [
        "captioned run: pictures taken for their caption, for its group, and distance",
        f"  {'':26} {'guidance':>8} {'caption':>8} {'group':>8} {'distance':>9}",
    ]
    for label, part in _by(rows, "label").items():
        for row in part:
            lines.append(
                f"  {label:26} {row['guidance']:8g} {row['accuracy']:8.3f} {row['groups']:8.3f} "
                f"{row['coded']:9.2f}"
            )
    return lines


def _routers(measured: Sequence[Row]) -> list[str]:
    lines = ["routers on held-out pictures: accuracy and calibration error (tempered) by t"]
    for k, rows in _by(measured, "clusters").items():
        middles = [f"{(b['low'] + b['high']) / 2:.2f}" for b in rows[0]["gauss"]["buckets"]]
        lines.append(f"  K = {k}, t =        " + " ".join(f"{m:>5}" for m in middles))
        for name in ("gauss", "learned", "synthetic"):
            parts = [row[name]["buckets"] for row in rows]
            for shown, value in (
                ("accuracy", lambda b: b["accuracy"]),
                ("error", lambda b: b["before"]["error"]),
                ("tempered", lambda b: b["after"]["error"]),
            ):
                means = [_average(map(value, column)) for column in zip(*parts, strict=True)]
                cells = " ".join(f"{mean:5.2f}" for mean in means)
                lines.append(f"  {name:10}{shown:9} {cells}")
    return lines


def _costs(results: Mapping[str, Any]) -> list[str]:
    rates = [row["samples_per_cpu_s"] for row in results["training"] if row["batch"] == 32]
    costs = results["costs"]
    training, drawing = costs["training"], costs["drawing"]
    lines = [
        f"training: {_average(rates):.0f} samples per CPU-second at batch 32, two at a time; alone "
        f"{training['loop_samples_per_s']:.0f}/s, {training['ratio']:.2f} of a hand-written loop",
        f"drawing: {drawing['ms_per_picture']:.2f} ms a picture, {drawing['ratio']:.2f} x the bare "
        f"forwards; memory at most {max(costs['peak_mib'].values())} MiB",
    ]
    lines += [
        f"{row['preset']}: {row['parameters']:,} parameters, a step of {row['batch']} samples "
        f"{row['step']['cpu_s']:.2f} s, a picture {row['picture']['cpu_s']:.2f} s, "
        f"{row['step_peak_mib']:.0f} MiB"
        for row in costs["sizes"]
    ]
    for k, times in results["gauss_ms_per_image"].items():
        cells = ", ".join(f"{ms:.3f} ms at batch {batch}" for batch, ms in times.items())
        lines.append(f"gauss router, K = {k}, per image and evaluation: {cells}")
    return lines


def _of(rows: Iterable[Row], **facts: object) -> list[Row]:
    return [row for row in rows if all(row.get(key) == value for key, value in facts.items())]


def _by(rows: Iterable[Row], key: str) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def _average(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _mean(rows: Sequence[Row], key: str) -> float:
    return _average(row[key] for row in rows)


def _spread(rows: Sequence[Row], key: str) -> str:
    values = [row[key] for row in rows]
    return SPREAD.format(_average(values), (max(values) - min(values)) / 2)
