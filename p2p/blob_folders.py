"""Files as a folder on disk, whole or not at all. Knows nothing of where the bytes come from."""

import contextlib
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from p2p.blob_files import (
    TEMP_PREFIX,
    Piece,
    is_abandoned,
    storage_error,
    sync,
    temp_beside,
    write_atomically,
)
from p2p.errors import DecodeError, StorageError


def write_folder(files: Iterable[tuple[str, Iterable[Piece]]], directory: Path) -> None:
    """Write (name, pieces) files into a folder that appears whole or not at all, durably.

    Args:
        files: names as a `FileEntry` allows them: bare, so that none leads out of the folder.
        directory: does not exist yet, or is empty.

    Raises:
        DecodeError: if a name comes twice.
        StorageError: if the disk refuses or `directory` holds something already.
    """
    parent = directory.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        temp = temp_beside(directory)
        temp.mkdir(mode=0o700)
    except OSError as error:
        raise storage_error(error, f"make a folder beside {directory}") from error
    try:
        seen: set[str] = set()
        for name, pieces in files:
            if name in seen:
                raise DecodeError(f"file name {name!r} comes twice")
            seen.add(name)
            write_atomically(temp / name, pieces, is_durable=True)
        _appear(temp, directory)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise


def _sweep(parent: Path) -> None:
    """Remove what a process that died in `write_folder` left in the same place."""
    for temp in parent.glob(f"{TEMP_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            if temp.is_dir() and is_abandoned(temp, now=time.time()):
                shutil.rmtree(temp)


def _appear(temp: Path, directory: Path) -> None:
    try:
        if directory.exists() and any(directory.iterdir()):
            raise StorageError(f"{directory} is there already and not empty: choose another folder")
        sync(temp)
        temp.replace(directory)
        sync(directory.parent)
    except OSError as error:
        raise storage_error(error, f"make the folder {directory}") from error
