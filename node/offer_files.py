"""What belongs to an offer, as folders of blobs: its proofs and its probe, fetched within bounds.

A stranger's `FileSet` may promise gigabytes: names and sizes are checked before a file is asked
for, and what was only looked at is not kept.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio

from node.context import NodeContext
from node.folders import materialise, unpacked_place
from node.keeping import keep_folder
from p2p.codec import unpack
from p2p.errors import LimitError, PeerError
from p2p.file_sets import FileSet
from p2p.ids import BlobId, PeerId
from p2p.limits import CHUNK_SIZE, MIB
from training.lora.layers import PROBE_FILE, PROBE_WEIGHTS_FILE

PROBE_LIMITS: Final[Mapping[str, int]] = {PROBE_WEIGHTS_FILE: 16 * MIB, PROBE_FILE: MIB}
"""64 latents of 4 x 128 x 128 float32 have 16 MiB; their captions 64 KiB."""
_LOOKED_AT: Final = "offer/looked-at"
"""Pins under it end with the look, or at the next start: see `node.offers`."""


async def store_folder(context: NodeContext, paths: Mapping[str, Path], label: str) -> BlobId:
    """Files of our own as a pinned folder of blobs; its root.

    Raises:
        StorageError: the disk refuses.
    """
    entries = await trio.to_thread.run_sync(context.blobs.add_files, paths)
    return await trio.to_thread.run_sync(keep_folder, context.blobs, FileSet(entries), label)


async def fetch_folder(
    context: NodeContext, root: BlobId, limits: Mapping[str, int], *, owner: PeerId, label: str
) -> FileSet:
    """A stranger's folder, whole and pinned, if it has exactly the files it should.

    Args:
        context: the node.
        root: CID of the folder.
        limits: the most bytes of each file, by name: no other may be there.
        owner: who to ask first.
        label: of the pin.

    Raises:
        NodeError: it can't be had.
        PeerError: other files, or larger ones.
        StorageError: the disk refuses.
    """
    folder = unpack(FileSet, await context.fetcher.blob(root, hints=(owner,)), max_size=CHUNK_SIZE)
    names = {entry.name for entry in folder.files}
    if names != limits.keys():
        raise PeerError(f"folder {root}: has {sorted(names)[:5]}, expected {sorted(limits)}")
    for entry in folder.files:
        if entry.size > limits[entry.name]:
            raise LimitError(
                f"folder {root}: {entry.name} has {entry.size} bytes, at most "
                f"{limits[entry.name]} may be"
            )
    return await context.fetcher.folder(root, label=label, hints=(owner,))


async def fetch_file(
    context: NodeContext, root: BlobId, name: str, limit: int, *, owner: PeerId
) -> bytes:
    """The bytes of a stranger's folder of one file, which is not kept.

    Raises:
        NodeError, PeerError, StorageError: as `fetch_folder`.
    """
    label = next((pin.label for pin in context.blobs.pins() if pin.root == root), None)
    folder = await fetch_folder(
        context, root, {name: limit}, owner=owner, label=label or _LOOKED_AT
    )
    try:
        return await trio.to_thread.run_sync(context.blobs.read_file, folder.files[0])
    finally:
        if label is None:  # else it is kept for another reason, whoever names it now
            context.blobs.unpin(root)


async def unpacked_probe(context: NodeContext, root: BlobId, owner: PeerId) -> Path:
    """The public probe of an offer as a folder on disk.

    Raises:
        NodeError, PeerError, StorageError: as `fetch_folder`.
    """
    target = unpacked_place(context.folder, root)
    if not target.exists():
        folder = await fetch_folder(
            context, root, PROBE_LIMITS, owner=owner, label=f"probe/{root[-6:]}"
        )
        await trio.to_thread.run_sync(materialise, context.blobs, folder.files, target)
    return target
