"""Folders of blobs as folders on disk: whole, once, whoever wants them at the same moment."""

from pathlib import Path

import pytest
import trio

from node.folders import materialise
from p2p.blobs import BlobStore
from p2p.errors import BlobMissingError
from p2p.file_sets import FileEntry
from tests.support.people import cid


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore.open(tmp_path / "blobs", floor_bytes=0)


async def test_two_tasks_that_unpack_the_same_folder_both_have_it(
    blobs: BlobStore, tmp_path: Path
) -> None:
    entries = tuple(
        FileEntry(f"{n}.bin", 100_000, (blobs.put(bytes([n]) * 100_000),)) for n in range(8)
    )
    for number in range(5):
        target = tmp_path / f"unpacked-{number}"
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(trio.to_thread.run_sync, materialise, blobs, entries, target)
        assert len(list(target.iterdir())) == 8


def test_folder_that_lacks_a_blob_is_not_there_at_all(blobs: BlobStore, tmp_path: Path) -> None:
    target = tmp_path / "unpacked"
    with pytest.raises(BlobMissingError):
        materialise(blobs, (FileEntry("a.bin", 4, (cid("absent"),)),), target)
    assert not target.exists()
