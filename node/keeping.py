"""What this node keeps pinned, and under which label, so that old checkpoints can go.

`expert/<cluster>/<samples>`: our own and replicated checkpoints, the newest few of each cluster.
`pulled`: what a person asked for: never dropped by the node itself. Blocks on the disk.
"""

from typing import Final

from p2p.blobs import BlobStore, blobs_of
from p2p.codec import pack
from p2p.file_sets import FileEntry, FileSet
from p2p.ids import BlobId, ClusterId

PULLED: Final = "pulled"
_KEPT_PER_CLUSTER: Final = 2
"""A peer may still be pulling the last checkpoint as the next one is published."""


def expert_label(cluster: ClusterId, samples: int) -> str:
    """Label of a checkpoint that is kept because it is new."""
    return f"expert/{cluster}/{samples}"


def keep(blobs: BlobStore, root: BlobId, label: str, children: tuple[BlobId, ...]) -> None:
    """Pin a tree; what a person pulled stays theirs."""
    if label != PULLED and any(pin.root == root and pin.label == PULLED for pin in blobs.pins()):
        return
    blobs.pin(root, label, children)


def keep_folder(blobs: BlobStore, folder: FileSet, label: str) -> BlobId:
    """Store a folder's own blob, pin all of it, and name it."""
    root = blobs.put(pack(folder))
    keep(blobs, root, label, tuple(blob for blob, _ in blobs_of(folder.files)))
    return root


def keep_checkpoint(
    blobs: BlobStore,
    envelope: bytes,
    cluster: ClusterId,
    samples: int,
    files: tuple[FileEntry, ...],
) -> BlobId:
    """Store a sealed manifest, pin its files, and let the cluster's older ones go."""
    cid = blobs.put(envelope)
    keep(blobs, cid, expert_label(cluster, samples), tuple(blob for blob, _ in blobs_of(files)))
    drop_older(blobs, cluster, newest=cid)
    return cid


def drop_older(blobs: BlobStore, cluster: ClusterId, *, newest: BlobId) -> None:
    """Unpin all but the newest checkpoints of a cluster.

    Args:
        blobs: the store.
        cluster: whose.
        newest: kept even if others saw more samples: an orphan may be ahead of its successor.
    """
    prefix = f"expert/{cluster}/"
    pins = [pin for pin in blobs.pins() if pin.label.startswith(prefix)]
    pins.sort(key=lambda pin: (pin.root == newest, int(pin.label.removeprefix(prefix))))
    for pin in pins[:-_KEPT_PER_CLUSTER]:
        blobs.unpin(pin.root)
