"""The blob store: names are hashes, reads are checked, room is promised, pins hold."""

import os
import stat
import time
from pathlib import Path

import pytest

from p2p.blob_files import CHUNKS, PINS, blob_path, list_blobs, sweep_temps
from p2p.blobs import BlobStore, blobs_of
from p2p.errors import (
    BlobCorruptError,
    BlobMissingError,
    DecodeError,
    LimitError,
    QuotaError,
    StorageError,
)
from p2p.file_sets import FileEntry
from p2p.ids import BlobId, blob_id
from p2p.limits import CHUNK_SIZE
from tests.support.blob_providers import flip_bit


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore.open(tmp_path / "store", quota_bytes=10 * CHUNK_SIZE, floor_bytes=0)


def _alter(store: BlobStore, blob: BlobId, bit: int = 5) -> None:
    path = blob_path(store.root, blob)
    path.write_bytes(flip_bit(path.read_bytes(), bit))


def _age(store: BlobStore, blob: BlobId, age_s: float) -> None:
    then = time.time() - age_s
    os.utime(blob_path(store.root, blob), (then, then))


# --- single blobs -------------------------------------------------------------------------------
def test_blob_is_found_by_the_hash_of_its_bytes(store: BlobStore) -> None:
    blob = store.put(b"hello")
    assert blob == blob_id(b"hello")
    assert (store.get(blob), store.size(blob), store.has(blob)) == (b"hello", 5, True)
    assert store.put(b"hello") == blob
    assert [entry.blob for entry in list_blobs(store.root)] == [blob]


def test_blob_holds_one_chunk_and_no_byte_more(store: BlobStore) -> None:
    store.put(bytes(CHUNK_SIZE))
    with pytest.raises(LimitError):
        store.put(bytes(CHUNK_SIZE + 1))


def test_storing_again_repairs_an_altered_blob(store: BlobStore, tmp_path: Path) -> None:
    blob = store.put(b"precious")
    _alter(store, blob)
    store.put(b"precious")
    assert store.get(blob) == b"precious"
    (tmp_path / "source").write_bytes(b"precious")
    _alter(store, blob)
    store.add_files({"source": tmp_path / "source"})
    assert store.get(blob) == b"precious"


def test_missing_blob_says_so(store: BlobStore) -> None:
    blob = blob_id(b"nowhere")
    assert not store.has(blob)
    for read in (store.get, store.size):
        with pytest.raises(BlobMissingError) as caught:
            read(blob)
        assert caught.value.blob == blob
    here = store.put(b"here")
    assert store.missing([here, blob, blob]) == (blob,)


def test_altered_blob_is_noticed_removed_and_can_be_stored_again(store: BlobStore) -> None:
    blob = store.put(b"precious")
    _alter(store, blob)
    with pytest.raises(BlobCorruptError):
        store.get(blob)
    assert not store.has(blob)
    store.put(b"precious")
    assert store.get(blob) == b"precious"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", "bafkrei", "B" + "a" * 58])
def test_no_name_but_a_cid_reaches_the_disk(name: str, store: BlobStore) -> None:
    with pytest.raises(DecodeError):
        store.get(BlobId(name))
    with pytest.raises(DecodeError):
        store.pin(BlobId(name), "x")


def test_only_the_owner_can_read_the_store(store: BlobStore) -> None:
    blob = store.put(b"mine")
    for folder in (store.root, store.root / CHUNKS, store.root / PINS):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(blob_path(store.root, blob).stat().st_mode) == 0o600


# --- files --------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE])
def test_file_of_any_size_comes_back(size: int, store: BlobStore, tmp_path: Path) -> None:
    data = os.urandom(size)
    (tmp_path / "source").write_bytes(data)
    (entry,) = store.add_files({"weights.bin": tmp_path / "source"})
    assert (entry.name, entry.size) == ("weights.bin", size)
    assert store.read_file(entry) == data
    wanted = blobs_of([entry])
    assert sum(chunk_size for _, chunk_size in wanted) == size
    assert all(store.size(blob) == chunk_size for blob, chunk_size in wanted)


