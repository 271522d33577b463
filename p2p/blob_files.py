"""Blobs as files: one flat folder, each file named by its CID, written whole or not at all.

The node and its swarm child use the same folder at the same time; nothing is shared but the disk.
So there is no index: a blob is there if its file is, and a rename is the only way it appears.

Durability is not this module's: content is checked whenever it is read, so a file that a power cut
tore is noticed and fetched again. What must survive is fsynced when it is pinned (`p2p.blob_pins`),
so that receiving never waits for the disk's latency (128 MiB on a virtual SSD: fsync at each blob
0.18 s, batched at the end 0.14-0.18 s; a spinning disk needs ~10 ms per fsync).
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p.errors import BlobCorruptError, BlobMissingError, DecodeError, QuotaError, StorageError
from p2p.ids import BlobId, blob_digest, parse_blob_id
from p2p.limits import CHUNK_SIZE

CHUNKS: Final = "chunks"
PINS: Final = "pins"
TEMP_PREFIX: Final = ".tmp-"
_TEMP_MAX_AGE_S: Final = 3600.0
"""A temp file this old belongs to nobody, whatever its process id says: ids are used again."""

Piece = bytes | memoryview


@dataclass(frozen=True, slots=True)
class BlobFile:
    """One blob on disk."""

    blob: BlobId
    size: int
    used_at: float
    """When it was written or last read through the store, seconds since the epoch."""


def blob_path(root: Path, blob: BlobId) -> Path:
    """Where a blob's file is.

    Raises:
        DecodeError: if `blob` is not a CID, so that no other name can ever reach the disk.
    """
    return root / CHUNKS / parse_blob_id(blob)


def prepare(root: Path) -> None:
    """Make the store's folders, readable by the owner only.

    Raises:
        StorageError: if they cannot be made.
    """
    try:
        for folder in (root, root / CHUNKS, root / PINS):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
    except OSError as error:
        raise storage_error(error, f"make the blob store in {root}") from error


def write_blob(root: Path, blob: BlobId, pieces: Iterable[Piece]) -> int:
    """Write a blob whose bytes were already checked against its name; return its size in bytes.

    Raises:
        QuotaError: if the disk is full.
        StorageError: if the disk refuses for another reason.
    """
    return write_atomically(blob_path(root, blob), pieces, is_durable=False)


def write_atomically(path: Path, pieces: Iterable[Piece], *, is_durable: bool) -> int:
    """Write a file that is either whole or absent; return its size in bytes.

    Args:
        path: where it appears, replacing what was there.
        pieces: the content, in order.
        is_durable: whether it must survive a power cut (fsync of file and folder).

    Raises:
        QuotaError: if the disk is full.
        StorageError: if the disk refuses for another reason.
    """
    temp = temp_beside(path)
    try:
        try:
            size = _write_new(temp, pieces, is_durable=is_durable)
            temp.replace(path)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        if is_durable:
            sync(path.parent)
    except OSError as error:
        raise storage_error(error, f"write {path.name}") from error
    return size


def _write_new(path: Path, pieces: Iterable[Piece], *, is_durable: bool) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        size = sum(_write_all(descriptor, memoryview(piece)) for piece in pieces)
        if is_durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return size


def _write_all(descriptor: int, data: memoryview) -> int:
    done = 0
    while done < len(data):  # a nearly full disk takes a part first and only then refuses
        done += os.write(descriptor, data[done:])
    return done


def sync(path: Path) -> None:
    """Make a file's content, or a folder's names, survive a power cut. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_blob(root: Path, blob: BlobId) -> bytes:
    """A blob's bytes, checked against its name.

    Raises:
        BlobMissingError: if it is not there.
        BlobCorruptError: if it no longer hashes to its name; the file is removed, so that it counts
            as missing and can be fetched again.
        StorageError: if the disk refuses.
    """
    path = blob_path(root, blob)
    try:
        with path.open("rb") as file:
            data = file.read(CHUNK_SIZE + 1)
    except FileNotFoundError as error:
        raise BlobMissingError(blob) from error
    except OSError as error:
        raise storage_error(error, f"read blob {blob}") from error
    if hashlib.sha256(data).digest() != blob_digest(blob):
        path.unlink(missing_ok=True)
        raise BlobCorruptError(blob)
    return data


def holds(root: Path, blob: BlobId, data: bytes) -> bool:
    """Whether the blob's file is there with exactly this content.

    Raises:
        StorageError: if the disk refuses.
    """
    try:
        return blob_path(root, blob).read_bytes() == data
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, f"read blob {blob}") from error


def blob_size(root: Path, blob: BlobId) -> int | None:
    """Size in bytes of a blob's file, or None if there is none. Its content is not looked at.

    Raises:
        StorageError: if the disk refuses.
    """
    try:
        return blob_path(root, blob).stat().st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, f"look for blob {blob}") from error


def remove_blob(root: Path, blob: BlobId) -> None:
    """Delete a blob's file, if it is there.

    Raises:
        StorageError: if the disk refuses.
    """
    try:
        blob_path(root, blob).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, f"remove blob {blob}") from error


def mark_used(root: Path, blob: BlobId) -> None:
    """Note that a blob was used now, for the order in which garbage is collected."""
    with contextlib.suppress(OSError):  # gone or read-only: an order is a hint, not a promise
        os.utime(blob_path(root, blob))


def list_blobs(root: Path) -> Iterator[BlobFile]:
    """Every blob on disk, in no order; files with other names are passed over.

    Raises:
        StorageError: if the disk refuses.
    """
    try:
        with os.scandir(root / CHUNKS) as entries:
            for entry in entries:
                with contextlib.suppress(DecodeError, FileNotFoundError):
                    stat = entry.stat(follow_symlinks=False)
                    yield BlobFile(parse_blob_id(entry.name), stat.st_size, stat.st_mtime)
    except OSError as error:
        raise storage_error(error, f"list the blobs in {root}") from error


def sweep_temps(root: Path, *, now: float) -> int:
    """Remove what writers that died left behind; return how many files that were.

    A temp of a live process is left alone (the child may be writing), up to an hour.

    Raises:
        StorageError: if the disk refuses.
    """
    removed = 0
    try:
        for folder in (root, root / CHUNKS, root / PINS):
            for temp in folder.glob(f"{TEMP_PREFIX}*"):
                with contextlib.suppress(FileNotFoundError):
                    if is_abandoned(temp, now=now):
                        temp.unlink()
                        removed += 1
    except OSError as error:
        raise storage_error(error, f"sweep {root}") from error
    return removed


def temp_beside(path: Path) -> Path:
    """A name beside `path`, for what will become it; tells which process writes it."""
    return path.parent / f"{TEMP_PREFIX}{os.getpid()}-{os.urandom(8).hex()}"


def is_abandoned(temp: Path, *, now: float) -> bool:
    """Whether nobody will finish a temp: its process is gone, or it is over an hour old.

    Raises:
        FileNotFoundError: if it is not there any more.
    """
    if now - temp.stat().st_mtime > _TEMP_MAX_AGE_S:
        return True
    writer = temp.name.removeprefix(TEMP_PREFIX).partition("-")[0]
    if not writer.isdecimal():
        return True
    try:
        os.kill(int(writer), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def storage_error(error: OSError, action: str) -> StorageError:
    """What a refusal of the disk means to the program: `QuotaError` if it is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return QuotaError(f"could not {action}: the disk is full; free some space and try again")
    return StorageError(f"could not {action}: {error.strerror or error}")
