import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.clustering.balance import CAPACITY, group
from training.errors import DataError

FAR = torch.tensor([[50.0, 50.0], [51.0, 50.0], [50.0, 51.0], [51.0, 51.0]])


@st.composite
def fine_centroids(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, int]:
    """Distinct centroids, their row counts (some large), K, a seed."""
    count = draw(st.integers(1, 20))
    places = draw(
        st.lists(
            st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
            min_size=count,
            max_size=count,
            unique=True,
        )
    )
    rows = draw(st.lists(st.integers(1, 200), min_size=count, max_size=count))
    clusters = draw(st.integers(1, count))
    fine, counts = torch.tensor(places).float(), torch.tensor(rows).float()
    return fine, counts, clusters, draw(st.integers(0, 2**31))


def grouped(fine: Tensor, counts: Tensor, clusters: int, seed: int) -> Tensor:
    return group(fine, counts, clusters, torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(fine_centroids())
def test_every_centroid_has_a_cluster_and_every_cluster_a_centroid(
    case: tuple[Tensor, Tensor, int, int],
) -> None:
    owners = grouped(*case)
    assert owners.dtype == torch.int64
    assert len(owners) == len(case[0])
    assert sorted(set(owners.tolist())) == list(range(case[2]))


@settings(max_examples=25, deadline=None)
@given(fine_centroids())
def test_capacity_is_exceeded_by_less_than_one_centroid(
    case: tuple[Tensor, Tensor, int, int],
) -> None:
    """A cluster takes a centroid without having room only if no cluster has: then the roomiest."""
    _, counts, clusters, _ = case
    sizes = torch.zeros(clusters).index_add_(0, grouped(*case), counts)
    limit = CAPACITY * float(counts.sum()) / clusters
    assert float(sizes.max()) <= limit + float(counts.max())


@settings(max_examples=40, deadline=None)
@given(fine_centroids())
def test_capacity_holds_where_centroids_are_small(case: tuple[Tensor, Tensor, int, int]) -> None:
    """Where the largest centroid fits the spare room of a full deal, no cluster is over."""
    _, counts, clusters, _ = case
    share = float(counts.sum()) / clusters
    if float(counts.max()) > (CAPACITY - 1) * share:
        return
    sizes = torch.zeros(clusters).index_add_(0, grouped(*case), counts)
    assert float(sizes.max()) <= CAPACITY * share * (1 + 1e-6)


@settings(max_examples=10, deadline=None)
@given(fine_centroids())
def test_the_same_seed_gives_the_same_groups(case: tuple[Tensor, Tensor, int, int]) -> None:
    assert torch.equal(grouped(*case), grouped(*case))


def test_without_a_capacity_each_centroid_is_near_its_own_centre() -> None:
    """A large group stays whole; under the rule it must give some away."""
    fine = torch.cat([torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), FAR])
    counts = torch.full((len(fine),), 10.0)
    free = group(fine, counts, 2, torch.Generator().manual_seed(0), capacity=float("inf"))
    assert sorted(free.bincount().tolist()) == [4, 30]
    ruled = group(fine, counts, 2, torch.Generator().manual_seed(0))
    assert int(ruled.bincount().max()) * 10 <= CAPACITY * 340 / 2


def test_fewer_distinct_centroids_than_clusters_are_an_error() -> None:
    with pytest.raises(DataError, match="3 clusters need as many different pictures, found only 2"):
        grouped(torch.tensor([[0.0], [1.0], [1.0]]), torch.ones(3), 3, 0)
