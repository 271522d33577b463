"""Pictures in columns: parquet files, and data sets saved to disk by the `datasets` library.

Both hold record batches of Arrow; a picture is binary, or the struct {bytes, path} of `datasets`
(a path in it is never opened).  Sources: parquet.apache.org/docs/file-format, and
arrow.apache.org/docs/format/Columnar.html (the streaming format).
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Protocol

from training.errors import DataError, UnusableError
from training.sources.data import Entry, Skipped, parts_of
from training.sources.decode import MAX_CAPTION_CHARS, MAX_PICTURE_BYTES, printable
from training.sources.folders import file_state

IMAGE_NAMES: Final = frozenset({"image", "img", "picture", "jpg", "jpeg", "png", "webp"})
CAPTION_NAMES: Final = frozenset({"text", "caption", "captions", "title", "prompt"})
ROWS_AT_ONCE: Final = 16
"""A row may hold 64 MiB."""

MAX_COLUMNS_SHOWN: Final = 12
_CAPTION_BYTES: Final = 16 * MAX_CAPTION_CHARS
_DAMAGED: Final = "damaged table"


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold pictures and captions; None looks for the usual names."""

    image: str | None = None
    caption: str | None = None


class Segment(Protocol):
    """Some rows of one file that are read together."""

    @property
    def label(self) -> str:
        """What to call it in messages."""
        ...

    @property
    def rows(self) -> int:
        """How many."""
        ...

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Its record batches; raises what pyarrow raises where the file is damaged."""
        ...


class TableSource:
    """Rows of parquet files (`from_parquet`) or of a saved data set (`from_arrow`).

    Args:
        name: what to call all of it.
        paths: its files, in order.
        segments: their rows, in order.
        columns: the names of the picture's and the caption's.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        segments: Sequence[Segment],
        columns: tuple[str, str],
    ) -> None:
        self._name = name
        self._paths = paths
        self._segments = segments
        self._columns = columns
        self._ends = list(accumulate(segment.rows for segment in segments))

    @property
    def name(self) -> str:
        """The file or folder."""
        return self._name

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def fingerprint(self) -> str:
        """sha256 over the columns, and each file's name, size and time of change."""
        digest = sha256(b"table\n" + repr(self._columns).encode() + b"\n")
        for path in self._paths:
            digest.update(os.fsencode(path.name) + b"\0" + file_state(path) + b"\n")
        return digest.hexdigest()

    def read(self, positions: range) -> Iterator[Entry | Skipped]:
        """The row at each position."""
        for number, inside in parts_of(positions, self._ends):
            yield from self._read_segment(self._segments[number], inside)

    def _read_segment(self, segment: Segment, wanted: range) -> Iterator[Entry | Skipped]:
        import pyarrow as pa  # noqa: PLC0415

        left = iter(wanted)
        row = next(left, None)
        begin = 0
        try:
            for batch in segment.batches(self._columns):
                while row is not None and row < begin + batch.num_rows:
                    yield self._entry(f"{segment.label} row {row}", batch, row - begin)
                    row = next(left, None)
                begin += batch.num_rows
                if row is None:
                    return
        except (pa.ArrowException, OSError) as error:
            problem = type(error).__name__
        else:
            problem = "fewer rows than it says"
        while row is not None:
            yield Skipped(f"{segment.label} row {row}", _DAMAGED, problem)
            row = next(left, None)

    def _entry(self, name: str, batch: Any, row: int) -> Entry | Skipped:  # noqa: ANN401
        image, caption = self._columns
        try:
            return Entry(name, _caption(batch[caption][row]), _picture(batch[image][row]))
        except UnusableError as error:
            return Skipped(name, error.reason, error.detail)


def from_parquet(name: str, paths: Sequence[Path], columns: Columns) -> TableSource:
    """The rows of parquet files.

    Raises:
        DataError: not one readable file, or columns that are missing, ambiguous or of other types.
    """
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    segments: list[Segment] = []
    chosen: tuple[str, str] | None = None
    for path in paths:
        try:
            with parquet.ParquetFile(path) as file:
                schema, meta = file.schema_arrow, file.metadata
                groups = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        except (pa.ArrowException, OSError) as error:
            segments.append(_Unreadable(path.name, type(error).__name__))
            continue
        found = pick_columns(path, schema, columns)
        if chosen not in (None, found):
            raise DataError(f"{path}: columns {found}, but {chosen} in the files before it")
        chosen = found
        segments += [_RowGroup(path, i, rows) for i, rows in enumerate(groups) if rows]
    if chosen is None:
        raise DataError(f"{name}: not one parquet file in it that can be read")
    return TableSource(name, paths, segments, chosen)


