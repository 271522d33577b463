import json
import math

import pytest
import torch
from torch import Tensor

from training.clustering import cluster_report as module
from training.clustering.cluster_report import cluster_report
from training.clustering.kmeans import Job
from training.clustering.rows import MemoryRows
from training.errors import DataError
from training.jsonio import canonical_json

PLACES = torch.tensor([[0.0, 0.0], [0.0, 9.0], [12.0, 0.0]])
OWNERS = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)


def around(spread: float) -> MemoryRows:
    noise = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    return MemoryRows(PLACES[OWNERS] + spread * noise)


def test_sizes_and_shares_are_those_of_the_clusters() -> None:
    report = cluster_report(around(1.0), OWNERS, 3)
    assert report.sizes == (50, 30, 20)
    assert (report.smallest_share, report.largest_share) == (0.2, 0.5)
    assert report.capacity_share == pytest.approx(1.4 / 3)
    assert (report.rows, report.features, report.nmi) == (100, 2, None)


def by_definition(rows: Tensor, owners: Tensor) -> float:
    gaps = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
    total = 0.0
    for i, own in enumerate(owners.tolist()):
        means = {
            k: float(gaps[i][owners == k].sum()) / (int((owners == k).sum()) - (k == own))
            for k in set(owners.tolist())
        }
        a, b = means[own], min(mean for k, mean in means.items() if k != own)
        total += (b - a) / max(a, b)
    return total / len(rows)


def test_silhouette_is_rousseeuws() -> None:
    rows = around(2.0)
    report = cluster_report(rows, OWNERS, 3)
    assert report.silhouette == pytest.approx(by_definition(rows.tensor, OWNERS), abs=1e-9)
    assert report.silhouette_rows == 100


def test_silhouette_is_measured_on_a_bounded_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILHOUETTE_ROWS", 60)
    report = cluster_report(around(1.0), OWNERS, 3, job=Job(block_rows=7))
    whole = by_definition(around(1.0).tensor, OWNERS)
    assert report.silhouette_rows == 60
    assert report.silhouette == pytest.approx(whole, abs=0.05)


def test_labels_that_agree_have_nmi_one_and_shuffled_ones_little() -> None:
    renamed = torch.tensor([7, 3, 5])[OWNERS]
    assert cluster_report(around(1.0), OWNERS, 3, renamed).nmi == pytest.approx(1.0)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    shuffled = cluster_report(around(1.0), OWNERS, 3, renamed[order]).nmi
    assert shuffled is not None
    assert shuffled < 0.1


def test_nmi_is_mutual_information_over_the_mean_entropy() -> None:
    owners, labels = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    rows = MemoryRows(torch.arange(4.0)[:, None])
    of_labels = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    mutual = of_labels - 0.5 * math.log(2)
    expected = mutual / ((of_labels + math.log(2)) / 2)
    assert cluster_report(rows, owners, 2, labels).nmi == pytest.approx(expected)


def test_one_cluster_has_no_silhouette() -> None:
    report = cluster_report(around(1.0), torch.zeros(100, dtype=torch.int64), 1)
    assert report.silhouette is None
    assert report.sizes == (100,)


def test_it_goes_to_json() -> None:
    report = cluster_report(around(1.0), OWNERS, 3, OWNERS)
    assert json.loads(canonical_json(report.as_json()))["sizes"] == [50, 30, 20]


def test_an_empty_cluster_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match="cluster 3 got no pictures: ask for fewer"):
        cluster_report(around(1.0), OWNERS, 4)


def test_owners_and_labels_must_be_as_many_as_rows() -> None:
    with pytest.raises(ValueError, match="99 owners for 100 rows"):
        cluster_report(around(1.0), OWNERS[1:], 3)
    with pytest.raises(ValueError, match="labels of another number"):
        cluster_report(around(1.0), OWNERS, 3, OWNERS[1:])
