import pytest
import torch
from torch import Tensor

from training.clustering.centroids import TILE_ROWS, distances, nearest, plus_plus
from training.errors import DataError


def drawn(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def by_definition(rows: Tensor, centroids: Tensor) -> Tensor:
    gaps = rows.double()[:, None, :] - centroids.double()[None, :, :]
    return gaps.square().sum(2).argmin(1)


@pytest.mark.parametrize("width", [1, 2, 5, 32, 100])
def test_the_nearest_is_found(width: int) -> None:
    rows, centroids = drawn(500, width), drawn(17, width, seed=1)
    assert torch.equal(nearest(rows, centroids), by_definition(rows, centroids))


def test_a_gap_that_float32_products_cannot_see_is_seen() -> None:
    """Far from the origin, float32 distances are wrong by more than the gap."""
    rows = drawn(2000, 8) + 1000
    centroids = torch.cat([rows[:1], rows[:1] + 1e-3, rows[:1] - 1e-3])
    assert not torch.equal(distances(rows, centroids).argmin(1), by_definition(rows, centroids))
    assert torch.equal(nearest(rows, centroids), by_definition(rows, centroids))


def test_the_lower_index_wins_a_tie() -> None:
    centroids = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-0.5, 0.5], [-1.0, -1.0], [3.0, 3.0]])
    assert nearest(rows, centroids).tolist() == [0, 0, 1, 2, 0]
    assert nearest(rows, centroids.flip(0)).tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", [1, 3, 64, 128])
def test_block_size_and_threads_change_nothing(threads: int, block: int) -> None:
    rows = drawn(128, 33).round(decimals=1)  # a grid, for near ties
    centroids = drawn(40, 33, seed=1).round(decimals=1)
    expected = by_definition(rows, centroids)
    torch.set_num_threads(threads)  # the fixture of this folder sets it back
    found = torch.cat([nearest(part, centroids) for part in torch.split(rows, block)])
    assert torch.equal(found, expected)


def test_many_equal_centroids_are_all_compared() -> None:
    rows = drawn(60, 64)
    assert nearest(rows, drawn(1, 64, seed=1).expand(300, 64)).tolist() == [0] * 60


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e12])
def test_tiny_and_large_numbers_are_compared_rightly(size: float) -> None:
    rows, centroids = drawn(50, 4) * size, drawn(9, 4, seed=1) * size
    assert torch.equal(nearest(rows, centroids), by_definition(rows, centroids))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_row_that_cannot_be_compared_is_named(value: float) -> None:
    rows = torch.zeros(TILE_ROWS + 10, 2)
    rows[TILE_ROWS + 3, 1] = value
    with pytest.raises(DataError, match=f"row {TILE_ROWS + 3} is not finite"):
        nearest(rows, drawn(3, 2))


def test_nearest_of_nothing_is_nothing() -> None:
    assert nearest(torch.empty(0, 3), torch.ones(2, 3)).shape == (0,)


def test_a_start_has_distinct_rows_and_stops_when_there_are_no_more() -> None:
    rows = torch.arange(5.0).repeat(20)[:, None]
    start = plus_plus(rows, torch.ones(100), 9, torch.Generator().manual_seed(0))
    assert sorted(start[:, 0].tolist()) == [0, 1, 2, 3, 4]
