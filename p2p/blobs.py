"""The blob store: bytes by the name of their hash, on disk, within a quota, kept while pinned.

A big file is a `FileEntry`: a list of blobs of `CHUNK_SIZE`. The swarm child writes fetched blobs
into the same folder, so nothing about which blobs exist is remembered here: the disk is asked.
Every method blocks on the disk and is thread-safe: call from a worker thread. Knows no network.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p import blob_files
from p2p.blob_folders import write_folder
from p2p.blob_health import Verification, remove_altered, remove_torn
from p2p.blob_pins import Pin, load_pins, refuse_damaged, remove_pin, save_pin
from p2p.blob_quota import Ledger, Reservation
from p2p.errors import BlobCorruptError, BlobMissingError, DecodeError, LimitError
from p2p.file_sets import FileEntry
from p2p.ids import BlobId, blob_id, blob_id_of_digest
from p2p.limits import CHUNK_SIZE, DEFAULT_QUOTA_BYTES

logger = logging.getLogger(__name__)

GARBAGE_MIN_AGE_S: Final = 600.0
"""Blobs used this recently are not garbage: somebody may be about to pin what was just written."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a store is; sizes in bytes."""

    blobs: int
    used: int
    pinned: int
    reserved: int
    quota: int
    disk_free: int
    disk_floor: int


@dataclass(frozen=True, slots=True)
class Removed:
    """What a garbage collection took."""

    blobs: int
    size: int
    """Bytes."""


