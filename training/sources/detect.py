"""What a path holds, found by looking: the picture source for it.

Known are the bundled set, imagefolders, parquet files, data sets saved by the `datasets` library,
webdataset tars, and the IDX files of Fashion-MNIST.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch

from training.errors import ConfigError, DataError
from training.jsonio import read_json
from training.sources.bundled import FASHION, IDX_IMAGES, fashion_source, idx_source
from training.sources.data import PictureShape, Source, read_pictures
from training.sources.decode import printable
from training.sources.folders import CAPTION_KEY, METADATA, SUFFIXES, FolderSource
from training.sources.tables import Columns, from_arrow, from_parquet
from training.sources.tars import TarSource

KINDS: Final = (
    '"fashion" (the bundled set), a folder of pictures with metadata.jsonl or telling names, '
    ".parquet files, a data set saved with datasets' save_to_disk, webdataset .tar files, or the "
    "IDX files of Fashion-MNIST"
)
LOOKED_AT: Final = 64
GREY_TOLERANCE: Final = 8
"""Channels this close (of 255) are one grey: JPEG stores grey scans with small differences."""

_SHARD_OF_SPLIT: Final = re.compile(r"(.+?)-\d+-of-\d+")
_DICT_FILE: Final = "dataset_dict.json"
_STATE_FILE: Final = "state.json"


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a person may have to say about a source that cannot be seen by looking.

    Args:
        split: of a set with several.
        columns: of a table; `caption` is also the key in `metadata.jsonl`.
    """

    split: str | None = None
    columns: Columns = field(default_factory=Columns)


def open_source(path: str | Path, options: SourceOptions | None = None) -> Source:
    """The pictures at `path`.

    Args:
        path: "fashion", or a file or folder of one of `KINDS`.
        options: see `SourceOptions`.

    Raises:
        DataError: nothing there that can be read, or several things that could be meant.
    """
    if path == FASHION:
        return fashion_source()
    options = options or SourceOptions()
    place = Path(path)
    if place.is_file():
        return _open_file(place, options)
    if not place.is_dir():
        raise DataError(f"{place}: there is no such file or folder; expected {KINDS}")
    return _open_folder(place, options)


def looks_grey(source: Source) -> bool:
    """Whether pictures of a source, evenly spread, have no colour; at most `LOOKED_AT` are read."""
    step = max(1, len(source) // LOOKED_AT)
    positions = range(0, len(source), step)[:LOOKED_AT]
    if own_shape(source) is not None:
        return True
    images = read_pictures(source, positions, PictureShape(32, 3)).images.int()
    return bool(len(images)) and int((images.amax(1) - images.amin(1)).max()) <= GREY_TOLERANCE


def own_shape(source: Source) -> PictureShape | None:
    """The shape of a source that is pixels already; None for picture files of any shape."""
    first = next(source.read(range(1)), None) if len(source) else None
    content = getattr(first, "content", None)
    if not isinstance(content, torch.Tensor):
        return None
    return PictureShape(content.shape[-1], content.shape[0])


def _open_file(path: Path, options: SourceOptions) -> Source:
    if path.suffix == ".parquet":
        return from_parquet(str(path), [path], options.columns)
    if path.suffix == ".tar":
        return TarSource(str(path), [path])
    raise DataError(
        f"{path}: files named *{path.suffix} cannot be read as pictures; expected {KINDS}"
    )


def _open_folder(folder: Path, options: SourceOptions) -> Source:
    if (folder / _DICT_FILE).is_file():
        return _open_folder(_split_of(folder, options), replace(options, split=None))
    if (folder / _STATE_FILE).is_file():
        return from_arrow(str(folder), _arrow_files(folder), options.columns)
    if (folder / IDX_IMAGES).is_file():
        return idx_source(folder)
    if (folder / METADATA).is_file():
        return FolderSource(folder, options.columns.caption or CAPTION_KEY)
    return _open_by_suffix(folder, options)


def _open_by_suffix(folder: Path, options: SourceOptions) -> Source:
    there = {path.suffix.lower() for path in folder.rglob("*") if path.is_file()}
    tables = sorted({".parquet", ".tar"} & there)
    pictures = sorted(SUFFIXES & there)
    if len(tables) + bool(pictures) > 1:
        found = ", ".join(tables + pictures)
        raise DataError(f"{folder}: which are the pictures? It holds files named *{found}")
    if tables:
        files = _one_split(folder, _files(folder, tables[0]), options.split)
        if tables == [".parquet"]:
            return from_parquet(str(folder), files, options.columns)
        return TarSource(str(folder), files)
    if not pictures:
        what = f"only files named *{', *'.join(sorted(there)[:6])}" if there else "empty"
        raise DataError(f"{folder}: no pictures in it ({what}); expected {KINDS}")
    return FolderSource(folder)


def _files(folder: Path, suffix: str) -> list[Path]:
    """In an order that does not depend on the file system; links that leave are left out."""
    inside = folder.resolve()
    found = [
        path
        for path in folder.rglob(f"*{suffix}")
        if path.is_file() and path.resolve().is_relative_to(inside)
    ]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _one_split(folder: Path, files: Sequence[Path], split: str | None) -> Sequence[Path]:
    """The files of one split, where names tell ("train-00000-of-00005.parquet")."""
    of_split: dict[str, list[Path]] = {}
    for path in files:
        match = _SHARD_OF_SPLIT.fullmatch(path.stem)
        of_split.setdefault(match[1] if match else path.stem, []).append(path)
    if split is not None:
        if split not in of_split:
            raise _no_split(folder, split, list(of_split))
        return of_split[split]
    sharded = {name for name in of_split if any(path.stem != name for path in of_split[name])}
    if len(sharded) > 1:
        raise _no_split(folder, None, list(of_split))
    return files


def _split_of(folder: Path, options: SourceOptions) -> Path:
    """The folder of one split of a saved `DatasetDict`."""
    try:
        value = read_json(folder / _DICT_FILE).get("splits")
    except ConfigError as error:
        raise DataError(f"{folder}: {error}") from error
    splits = [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
    chosen = options.split or (splits[0] if len(splits) == 1 else None)
    if chosen not in splits or chosen is None or not _is_plain_name(chosen):
        raise _no_split(folder, options.split, splits)
    return folder / chosen


def _no_split(folder: Path, split: str | None, known: Sequence[str]) -> DataError:
    there = ", ".join(printable(name, 40) for name in sorted(known)) or "none"
    asked = f"no split {split!r} in it" if split else "which split?"
    return DataError(f"{folder}: {asked}; there is: {there}. Say which with --split NAME")


def _arrow_files(folder: Path) -> list[Path]:
    """The files that `state.json` lists, in its order."""
    try:
        state = read_json(folder / _STATE_FILE)
    except ConfigError as error:
        raise DataError(f"{folder}: {error}") from error
    if state.get("_indices_files"):
        raise DataError(f"{folder}: rows were selected but not written; use flatten_indices()")
    listed = state.get("_data_files")
    names = [
        item.get("filename") if isinstance(item, dict) else None
        for item in (listed if isinstance(listed, list) else [])
    ]
    files = []
    for name in names:
        if not isinstance(name, str) or not _is_plain_name(name):
            raise DataError(f"{folder}: {_STATE_FILE} names a file outside the folder")
        files.append(folder / name)
    if not files:
        raise DataError(f"{folder}: {_STATE_FILE} lists no data files")
    return files


def _is_plain_name(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name and name not in (".", "..")
