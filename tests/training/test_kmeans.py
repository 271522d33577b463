import pytest
import torch
from torch import Tensor

from training.errors import DataError
from training.kmeans import CAPACITY, kmeans, nearest, two_stage


def blobs(sizes: list[int], spread: float = 0.1) -> tuple[Tensor, Tensor]:
    """Points around far apart centres, and which centre each belongs to."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(len(sizes), 5, generator=generator) * 10
    owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return centres[owners] + spread * torch.randn(len(owners), 5, generator=generator), owners


def test_separate_groups_are_found() -> None:
    features, truth = blobs([100, 100, 100])
    fine, coarse = two_stage(features, 3, seed=0)
    found = coarse[nearest(features, fine)]
    pairs = {(int(a), int(b)) for a, b in zip(truth, found, strict=True)}
    assert len(pairs) == 3


def test_same_seed_gives_the_same_clusters_and_another_may_not() -> None:
    features = torch.randn(400, 4, generator=torch.Generator().manual_seed(3))
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
    with pytest.raises(DataError, match="found only 6"):
        two_stage(features, 7, seed=0)


def test_equal_pictures_cannot_make_two_clusters() -> None:
    with pytest.raises(DataError, match="2 clusters need as many different pictures"):
        two_stage(torch.ones(100, 3), 2, seed=0)


def test_centroids_are_the_means_of_their_rows() -> None:
    features, _ = blobs([50, 60])
    centroids, weights = kmeans(features, torch.ones(110), 2, torch.Generator().manual_seed(0))
    owners = nearest(features, centroids)
    for k in range(2):
        assert torch.allclose(centroids[k], features[owners == k].mean(0), atol=1e-4)
        assert float(weights[k]) == int((owners == k).sum())


def test_nearest_of_nothing_is_nothing() -> None:
    assert nearest(torch.empty(0, 3), torch.ones(2, 3)).shape == (0,)
