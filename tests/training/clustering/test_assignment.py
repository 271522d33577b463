"""Pictures find the cluster that the run's maker gave them, from the run's folder alone."""

from pathlib import Path

import pytest
import torch

from training.clustering.kmeans import Job, assign
from training.clustering.rows import MemoryRows
from training.clusters import Cluster
from training.run import Run, load_run
from training.sources.bundled import load_fashion

SHIPPED = Path(__file__).parents[3] / "node" / "builtin_run"


@pytest.fixture(scope="module")
def shipped() -> Run:
    return load_run(SHIPPED / "shared")


@pytest.mark.slow
def test_every_picture_of_the_shipped_run_finds_its_cluster_again(shipped: Run) -> None:
    """Rows of a cluster keep the source's order, so their captions tell them apart."""
    pictures = load_fashion()
    owners = shipped.clusters.assign(pictures.images)
    assert owners.bincount().tolist() == list(shipped.facts.rows)
    for k in range(shipped.spec.clusters):
        mine = (owners == k).nonzero()[:, 0].tolist()
        stored = Cluster.load(SHIPPED / "clusters" / str(k)).row_captions()
        assert stored == [pictures.captions[i] for i in mine]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", [1, 33, 200])
def test_a_picture_alone_goes_where_it_goes_in_a_crowd(
    threads: int, block: int, shipped: Run
) -> None:
    images = load_fashion().images[:400]
    expected = shipped.clusters.assign(images)
    torch.set_num_threads(threads)
    parts = [shipped.clusters.assign(part) for part in torch.split(images, block)]
    assert torch.equal(torch.cat(parts), expected)


@pytest.mark.slow
def test_features_differ_less_between_crowds_than_clusters_do(shipped: Run) -> None:
    """Why the test above holds: a feature's last bits depend on the pictures beside it.

    Assignment is exact for given features; of 10,000 pictures the closest call is a difference of
    2.3e-4 between the distances to two centroids, and distances move by some 1e-5.
    """
    clusters, images = shipped.clusters, load_fashion().images[:400]
    together = clusters.extractor(images)
    alone = torch.cat([clusters.extractor(image[None]) for image in images])
    moved = (together - alone).double().square().sum(1).sqrt()
    gaps = torch.stack([(together - centroid).double().norm(dim=1) for centroid in clusters.fine])
    two = gaps.topk(2, dim=0, largest=False).values
    assert float((2 * moved / (two[1] - two[0])).max()) < 0.5


def test_blocks_are_assigned_as_the_whole(shipped: Run) -> None:
    clusters = shipped.clusters
    rows = MemoryRows(clusters.fine + 0.01)
    whole = torch.cat(list(assign(rows, clusters.fine, clusters.coarse)))
    for size in (1, 100):
        job = Job(block_rows=size)
        found = torch.cat(list(assign(rows, clusters.fine, clusters.coarse, job)))
        assert torch.equal(found, whole)
