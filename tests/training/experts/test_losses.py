import json
import logging
from pathlib import Path

import pytest

from training.experts.losses import BUCKETS, CURVE_LINES, MEMORY, LossBuckets, LossCurve, read_curve


def test_each_tenth_of_time_has_a_mean_of_its_own() -> None:
    assert LossBuckets().means == (None,) * BUCKETS
    buckets = LossBuckets()
    buckets.add([0.0, 0.05, 0.1, 0.95, 1.0], [1.0, 3.0, 7.0, 2.0, 4.0])
    means = buckets.means
    assert means[0] == pytest.approx(2.0, abs=0.01)
    assert means[1] == 7.0
    assert means[9] == pytest.approx(3.0, abs=0.01)  # t = 1 belongs to the last
    assert means[2:9] == (None,) * 7


def test_buckets_forget_and_are_unbiased_when_young() -> None:
    buckets = LossBuckets()
    buckets.add([0.5], [6.0])
    assert buckets.means[5] == 6.0
    buckets.add([0.5] * 5000, [1.0] * 5000)
    assert buckets.means[5] == pytest.approx(1.0, abs=1e-3)
    kept = LossBuckets()
    kept.add([0.5, 0.5], [6.0, 1.0])
    assert kept.means[5] == pytest.approx((MEMORY * 6 + 1) / (MEMORY + 1))


def test_buckets_go_on_from_their_state_exactly() -> None:
    whole, first = LossBuckets(), LossBuckets()
    for buckets in (whole, first):
        buckets.add([0.1, 0.7, 0.72], [0.3, 0.1, 1 / 3])
    sums, weights = json.loads(json.dumps(first.state))
    second = LossBuckets(sums, weights)
    for buckets in (whole, second):
        buckets.add([0.71, 0.2], [0.7, 0.9])
    assert second.state == whole.state


def curve(path: Path, budget: int = 100) -> LossCurve:
    return LossCurve(path, budget, batch=4)


def test_curve_has_a_line_at_each_mark_and_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "losses.ndjson"
    long = LossCurve(path, budget=10_000 * 4 + 2, batch=4)
    for step in range(1, 10_002):
        long.add(4 * step, 4, {"loss": 0.5})
    lines = read_curve(path)
    assert CURVE_LINES * 0.9 < len(lines) <= CURVE_LINES
    assert lines[-1] == {"samples": 40_004, "loss": 0.5}
    marks = [line["samples"] for line in lines]
    assert marks == sorted(set(marks))  # type: ignore[type-var]


def test_rewound_curve_holds_nothing_after_the_save_and_no_line_twice(tmp_path: Path) -> None:
    path = tmp_path / "losses.ndjson"
    first = curve(path)
    for samples in range(4, 41, 4):
        first.add(samples, 4, {"loss": 1.0})
    path.write_bytes(path.read_bytes()[:-5])  # killed while it wrote
    again = curve(path)
    again.rewind(24)
    for samples in range(28, 101, 4):
        again.add(samples, 4, {"loss": 2.0})
    assert [(line["samples"], line["loss"]) for line in read_curve(path)] == [
        *((samples, 1.0) for samples in range(4, 25, 4)),
        *((samples, 2.0) for samples in range(28, 101, 4)),
    ]


@pytest.mark.parametrize(
    "junk", [b"garbage\n", b"[]\n", b'{"samples":"x"}\n', b'{"samples":-1}\n', b"\xff\xfe\n"]
)
def test_curve_is_cut_at_a_line_that_is_none(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "losses.ndjson"
    curve(path).add(4, 4, {})
    good = path.read_bytes()
    path.write_bytes(good + junk + b'{"samples":8}\n')
    curve(path).rewind(100)
    assert path.read_bytes() == good


def test_disk_that_refuses_ends_the_curve_and_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "missing" / "losses.ndjson"
    refused = curve(path)
    with caplog.at_level(logging.WARNING):
        for samples in (4, 8, 12):
            refused.add(samples, 4, {})
    assert caplog.text.count("ends here") == 1
    curve(path).rewind(4)  # nothing there is nothing to cut
