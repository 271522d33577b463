"""T7 for blobs: a kill, or a power cut, at the k-th system call of storing and pinning, all k.

A forked child counts its own writes to the store. At the k-th it dies by SIGKILL; in the second
test the disk first forgets everything that was not fsynced, as a power cut would make it.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from p2p.blob_files import CHUNKS, blob_path
from p2p.blobs import BlobStore
from p2p.errors import StorageError
from p2p.ids import blob_id
from p2p.limits import CHUNK_SIZE
from tests.support.blob_providers import honest, run_pull

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/fd"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

FILE = b"x" * CHUNK_SIZE + b"end"
CHUNKS_OF_FILE = [FILE[start : start + CHUNK_SIZE] for start in range(0, len(FILE), CHUNK_SIZE)]
CHUNK_IDS = tuple(map(blob_id, CHUNKS_OF_FILE))
MANIFEST = b"manifest of two chunks"
_COUNTED = ("open", "write", "fsync", "replace", "unlink", "utime", "mkdir")
MAX_POINTS = 200

AtPoint = Callable[[], None]


class Disk:
    """What a power cut would leave of the store's folder: only what was fsynced."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._whole: set[int] = set()
        self._names: set[str] = set()

    def synced(self, descriptor: int) -> None:
        self._whole.add(os.fstat(descriptor).st_ino)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            self._names |= {str(child) for child in path.iterdir()}

    def cut_power(self) -> None:
        for path in list(self._root.rglob("*")):
            if not path.is_file():
                continue
            if path.parent.name == CHUNKS and str(path) not in self._names:
                path.unlink()  # its name was never written to the disk
            elif path.stat().st_ino not in self._whole:
                os.truncate(path, path.stat().st_size // 2)
        if self._root.exists():
            (self._root / "boot").write_text("an earlier boot")


@contextmanager
def counted(at_point: AtPoint, disk: Disk) -> Iterator[None]:
    """Call `at_point` before each counted system call made through `os`."""
    originals = {name: getattr(os, name) for name in _COUNTED}

    def wrap(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            at_point()
            outcome = originals[name](*args, **kwargs)
            if name == "fsync":
                disk.synced(args[0])
            return outcome

        return call

    for name in _COUNTED:
        setattr(os, name, wrap(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


Action = Callable[[Path, Path], None]


def store_and_pin(root: Path, source: Path) -> None:
    """A checkpoint stored, its manifest stored, both pinned, the files written out as a folder."""
    store = BlobStore.open(root, floor_bytes=0)
    (entry,) = store.add_files({"weights": source})
    store.pin(store.put(MANIFEST), "checkpoint", entry.chunks)
    if not (root / "out" / "expert").exists():
        store.materialise([entry], root / "out" / "expert")


def pull_blobs(root: Path, source: Path) -> None:
    """The same chunks fetched from another store."""
    wanted = tuple((blob, len(data)) for blob, data in zip(CHUNK_IDS, CHUNKS_OF_FILE, strict=True))
    result = run_pull({"a": honest(source.parent / "other")}, wanted, root)
    assert result.missing == ()


def dies_at(point: int, action: Action, root: Path, source: Path, *, is_power_cut: bool) -> bool:
    """Run `action` in a child that dies at its `point`-th call; False if it got through."""
    child = os.fork()
    if child == 0:
        left = point
        disk = Disk(root)

        def at_point() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                left = MAX_POINTS * 100  # cutting the power makes calls of its own
                if is_power_cut:
                    disk.cut_power()
                os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            with counted(at_point, disk):
                action(root, source)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.mark.parametrize("is_power_cut", [False, True], ids=["kill", "power cut"])
@pytest.mark.parametrize("action", [store_and_pin, pull_blobs])
def test_death_at_any_point_loses_nothing_pinned_and_leaves_nothing_wrong(
    action: Action, is_power_cut: bool, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(FILE)
    BlobStore.open(tmp_path / "other", floor_bytes=0).add_files({"weights": source})
    points = pinned = folders = 0
    for point in range(MAX_POINTS):
        root = tmp_path / f"store-{point}"
        if not dies_at(point, action, root, source, is_power_cut=is_power_cut):
            break
        points += 1
        store = BlobStore.open(root, floor_bytes=0)
        for pin in store.pins():
            assert b"".join(map(store.get, pin.children)) == FILE
            pinned += 1
        if (root / "out" / "expert").exists():
            assert (root / "out" / "expert" / "weights").read_bytes() == FILE
            folders += 1
        assert store.verify().removed == ()
        action(root, source)
        assert b"".join(map(store.get, CHUNK_IDS)) == FILE
        assert not list(root.rglob(".*"))
    assert 10 < points < MAX_POINTS - 1
    if action is store_and_pin:
        assert pinned > folders > 0  # the last points lie after each


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_disk_error_at_any_point_is_a_storage_error_and_is_recovered_from(
    code: int, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(FILE)
    point = failures = 0
    while point < MAX_POINTS:
        root = tmp_path / f"store-{point}"
        left = point

        def at_point() -> None:
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(code, os.strerror(code))

        try:
            with counted(at_point, Disk(root)):
                store_and_pin(root, source)
        except StorageError:
            failures += 1
        if left >= 0:
            break  # it got through without reaching the point
        store = BlobStore.open(root, floor_bytes=0)
        assert store.verify().removed == ()
        assert all(store.has(blob) for pin in store.pins() for blob in pin.blobs)
        store_and_pin(root, source)
        assert store.missing(CHUNK_IDS) == ()
        assert blob_path(root, CHUNK_IDS[0]).stat().st_size == CHUNK_SIZE
        point += 1
    assert 30 < point < MAX_POINTS - 1
    assert failures > point // 2  # the rest are hints whose loss is harmless, as `mark_used`
