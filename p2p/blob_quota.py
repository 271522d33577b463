"""Room for blobs: the store's quota, the disk's floor, and what running transfers have reserved.

Space is promised before the first byte moves, so a transfer fails at its start or not at all, and
two transfers cannot both be promised the same room. The truth is what lies on disk, for another
process writes there too: it is counted again for every reservation, at most a second old otherwise.
"""

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p.blob_files import blob_size, list_blobs, storage_error
from p2p.errors import QuotaError
from p2p.ids import BlobId
from p2p.limits import DISK_FLOOR_BYTES, DISK_FLOOR_FRACTION

_COUNT_MAX_AGE_S: Final = 1.0
"""Counting 20,000 blobs takes ~40 ms: not at every put."""


class Reservation:
    """Room promised to one transfer until it is released.

    Args:
        root: the store's folder.
        size_bytes: room promised.
        awaited: blobs on their way; as they land they count as used, no longer as reserved, and
            until the release no garbage collection takes them.
    """

    def __init__(self, root: Path, size_bytes: int, awaited: Iterable[BlobId]) -> None:
        self._root = root
        self._size = size_bytes
        self._landed = 0
        self.kept = set(awaited)
        self._awaited = {blob for blob in self.kept if blob_size(root, blob) is None}

    def landed(self, blob: BlobId, size_bytes: int) -> None:
        """Note that `blob` was written by the reservation's holder."""
        self.kept.add(blob)
        self._landed += size_bytes

    def outstanding(self) -> int:
        """Bytes of the promise that are not on disk yet."""
        arrived = sum(blob_size(self._root, blob) or 0 for blob in self._awaited)
        return max(0, self._size - self._landed - arrived)


@dataclass(frozen=True, slots=True)
class Room:
    """What there is, in bytes."""

    used: int
    """Blobs on disk."""
    reserved: int
    """Promised to transfers and not on disk yet."""
    quota: int
    disk_free: int
    disk_floor: int

    def shortfall(self, size_bytes: int) -> int:
        """Bytes that must go before `size_bytes` more fit; 0 or less if they fit."""
        wanted = self.reserved + size_bytes
        return max(self.used + wanted - self.quota, wanted + self.disk_floor - self.disk_free)

    def refusal(self, size_bytes: int) -> QuotaError:
        """Why `size_bytes` more do not fit, with the numbers and the way out."""
        if self.used + self.reserved + size_bytes > self.quota:
            return QuotaError(
                f"{_mb(size_bytes)} more would break the quota of {_mb(self.quota)}: "
                f"{_mb(self.used)} are used and {_mb(self.reserved)} reserved; "
                "raise the quota or remove a pinned checkpoint"
            )
        return QuotaError(
            f"{_mb(size_bytes)} more would leave less than the disk's floor of "
            f"{_mb(self.disk_floor)}: {_mb(self.disk_free)} are free, {_mb(self.reserved)} of them "
            "reserved; free some space on the disk"
        )


class Ledger:
    """Keeps the promises of one store. Thread-safe.

    Args:
        root: the store's folder.
        quota_bytes: what its blobs may take.
        floor_bytes: what must stay free on the disk; None for the larger of 5 % and 2 GiB.
    """

    def __init__(self, root: Path, *, quota_bytes: int, floor_bytes: int | None) -> None:
        self._root = root
        self._quota = quota_bytes
        self._floor = floor_bytes
        self._lock = threading.Lock()
        self._reservations: list[Reservation] = []
        self._used = 0
        self._counted_at = float("-inf")

    def room(self) -> Room:
        """What there is now, counted on disk.

        Raises:
            StorageError: if the disk refuses.
        """
        with self._lock:
            return self._room(max_age_s=0.0)

    def promise(self, size_bytes: int, awaited: Iterable[BlobId]) -> Reservation:
        """Reserve room; give it back with `release`.

        Raises:
            QuotaError: if there is not that much.
            StorageError: if the disk refuses.
        """
        with self._lock:
            room = self._room(max_age_s=0.0)
            if room.shortfall(size_bytes) > 0:
                raise room.refusal(size_bytes)
            reservation = Reservation(self._root, size_bytes, awaited)
            self._reservations.append(reservation)
            return reservation

    def release(self, reservation: Reservation) -> None:
        """Give a promise back; what landed counts as used."""
        with self._lock:
            self._reservations.remove(reservation)

    def check(self, size_bytes: int) -> None:
        """Check that `size_bytes` fit now, and count them as used.

        Raises:
            QuotaError: if they do not.
            StorageError: if the disk refuses.
        """
        with self._lock:
            if self._room(max_age_s=_COUNT_MAX_AGE_S).shortfall(size_bytes) > 0:
                room = self._room(max_age_s=0.0)
                if room.shortfall(size_bytes) > 0:
                    raise room.refusal(size_bytes)
            self._used += size_bytes

    def kept(self) -> set[BlobId]:
        """Blobs of running transfers: not garbage."""
        with self._lock:
            return {blob for reservation in self._reservations for blob in reservation.kept}

    def _room(self, *, max_age_s: float) -> Room:
        if time.monotonic() - self._counted_at >= max_age_s:
            self._used = sum(entry.size for entry in list_blobs(self._root))
            self._counted_at = time.monotonic()
        try:
            disk = os.statvfs(self._root)
        except OSError as error:
            raise storage_error(error, f"ask how full the disk of {self._root} is") from error
        floor = self._floor
        if floor is None:
            total = disk.f_blocks * disk.f_frsize
            floor = max(int(total * DISK_FLOOR_FRACTION), DISK_FLOOR_BYTES)
        return Room(
            used=self._used,
            reserved=sum(reservation.outstanding() for reservation in self._reservations),
            quota=self._quota,
            disk_free=disk.f_bavail * disk.f_frsize,
            disk_floor=floor,
        )


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
