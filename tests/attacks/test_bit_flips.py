"""T9: no flipped bit survives, on the way or on the disk; the blob comes from a second source."""

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2p.blob_files import blob_path, prepare, read_blob, write_blob
from p2p.blobs import BlobStore, blobs_of
from p2p.errors import BlobCorruptError, DecodeError
from p2p.ids import blob_id
from p2p.limits import CHUNK_SIZE
from p2p.transfer import HEADER_SIZE, Asking, BlobReceived, check_blob
from tests.support.blob_providers import (
    all_there,
    answering,
    flip_bit,
    have,
    honest,
    random_blobs,
    run_pull,
)

SMALL = 4096
LARGE_CHUNKS = 16
FLIPS = 10_000


class FlippedDisk:
    """A blob whose file is altered in place and linked again after each removal."""

    def __init__(self, root: Path, data: bytes) -> None:
        self._root, self._data = root, data
        self.blob = blob_id(data)
        self._file = root / f"original-{self.blob}"
        self._file.write_bytes(data)
        self._descriptor = os.open(self._file, os.O_RDWR)

    def is_noticed(self, bit: int) -> bool:
        """Whether reading the blob with this bit flipped fails and removes it."""
        place = bit // 8
        altered = bytes([self._data[place] ^ 1 << bit % 8])
        path = blob_path(self._root, self.blob)
        os.pwrite(self._descriptor, altered, place)
        path.unlink(missing_ok=True)
        os.link(self._file, path)
        try:
            read_blob(self._root, self.blob)
        except BlobCorruptError:
            return not path.exists()
        finally:
            os.pwrite(self._descriptor, self._data[place : place + 1], place)
        return False

    def is_whole(self) -> bool:
        """Whether the unaltered file reads back: the disk itself is not what fails."""
        os.link(self._file, blob_path(self._root, self.blob))
        return read_blob(self._root, self.blob) == self._data

    def close(self) -> None:
        os.close(self._descriptor)


class FlippedWire:
    """An answer on the wire, altered in place."""

    def __init__(self, data: bytes) -> None:
        self._wanted = (blob_id(data), len(data))
        self._answer = bytearray(have(blob_id(data), data))

    def is_noticed(self, bit: int) -> bool:
        """Whether receiving the blob with this bit of its content flipped fails."""
        place = HEADER_SIZE + bit // 8
        self._answer[place] ^= 1 << bit % 8
        try:
            self.receive()
        except DecodeError:
            return True
        finally:
            self._answer[place] ^= 1 << bit % 8
        return False

    def receive(self) -> None:
        asking = Asking()
        asking.ask([self._wanted])
        (event,) = asking.receive(self._answer)
        assert isinstance(event, BlobReceived)
        check_blob(event.blob, event.pieces)


@pytest.mark.slow
def test_every_bit_of_a_small_blob_is_noticed_on_the_way() -> None:
    wire = FlippedWire(os.urandom(SMALL))
    assert all(wire.is_noticed(bit) for bit in range(SMALL * 8))
    wire.receive()


@pytest.mark.slow
def test_every_bit_of_a_small_blob_is_noticed_on_the_disk(tmp_path: Path) -> None:
    prepare(tmp_path)
    disk = FlippedDisk(tmp_path, os.urandom(SMALL))
    assert all(disk.is_noticed(bit) for bit in range(SMALL * 8))
    assert disk.is_whole()
    disk.close()


def test_every_bit_of_an_answers_header_is_noticed() -> None:
    data = b"x" * 100
    for bit in range(HEADER_SIZE * 8):
        asking = Asking()
        asking.ask([(blob_id(data), len(data))])
        try:
            events = asking.receive(flip_bit(have(blob_id(data), data), bit))
        except DecodeError:
            continue
        assert not any(isinstance(event, BlobReceived) for event in events)


@pytest.mark.slow
def test_random_bits_of_a_large_file_are_noticed_on_the_way_and_on_the_disk(
    tmp_path: Path,
) -> None:
    prepare(tmp_path)
    chunks = [os.urandom(CHUNK_SIZE) for _ in range(LARGE_CHUNKS)]
    bits = random.Random(9).sample(range(LARGE_CHUNKS * CHUNK_SIZE * 8), FLIPS)
    by_chunk: list[list[int]] = [[] for _ in chunks]
    for bit in bits:
        by_chunk[bit // (CHUNK_SIZE * 8)].append(bit % (CHUNK_SIZE * 8))

    def noticed(index: int) -> int:
        disk, wire = FlippedDisk(tmp_path, chunks[index]), FlippedWire(chunks[index])
        count = sum(disk.is_noticed(bit) and wire.is_noticed(bit) for bit in by_chunk[index])
        assert disk.is_whole()
        wire.receive()
        disk.close()
        return count

    with ThreadPoolExecutor(2) as pool:  # hashing releases the GIL
        assert sum(pool.map(noticed, range(LARGE_CHUNKS))) == FLIPS


def test_file_with_a_decayed_chunk_is_whole_again_from_a_second_source(tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK_SIZE + 777)
    (tmp_path / "weights").write_bytes(data)
    mine = BlobStore.open(tmp_path / "mine", floor_bytes=0)
    (entry,) = mine.add_files({"weights": tmp_path / "weights"})
    second = BlobStore.open(tmp_path / "second", floor_bytes=0)
    second.add_files({"weights": tmp_path / "weights"})
    path = blob_path(mine.root, entry.chunks[1])
    path.write_bytes(flip_bit(path.read_bytes(), 1_234_567))
    with pytest.raises(BlobCorruptError):
        mine.read_file(entry)
    assert mine.missing(entry.chunks) == (entry.chunks[1],)
    result = run_pull({"second": honest(second.root)}, blobs_of([entry]), mine.root)
    assert result.fetched_blobs == 1
    assert mine.read_file(entry) == data


def test_blobs_flipped_on_the_way_come_from_a_second_source(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 16)
    flips = random.Random(4)
    noisy = answering(
        tmp_path / "a",
        lambda blob, data: have(blob, flip_bit(data, flips.randrange(len(data) * 8))),
    )
    result = run_pull({"noisy": noisy, "good": honest(tmp_path / "a")}, wanted, tmp_path / "b")
    assert [peer for peer, _ in result.bad_peers] == ["noisy"]
    assert all_there(tmp_path / "b", wanted)


def test_source_whose_disk_decays_refuses_and_is_not_blamed(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 6)
    for blob, _ in wanted:
        data = read_blob(tmp_path / "a", blob)
        prepare(tmp_path / "b")
        write_blob(tmp_path / "b", blob, [data])
    decayed = blob_path(tmp_path / "a", wanted[2][0])
    decayed.write_bytes(flip_bit(decayed.read_bytes(), 3))
    providers = {name: honest(tmp_path / name) for name in ("a", "b")}
    result = run_pull(providers, wanted, tmp_path / "c")
    assert (result.missing, result.bad_peers) == ((), ())
    assert all_there(tmp_path / "c", wanted)
