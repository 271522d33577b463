"""What is kept: two of each cluster, the new one always, and whatever a person pulled."""

from pathlib import Path

import pytest

from node.keeping import PULLED, drop_older, expert_label, keep, keep_checkpoint, keep_folder
from p2p.blobs import BlobStore
from p2p.errors import BlobMissingError
from p2p.file_sets import FileEntry, FileSet
from p2p.ids import BlobId, ClusterId
from tests.support.people import cid

CLUSTER = ClusterId(1)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore.open(tmp_path / "blobs", floor_bytes=0)


def kept(blobs: BlobStore) -> set[BlobId]:
    return {pin.root for pin in blobs.pins()}


def checkpoint(blobs: BlobStore, samples: int, cluster: int = CLUSTER) -> BlobId:
    data = f"model {cluster} {samples}".encode()
    entry = FileEntry("model.safetensors", len(data), (blobs.put(data),))
    envelope = f"manifest {cluster} {samples}".encode()
    return keep_checkpoint(blobs, envelope, ClusterId(cluster), samples, (entry,))


def test_two_newest_checkpoints_of_a_cluster_are_kept(blobs: BlobStore) -> None:
    made = [checkpoint(blobs, samples) for samples in (100, 200, 300)]
    assert kept(blobs) == set(made[1:])


def test_clusters_are_kept_apart(blobs: BlobStore) -> None:
    made = [checkpoint(blobs, samples, cluster) for cluster in (1, 11) for samples in (9, 10)]
    assert kept(blobs) == set(made)


def test_new_checkpoint_is_kept_though_older_ones_saw_more(blobs: BlobStore) -> None:
    checkpoint(blobs, 900)
    ahead = checkpoint(blobs, 1000)
    new = checkpoint(blobs, 500)
    assert kept(blobs) == {new, ahead}


def test_pulled_checkpoint_stays_whatever_is_published(blobs: BlobStore) -> None:
    mine = checkpoint(blobs, 100)
    keep(blobs, mine, PULLED, ())
    for samples in (200, 300, 400):
        checkpoint(blobs, samples)
    assert mine in kept(blobs)


def test_replication_does_not_take_a_pulled_label_away(blobs: BlobStore) -> None:
    root = checkpoint(blobs, 100)
    keep(blobs, root, PULLED, ())
    keep(blobs, root, expert_label(CLUSTER, 100), ())
    assert [pin.label for pin in blobs.pins()] == [PULLED]


def test_pulling_a_replica_makes_it_the_persons(blobs: BlobStore) -> None:
    root = checkpoint(blobs, 100)
    keep(blobs, root, PULLED, ())
    drop_older(blobs, CLUSTER, newest=root)
    assert [pin.label for pin in blobs.pins()] == [PULLED]


def test_folder_is_pinned_with_all_its_chunks(blobs: BlobStore) -> None:
    chunk = blobs.put(b"data")
    root = keep_folder(blobs, FileSet((FileEntry("a.bin", 4, (chunk,)),)), "shared")
    (pin,) = blobs.pins()
    assert (pin.root, pin.label, pin.children) == (root, "shared", (chunk,))


def test_folder_with_a_missing_chunk_is_not_pinned(blobs: BlobStore) -> None:
    with pytest.raises(BlobMissingError):
        keep_folder(blobs, FileSet((FileEntry("a.bin", 4, (cid("absent"),)),)), "shared")
    assert blobs.pins() == ()
