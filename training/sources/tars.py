"""webdataset tar files: consecutive members of one key are one sample.

`boats/0001.jpg` and `boats/0001.txt` (or `.json` with {"caption"} or {"text"}) are one.  Nothing is
ever extracted, so names are only names; members that are not plain files are left out.
Source: https://github.com/webdataset/webdataset (the format).
"""

import json
import os
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import IO, Final, cast

from training.errors import DataError, UnusableError
from training.sources.data import Entry, Skipped, parts_of
from training.sources.decode import MAX_PICTURE_BYTES, printable
from training.sources.folders import SUFFIXES, file_state

CAPTION_KEYS: Final = ("caption", "text")
MAX_TEXT_BYTES: Final = 64 * 1024
MAX_MEMBERS: Final = 64
"""Of one sample: more are not read."""

MAX_HEADER_BYTES: Final = 2**20
"""Of a long name or a pax header; `tarfile` would allocate whatever is claimed."""

_TRUNCATED: Final = "damaged tar"
_DAMAGE: Final = (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError)
"""What `tarfile` raises for a damaged file."""


class TarSource:
    """Samples of webdataset tar files, in the files' order.

    Opening reads every member's header once: it seeks, so it takes about 20 s per million members.

    Args:
        name: what to call all of it.
        paths: uncompressed tar files.

    Raises:
        DataError: a file that is no tar, or a compressed one.
    """

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self._name = name
        self._files = [_TarFile(path) for path in paths]
        self._ends = list(accumulate(len(file) for file in self._files))

    @property
    def name(self) -> str:
        """The file or folder."""
        return self._name

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def fingerprint(self) -> str:
        """sha256 over each file's name, size and time of change."""
        digest = sha256(b"webdataset\n")
        for file in self._files:
            digest.update(os.fsencode(file.path.name) + b"\0" + file_state(file.path) + b"\n")
        return digest.hexdigest()

    def read(self, positions: range) -> Iterator[Entry | Skipped]:
        """The sample at each position."""
        for number, inside in parts_of(positions, self._ends):
            yield from self._files[number].read(inside)


