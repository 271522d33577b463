"""Folders that appear whole or not at all: temporary name, fsync, rename, fsync of the parent."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

TEMPORARY: Final = ".tmp-"
PRIVATE: Final = 0o600
SHARED: Final = 0o644
"""Of what is written to be given away."""
COPY_BYTES: Final = 2**20
"""Bytes in memory while a file is copied: a checkpoint may be larger than the memory."""


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Create `target` with `files` in one atomic step.

    Args:
        target: must not exist; its parent must.
        files: relative names (with "/") to contents.

    Raises:
        OSError: disk full, no permission; nothing is visible under `target` then.
    """
    with whole_folder(target) as folder:
        for name, data in files.items():
            write_synced(folder / name, data)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes `target` when the block ends, and vanishes if it fails.

    Args:
        target: must not exist, or be an empty folder; its parent must exist.

    Yields:
        The temporary folder beside it; write with `write_synced` and `copy_synced`.

    Raises:
        OSError: disk full, no permission, or something in `target`; nothing is left then.
    """
    temporary = target.parent / f"{TEMPORARY}{target.name}-{os.getpid()}"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        yield temporary
        for folder in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
            sync_folder(folder)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    sync_folder(target.parent)


def write_file(target: Path, data: bytes) -> None:
    """Create or replace a file in one atomic step.

    Raises:
        OSError: disk full, no permission; `target` is as before then, and nothing is left over.
    """
    temporary = target.parent / f"{TEMPORARY}{target.name}-{os.getpid()}"
    try:
        write_synced(temporary, data)
        os.rename(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data` at a place of an open file.

    Raises:
        OSError: disk full.
    """
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def remove_folder(target: Path) -> None:
    """Delete a folder; a crash on the way leaves no half of it under its own name."""
    doomed = target.parent / f"{TEMPORARY}old-{target.name}-{os.getpid()}"
    os.rename(target, doomed)
    shutil.rmtree(doomed)


def sweep(parent: Path) -> None:
    """Delete what interrupted calls left behind."""
    for path in parent.glob(f"{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


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


def write_synced(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Write a new file, and its folders, to the disk itself.

    Args:
        path: where.
        data: all of it.
        mode: permissions, less what the umask takes.

    Raises:
        OSError: it is there already, or the disk refuses.
    """
    _write_chunks(path, iter([data]), mode)


def copy_synced(source: Path, target: Path, mode: int = PRIVATE) -> str:
    """Copy a file in pieces; a symbolic link is refused, whatever it names.

    Args:
        source: what.
        target: where; must not exist.
        mode: permissions of the copy, less what the umask takes.

    Returns:
        sha256 of what was copied, hexadecimal.

    Raises:
        OSError: `source` is a link or cannot be read, `target` exists, or the disk refuses.
    """
    digest = sha256()

    def chunks(file: BinaryIO) -> Iterator[bytes]:
        while piece := file.read(COPY_BYTES):
            digest.update(piece)
            yield piece

    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        _write_chunks(target, chunks(file), mode)
    return digest.hexdigest()


def _write_chunks(path: Path, chunks: Iterator[bytes], mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
