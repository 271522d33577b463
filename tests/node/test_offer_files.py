"""A stranger's folders: bounded before a file is asked for, and not kept when only looked at."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.context import NodeContext
from node.keeping import keep_folder
from node.offer_files import (
    PROBE_LIMITS,
    fetch_file,
    fetch_folder,
    store_folder,
    unpacked_probe,
)
from p2p.codec import pack
from p2p.errors import DecodeError, LimitError, PeerError, StorageError
from p2p.file_sets import FileEntry, FileSet
from p2p.ids import BlobId
from p2p.limits import CHUNK_SIZE
from tests.support.offer_swarm import OfferWorld, offer_world, small_layers
from tests.support.people import cid
from tests.support.swarm import World, world
from training.lora.layers import PROBE_FILE, PROBE_WEIGHTS_FILE

__all__ = ["small_layers", "world"]

NAME = "proofs.msgpack"
LIMIT = 1000


@pytest.fixture
async def swarm(
    tmp_path: Path, world: World, autojump_clock: object, small_layers: None
) -> AsyncIterator[OfferWorld]:
    async with offer_world(tmp_path, "alice", "mallory", plain=world) as found:
        await found.acquainted()
        yield found


def served(swarm: OfferWorld, **files: bytes | int) -> BlobId:
    """A folder that mallory serves; of a number, the size alone: there are no such bytes."""
    blobs = swarm.nodes["mallory"].member.context.blobs
    entries = []
    for name, data in files.items():
        if isinstance(data, int):
            absent = tuple(cid(f"chunk {n}") for n in range(-(-data // CHUNK_SIZE)))
            entries.append(FileEntry(name.replace("__", "."), data, absent))
        else:
            chunk = (blobs.put(data),) if data else ()
            entries.append(FileEntry(name.replace("__", "."), len(data), chunk))
    return blobs.put(pack(FileSet(tuple(entries))))


def reader(swarm: OfferWorld) -> NodeContext:
    return swarm.nodes["alice"].member.context


def labels(context: NodeContext) -> dict[BlobId, str]:
    return {pin.root: pin.label for pin in context.blobs.pins()}


async def fetched(swarm: OfferWorld, root: BlobId) -> bytes:
    owner = swarm.nodes["mallory"].peer
    return await fetch_file(reader(swarm), root, NAME, LIMIT, owner=owner)


@pytest.mark.parametrize("size", [1, LIMIT])
async def test_file_within_its_limit_is_read_and_not_kept(
    swarm: OfferWorld, size: int, autojump_clock: object
) -> None:
    root = served(swarm, proofs__msgpack=b"x" * size)
    assert await fetched(swarm, root) == b"x" * size
    assert root not in labels(reader(swarm))


async def test_larger_file_is_refused_before_a_byte_of_it_is_asked_for(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    root = served(swarm, proofs__msgpack=b"x" * (LIMIT + 1))
    before = len(swarm.world.hub.pulls)
    with pytest.raises(LimitError, match="has 1001 bytes, at most 1000"):
        await fetched(swarm, root)
    assert swarm.world.hub.pulls[before:] == [(root,)]


@pytest.mark.parametrize(
    "files",
    [
        {"other": b"x"},
        {"proofs__msgpack": b"x", "more": 2 << 30},
        {"Proofs__msgpack": b"x"},
        {},
    ],
    ids=["another", "one more", "another spelling", "none"],
)
async def test_folder_of_other_files_is_refused_before_they_are_asked_for(
    swarm: OfferWorld, files: dict[str, bytes | int], autojump_clock: object
) -> None:
    root = served(swarm, **files)
    before = len(swarm.world.hub.pulls)
    with pytest.raises(PeerError):
        await fetched(swarm, root)
    assert swarm.world.hub.pulls[before:] == [(root,)]


async def test_what_is_no_folder_is_refused(swarm: OfferWorld, autojump_clock: object) -> None:
    root = swarm.nodes["mallory"].member.context.blobs.put(b"no folder")
    with pytest.raises(DecodeError):
        await fetched(swarm, root)


async def test_file_that_lies_about_its_size_is_refused_and_not_kept(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    blobs = swarm.nodes["mallory"].member.context.blobs
    entry = FileEntry(NAME, 5, (blobs.put(b"four"),))
    root = keep_folder(blobs, FileSet((entry,)), "x")
    with pytest.raises(DecodeError, match="has 4 bytes"):
        await fetched(swarm, root)
    assert root not in labels(reader(swarm))


async def test_folder_of_ones_own_stays_when_a_stranger_names_it(
    swarm: OfferWorld, tmp_path: Path, autojump_clock: object
) -> None:
    """Else an offer could name our own proofs, and have us drop them after a look."""
    context, file = reader(swarm), tmp_path / "mine"
    file.write_bytes(b"mine")
    root = await store_folder(context, {NAME: file}, "offer/proofs/x")
    pins = context.blobs.pins()
    assert await fetched(swarm, root) == b"mine"
    assert set(context.blobs.pins()) == set(pins)


async def test_stored_folder_is_kept_under_its_label(
    swarm: OfferWorld, tmp_path: Path, autojump_clock: object
) -> None:
    context, file = reader(swarm), tmp_path / "mine"
    file.write_bytes(b"mine")
    root = await store_folder(context, {NAME: file}, "offer/x")
    assert labels(context)[root] == "offer/x"
    with pytest.raises(StorageError):
        await store_folder(context, {NAME: tmp_path / "none"}, "offer/x")


async def test_probe_is_unpacked_kept_and_not_fetched_again(
    swarm: OfferWorld, autojump_clock: object
) -> None:
    context, owner = reader(swarm), swarm.nodes["mallory"].peer
    root = served(swarm, probe__safetensors=b"weights", probe__json=b"{}")
    folder = await unpacked_probe(context, root, owner)
    assert (folder / PROBE_WEIGHTS_FILE).read_bytes() == b"weights"
    assert (folder / PROBE_FILE).read_bytes() == b"{}"
    assert root in labels(context)
    before = len(swarm.world.hub.pulls)
    assert await unpacked_probe(context, root, owner) == folder
    assert len(swarm.world.hub.pulls) == before


@pytest.mark.parametrize("name", sorted(PROBE_LIMITS))
async def test_probe_too_large_is_refused_before_it_is_fetched(
    swarm: OfferWorld, name: str, autojump_clock: object
) -> None:
    sizes: dict[str, bytes | int] = {file.replace(".", "__"): b"x" for file in PROBE_LIMITS}
    sizes[name.replace(".", "__")] = PROBE_LIMITS[name] + 1
    root = served(swarm, **sizes)
    before = len(swarm.world.hub.pulls)
    with pytest.raises(LimitError, match=name):
        await unpacked_probe(reader(swarm), root, swarm.nodes["mallory"].peer)
    assert swarm.world.hub.pulls[before:] == [(root,)]


async def test_folders_limits_are_met_exactly(swarm: OfferWorld, autojump_clock: object) -> None:
    root = served(swarm, a=b"x" * 3, b=b"")
    context, owner = reader(swarm), swarm.nodes["mallory"].peer
    folder = await fetch_folder(context, root, {"a": 3, "b": 0}, owner=owner, label="x")
    assert {entry.name: entry.size for entry in folder.files} == {"a": 3, "b": 0}
    assert labels(context)[root] == "x"
