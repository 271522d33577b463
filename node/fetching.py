"""Getting folders and checkpoints by CID: find providers, reserve room, pull, check, pin.

Bytes go straight from the swarm child to the blob store; this module decides what to ask for and
from whom. Whatever it returns is whole, hashed and pinned.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakValueDictionary

import trio

from node.errors import ErrorCode, NodeError
from node.keeping import keep
from node.peerbook import PeerBook
from node.providers import find_providers
from p2p.blobs import BlobStore, blobs_of
from p2p.codec import BLOB_KEY, Verified, open_signed, unpack
from p2p.dht.port import RecordStore
from p2p.errors import DecodeError, TransportError
from p2p.file_sets import FileEntry, FileSet
from p2p.ids import BlobId, PeerId, RunId
from p2p.limits import CHUNK_SIZE
from p2p.records import CheckpointManifest
from p2p.transfer import UNKNOWN_SIZE, BulkPeer, PullProgress, PullResult

logger = logging.getLogger(__name__)

ProgressHook = Callable[[PullProgress], None]


class BulkTransport(Protocol):
    """What moves blobs in bulk: the swarm child, or a fake of it."""

    async def pull(
        self,
        blobs: Sequence[tuple[BlobId, int]],
        providers: Sequence[BulkPeer],
        on_progress: ProgressHook,
    ) -> PullResult:
        """Fetch blobs into the store; see `p2p.transfer.PullResult`."""
        ...


@dataclass(slots=True)
class Fetcher:
    """Pulls trees of blobs of one run into the local store."""

    run: RunId
    blobs: BlobStore
    bulk: BulkTransport
    records: RecordStore
    peers: PeerBook
    _locks: WeakValueDictionary[BlobId, trio.Lock] = field(default_factory=WeakValueDictionary)
    """One puller a tree: two services may want the same one at the same moment."""

    async def blob(self, cid: BlobId, *, hints: Iterable[PeerId] = ()) -> bytes:
        """One blob's bytes, from the store or from a peer.

        Raises:
            NodeError: NOT_FOUND if nobody gave it, NO_PEERS if nobody could be asked.
            StorageError: if there is no room for it.
        """
        async with self._lock(cid):
            if not self.blobs.has(cid):
                with self.blobs.reserve(CHUNK_SIZE, (cid,)):
                    await self._pull(cid, ((cid, UNKNOWN_SIZE),), hints, None)
        return self.blobs.get(cid)

    def _lock(self, root: BlobId) -> trio.Lock:
        return self._locks.setdefault(root, trio.Lock())

    async def folder(
        self,
        root: BlobId,
        *,
        label: str,
        hints: Iterable[PeerId] = (),
        on_progress: ProgressHook | None = None,
    ) -> FileSet:
        """A folder, all its chunks in the store and pinned under `label`.

        Raises:
            NodeError: if it can't be had.
            DecodeError: if `root` is not a folder.
        """
        hints = tuple(hints)
        folder = unpack(FileSet, await self.blob(root, hints=hints), max_size=CHUNK_SIZE)
        await self._files(root, folder.files, label, hints, on_progress)
        return folder

    async def manifest(
        self, cid: BlobId, *, hints: Iterable[PeerId] = ()
    ) -> Verified[CheckpointManifest]:
        """A checkpoint's signed manifest, without its files.

        Raises:
            NodeError: if it can't be had.
            DecodeError: if it is not a checkpoint manifest of this run, or is badly signed.
        """
        envelope = await self.blob(cid, hints=hints)
        manifest = open_signed(CheckpointManifest, envelope, key=BLOB_KEY, now=0.0)
        if manifest.record.run != self.run:
            raise DecodeError(f"checkpoint {cid} is of run {manifest.record.run}, not {self.run}")
        return manifest

    async def checkpoint(
        self,
        cid: BlobId,
        *,
        label: str,
        hints: Iterable[PeerId] = (),
        on_progress: ProgressHook | None = None,
    ) -> Verified[CheckpointManifest]:
        """A checkpoint, all its files in the store and pinned under `label`.

        Raises:
            NodeError: if it can't be had.
            DecodeError: if it is not a checkpoint manifest, or is badly signed.
        """
        hints = tuple(hints)
        manifest = await self.manifest(cid, hints=hints)
        hints = (manifest.owner, *hints)
        await self._files(cid, manifest.record.files, label, hints, on_progress)
        return manifest

    async def _files(
        self,
        root: BlobId,
        files: tuple[FileEntry, ...],
        label: str,
        hints: tuple[PeerId, ...],
        on_progress: ProgressHook | None,
    ) -> None:
        sizes = dict(blobs_of(files))
        async with self._lock(root):
            missing = await trio.to_thread.run_sync(self.blobs.missing, sizes)
            if missing:
                wanted = tuple((chunk, sizes[chunk]) for chunk in missing)
                with self.blobs.reserve(sum(size for _, size in wanted), missing):
                    await self._pull(root, wanted, hints, on_progress)
            await trio.to_thread.run_sync(keep, self.blobs, root, label, tuple(sizes))

    async def _pull(
        self,
        root: BlobId,
        wanted: tuple[tuple[BlobId, int], ...],
        hints: Iterable[PeerId],
        on_progress: ProgressHook | None,
    ) -> None:
        hints = tuple(hints)
        try:
            holders = await find_providers(self.records, self.run, root)
        except TransportError as error:
            if not hints:
                raise
            logger.info("only the peers at hand are asked for %s: %s", root, error)
            holders = ()
        providers = self.peers.bulk_peers((*hints, *holders))
        if not providers:
            raise NodeError(
                ErrorCode.NO_PEERS if not self.peers.peers() else ErrorCode.NOT_FOUND,
                f"no reachable peer is known to hold {root}",
                "see who is there with: paris-node peers; then try again",
            )
        result = await self.bulk.pull(wanted, providers, on_progress or _ignore)
        for peer, fault in result.bad_peers:
            logger.warning("provider %s sent bad bytes for %s: %s", peer, root, fault)
        if result.missing:
            reasons = "; ".join(f"{peer[-6:]}: {why}" for peer, why in result.failed_peers)
            raise NodeError(
                ErrorCode.NOT_FOUND,
                f"{len(result.missing)} of {len(wanted)} blobs of {root} could not be fetched "
                f"from {len(providers)} providers ({reasons or 'they do not have them'})",
                "try again when more peers are there: paris-node peers",
            )


def _ignore(progress: PullProgress) -> None:
    """For pulls that nobody watches."""
