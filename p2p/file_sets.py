"""Files as lists of blobs: what a folder or a checkpoint is made of. Part of `p2p.records`."""

import re
from dataclasses import dataclass
from typing import Final

from p2p.errors import DecodeError, LimitError
from p2p.ids import BlobId
from p2p.limits import CHUNK_SIZE, MAX_FILE_NAME, MAX_FILE_SIZE
from p2p.record_checks import check_files

_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""One folder level on every file system, and nothing a shell or a terminal would act upon."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file as chunks of `limits.CHUNK_SIZE` bytes, the last one shorter."""

    name: str
    """A bare file name: no separators, no leading dot."""
    size: int
    chunks: tuple[BlobId, ...]

    def __post_init__(self) -> None:
        """Check the name, the size and that the chunks cover it.

        Raises:
            DecodeError: if the name is not a bare, portable file name, or the chunks do not fit.
            LimitError: if the name or the size is over its limit.
        """
        if len(self.name) > MAX_FILE_NAME or self.size > MAX_FILE_SIZE:
            raise LimitError(
                f"file {self.name[:MAX_FILE_NAME]!r}: {self.size} bytes; the limits are "
                f"{MAX_FILE_NAME} characters and {MAX_FILE_SIZE} bytes"
            )
        if _FILE_NAME.fullmatch(self.name) is None:
            raise DecodeError(
                f"file name {self.name!r}: expected letters, digits, '.', '_', '-', "
                "and no leading dot"
            )
        expected = -(-self.size // CHUNK_SIZE)
        if self.size < 0 or len(self.chunks) != expected:
            raise DecodeError(
                f"file {self.name!r}: {len(self.chunks)} chunks for {self.size} bytes, "
                f"expected {expected}"
            )


@dataclass(frozen=True, slots=True)
class FileSet:
    """A folder's worth of files as a blob: what a CID of a folder names."""

    files: tuple[FileEntry, ...]

    def __post_init__(self) -> None:
        """Check the names against each other.

        Raises:
            DecodeError: if two files have one name.
            LimitError: if there are too many files.
        """
        check_files([entry.name for entry in self.files])

    @property
    def size(self) -> int:
        """Sum of the files' sizes in bytes."""
        return sum(entry.size for entry in self.files)
