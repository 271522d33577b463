"""T8 for blobs: a real full disk (a small tmpfs) at every phase; nothing wrong is left behind.

Needs the right to mount; skipped with that reason where there is none.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2p.blob_files import CHUNKS, PINS
from p2p.blobs import BlobStore
from p2p.errors import QuotaError, StorageError
from p2p.limits import CHUNK_SIZE
from tests.support.blob_providers import all_there, honest, random_blobs, run_pull
from tests.support.small_disk import fill, small_disk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs"),
]

DISK = 8 * CHUNK_SIZE


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    with small_disk(tmp_path / "disk", DISK) as folder:
        yield folder


def _open(disk: Path) -> BlobStore:
    return BlobStore.open(disk / "store", floor_bytes=0)


def _assert_sound(store: BlobStore) -> None:
    assert store.verify().removed == ()
    for folder in (CHUNKS, PINS):
        assert not list((store.root / folder).glob(".*"))


def test_full_disk_is_refused_at_the_start_with_the_numbers(disk: Path) -> None:
    store = _open(disk)
    fill(disk)
    with pytest.raises(QuotaError, match=r"0\.0 MB are free"):
        store.put(b"x" * 5000)
    with pytest.raises(QuotaError), store.reserve(5000):
        pass
    _assert_sound(store)


def test_disk_that_fills_behind_the_reservation_leaves_no_part_of_a_blob(
    disk: Path, tmp_path: Path
) -> None:
    store = _open(disk)
    with store.reserve(3 * CHUNK_SIZE):
        filler = fill(disk, leave=CHUNK_SIZE // 2)
        data = os.urandom(CHUNK_SIZE)
        with pytest.raises(QuotaError):
            store.put(data)
        _assert_sound(store)
        assert store.usage().blobs == 0
        filler.unlink()
    assert store.get(store.put(data)) == data


def test_file_that_does_not_fit_any_more_leaves_only_whole_chunks(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "weights"
    source.write_bytes(os.urandom(5 * CHUNK_SIZE))
    store = _open(disk)
    filler = fill(disk, leave=2 * CHUNK_SIZE + 4096)
    real = os.statvfs(tmp_path)  # what the disk said before somebody else filled it
    monkeypatch.setattr(os, "statvfs", lambda _path: real)
    with pytest.raises(QuotaError, match="the disk is full"):
        store.add_files({"weights": source})
    _assert_sound(store)
    assert 0 < store.usage().used <= 2 * CHUNK_SIZE
    filler.unlink()
    (entry,) = store.add_files({"weights": source})
    assert store.read_file(entry) == source.read_bytes()


def _pin(store: BlobStore, disk: Path) -> None:
    store.pin(store.put(b"root"), "label " * 2000, ())


def _materialise(store: BlobStore, disk: Path) -> None:
    (entry,) = store.add_files({"weights": disk.parent / "weights"})
    store.materialise([entry], disk / "out")


@pytest.mark.parametrize("phase", [_pin, _materialise])
def test_full_disk_in_a_phase_is_an_error_and_ends_with_it(
    phase: Callable[[BlobStore, Path], None], disk: Path
) -> None:
    (disk.parent / "weights").write_bytes(os.urandom(CHUNK_SIZE + 5))
    store = _open(disk)
    store.put(b"root")
    store.add_files({"weights": disk.parent / "weights"})
    filler = fill(disk)
    with pytest.raises(StorageError):
        phase(store, disk)
    _assert_sound(store)
    assert store.pins() == ()
    assert not (disk / "out").exists()
    filler.unlink()
    phase(store, disk)


def test_pull_onto_a_full_disk_says_so_and_resumes_when_there_is_room(
    disk: Path, tmp_path: Path
) -> None:
    wanted = random_blobs(tmp_path / "source", 4, size=CHUNK_SIZE)
    store = _open(disk)
    filler = fill(disk, leave=2 * CHUNK_SIZE + 8192)
    with pytest.raises(QuotaError, match="the disk is full"):
        run_pull({"a": honest(tmp_path / "source")}, wanted, store.root)
    _assert_sound(store)
    there = store.usage().blobs
    assert 0 < there <= 2
    filler.unlink()
    result = run_pull({"a": honest(tmp_path / "source")}, wanted, store.root)
    assert (result.present_blobs, result.missing) == (there, ())
    assert all_there(store.root, wanted)


def test_store_opens_on_a_full_disk_also_after_a_reboot(disk: Path) -> None:
    store = _open(disk)
    blob = store.put(b"here")
    (store.root / "boot").write_text("an earlier boot")
    fill(disk)
    assert _open(disk).get(blob) == b"here"


def test_garbage_can_be_collected_on_a_full_disk(disk: Path) -> None:
    store = _open(disk)
    store.put(os.urandom(CHUNK_SIZE))
    filler = fill(disk)
    assert store.collect_garbage(min_age_s=-1).blobs == 1
    store.put(os.urandom(CHUNK_SIZE))
    filler.unlink()
