"""Every kind of set is recognised by looking, and gives the same pictures."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tests.training.conftest import SIDE, draw_pictures
from training.errors import DataError
from training.sources.bundled import FASHION_CAPTIONS, IDX_IMAGES, IDX_LABELS
from training.sources.data import PictureShape, read_all
from training.sources.detect import SourceOptions, looks_grey, open_source, own_shape
from training.sources.tables import Columns

SHAPE = PictureShape(SIDE, 1)


def rows_of(folder: Path) -> tuple[list[bytes], list[str]]:
    lines = map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())
    named = [(line["file_name"], line["text"]) for line in lines]
    return [(folder / name).read_bytes() for name, _ in named], [text for _, text in named]


def as_parquet(folder: Path, out: Path) -> Path:
    images, texts = rows_of(folder)
    structs = [{"bytes": image, "path": None} for image in images]
    out.mkdir(parents=True)
    for part in range(2):
        table = pa.table({"image": structs[part::2], "text": texts[part::2]})
        parquet.write_table(table, out / f"train-{part:05d}-of-00002.parquet")
    return out


def as_one_parquet(folder: Path, out: Path) -> Path:
    images, texts = rows_of(folder)
    parquet.write_table(pa.table({"image": images, "text": texts}), out.with_suffix(".parquet"))
    return out.with_suffix(".parquet")


def as_tar(folder: Path, out: Path) -> Path:
    images, texts = rows_of(folder)
    with tarfile.open(out.with_suffix(".tar"), "w") as tar:
        for i, (image, text) in enumerate(zip(images, texts, strict=True)):
            for end, data in (("png", image), ("json", json.dumps({"caption": text}).encode())):
                member = tarfile.TarInfo(f"{i:04d}.{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return out.with_suffix(".tar")


def as_folder(folder: Path, out: Path) -> Path:
    return folder


@pytest.mark.parametrize("write", [as_folder, as_one_parquet, as_tar])
def test_every_kind_gives_the_same_pictures_in_the_same_order(
    tmp_path: Path, write: Callable[[Path, Path], Path]
) -> None:
    folder = draw_pictures(tmp_path / "pictures", 10)
    expected = read_all(open_source(folder), SHAPE)
    found = read_all(open_source(write(folder, tmp_path / "set")), SHAPE)
    assert found.captions == expected.captions
    assert found.images.equal(expected.images)


@pytest.mark.slow
def test_saved_data_set_and_dictionary_of_splits_are_read(tmp_path: Path) -> None:
    import datasets

    folder = draw_pictures(tmp_path / "pictures", 10)
    images, texts = rows_of(folder)
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": image, "path": None} for image in images], "text": texts}
    whole = datasets.Dataset.from_dict(rows, features=features)
    expected = read_all(open_source(folder), SHAPE)
    whole.save_to_disk(tmp_path / "saved", num_shards=3)
    found = read_all(open_source(tmp_path / "saved"), SHAPE)
    assert found.captions == expected.captions
    assert found.images.equal(expected.images)

    both = datasets.DatasetDict({"train": whole, "test": whole.select(range(3))})
    both.save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match=r"which split\? *; there is: test, train"):
        open_source(tmp_path / "both")
    assert len(open_source(tmp_path / "both", SourceOptions(split="test"))) == 3
    with pytest.raises(DataError, match="no split 'dev' in it; there is: test, train"):
        open_source(tmp_path / "both", SourceOptions(split="dev"))

    state = tmp_path / "saved" / "state.json"
    known = json.loads(state.read_text())
    for name in ("../secret.arrow", "/etc/passwd", "", None):
        state.write_text(json.dumps({**known, "_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match="names a file outside the folder"):
            open_source(tmp_path / "saved")
    state.write_text(json.dumps({**known, "_data_files": []}))
    with pytest.raises(DataError, match="lists no data files"):
        open_source(tmp_path / "saved")
    state.write_text("{")
    with pytest.raises(DataError, match=r"state\.json: not a JSON object"):
        open_source(tmp_path / "saved")


def test_parquet_shards_of_several_splits_ask_which(tmp_path: Path) -> None:
    out = as_parquet(draw_pictures(tmp_path / "pictures", 10), tmp_path / "set" / "data")
    assert len(open_source(out.parent)) == 10
    (out / "train-00000-of-00002.parquet").rename(out / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"which split\? *; there is: test, train"):
        open_source(out.parent)
    assert len(open_source(out.parent, SourceOptions(split="test"))) == 5
    with pytest.raises(DataError, match="no split 'dev'"):
        open_source(out.parent, SourceOptions(split="dev"))


def test_idx_folder_is_the_training_split(tmp_path: Path) -> None:
    def idx(magic: int, *sizes: int) -> bytes:
        return b"".join(value.to_bytes(4, "big") for value in (magic, *sizes))

    pixels = gzip.compress(idx(2051, 2, 28, 28) + bytes(2 * 784))
    (tmp_path / IDX_IMAGES).write_bytes(pixels)
    (tmp_path / IDX_LABELS).write_bytes(gzip.compress(idx(2049, 2) + bytes([3, 9])))
    source = open_source(tmp_path)
    assert own_shape(source) == PictureShape(32, 1)
    found = read_all(source, PictureShape(32, 1))
    assert found.captions == (FASHION_CAPTIONS[3], FASHION_CAPTIONS[9])
    with pytest.raises(DataError, match="the set is 32 pixels a side and grey"):
        read_all(source, PictureShape(32, 3))
    (tmp_path / IDX_LABELS).write_bytes(gzip.compress(idx(2049, 1) + bytes([3])))
    with pytest.raises(DataError, match="1 labels for 2 pictures"):
        open_source(tmp_path)


def test_nothing_to_read_and_too_much_to_choose_from_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: there is no such file or folder; expected .*tar"):
        open_source(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty: no pictures in it \(empty\); expected"):
        open_source(empty)
    (empty / "notes.docx").touch()
    with pytest.raises(DataError, match=r"only files named \*\.docx"):
        open_source(empty)
    for name in ("a.zip", "a.tar.gz", "a.png"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=r"cannot be read as pictures; expected"):
            open_source(tmp_path / name)
    (empty / "a.parquet").touch()
    (empty / "a.png").touch()
    with pytest.raises(DataError, match=r"which are the pictures\? It holds files named \*\.parq"):
        open_source(empty)


def test_tables_that_are_links_out_of_the_folder_are_left_out(tmp_path: Path) -> None:
    outside = as_one_parquet(draw_pictures(tmp_path / "pictures", 4), tmp_path / "outside")
    inside = as_parquet(tmp_path / "pictures", tmp_path / "set")
    (inside / "train-00002-of-00003.parquet").symlink_to(outside)
    assert len(open_source(inside)) == 4


def test_caption_column_is_also_the_key_of_metadata(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "title": "red"}')
    options = SourceOptions(columns=Columns(caption="title"))
    assert read_all(open_source(tmp_path, options), SHAPE).captions == ("red",)


def test_grey_and_colour_are_told_apart_by_looking(tmp_path: Path) -> None:
    folder = draw_pictures(tmp_path / "grey", 6)
    assert looks_grey(open_source(folder))
    Image.new("RGB", (8, 8), (90, 92, 95)).save(folder / "001.png")
    assert looks_grey(open_source(folder))
    Image.new("RGB", (8, 8), (90, 92, 120)).save(folder / "002.png")
    assert not looks_grey(open_source(folder))
    assert looks_grey(open_source("fashion"))
