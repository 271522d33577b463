"""Folders of blobs as folders on disk: fetched if need be, unpacked once, reused ever after.

What torch reads is a plain folder; what the network moves is blobs. Each unpacked folder is named
by its CID, so that a new version never overwrites one in use.
"""

import shutil
from pathlib import Path
from typing import Final

import trio

from node.context import NodeContext
from node.fetching import ProgressHook
from node.keeping import expert_label
from p2p.blobs import BlobStore
from p2p.codec import Verified
from p2p.errors import PeerError, StorageError
from p2p.file_sets import FileEntry
from p2p.ids import BlobId, PeerId
from p2p.records import CheckpointManifest, ExpertAdvert

_KEPT_CHECKPOINTS: Final = 16
"""Unpacked checkpoints kept on disk: what is drawn with now, and a few before it."""


async def unpacked_folder(context: NodeContext, root: BlobId, label: str) -> Path:
    """A `FileSet` as a folder on disk.

    Raises:
        NodeError: if it can't be had from anybody.
        StorageError: if the disk refuses.
    """
    target = unpacked_place(context.folder, root)
    if not target.exists():
        folder = await context.fetcher.folder(root, label=label)
        await _unpack(context, folder.files, target)
    return target


async def unpacked_expert(context: NodeContext, advert: Verified[ExpertAdvert]) -> Path:
    """An advertised checkpoint as a folder on disk, if it is what the advert says.

    Raises:
        NodeError: if it can't be had from anybody.
        PeerError: if it is not a checkpoint, or another one than advertised.
        StorageError: if the disk refuses.
    """
    said = advert.record
    manifest = await context.fetcher.manifest(said.manifest, hints=(advert.owner,))
    found = manifest.record
    for name, got, expected in (
        ("owner", manifest.owner, advert.owner),
        ("cluster", found.cluster, said.cluster),
        ("epoch", found.epoch, said.epoch),
        ("samples", found.samples, said.samples),
    ):
        if got != expected:
            raise PeerError(f"checkpoint {said.manifest}: {name} is {got}, advertised {expected}")
    return await unpacked_checkpoint(context, said.manifest, advert.owner)


async def unpacked_checkpoint(
    context: NodeContext,
    cid: BlobId,
    owner: PeerId,
    *,
    label: str | None = None,
    on_progress: ProgressHook | None = None,
) -> Path:
    """A checkpoint as a folder on disk.

    Args:
        context: the node.
        cid: of its signed manifest.
        owner: who to ask first.
        label: pinned under it; None to keep it as long as it is among the newest.
        on_progress: told of verified bytes.

    Raises:
        NodeError: if it can't be had from anybody.
        DecodeError: if it is not a checkpoint.
        StorageError: if the disk refuses.
    """
    manifest = (await context.fetcher.manifest(cid, hints=(owner,))).record
    target = checkpoint_folder(context.folder, manifest, cid)
    label = label or expert_label(manifest.cluster, manifest.samples)
    await context.fetcher.checkpoint(cid, label=label, hints=(owner,), on_progress=on_progress)
    if not target.exists():
        await _unpack(context, manifest.files, target)
        await trio.to_thread.run_sync(_drop_oldest, target.parent)
    return target


def checkpoint_folder(run_folder: Path, manifest: CheckpointManifest, cid: BlobId) -> Path:
    """Where a checkpoint lies, or would lie, unpacked."""
    return run_folder / "experts" / str(manifest.cluster) / cid


def unpacked_place(run_folder: Path, root: BlobId) -> Path:
    """Where a `FileSet` lies, or would lie, unpacked."""
    return run_folder / "unpacked" / root


async def _unpack(context: NodeContext, files: tuple[FileEntry, ...], target: Path) -> None:
    await trio.to_thread.run_sync(materialise, context.blobs, files, target)


def materialise(blobs: BlobStore, files: tuple[FileEntry, ...], target: Path) -> None:
    """Write files out of the store as a folder, unless another task was faster. Blocks.

    Raises:
        StorageError: a chunk is not there or was altered, or the disk refuses.
    """
    try:
        blobs.materialise(files, target)
    except StorageError:
        if not target.exists():  # else another task was faster, and folders appear whole
            raise


def _drop_oldest(folder: Path) -> None:
    kept = sorted(folder.glob("bafkrei*"), key=lambda path: path.stat().st_mtime)
    for path in kept[:-_KEPT_CHECKPOINTS]:
        shutil.rmtree(path, ignore_errors=True)
