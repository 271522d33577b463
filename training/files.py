"""Folders that appear whole or not at all: temporary name, fsync, rename, fsync of the parent."""

import os
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".tmp-"


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Create `target` with `files` in one atomic step.

    Args:
        target: must not exist; its parent must.
        files: relative names (with "/") to contents.

    Raises:
        OSError: disk full, no permission; nothing is visible under `target` then.
    """
    temporary = target.parent / f"{TEMPORARY}{target.name}-{os.getpid()}"
    if temporary.exists():
        shutil.rmtree(temporary)
    folders = {temporary}
    for name, data in files.items():
        path = temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        folders.add(path.parent)
        _write_synced(path, data)
    for folder in folders:
        sync_folder(folder)
    os.rename(temporary, target)
    sync_folder(target.parent)


def remove_folder(target: Path) -> None:
    """Delete a folder; a crash on the way leaves no half of it under its own name."""
    doomed = target.parent / f"{TEMPORARY}old-{target.name}-{os.getpid()}"
    os.rename(target, doomed)
    shutil.rmtree(doomed)


def sweep(parent: Path) -> None:
    """Delete what interrupted calls left behind."""
    for path in parent.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path)


def sync_folder(path: Path) -> None:
    """Flush a folder, so that names made in it survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(data: bytes) -> str:
    """sha256, hexadecimal."""
    return sha256(data).hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
