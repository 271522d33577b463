"""An imagefolder: pictures in a folder, captioned by `metadata.jsonl` or by their names."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Final

from training.errors import DataError, UnusableError
from training.sources.data import Entry, Pictures, PictureShape, Skipped, read_all
from training.sources.decode import MAX_PICTURE_BYTES, clean_caption, printable

METADATA: Final = "metadata.jsonl"
CAPTION_KEY: Final = "text"
SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})
MAX_PICTURES: Final = 1_000_000
"""Their names and captions are held in memory: about 0.3 GB."""

MAX_LINE_BYTES: Final = 64 * 1024
_TRAILING_NUMBER: Final = re.compile(r"[\s\d()#]+$")

_Listed = tuple[str, str] | Skipped
"""Relative name and caption, or why the entry is none."""


class FolderSource:
    """A folder of picture files.

    With `metadata.jsonl` (lines of {"file_name", "text"}) exactly its pictures are used, in its
    order. Without it, every picture below the folder by name; the caption is the file's name in
    words ("red_boat_03.png" -> "red boat") or, for a name with only a number, its folder's.

    Args:
        folder: names and links that leave it are skipped.
        caption_key: the caption's key in `metadata.jsonl`.

    Raises:
        DataError: no such folder, or more than `MAX_PICTURES` entries.
    """

    def __init__(self, folder: Path, caption_key: str = CAPTION_KEY) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: not a folder")
        self._shown = folder
        self._folder = folder.resolve()
        metadata = self._folder / METADATA
        self._metadata = metadata if metadata.is_file() else None
        found = (
            _from_metadata(self._metadata, caption_key)
            if self._metadata
            else _from_names(self._folder)
        )
        self._entries = list(self._bounded(found))

    @property
    def name(self) -> str:
        """The folder."""
        return str(self._shown)

    def __len__(self) -> int:
        return len(self._entries)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over `metadata.jsonl`, and each picture's name, size and time of change."""
        digest = hashlib.sha256(b"imagefolder\n")
        if self._metadata is not None:
            with self._metadata.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        for entry in self._entries:
            if not isinstance(entry, Skipped):
                name = os.fsencode(entry[0])
                digest.update(name + b"\0" + file_state(self._folder / entry[0]) + b"\n")
        return digest.hexdigest()

    def read(self, positions: range) -> Iterator[Entry | Skipped]:
        """The entry at each position."""
        for position in positions:
            entry = self._entries[position]
            if isinstance(entry, Skipped):
                yield entry
                continue
            name, caption = entry
            try:
                yield Entry(name, caption, read_within(self._folder, name))
            except UnusableError as error:
                yield Skipped(printable(name), error.reason, error.detail)

    def _bounded(self, found: Iterable[_Listed]) -> Iterator[_Listed]:
        for count, entry in enumerate(found):
            if count >= MAX_PICTURES:
                raise DataError(
                    f"{self._shown}: more than {MAX_PICTURES} pictures; "
                    f"a folder of parquet files or webdataset tars may hold as many as you like"
                )
            yield entry


def load_folder(folder: Path, image_size: int, image_channels: int) -> Pictures:
    """Every usable picture of an imagefolder, in memory.

    Raises:
        DataError: no such folder, or not one usable picture in it.
    """
    return read_all(FolderSource(folder), PictureShape(image_size, image_channels))


def file_state(path: Path) -> bytes:
    """Size and time of change, for a fingerprint."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return b"absent"
    return f"{found.st_size} {found.st_mtime_ns}".encode()


def read_within(folder: Path, name: str) -> bytes:
    """The bytes of a regular file below `folder`, which is resolved.

    Raises:
        UnusableError: not there, a link that leaves the folder, a device, or too large.
    """
    try:
        path = (folder / name).resolve(strict=True)
        if not path.is_relative_to(folder):
            raise UnusableError("leaves the folder", "a link")
        # Not blocking: the name may be a pipe's that nobody writes to.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise UnusableError("unreadable picture", "not a file")
            if found.st_size > MAX_PICTURE_BYTES:
                raise UnusableError("picture too large", f"over {MAX_PICTURE_BYTES} bytes")
            return file.read(MAX_PICTURE_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as error:  # no file, a loop of links, an odd name
        raise UnusableError("unreadable picture", type(error).__name__) from error


def _from_metadata(path: Path, caption_key: str) -> Iterator[_Listed]:
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), 1):
            if line is not None and not line.strip():
                continue
            label = f"{METADATA} line {number}"
            try:
                entry = _parsed(line, caption_key)
            except UnusableError as error:
                yield Skipped(label, error.reason, error.detail)
                continue
            if entry[0] in seen:
                yield Skipped(label, "appears twice", printable(entry[0]))
                continue
            seen.add(entry[0])
            yield _listed(*entry)


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Lines; None for one that is too long."""
    while line := file.readline(MAX_LINE_BYTES):
        if line.endswith(b"\n") or len(line) < MAX_LINE_BYTES:
            yield line
            continue
        while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def _parsed(line: bytes | None, caption_key: str) -> tuple[str, str]:
    if line is None:
        raise UnusableError("line too long", f"at most {MAX_LINE_BYTES} bytes")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UnusableError("not JSON") from error
    name = value.get("file_name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name or "\0" in name:
        raise UnusableError("needs file_name")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UnusableError("leaves the folder", printable(name))
    text = value.get(caption_key)
    if text is None:
        known = ", ".join(sorted(printable(key) for key in value if key != "file_name")[:6])
        raise UnusableError("no caption", f"no {caption_key!r}; there is: {known or 'nothing'}")
    return name, text if isinstance(text, str) else ""


def _from_names(folder: Path) -> Iterator[_Listed]:
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    for path in sorted(paths, key=lambda p: p.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        parent = path.parent.name if path.parent != folder else ""
        yield _listed(name, _words(path.stem) or _words(parent))


def _listed(name: str, text: str) -> _Listed:
    try:
        return name, clean_caption(text)
    except UnusableError as error:
        return Skipped(printable(name), error.reason, error.detail)


def _words(stem: str) -> str:
    return _TRAILING_NUMBER.sub("", stem.replace("_", " ").replace("-", " ")).strip()
