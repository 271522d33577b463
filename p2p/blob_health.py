"""Reading blobs over to find the altered ones: on demand, and after the machine went down."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p.blob_files import list_blobs, read_blob, storage_error, write_atomically
from p2p.errors import BlobCorruptError, BlobMissingError, StorageError
from p2p.ids import BlobId

logger = logging.getLogger(__name__)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MARK: Final = "boot"


@dataclass(frozen=True, slots=True)
class Verification:
    """What reading every blob found."""

    checked: int
    removed: tuple[BlobId, ...]
    """No longer what their names say: removed."""
    repair: tuple[BlobId, ...]
    """Pinned and not there: fetch these again."""


def remove_altered(root: Path, *, skip: Collection[BlobId] = ()) -> tuple[int, tuple[BlobId, ...]]:
    """Read every blob but `skip`, remove those that do not match their names.

    Returns:
        How many were read, and which were removed.

    Raises:
        StorageError: if the disk refuses.
    """
    checked = 0
    removed: list[BlobId] = []
    for entry in list(list_blobs(root)):
        if entry.blob in skip:
            continue
        try:
            read_blob(root, entry.blob)
        except BlobMissingError:
            continue  # collected meanwhile
        except BlobCorruptError:
            removed.append(entry.blob)
        checked += 1
    return checked, tuple(removed)


def remove_torn(root: Path, pinned: Collection[BlobId]) -> tuple[BlobId, ...]:
    """Remove what a power cut tore, if the machine was started anew since the last call.

    Pinned blobs were fsynced and cannot be torn; and a killed process loses nothing that it gave
    to the kernel. Where a boot has no name (not Linux), every call looks.

    Raises:
        StorageError: if the disk refuses.
    """
    mark = root / _MARK
    try:
        boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        if boot and mark.exists() and mark.read_text() == boot:
            return ()
    except OSError as error:
        raise storage_error(error, f"read {mark}") from error
    _checked, removed = remove_altered(root, skip=pinned)
    try:
        write_atomically(mark, [boot.encode()], is_durable=True)
    except StorageError as error:  # a full disk must not keep the node from starting
        logger.warning("the next start will read all unpinned blobs again: %s", error)
    return removed