def from_arrow(name: str, paths: Sequence[Path], columns: Columns) -> TableSource:
    """The rows of files in Arrow's streaming format, as `datasets` saves them.

    Raises:
        DataError: a file that is none, or columns that are missing, ambiguous or of other types.
    """
    import pyarrow as pa  # noqa: PLC0415

    segments: list[Segment] = []
    chosen: tuple[str, str] | None = None
    for path in paths:
        counts: list[int] = []
        try:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
                chosen = pick_columns(path, stream.schema, columns)
                counts += (batch.num_rows for batch in stream)
        except (pa.ArrowException, OSError) as error:
            segments.append(_Stream(path, tuple(counts)))
            segments.append(_Unreadable(path.name, type(error).__name__))
            continue
        segments.append(_Stream(path, tuple(counts)))
    if chosen is None:
        raise DataError(f"{name}: not one Arrow file in it that can be read")
    return TableSource(name, paths, [s for s in segments if s.rows], chosen)


def pick_columns(path: Path, schema: Any, columns: Columns) -> tuple[str, str]:  # noqa: ANN401
    """The names of the picture's and the caption's column.

    Raises:
        DataError: none or several that could be meant; names the columns there are.
    """
    image = _pick(path, schema, columns.image, IMAGE_NAMES, "image")
    caption = _pick(path, schema, columns.caption, CAPTION_NAMES, "caption")
    return image, caption


def _pick(
    path: Path,
    schema: Any,  # noqa: ANN401
    asked: str | None,
    usual: frozenset[str],
    kind: str,
) -> str:
    fits = _is_picture if kind == "image" else _is_text
    there = ", ".join(
        f"{printable(column.name, 40)} ({printable(str(column.type), 40)})"
        for column in list(schema)[:MAX_COLUMNS_SHOWN]
    )
    option = f"--{kind}-column NAME"
    if asked is not None:
        named = [column for column in schema if column.name == asked]
        if len(named) != 1 or not fits(named[0].type):
            raise DataError(f"{path}: no {kind} column {asked!r}; there is: {there}")
        return asked
    found = [c.name for c in schema if c.name.lower() in usual and fits(c.type)]
    if len(found) == 1:
        return str(found[0])
    problem = f"which is the {kind} column, {' or '.join(found)}?" if found else f"no {kind} column"
    raise DataError(f"{path}: {problem} There is: {there}. Say which with {option}")


def _is_picture(kind: Any) -> bool:  # noqa: ANN401
    from pyarrow import types  # noqa: PLC0415

    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_picture(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:  # noqa: ANN401
    from pyarrow import types  # noqa: PLC0415

    if types.is_list(kind) or types.is_large_list(kind):
        return _is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _picture(value: Any) -> bytes:  # noqa: ANN401
    """The bytes of a binary scalar or of a struct's; measured before they are copied."""
    scalar = value["bytes"] if hasattr(value, "keys") and value.is_valid else value
    if not scalar.is_valid:
        raise UnusableError("unreadable picture", "no bytes in the row")
    buffer = scalar.as_buffer()
    if buffer.size > MAX_PICTURE_BYTES:
        raise UnusableError("picture too large", f"over {MAX_PICTURE_BYTES} bytes")
    return bytes(buffer)


def _caption(value: Any) -> str:  # noqa: ANN401
    """A text scalar, or the first of a list of them."""
    if not value.is_valid:
        raise UnusableError("no caption")
    if hasattr(value, "values"):
        if not len(value.values):
            raise UnusableError("no caption")
        return _caption(value.values[0])
    data = value.as_buffer()
    if data.size > _CAPTION_BYTES:
        raise UnusableError("caption too long", f"{data.size} bytes")
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        raise UnusableError("caption is not text") from error


def _as_binary(column: Any) -> Any:  # noqa: ANN401
    """Text as bytes: one caption that is no UTF-8 must not condemn its neighbours."""
    import pyarrow as pa  # noqa: PLC0415

    binary = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(column.type)
    return column if binary is None else column.view(binary)


@dataclass(frozen=True, slots=True)
class _RowGroup:
    """A row group of a parquet file."""

    path: Path
    number: int
    rows: int

    @property
    def label(self) -> str:
        return f"{printable(self.path.name)} group {self.number}"

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        from pyarrow import parquet  # noqa: PLC0415

        with parquet.ParquetFile(self.path, pre_buffer=False) as file:
            yield from file.iter_batches(
                ROWS_AT_ONCE, row_groups=[self.number], columns=list(columns), use_threads=False
            )


@dataclass(frozen=True, slots=True)
class _Stream:
    """A file of record batches, mapped; their offsets are checked before they are followed."""

    path: Path
    counts: tuple[int, ...]

    @property
    def label(self) -> str:
        return printable(self.path.name)

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        import pyarrow as pa  # noqa: PLC0415

        with pa.memory_map(str(self.path)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                chosen = {name: _as_binary(batch[name]) for name in columns}
                for column in chosen.values():
                    column.validate(full=True)
                yield pa.RecordBatch.from_pydict(chosen)


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """A file, or its rest, that cannot be read: counted as one entry."""

    label: str
    problem: str
    rows: int = 1

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        raise OSError(self.problem)
