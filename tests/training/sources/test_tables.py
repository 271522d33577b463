"""Tables as pyarrow and the `datasets` library write them, whole and damaged."""

import io
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from training.errors import DataError
from training.sources import tables
from training.sources.data import PictureShape, read_all, read_pictures
from training.sources.tables import Columns, TableSource, from_arrow, from_parquet

SHAPE = PictureShape(16, 3)
NO_COLUMNS = Columns()


def png(colour: str = "red", size: int = 20) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(out, "PNG")
    return out.getvalue()


def noise(seed: int) -> bytes:
    out = io.BytesIO()
    Image.frombytes("RGB", (20, 20), random.Random(seed).randbytes(1200)).save(out, "PNG")
    return out.getvalue()


def write(path: Path, columns: dict[str, Any], group: int = 100) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path


def of(path: Path, columns: Columns = NO_COLUMNS) -> TableSource:
    return from_parquet(str(path), [path], columns)


@pytest.mark.parametrize(
    ("images", "captions"),
    [
        (pa.array([png("red"), png("blue")]), pa.array(["a", "b"])),
        (pa.array([png("red"), png("blue")], pa.large_binary()), pa.array([["a", "x"], ["b"]])),
        (
            pa.array([{"bytes": png("red"), "path": "/etc/passwd"}, {"bytes": png("blue")}]),
            pa.array(["a", "b"], pa.large_string()),
        ),
    ],
    ids=["binary", "large, list", "struct"],
)
def test_pictures_and_captions_come_in_every_usual_type(
    tmp_path: Path, images: Any, captions: Any
) -> None:
    found = read_all(of(write(tmp_path / "a.parquet", {"image": images, "text": captions})), SHAPE)
    assert found.captions == ("a", "b")
    assert found.images[:, :, 8, 8].tolist() == [[255, 0, 0], [0, 0, 255]]


def test_rows_are_read_at_any_positions_across_groups_and_files(tmp_path: Path) -> None:
    paths = []
    for name in "ab":
        rows = {"image": [png()] * 40, "caption": [f"{name}{i}" for i in range(40)]}
        paths.append(write(tmp_path / f"{name}.parquet", rows, group=17))
    source = from_parquet("set", paths, NO_COLUMNS)
    expected = [f"{name}{i}" for name in "ab" for i in range(40)]
    assert len(source) == 80
    for positions in (range(80), range(39, 80), range(0, 80, 7), range(16, 18), range(80, 80)):
        assert [e.caption for e in source.read(positions)] == [expected[i] for i in positions]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        (("a", "b"), NO_COLUMNS, r"no image column There is: a \(binary\), b \(string\)"),
        (("image", "label"), NO_COLUMNS, "no caption column There is: image"),
        (("image", "text", "caption"), NO_COLUMNS, "which is the caption column, text or caption"),
        (("image", "jpg", "text"), NO_COLUMNS, "which is the image column, image or jpg"),
        (("image", "text"), Columns(caption="alt"), "no caption column 'alt'; there is: image"),
        (("image", "text"), Columns(image="text"), "no image column 'text'; there is: image"),
    ],
)
def test_missing_and_ambiguous_columns_name_those_there_are(
    tmp_path: Path, names: tuple[str, ...], asked: Columns, message: str
) -> None:
    columns = {name: [png()] if name in ("a", "image", "jpg") else ["x"] for name in names}
    with pytest.raises(DataError, match=message.replace("column There", "column There")):
        of(write(tmp_path / "a.parquet", columns), asked)


def test_named_columns_are_taken(tmp_path: Path) -> None:
    columns = {"photo": [png()], "image": [b"no"], "text": ["no"], "alt": ["yes"]}
    path = write(tmp_path / "a.parquet", columns)
    assert read_all(of(path, Columns("photo", "alt")), SHAPE).captions == ("yes",)


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", {"image": [png()], "text": ["x"]})
    second = write(tmp_path / "b.parquet", {"image": [png()], "title": ["x"]})
    with pytest.raises(DataError, match=r"b\.parquet: columns .*title.* in the files before it"):
        from_parquet("set", [first, second], NO_COLUMNS)


def test_rows_without_picture_or_caption_are_skipped_by_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_PICTURE_BYTES", 2000)
    pictures = [png(), None, {"bytes": None, "path": "x.png"}, png(), png(), png(), b"0" * 2001]
    rows = [p if isinstance(p, dict) or p is None else {"bytes": p} for p in pictures]
    captions = ["good", "a", "b", None, "", "x" * 9000, "c"]
    path = write(tmp_path / "a.parquet", {"image": rows, "text": captions})
    source = of(path)
    found = read_pictures(source, range(len(source)), SHAPE)
    assert found.captions == ("good",)
    assert [item.reason for item in found.skipped] == [
        "unreadable picture",
        "unreadable picture",
        "no caption",
        "no caption",
        "caption too long",
        "picture too large",
    ]
    assert found.skipped[0].name == "a.parquet group 0 row 1"
    assert found.skipped[4].detail == "9000 bytes", "measured before it is copied"


