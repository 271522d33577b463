"""Pulls through real swarm children and p2pd, while processes are killed."""

import os
import signal
from pathlib import Path

import pytest
import trio

from p2p.blobs import BlobStore, blobs_of
from p2p.dht.client import DhtClient, open_dht
from p2p.errors import TransportError
from p2p.file_sets import FileEntry
from p2p.limits import CHUNK_SIZE
from p2p.transfer import BulkPeer, PullProgress
from tests.support.dht import dht_settings, eventually

pytestmark = pytest.mark.slow

CHUNKS_OF_FILE = 24
SLOW = 6e6
"""Bytes per second: the pull takes 4 s if nothing is killed."""


def _give(folder: Path, names: tuple[str, ...], data: bytes) -> FileEntry:
    (folder / "weights").write_bytes(data)
    for name in names:
        store = BlobStore.open(folder / name, floor_bytes=0)
        (entry,) = store.add_files({"weights": folder / "weights"})
    return entry


def _kill(node: DhtClient) -> None:
    assert node.child_pid is not None
    os.kill(node.child_pid, signal.SIGKILL)


async def test_killed_pull_resumes_and_outlives_a_provider_that_is_killed(tmp_path: Path) -> None:
    data = os.urandom(CHUNKS_OF_FILE * CHUNK_SIZE - 1)
    entry = _give(tmp_path, ("first", "second"), data)
    mine = BlobStore.open(tmp_path / "mine", floor_bytes=0)
    wanted = blobs_of([entry])
    async with (
        open_dht(dht_settings(tmp_path, 1, blob_root=tmp_path / "first")) as first,
        open_dht(dht_settings(tmp_path, 2, blob_root=tmp_path / "second")) as second,
        open_dht(
            dht_settings(tmp_path, 3, blob_root=mine.root, max_download_bytes_per_s=SLOW)
        ) as taker,
    ):
        for node in (first, second, taker):
            await node.wait_ready(30)
        peers = [BulkPeer(node.peer, node.addresses()) for node in (first, second)]

        def kill_taker(progress: PullProgress) -> None:
            if progress.done_blobs >= CHUNKS_OF_FILE // 3 and taker.child_pid is not None:
                _kill(taker)

        with pytest.raises(TransportError):
            await taker.pull(wanted, peers, kill_taker)
        on_disk = len(wanted) - len(mine.missing(entry.chunks))
        assert CHUNKS_OF_FILE // 3 <= on_disk < CHUNKS_OF_FILE
        assert mine.verify().removed == ()

        has_killed = trio.Event()

        def kill_provider(progress: PullProgress) -> None:
            if progress.done_blobs > on_disk and not has_killed.is_set():
                has_killed.set()
                _kill(first)

        await eventually(lambda: _is_back(taker))
        with trio.fail_after(60):
            result = await taker.pull(wanted, peers, kill_provider)
    assert has_killed.is_set()
    assert (result.missing, result.bad_peers) == ((), ())
    assert result.present_blobs == on_disk
    assert result.fetched_blobs == CHUNKS_OF_FILE - on_disk
    assert mine.read_file(entry) == data


async def _is_back(node: DhtClient) -> bool:
    return node.status.restarts >= 1 and bool(node.child_pid) and node.status.state.name == "READY"