class _TarFile:
    """One tar file and where each of its samples begins: 8 bytes a sample."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("Q")
        self._is_damaged = False
        with _opened(path) as content:
            if not _is_tar(content):
                raise DataError(
                    f"{path}: not an uncompressed tar file; unpack it first, for example with "
                    f"gunzip (seeking in a compressed one would read it over and over)"
                )
            try:
                for sample in _samples(content, 0):
                    self._starts.append(sample.start)
            except _DAMAGE:
                self._is_damaged = True

    def __len__(self) -> int:
        return len(self._starts) + self._is_damaged

    def read(self, positions: range) -> Iterator[Entry | Skipped]:
        """Samples by their number in this file, rising."""
        with _opened(self.path) as content:
            for number in positions:
                if number == len(self._starts):
                    yield Skipped(printable(self.path.name), _TRUNCATED, "the rest of the file")
                else:
                    yield self._read_one(content, self._starts[number])

    def _read_one(self, content: IO[bytes], start: int) -> Entry | Skipped:
        name = f"{printable(self.path.name)} at byte {start}"
        try:
            sample = next(_samples(content, start))
            name = printable(sample.key)
            return sample.entry(content)
        except UnusableError as error:
            return Skipped(name, error.reason, error.detail)
        except (*_DAMAGE, StopIteration) as error:
            return Skipped(name, _TRUNCATED, type(error).__name__)


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _is_tar(content: IO[bytes]) -> bool:
    """Whether it begins like one, or is an empty one."""
    first = content.read(tarfile.BLOCKSIZE)
    return len(first) == tarfile.BLOCKSIZE and (first[257:262] == b"ustar" or not any(first))


def _samples(content: IO[bytes], start: int) -> Iterator["_Sample"]:
    """Samples from an offset on; raises one of `_DAMAGE` where the file is damaged."""
    current: _Sample | None = None
    try:
        for member in _members(content, start):
            key, extension = _split(member.name)
            if current is not None and current.key != key:
                yield current
                current = None
            if current is None:
                current = _Sample(key, member.offset)
            if len(current.parts) < MAX_MEMBERS:
                current.parts.append(_Part(extension, member))
    except _DAMAGE:
        if current is not None:
            yield current
        raise
    if current is not None:
        yield current


@dataclass(slots=True)
class _Part:
    extension: str
    member: tarfile.TarInfo


@dataclass(slots=True)
class _Sample:
    key: str
    start: int
    parts: list[_Part] = field(default_factory=list)

    def entry(self, content: IO[bytes]) -> Entry:
        """Its picture and caption; raises `UnusableError`."""
        odd = [part for part in self.parts if not _is_plain(part.member)]
        if odd:
            raise UnusableError("not a plain file in the tar", _kind(odd[0].member))
        pictures = [part for part in self.parts if f".{part.extension}" in SUFFIXES]
        if not pictures:
            raise UnusableError("no picture in the sample", f"only {self._extensions()}")
        if len(pictures) > 1:
            raise UnusableError("several pictures in the sample", self._extensions())
        caption = self._caption(content)
        data = _content(content, pictures[0].member, MAX_PICTURE_BYTES, "picture too large")
        return Entry(printable(self.key), caption, data)

    def _caption(self, content: IO[bytes]) -> str:
        by_kind = {part.extension: part.member for part in self.parts}
        if "txt" in by_kind:
            return _text(content, by_kind["txt"])
        if "json" not in by_kind:
            raise UnusableError("no caption", f"only {self._extensions()}")
        try:
            value = json.loads(_text(content, by_kind["json"]))
        except (ValueError, RecursionError) as error:
            raise UnusableError("not JSON") from error
        found = value if isinstance(value, dict) else {}
        for key in CAPTION_KEYS:
            if isinstance(found.get(key), str):
                return str(found[key])
        keys = ", ".join(sorted(printable(str(key)) for key in found)[:6])
        raise UnusableError("no caption", f"no caption or text; there is: {keys or 'nothing'}")

    def _extensions(self) -> str:
        return ", ".join(printable(part.extension, 20) for part in self.parts[:6])


def _members(content: IO[bytes], start: int) -> Iterator[tarfile.TarInfo]:
    """Members from an offset on, folders left out; memory does not grow with their number."""
    content.seek(start)
    headers = cast("IO[bytes]", _Headers(content))
    with closing(tarfile.open(fileobj=headers, mode="r:")) as tar:
        last = -1
        while (member := tar.next()) is not None:
            vars(tar)["members"] = []  # tarfile would keep every header it has seen
            if member.offset <= last:  # a negative size would lead it round in circles
                raise tarfile.ReadError("members do not follow each other")
            last = member.offset
            if not member.isdir():
                yield member
        content.seek(tar.offset)
        if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end of archive")  # tarfile stops there without a word


class _Headers:
    """A file as `tarfile` reads headers from it, never many bytes at once."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content
        self.seek = content.seek
        self.tell = content.tell

    def read(self, size: int) -> bytes:
        """At most `MAX_HEADER_BYTES`."""
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes, at most {MAX_HEADER_BYTES}")
        return self._content.read(size)


def _split(name: str) -> tuple[str, str]:
    """Key and extension: the base name is split at its first dot."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link"
    return "a sparse file" if member.isreg() else "a device or pipe"


def _content(content: IO[bytes], member: tarfile.TarInfo, limit: int, reason: str) -> bytes:
    if member.size > limit:
        raise UnusableError(reason, f"over {limit} bytes")
    content.seek(member.offset_data)
    data = content.read(member.size)
    if len(data) < member.size:
        raise UnusableError(_TRUNCATED, "it ends within the sample")
    return data


def _text(content: IO[bytes], member: tarfile.TarInfo) -> str:
    data = _content(content, member, MAX_TEXT_BYTES, "caption too long")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UnusableError("caption is not text") from error