def test_damaged_page_costs_its_row_group_and_no_more(tmp_path: Path) -> None:
    rows = {"image": [noise(i) for i in range(60)], "text": [f"{i}" for i in range(60)]}
    path = write(tmp_path / "a.parquet", rows, group=20)
    data = bytearray(path.read_bytes())
    with parquet.ParquetFile(path) as file:
        start = file.metadata.row_group(1).column(0).data_page_offset
    data[start : start + 64] = bytes(64)
    path.write_bytes(data)
    source = of(path)
    found = read_pictures(source, range(60), SHAPE)
    assert found.captions[:20] == tuple(f"{i}" for i in range(20))
    assert found.captions[-20:] == tuple(f"{i}" for i in range(40, 60))
    assert {item.reason for item in found.skipped} == {"damaged table"}
    assert len(found) + len(found.skipped) == 60
    # From any position the same rows are found damaged: a resumed run sees what the first saw.
    later = read_pictures(source, range(25, 60), SHAPE)
    assert len(later.skipped) == 15


def test_file_that_is_no_parquet_is_skipped_among_others_and_refused_alone(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    good = write(tmp_path / "b.parquet", {"image": [png()], "text": ["x"]})
    found = read_all(from_parquet("set", [tmp_path / "a.parquet", good], NO_COLUMNS), SHAPE)
    assert [(s.name, s.reason) for s in found.skipped] == [("a.parquet row 0", "damaged table")]
    with pytest.raises(DataError, match="not one parquet file"):
        of(tmp_path / "a.parquet")


def write_arrow(path: Path, columns: dict[str, Any], batch: int = 10) -> Path:
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        for part in table.to_batches(batch):
            writer.write_batch(part)
    return path


def test_arrow_stream_is_read_at_any_positions(tmp_path: Path) -> None:
    rows = {"image": [png()] * 25, "text": [f"{i}" for i in range(25)]}
    source = from_arrow("set", [write_arrow(tmp_path / "a.arrow", rows)], NO_COLUMNS)
    for positions in (range(25), range(9, 25), range(0, 25, 6)):
        assert [e.caption for e in source.read(positions)] == [f"{i}" for i in positions]  # type: ignore[union-attr]


def test_arrow_file_cut_short_gives_the_rows_before(tmp_path: Path) -> None:
    rows = {"image": [noise(i) for i in range(30)], "text": ["x"] * 30}
    path = write_arrow(tmp_path / "a.arrow", rows)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    source = from_arrow("set", [path], NO_COLUMNS)
    found = read_pictures(source, range(len(source)), SHAPE)
    assert len(found) in (10, 20)
    assert [item.reason for item in found.skipped] == ["damaged table"]


def test_offsets_that_point_outside_an_arrow_file_are_not_followed(tmp_path: Path) -> None:
    images = pa.array([png(), png(), png()])
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2**30, 5, 9)))
    hostile = pa.Array.from_buffers(pa.binary(), 3, [None, offsets, images.buffers()[2]])
    path = write_arrow(tmp_path / "a.arrow", {"image": images, "text": ["a", "b", "c"]})
    good = path.read_bytes()
    at = good.index(images.buffers()[1].to_pybytes()[:16])
    path.write_bytes(good[:at] + hostile.buffers()[1].to_pybytes()[:16] + good[at + 16 :])
    source = from_arrow("set", [path], NO_COLUMNS)
    found = read_pictures(source, range(len(source)), SHAPE)
    assert [item.reason for item in found.skipped] == ["damaged table"] * 3


def test_caption_that_is_not_utf8_costs_one_row(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "a.arrow", {"image": [png()] * 3, "text": ["aaaa", "bbbb", "cc"]})
    path.write_bytes(path.read_bytes().replace(b"bbbb", b"b\xff\xffb"))
    found = read_all(from_arrow("set", [path], NO_COLUMNS), SHAPE)
    assert found.captions == ("aaaa", "cc")
    assert [item.reason for item in found.skipped] == ["caption is not text"]


def test_fingerprint_changes_with_a_file_and_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [png()], "text": ["x"], "alt": ["x"]})
    first = of(path).fingerprint
    assert of(path).fingerprint == first
    assert of(path, Columns(caption="alt")).fingerprint != first
    os.utime(path, ns=(1, 1))
    assert of(path).fingerprint != first
