"""Trees of blobs by CID: from whoever has them, once, checked, within the quota, then pinned."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from node.errors import ErrorCode, NodeError
from node.keeping import PULLED, expert_label, keep_checkpoint, keep_folder
from node.providers import announce_roots
from p2p.codec import BLOB_KEY, open_signed, seal
from p2p.errors import DecodeError, QuotaError, TransportError
from p2p.file_sets import FileEntry, FileSet
from p2p.ids import BlobId, ClusterId, PeerId, RunId
from p2p.limits import CHUNK_SIZE
from p2p.records import CheckpointManifest, NodeRecord, node_key
from tests.support.people import cid
from tests.support.swarm import STALL_S, MemberNode, World, open_nodes, wall, world

__all__ = ["world"]


def acquaint(reader: MemberNode, *others: MemberNode) -> None:
    """Let a node know others, as after a hello."""
    for other in others:
        envelope, _ = other.membership.node_envelope()
        key = node_key(other.context.run, other.peer)
        reader.context.peers.add(open_signed(NodeRecord, envelope, key=key, now=wall()))


def folder(node: MemberNode, *pieces: bytes) -> BlobId:
    entries = tuple(
        FileEntry(f"{number}.bin", len(data), (node.context.blobs.put(data),))
        for number, data in enumerate(pieces)
    )
    return keep_folder(node.context.blobs, FileSet(entries), "shared")


def checkpoint(node: MemberNode, data: bytes = b"model", run: RunId | None = None) -> BlobId:
    context = node.context
    entry = FileEntry("model.safetensors", len(data), (context.blobs.put(data),))
    manifest = CheckpointManifest(
        run=run or context.run,
        cluster=ClusterId(1),
        epoch=1,
        step=10,
        samples=100,
        loss=0.5,
        parent=None,
        files=(entry,),
        created_at=wall(),
    )
    envelope = seal(manifest, context.identity, key=BLOB_KEY, expires_at=None)
    return keep_checkpoint(context.blobs, envelope, ClusterId(1), 100, (entry,))


@asynccontextmanager
async def three(world: World, **settings: object) -> AsyncIterator[list[MemberNode]]:
    """Ada, who fetches, and Ben and Cem, whom she knows."""
    async with open_nodes(world, ("ada", "ben", "cem"), **settings) as (ada, ben, cem):
        acquaint(ada, ben, cem)
        yield [ada, ben, cem]


async def announce(node: MemberNode, *roots: BlobId) -> None:
    await announce_roots(node.swarm, node.context.identity, node.context.run, roots)


async def test_folder_is_found_through_provider_records_and_pinned(
    world: World, autojump_clock: MockClock
) -> None:
    async with three(world) as (ada, ben, _):
        root = folder(ben, b"one", b"two")
        await announce(ben, root)
        found = await ada.context.fetcher.folder(root, label="shared")
        assert [ada.context.blobs.read_file(entry) for entry in found.files] == [b"one", b"two"]
        (pin,) = [pin for pin in ada.context.blobs.pins() if pin.root == root]
        assert len(pin.children) == 2


async def test_lying_provider_costs_nothing_but_a_warning(
    world: World, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with three(world) as (ada, ben, cem):
        root = folder(ben, b"one", b"two")
        assert folder(cem, b"one", b"two") == root
        world.hub.faults[ben.swarm.child_id] = "lie"
        found = await ada.context.fetcher.folder(root, label="x", hints=(ben.peer, cem.peer))
        assert ada.context.blobs.read_file(found.files[1]) == b"two"
        assert "sent bad bytes" in caplog.text
        assert ben.swarm.child_id in caplog.text


async def test_dying_provider_is_replaced_by_the_next(
    world: World, autojump_clock: MockClock
) -> None:
    async with three(world) as (ada, ben, cem):
        pieces = tuple(f"piece {number}".encode() for number in range(6))
        root = folder(ben, *pieces)
        folder(cem, *pieces)
        world.hub.faults[ben.swarm.child_id] = "die"
        await ada.context.fetcher.folder(root, label="x", hints=(ben.peer, cem.peer))
        assert world.hub.served[ben.swarm.child_id] == 2  # its folder, then one blob
        assert world.hub.served[cem.swarm.child_id] == 5


async def test_only_liars_is_a_sentence_that_counts_them(
    world: World, autojump_clock: MockClock
) -> None:
    async with three(world) as (ada, ben, _):
        root = folder(ben, b"one")
        world.hub.faults[ben.swarm.child_id] = "lie"
        with pytest.raises(NodeError, match="1 of 1 blobs") as caught:
            await ada.context.fetcher.folder(root, label="x", hints=(ben.peer,))
        assert caught.value.code is ErrorCode.NOT_FOUND
        assert root not in {pin.root for pin in ada.context.blobs.pins()}


async def test_nobody_has_it_is_not_found(world: World, autojump_clock: MockClock) -> None:
    async with three(world) as (ada, *_):
        with pytest.raises(NodeError, match="no reachable peer") as caught:
            await ada.context.fetcher.blob(cid("nobody's"))
        assert caught.value.code is ErrorCode.NOT_FOUND


async def test_nobody_known_is_no_peers(world: World, autojump_clock: MockClock) -> None:
    async with world.open_node("ada") as ada:
        with pytest.raises(NodeError) as caught:
            await ada.context.fetcher.blob(cid("nobody's"))
        assert caught.value.code is ErrorCode.NO_PEERS


async def test_known_peers_are_asked_while_the_dht_is_down(
    world: World, autojump_clock: MockClock
) -> None:
    async with three(world) as (ada, ben, _):
        root = folder(ben, b"one")
        world.dht.take_down("ada")
        await ada.context.fetcher.folder(root, label="x", hints=(ben.peer,))
        with pytest.raises(TransportError):
            await ada.context.fetcher.blob(cid("else"))


async def test_one_root_wanted_by_many_is_pulled_once(
    world: World, autojump_clock: MockClock
) -> None:
    async with three(world) as (ada, ben, _):
        root = checkpoint(ben)

        async def fetch() -> None:
            await ada.context.fetcher.checkpoint(root, label="x", hints=(ben.peer,))

        async with trio.open_nursery() as nursery:
            for _number in range(5):
                nursery.start_soon(fetch)
        assert len(world.hub.pulls) == 2  # the manifest, then its file


async def test_waiting_fetch_goes_on_when_the_first_is_cancelled(
    world: World, autojump_clock: MockClock
) -> None:
    async with three(world) as (ada, ben, _):
        root = checkpoint(ben)
        world.hub.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            first = trio.CancelScope()

            async def fetch(scope: trio.CancelScope) -> None:
                with scope:
                    await ada.context.fetcher.checkpoint(root, label="x", hints=(ben.peer,))

            nursery.start_soon(fetch, first)
            await trio.sleep(1)
            nursery.start_soon(fetch, trio.CancelScope())
            await trio.sleep(1)
            first.cancel()
            world.hub.gate.set()
        assert ada.context.blobs.has(root)


@pytest.mark.parametrize(("free", "fits"), [(CHUNK_SIZE - 1, False), (CHUNK_SIZE, True)])
async def test_blob_of_unknown_size_needs_room_for_a_whole_one(
    world: World, autojump_clock: MockClock, free: int, *, fits: bool
) -> None:
    async with three(world) as (ada, ben, _):
        root = ben.context.blobs.put(b"small")
        ledger = ada.context.blobs._ledger
        ledger._quota = ada.context.blobs.usage().used + free
        if fits:
            assert await ada.context.fetcher.blob(root, hints=(ben.peer,)) == b"small"
        else:
            with pytest.raises(QuotaError):
                await ada.context.fetcher.blob(root, hints=(ben.peer,))
            assert world.hub.pulls == []


async def test_what_does_not_fit_is_not_asked_for(world: World, autojump_clock: MockClock) -> None:
    async with three(world) as (ada, ben, _):
        huge = FileEntry("huge.bin", 30 * CHUNK_SIZE, tuple(cid(f"c{i}") for i in range(30)))
        from p2p.codec import pack

        root = ben.context.blobs.put(pack(FileSet((huge,))))
        ada.context.blobs._ledger._quota = 20 * CHUNK_SIZE
        with pytest.raises(QuotaError):
            await ada.context.fetcher.folder(root, label="x", hints=(ben.peer,))
        assert len(world.hub.pulls) == 1  # the folder's own blob


async def test_what_a_person_pulled_is_not_taken_over_by_replication(
    world: World, autojump_clock: MockClock
) -> None:
    async with three(world) as (ada, ben, _):
        root = checkpoint(ben)
        fetcher = ada.context.fetcher
        await fetcher.checkpoint(root, label=PULLED, hints=(ben.peer,))
        await fetcher.checkpoint(root, label=expert_label(ClusterId(1), 100), hints=(ben.peer,))
        assert [pin.label for pin in ada.context.blobs.pins() if pin.root == root] == [PULLED]


async def test_folder_under_a_checkpoints_cid_is_said_to_be_none(
    world: World, autojump_clock: MockClock
) -> None:
    async with three(world) as (ada, ben, _):
        root = folder(ben, b"one")
        with pytest.raises(DecodeError, match="envelope"):
            await ada.context.fetcher.manifest(root, hints=(ben.peer,))


async def test_checkpoint_under_a_folders_cid_is_said_to_be_none(
    world: World, autojump_clock: MockClock
) -> None:
    async with three(world) as (ada, ben, _):
        root = checkpoint(ben)
        with pytest.raises(DecodeError, match="FileSet"):
            await ada.context.fetcher.folder(root, label="x", hints=(ben.peer,))
        assert root not in {pin.root for pin in ada.context.blobs.pins()}


async def test_checkpoint_of_another_run_is_refused(
    world: World, autojump_clock: MockClock
) -> None:
    async with three(world) as (ada, ben, _):
        root = checkpoint(ben, run=RunId(cid("another run")))
        with pytest.raises(DecodeError, match="is of run"):
            await ada.context.fetcher.checkpoint(root, label="x", hints=(ben.peer,))
        assert len(world.hub.pulls) == 1  # its files were not


async def test_silent_provider_delays_but_does_not_stop_a_pull(
    world: World, autojump_clock: MockClock
) -> None:
    async with three(world) as (ada, ben, cem):
        root = folder(cem, b"one")
        world.hub.faults[ben.swarm.child_id] = "stall"
        await ada.context.fetcher.folder(root, label="x", hints=(ben.peer, cem.peer))
        assert trio.current_time() < 3 * STALL_S


async def test_unknown_hints_are_no_providers(world: World, autojump_clock: MockClock) -> None:
    async with three(world) as (ada, ben, _):
        root = folder(ben, b"one")
        with pytest.raises(NodeError, match="no reachable peer"):
            await ada.context.fetcher.blob(root, hints=(PeerId("12D3KooWNobody"),))