class BlobStore:
    """Blobs under one folder. Make one with `open`."""

    def __init__(self, root: Path, ledger: Ledger, pins: dict[BlobId, Pin]) -> None:
        self._root = root
        self._ledger = ledger
        self._pins = pins
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        quota_bytes: int = DEFAULT_QUOTA_BYTES,
        floor_bytes: int | None = None,
    ) -> "BlobStore":
        """Open or make the store in `root`, and clear what a crash left behind.

        Args:
            root: its folder; only the owner can read it afterwards.
            quota_bytes: what its blobs may take.
            floor_bytes: what must stay free on the disk; None for the larger of 5 % and 2 GiB.

        Raises:
            StorageError: if the disk refuses.
        """
        blob_files.prepare(root)
        swept = blob_files.sweep_temps(root, now=time.time())
        pins, _damaged = load_pins(root)
        torn = remove_torn(root, {blob for pin in pins.values() for blob in pin.blobs})
        if swept or torn:
            logger.info("blob store %s: swept %d unfinished, %d torn", root, swept, len(torn))
        return cls(root, Ledger(root, quota_bytes=quota_bytes, floor_bytes=floor_bytes), pins)

    @property
    def root(self) -> Path:
        """The store's folder, for a `PullJob`."""
        return self._root

    # --- single blobs --------------------------------------------------------------------------
    def put(self, data: bytes) -> BlobId:
        """Store `data` as one blob, or repair it; what is there already takes no room.

        Not durable until pinned.

        Raises:
            LimitError: if it is larger than `CHUNK_SIZE`.
            QuotaError: if it does not fit.
            StorageError: if the disk refuses.
        """
        if len(data) > CHUNK_SIZE:
            raise LimitError(
                f"blob: got {len(data)} bytes, the limit is {CHUNK_SIZE}: use add_files"
            )
        blob = blob_id(data)
        if blob_files.holds(self._root, blob, data):
            blob_files.mark_used(self._root, blob)
            return blob
        self._ledger.check(len(data))
        blob_files.write_blob(self._root, blob, [data])
        return blob

    def get(self, blob: BlobId) -> bytes:
        """A blob's bytes, checked against its name.

        Raises:
            BlobMissingError: if it is not there.
            BlobCorruptError: if it was altered on disk; it then counts as missing.
            StorageError: if the disk refuses.
        """
        try:
            data = blob_files.read_blob(self._root, blob)
        except BlobCorruptError:
            logger.warning("blob %s was altered on disk and is removed", blob)
            raise
        blob_files.mark_used(self._root, blob)
        return data

    def has(self, blob: BlobId) -> bool:
        """Whether the blob is on disk. Its content is only checked when it is read."""
        return blob_files.blob_size(self._root, blob) is not None

    def size(self, blob: BlobId) -> int:
        """Size of a blob in bytes.

        Raises:
            BlobMissingError: if it is not there.
        """
        size = blob_files.blob_size(self._root, blob)
        if size is None:
            raise BlobMissingError(blob)
        return size

    def missing(self, blobs: Iterable[BlobId]) -> tuple[BlobId, ...]:
        """Those of `blobs` that are not on disk, once each, in order."""
        return tuple(blob for blob in dict.fromkeys(blobs) if not self.has(blob))

    # --- files ---------------------------------------------------------------------------------
    def add_files(self, paths: Mapping[str, Path]) -> tuple[FileEntry, ...]:
        """Store local files, chunk by chunk, under the given bare names.

        Raises:
            QuotaError: if they do not fit; checked for all of them before the first byte.
            StorageError: if the disk refuses.
            DecodeError: if a name is not a bare file name.
        """
        for name in paths:
            FileEntry(name, 0, ())  # it checks its name
        try:
            total = sum(path.stat().st_size for path in paths.values())
        except OSError as error:
            raise blob_files.storage_error(error, "read the files to store") from error
        with self.reserve(total) as reservation:
            return tuple(self._add(name, path, reservation) for name, path in paths.items())

    def _add(self, name: str, path: Path, reservation: Reservation) -> FileEntry:
        chunks: list[BlobId] = []
        size = 0
        try:
            with path.open("rb") as file:
                while data := file.read(CHUNK_SIZE):
                    blob = blob_id_of_digest(hashlib.sha256(data).digest())
                    if not blob_files.holds(self._root, blob, data):
                        blob_files.write_blob(self._root, blob, [data])
                    reservation.landed(blob, len(data))
                    chunks.append(blob)
                    size += len(data)
        except OSError as error:
            raise blob_files.storage_error(error, f"read {path}") from error
        return FileEntry(name, size, tuple(chunks))

    def iter_file(self, entry: FileEntry) -> Iterator[bytes]:
        """A file's bytes, chunk by chunk, each checked.

        Raises:
            BlobMissingError, BlobCorruptError: if a chunk is not there or was altered.
            DecodeError: if a chunk is not as long as its place in the file says.
        """
        left = entry.size
        for blob in entry.chunks:
            data = self.get(blob)
            if len(data) != min(left, CHUNK_SIZE):
                raise DecodeError(f"file {entry.name}: chunk {blob} has {len(data)} bytes")
            left -= len(data)
            yield data

    def read_file(self, entry: FileEntry) -> bytes:
        """A whole file in memory; raises like `iter_file`."""
        return b"".join(self.iter_file(entry))

    def materialise(self, entries: Iterable[FileEntry], directory: Path) -> None:
        """Write files out as a folder that appears whole or not at all.

        Copies, not links: who opens the folder must not be able to alter the store.

        Args:
            entries: the files.
            directory: does not exist yet, or is empty.

        Raises:
            BlobMissingError, BlobCorruptError: if a chunk is not there or was altered.
            DecodeError: if a name comes twice, or a chunk has another length than its place says.
            StorageError: if the disk refuses or `directory` holds something.
        """
        write_folder(((entry.name, self.iter_file(entry)) for entry in entries), directory)

    # --- room ----------------------------------------------------------------------------------
    @contextmanager
    def reserve(self, size_bytes: int, blobs: Iterable[BlobId] = ()) -> Iterator[Reservation]:
        """Room for a transfer, promised until the block is left; garbage goes if it must.

        Args:
            size_bytes: what will be written, at most.
            blobs: the blobs that will come: none of them is collected meanwhile.

        Raises:
            QuotaError: if there is not that much, with the numbers and the way out.
            StorageError: if the disk refuses.
        """
        awaited = tuple(blobs)
        shortfall = self._ledger.room().shortfall(size_bytes)
        if shortfall > 0:
            self._collect(shortfall, GARBAGE_MIN_AGE_S, also_keep=awaited)
        reservation = self._ledger.promise(size_bytes, awaited)
        try:
            yield reservation
        finally:
            self._ledger.release(reservation)

    def usage(self) -> Usage:
        """How full the store is, counted on disk.

        Raises:
            StorageError: if the disk refuses.
        """
        sizes = {entry.blob: entry.size for entry in blob_files.list_blobs(self._root)}
        room = self._ledger.room()
        return Usage(
            blobs=len(sizes),
            used=sum(sizes.values()),
            pinned=sum(sizes.get(blob, 0) for blob in self._pinned()),
            reserved=room.reserved,
            quota=room.quota,
            disk_free=room.disk_free,
            disk_floor=room.disk_floor,
        )

    def collect_garbage(
        self, need_bytes: int | None = None, *, min_age_s: float = GARBAGE_MIN_AGE_S
    ) -> Removed:
        """Remove blobs nobody pinned or reserved, least recently used first.

        Args:
            need_bytes: stop when this much is freed; None for all of it.
            min_age_s: leave what was written or read this recently.

        Raises:
            StorageError: if the disk refuses, or a pin cannot be read (nothing is removed then).
        """
        return self._collect(need_bytes, min_age_s)

    def _collect(
        self, need_bytes: int | None, min_age_s: float, also_keep: Iterable[BlobId] = ()
    ) -> Removed:
        with self._lock:
            _pins, damaged = load_pins(self._root)
            refuse_damaged(damaged)
            kept = self._pinned() | self._ledger.kept() | set(also_keep)
            newest = time.time() - min_age_s
            files = [
                entry
                for entry in blob_files.list_blobs(self._root)
                if entry.blob not in kept and entry.used_at <= newest
            ]
            freed = count = 0
            for entry in sorted(files, key=lambda entry: entry.used_at):
                if need_bytes is not None and freed >= need_bytes:
                    break
                blob_files.remove_blob(self._root, entry.blob)
                freed += entry.size
                count += 1
        if count:
            logger.info("garbage: removed %d blobs, %d bytes", count, freed)
        return Removed(count, freed)

    # --- pins ----------------------------------------------------------------------------------
    def pin(self, root: BlobId, label: str, children: Iterable[BlobId] = ()) -> None:
        """Keep `root` and `children`, also through a power cut, until `unpin`.

        Pinning a root again replaces its label and children.

        Raises:
            BlobMissingError: if one is not on disk; nothing is pinned then.
            StorageError: if the disk refuses.
        """
        pin = Pin(root, label, tuple(dict.fromkeys(children)))
        with self._lock:
            save_pin(self._root, pin)
            self._pins[root] = pin

    def unpin(self, root: BlobId) -> bool:
        """Forget a pin and say whether there was one; its blobs stay until they are garbage.

        Raises:
            StorageError: if the disk refuses.
        """
        with self._lock:
            was_pinned = remove_pin(self._root, root)
            self._pins.pop(root, None)
            return was_pinned

    def pins(self) -> tuple[Pin, ...]:
        """All pins, in no order."""
        return tuple(self._pins.copy().values())

    def _pinned(self) -> set[BlobId]:
        return {blob for pin in self.pins() for blob in pin.blobs}

    # --- health --------------------------------------------------------------------------------
    def verify(self) -> Verification:
        """Read every blob, remove the altered ones, and name what must be fetched again.

        Raises:
            StorageError: if the disk refuses.
        """
        checked, removed = remove_altered(self._root)
        return Verification(checked, removed, self.repair_list())

    def repair_list(self) -> tuple[BlobId, ...]:
        """Pinned blobs that are not on disk."""
        return self.missing(sorted(self._pinned()))


def blobs_of(entries: Iterable[FileEntry]) -> tuple[tuple[BlobId, int], ...]:
    """(name, size in bytes) of every chunk of some files, once each: what a `PullJob` wants."""
    sizes: dict[BlobId, int] = {}
    for entry in entries:
        for index, blob in enumerate(entry.chunks):
            sizes[blob] = min(CHUNK_SIZE, entry.size - index * CHUNK_SIZE)
    return tuple(sizes.items())
