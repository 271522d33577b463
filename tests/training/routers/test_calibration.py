from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from training.errors import DataError
from training.jsonio import canonical_json, from_json, parse_json, to_json
from training.routers.calibration import (
    BUCKETS,
    Calibration,
    LabelledLatents,
    calibrate,
    columns_of,
    reliability,
)
from training.routers.router import posterior

SPREAD = 1.2


@dataclass(frozen=True)
class ExactRouter:
    """Two clusters, N(-1, s^2) and N(1, s^2) in one number: the density of x_t is known.

    `sureness` multiplies the evidence: 1 is calibrated by construction.
    """

    sureness: float = 1.0
    clusters: tuple[int, ...] = (2, 7)
    freeze_below: float = 0.0

    def log_likelihood(self, x_t: Tensor, t: float) -> Tensor:
        variance = ((1 - t) * SPREAD) ** 2 + t**2
        centres = (1 - t) * torch.tensor([[-1.0, 1.0]])
        return -0.5 * self.sureness * (x_t.flatten(1) - centres).square() / variance

    def probabilities(self, x_t: Tensor, t: float, prior: Tensor | None = None) -> Tensor:
        assert prior is None
        return posterior(self.log_likelihood(x_t, t), torch.zeros(2))


def rows(count: int, seed: int = 0) -> LabelledLatents:
    generator = torch.Generator().manual_seed(seed)
    sides = torch.arange(count) % 2
    values = 2.0 * sides - 1 + SPREAD * torch.randn(count, generator=generator)
    return LabelledLatents(values.reshape(-1, 1, 1, 1), torch.tensor([2, 7])[sides])


@pytest.fixture(scope="module")
def exact() -> Calibration:
    return calibrate(ExactRouter(), rows(2000))


@pytest.fixture(scope="module")
def cocksure() -> Calibration:
    return calibrate(ExactRouter(sureness=5), rows(2000))


def test_calibrated_router_is_left_as_it_is(exact: Calibration) -> None:
    assert len(exact.buckets) == BUCKETS
    assert exact.error_before < 0.04
    assert not any(bucket.is_overconfident for bucket in exact.buckets)
    assert all(0.8 < bucket.temperature < 1.25 for bucket in exact.buckets[:7])


def test_overconfident_router_is_found_out(cocksure: Calibration) -> None:
    clear = cocksure.buckets[:6]
    assert all(bucket.is_overconfident for bucket in clear)
    assert all(bucket.before.error > 0.08 for bucket in clear)


def test_fitted_temperature_is_the_one_that_was_wrong(cocksure: Calibration) -> None:
    for bucket in cocksure.buckets[:7]:
        assert bucket.temperature == pytest.approx(5, rel=0.25)
        assert bucket.after.error < 0.06
        assert bucket.after.nll < bucket.before.nll
    assert cocksure.error_after < 0.04


def test_accuracy_is_that_of_the_likeliest_cluster_with_or_without_a_temperature(
    exact: Calibration, cocksure: Calibration
) -> None:
    for one, other in zip(exact.buckets, cocksure.buckets, strict=True):
        assert one.accuracy == pytest.approx(other.accuracy, abs=1e-3)
    assert exact.buckets[0].accuracy > 0.75
    assert exact.buckets[-1].accuracy < 0.6


def test_reliability_of_a_table_counted_by_hand() -> None:
    table = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.25, 0.75], [0.25, 0.75]])
    found = reliability(table, torch.tensor([0, 1, 1, 1]))
    assert [(part.count, round(part.accuracy, 6)) for part in found.bins] == [(2, 1.0), (2, 0.5)]
    assert found.confidence == pytest.approx(0.85)
    assert found.error == pytest.approx((2 * 0.25 + 2 * 0.45) / 4)
    logs = torch.tensor([0.95, 0.05, 0.75, 0.75]).log()
    assert found.nll == pytest.approx(-float(logs.mean()))


def test_report_survives_json(cocksure: Calibration) -> None:
    read = parse_json(canonical_json(to_json(cocksure)), "x")
    assert from_json(Calibration, read, "x") == cocksure


def test_same_rows_and_seed_give_the_same_report(cocksure: Calibration) -> None:
    assert calibrate(ExactRouter(sureness=5), rows(2000)) == cocksure


def test_too_few_rows_or_unknown_clusters_are_refused() -> None:
    with pytest.raises(DataError, match="needs 20 latents held out, got 6"):
        calibrate(ExactRouter(), rows(6))
    strange = LabelledLatents(torch.zeros(30, 1, 1, 1), torch.full((30,), 3))
    with pytest.raises(DataError, match=r"cluster 3, the router knows \[2, 7\]"):
        calibrate(ExactRouter(), strange)


def test_columns_follow_the_routers_order() -> None:
    assert columns_of(ExactRouter(), torch.tensor([7, 2, 7])).tolist() == [1, 0, 1]


def test_latents_and_labels_must_go_together() -> None:
    with pytest.raises(DataError, match="labelled latents"):
        LabelledLatents(torch.zeros(3, 1, 1, 1), torch.zeros(2, dtype=torch.int64))
