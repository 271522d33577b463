"""Files made of blobs as a folder on disk: whole or not at all, with names that cannot lead out.

Knows nothing of where the bytes come from.
"""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from p2p.blob_files import Piece, storage_error, sync, write_atomically
from p2p.errors import DecodeError, StorageError
from p2p.limits import CHUNK_SIZE
from p2p.records import FileEntry

_NAME_MAX = 255


def check_name(name: str) -> None:
    """Check that a file's name is bare: no separator, no leading dot, nothing a disk would refuse.

    Raises:
        DecodeError: if it is not.
    """
    is_bare = name == Path(name).name and "\\" not in name and "\0" not in name
    if not is_bare or name.startswith(".") or not 0 < len(name.encode()) <= _NAME_MAX:
        raise DecodeError(f"file name: got {name[:80]!r}, expected a bare name")


def check_entry(entry: FileEntry) -> None:
    """Check that an entry's name is bare and that its chunks make up its size.

    Raises:
        DecodeError: if not.
    """
    check_name(entry.name)
    expected = -(-entry.size // CHUNK_SIZE)
    if entry.size < 0 or len(entry.chunks) != expected:
        raise DecodeError(
            f"file {entry.name}: {entry.size} bytes in {len(entry.chunks)} chunks, "
            f"expected {expected} of at most {CHUNK_SIZE} bytes"
        )


def write_folder(files: Iterable[tuple[str, Iterable[Piece]]], directory: Path) -> None:
    """Write (name, pieces) files into a folder that appears whole or not at all, durably.

    Raises:
        DecodeError: if a name is not bare or comes twice.
        StorageError: if the disk refuses or `directory` holds something already.
    """
    parent = directory.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(prefix=".tmp-", dir=parent))
    except OSError as error:
        raise storage_error(error, f"make a folder beside {directory}") from error
    try:
        seen: set[str] = set()
        for name, pieces in files:
            check_name(name)
            if name in seen:
                raise DecodeError(f"file name {name!r} comes twice")
            seen.add(name)
            write_atomically(temp / name, pieces, is_durable=True)
        _appear(temp, directory)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise


def _appear(temp: Path, directory: Path) -> None:
    try:
        if directory.exists() and any(directory.iterdir()):
            raise StorageError(f"{directory} is there already and not empty: choose another folder")
        sync(temp)
        temp.replace(directory)
        sync(directory.parent)
    except OSError as error:
        raise storage_error(error, f"make the folder {directory}") from error
