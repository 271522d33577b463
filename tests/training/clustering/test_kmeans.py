from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from training.clustering import kmeans
from training.clustering.balance import CAPACITY
from training.clustering.centroids import nearest
from training.clustering.kmeans import Job, assign, row_sample, take, two_stage
from training.clustering.rows import MemoryRows, open_rows
from training.errors import DataError


def blobs(sizes: list[int], spread: float = 0.1) -> tuple[Tensor, Tensor]:
    """Points around far apart centres, and which centre each belongs to."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(len(sizes), 5, generator=generator) * 10
    owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return centres[owners] + spread * torch.randn(len(owners), 5, generator=generator), owners


def noise(rows: int, width: int = 4, seed: int = 3) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_separate_groups_are_found() -> None:
    features, truth = blobs([100, 100, 100])
    fine, coarse = two_stage(features, 3, seed=0)
    found = coarse[nearest(features, fine)]
    pairs = {(int(a), int(b)) for a, b in zip(truth, found, strict=True)}
    assert len(pairs) == 3


def test_same_seed_gives_the_same_clusters_and_another_may_not() -> None:
    features = noise(400)
    first, second, other = (two_stage(features, 4, seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("clusters", [1, 2, 5, 8])
def test_no_cluster_is_empty_or_above_capacity(clusters: int) -> None:
    features, _ = blobs([450, 15, 15, 20], spread=2.0)
    fine, coarse = two_stage(features, clusters, seed=0)
    sizes = coarse[nearest(features, fine)].bincount(minlength=clusters)
    assert int(sizes.min()) > 0
    largest_fine = int(nearest(features, fine).bincount().max())
    assert int(sizes.max()) <= CAPACITY * len(features) / clusters + largest_fine


def test_every_row_may_be_its_own_cluster_but_not_more() -> None:
    features = torch.arange(6.0)[:, None]
    _, coarse = two_stage(features, 6, seed=0)
    assert sorted(coarse.tolist()) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match="7 clusters of 6 rows"):
        two_stage(features, 7, seed=0)
    with pytest.raises(DataError, match="0 clusters of 6 rows: expected 1 to 6"):
        two_stage(features, 0, seed=0)


def test_equal_pictures_cannot_make_two_clusters() -> None:
    with pytest.raises(DataError, match="2 clusters need as many different pictures"):
        two_stage(torch.ones(100, 3), 2, seed=0)


def test_centroids_are_the_means_of_their_rows() -> None:
    features, _ = blobs([50, 60])
    fine, _ = two_stage(features, 2, seed=0)
    owners = nearest(features, fine)
    for k in range(len(fine)):
        assert torch.equal(fine[k], features[owners == k].double().mean(0).float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20])
@pytest.mark.parametrize("block_rows", [None, 7])
def test_a_bad_row_is_named(value: float, block_rows: int | None) -> None:
    features = noise(100)
    features[41, 2] = value
    features[97, 0] = value
    with pytest.raises(DataError, match="row 41 holds NaN"):
        two_stage(features, 2, seed=0, job=Job(block_rows=block_rows))


# --- the result does not depend on how the work is cut ------------------------------------------
class Backwards:
    """Works on the last block first, as another machine may."""

    def map_blocks(
        self, function: Callable[..., Any], blocks: Iterable[Any], *constants: Any
    ) -> Iterator[Any]:
        done = [function(block, *constants) for block in reversed(list(blocks))]
        yield from reversed(done)


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> int:
    """The path of many rows, on few."""
    monkeypatch.setattr(kmeans, "SAMPLE_ROWS", 200)
    return 200


@pytest.mark.parametrize("job", [Job(block_rows=13), Job(block_rows=64), Job(Backwards(), 100)])
@pytest.mark.usefixtures("small_sample")
def test_blocks_and_their_order_change_no_bit(job: Job) -> None:
    features = noise(500, width=7) * torch.logspace(-6, 6, 7)
    whole = two_stage(features, 4, seed=1)
    cut = two_stage(features, 4, seed=1, job=job)
    assert torch.equal(whole[0], cut[0])
    assert torch.equal(whole[1], cut[1])
    owners = torch.cat(list(assign(MemoryRows(features), *cut, job)))
    assert torch.equal(owners, whole[1][nearest(features, whole[0])])


@pytest.mark.parametrize("block_rows", [1, 3, 20])
def test_sums_that_cancel_do_not_depend_on_the_order(block_rows: int) -> None:
    """In float64 each of these blocks gives another mean."""
    large = noise(10, width=1).sign() * 2.0**45
    features = torch.cat([large, noise(10, width=1), -large])
    mean, _ = two_stage(features, 1, seed=0, job=Job(block_rows=block_rows))
    exact = float(noise(10, width=1).double().sum()) / 30
    assert abs(float(mean) - exact) < 2.0**-11


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
@pytest.mark.usefixtures("small_sample")
def test_rows_in_a_file_give_what_rows_in_memory_give(dtype: str, tmp_path: Path) -> None:
    features = noise(700).half().float()
    np.save(tmp_path / "rows.npy", features.numpy().astype(dtype))
    from_file = two_stage(open_rows(tmp_path / "rows.npy"), 3, seed=0)
    in_memory = two_stage(features, 3, seed=0)
    assert torch.equal(from_file[0], in_memory[0])
    assert torch.equal(from_file[1], in_memory[1])


def test_two_threads_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "ITERATIONS", 3)
    features = noise(600, width=16)
    one = two_stage(features, 4, seed=0)
    torch.set_num_threads(2)
    two = two_stage(features, 4, seed=0)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


# --- samples ------------------------------------------------------------------------------------
@pytest.mark.usefixtures("small_sample")
def test_groups_stored_one_after_the_other_are_found_in_a_sample() -> None:
    features, truth = blobs([900, 600, 900])
    fine, coarse = two_stage(features, 3, seed=0)
    found = coarse[nearest(features, fine)]
    assert len({(int(a), int(b)) for a, b in zip(truth, found, strict=True)}) == 3


def test_sampled_centroids_fit_all_rows_about_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    features = noise(1000)

    def cost() -> float:
        fine, _ = two_stage(features, 2, seed=0)
        return float((features - fine[nearest(features, fine)]).square().sum())

    whole = cost()
    monkeypatch.setattr(kmeans, "SAMPLE_ROWS", 500)
    assert cost() <= 1.05 * whole


@pytest.mark.usefixtures("small_sample")
def test_too_few_values_in_a_sample_say_so() -> None:
    features = torch.zeros(1000, 2)
    with pytest.raises(DataError, match="found only 1 in 200 of 1000"):
        two_stage(features, 2, seed=0)


@pytest.mark.parametrize(("rows", "wanted"), [(10, 3), (10, 10), (10, 99), (1000, 7), (2**31, 5)])
def test_a_sample_takes_one_row_of_each_stretch(rows: int, wanted: int) -> None:
    found = row_sample(rows, wanted, seed=0)
    count = min(rows, wanted)
    assert (found * count // rows).tolist() == list(range(count))
    assert not torch.equal(row_sample(1000, 7, seed=0), row_sample(1000, 7, seed=1))


@pytest.mark.parametrize("block_rows", [None, 1, 9])
def test_rows_are_taken_by_number(block_rows: int | None) -> None:
    features = noise(100)
    numbers = torch.tensor([0, 8, 9, 10, 63, 99])
    found = take(MemoryRows(features), numbers, Job(block_rows=block_rows))
    assert torch.equal(found, features[numbers])