def test_same_content_is_stored_once(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(3 * CHUNK_SIZE))
    entries = store.add_files(dict.fromkeys(("a", "b"), tmp_path / "zeros"))
    assert store.usage().used == CHUNK_SIZE
    assert blobs_of(entries) == ((blob_id(bytes(CHUNK_SIZE)), CHUNK_SIZE),)


def test_folder_appears_whole_with_its_files(store: BlobStore, tmp_path: Path) -> None:
    contents = {"a.bin": os.urandom(CHUNK_SIZE + 3), "b.json": b"{}"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    entries = store.add_files({name: tmp_path / name for name in contents})
    store.materialise(entries, tmp_path / "out" / "expert")
    written = {path.name: path.read_bytes() for path in (tmp_path / "out/expert").iterdir()}
    assert written == contents
    (tmp_path / "out/expert/b.json").write_bytes(b"altered outside")
    assert store.read_file(entries[1]) == b"{}"


def test_folder_with_a_missing_chunk_does_not_appear_at_all(
    store: BlobStore, tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(os.urandom(2 * CHUNK_SIZE))
    (entry,) = store.add_files({"weights": tmp_path / "source"})
    blob_path(store.root, entry.chunks[1]).unlink()
    with pytest.raises(BlobMissingError):
        store.materialise([entry], tmp_path / "out" / "expert")
    assert list((tmp_path / "out").iterdir()) == []


def test_folder_that_holds_something_is_left_alone(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note").write_text("keep")
    with pytest.raises(StorageError, match="not empty"):
        store.materialise([], tmp_path / "out")
    assert (tmp_path / "out" / "note").read_text() == "keep"


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden"])
def test_file_name_that_leads_elsewhere_is_refused_before_a_byte_is_stored(
    name: str, store: BlobStore, tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(DecodeError):
        store.add_files({name: tmp_path / "source"})
    assert store.usage().blobs == 0


def test_two_files_of_one_name_are_refused(store: BlobStore, tmp_path: Path) -> None:
    entry = FileEntry("same", 1, (store.put(b"x"),))
    with pytest.raises(DecodeError, match="twice"):
        store.materialise([entry, entry], tmp_path / "out")


def test_chunk_of_the_wrong_length_for_its_place_is_refused(store: BlobStore) -> None:
    one, full = store.put(b"x"), store.put(bytes(CHUNK_SIZE))
    for entry in (FileEntry("a", 2, (one,)), FileEntry("a", CHUNK_SIZE + 1, (one, full))):
        with pytest.raises(DecodeError):
            store.read_file(entry)


# --- room ---------------------------------------------------------------------------------------
def test_quota_holds_to_the_byte(tmp_path: Path) -> None:
    store = BlobStore.open(tmp_path / "s", quota_bytes=1000, floor_bytes=0)
    store.put(b"a" * 600)
    store.put(b"b" * 400)
    with pytest.raises(QuotaError, match="quota"):
        store.put(b"c")
    store.put(b"a" * 600)  # what is there costs nothing


def test_reservations_add_up_and_end(store: BlobStore) -> None:
    with store.reserve(6 * CHUNK_SIZE):
        with store.reserve(4 * CHUNK_SIZE), pytest.raises(QuotaError, match="reserved"):
            store.put(b"x")
        with pytest.raises(QuotaError), store.reserve(4 * CHUNK_SIZE + 1):
            pass
    with store.reserve(10 * CHUNK_SIZE):
        assert store.usage().reserved == 10 * CHUNK_SIZE
    assert store.usage().reserved == 0


def test_blob_that_landed_counts_once(store: BlobStore, tmp_path: Path) -> None:
    data = os.urandom(CHUNK_SIZE)
    blob = blob_id(data)
    other = BlobStore.open(tmp_path / "store", quota_bytes=10 * CHUNK_SIZE, floor_bytes=0)
    with store.reserve(8 * CHUNK_SIZE, [blob]):
        other.put(data)  # as the swarm child would
        usage = store.usage()
        assert (usage.used, usage.reserved) == (CHUNK_SIZE, 7 * CHUNK_SIZE)
        with store.reserve(2 * CHUNK_SIZE):
            pass


def test_reservation_shrinks_by_what_its_holder_wrote(store: BlobStore) -> None:
    with store.reserve(8 * CHUNK_SIZE) as reservation:
        reservation.landed(store.put(bytes(CHUNK_SIZE)), CHUNK_SIZE)
        usage = store.usage()
        assert (usage.used, usage.reserved) == (CHUNK_SIZE, 7 * CHUNK_SIZE)


def test_files_are_refused_before_the_first_byte(tmp_path: Path) -> None:
    store = BlobStore.open(tmp_path / "s", quota_bytes=CHUNK_SIZE, floor_bytes=0)
    (tmp_path / "big").write_bytes(bytes(CHUNK_SIZE + 1))
    with pytest.raises(QuotaError):
        store.add_files({"big": tmp_path / "big"})
    assert store.usage().blobs == 0


def test_disk_floor_is_kept_free_and_the_message_has_the_numbers(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    store = BlobStore.open(tmp_path / "s", quota_bytes=2 * free, floor_bytes=free // 2)
    too_much = store.reserve(free // 2 + 512 * CHUNK_SIZE)
    with pytest.raises(QuotaError, match=r"floor of .* MB: .* MB are free"), too_much:
        pass
    with store.reserve(free // 4):
        pass


def test_default_floor_is_the_larger_of_a_part_and_a_size(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    usage = BlobStore.open(tmp_path / "s").usage()
    assert usage.disk_floor == max(disk.f_blocks * disk.f_frsize // 20, 2 << 30)


# --- garbage ------------------------------------------------------------------------------------
def test_garbage_goes_least_recently_used_first_until_enough_is_free(store: BlobStore) -> None:
    old, read, new = (store.put(data * 1000) for data in (b"o", b"r", b"n"))
    for blob, age_s in ((old, 5000), (read, 9000), (new, 3000)):
        _age(store, blob, age_s)
    store.get(read)
    removed = store.collect_garbage(1, min_age_s=0)
    assert (removed.blobs, removed.size) == (1, 1000)
    assert store.missing([old, read, new]) == (old,)
    store.collect_garbage(1001, min_age_s=0)
    assert store.missing([old, read, new]) == (old, read, new)


def test_pinned_and_reserved_blobs_are_never_garbage(store: BlobStore) -> None:
    root, child, arriving, loose = (store.put(data) for data in (b"1", b"2", b"3", b"4"))
    for blob in (root, child, arriving, loose):
        _age(store, blob, 5000)
    store.pin(root, "kept", [child])
    with store.reserve(10, [arriving]):
        store.collect_garbage(min_age_s=0)
        assert store.missing([root, child, arriving, loose]) == (loose,)
    store.unpin(root)
    store.collect_garbage(min_age_s=0)
    assert store.usage().blobs == 0


def test_blob_just_written_is_not_garbage_yet(store: BlobStore) -> None:
    blob = store.put(b"about to be pinned")
    assert store.collect_garbage().blobs == 0
    _age(store, blob, 3600)
    assert store.collect_garbage().blobs == 1


def test_reservation_makes_room_by_collecting_garbage(tmp_path: Path) -> None:
    store = BlobStore.open(tmp_path / "s", quota_bytes=1000, floor_bytes=0)
    loose, pinned = store.put(b"a" * 500), store.put(b"b" * 400)
    store.pin(pinned, "kept")
    _age(store, loose, 3600)
    with store.reserve(500):
        assert store.missing([loose, pinned]) == (loose,)
        with pytest.raises(QuotaError), store.reserve(200):
            pass


# --- pins ---------------------------------------------------------------------------------------
def test_pins_survive_the_process(store: BlobStore) -> None:
    root, child = store.put(b"root"), store.put(b"child")
    store.pin(root, "cluster 3, epoch 2", [child, child])
    again = BlobStore.open(store.root)
    (pin,) = again.pins()
    assert (pin.root, pin.label, pin.children) == (root, "cluster 3, epoch 2", (child,))
    assert again.usage().pinned == 9
    assert again.unpin(root)
    assert not again.unpin(root)
    assert BlobStore.open(store.root).pins() == ()


def test_pin_of_something_missing_is_refused_whole(store: BlobStore) -> None:
    root = store.put(b"root")
    with pytest.raises(BlobMissingError):
        store.pin(root, "x", [blob_id(b"nowhere")])
    assert store.pins() == BlobStore.open(store.root).pins() == ()


@pytest.mark.parametrize("damage", ["flip", "empty", "name"])
def test_pin_that_cannot_be_read_stops_every_deletion(damage: str, store: BlobStore) -> None:
    root, loose = store.put(b"root"), store.put(b"loose")
    store.pin(root, "kept")
    path = store.root / PINS / root
    match damage:
        case "flip":
            path.write_bytes(flip_bit(path.read_bytes(), 600))
        case "empty":
            path.write_bytes(b"")
        case _:
            path.rename(path.with_name(loose))
    again = BlobStore.open(store.root)
    with pytest.raises(StorageError, match="nothing is deleted"):
        again.collect_garbage(min_age_s=-1)
    assert again.missing([root, loose]) == ()


# --- health -------------------------------------------------------------------------------------
def test_verification_removes_the_altered_and_names_what_to_fetch(store: BlobStore) -> None:
    good, altered, loose, gone = (store.put(data) for data in (b"1", b"2", b"3", b"4"))
    store.pin(good, "kept", [altered, gone])
    _alter(store, altered)
    _alter(store, loose)
    blob_path(store.root, gone).unlink()
    found = store.verify()
    assert found.checked == 3
    assert set(found.removed) == {altered, loose}
    assert set(found.repair) == set(store.repair_list()) == {altered, gone}
    store.put(b"2")
    store.put(b"4")
    assert store.verify().repair == ()


def test_torn_blobs_are_removed_after_a_power_cut_but_not_after_a_kill(store: BlobStore) -> None:
    blob = store.put(b"not yet on the disk")
    with blob_path(store.root, blob).open("r+b") as file:
        file.truncate(3)
    assert BlobStore.open(store.root).has(blob)
    (store.root / "boot").write_text("an earlier boot")
    assert not BlobStore.open(store.root).has(blob)


def test_pinned_blobs_are_not_read_again_after_a_reboot(store: BlobStore) -> None:
    pinned = store.put(b"pinned, so on the disk")
    store.pin(pinned, "kept")
    _alter(store, pinned)
    (store.root / "boot").write_text("an earlier boot")
    assert BlobStore.open(store.root).has(pinned)  # `verify` and every read find it


def test_temps_of_the_dead_are_swept_and_of_the_living_left(store: BlobStore) -> None:
    folder = store.root / CHUNKS
    living = folder / f".tmp-{os.getpid()}-aa"
    for temp in (living, folder / ".tmp-4194305-bb", folder / ".tmp-what", folder / ".tmp-"):
        temp.write_bytes(b"half")
    BlobStore.open(store.root)
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == [living]
    assert sweep_temps(store.root, now=time.time() + 7200) == 1


def test_foreign_files_in_the_folder_are_not_blobs(store: BlobStore) -> None:
    (store.root / CHUNKS / "README").write_text("hello")
    assert store.usage().blobs == 0
    store.collect_garbage(min_age_s=-1)
    assert (store.root / CHUNKS / "README").exists()
