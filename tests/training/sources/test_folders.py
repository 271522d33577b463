import json
import os
import random
from pathlib import Path

import pytest
from PIL import Image

from training.errors import DataError
from training.sources import decode, folders
from training.sources.decode import MAX_CAPTION_CHARS
from training.sources.folders import MAX_LINE_BYTES, METADATA, FolderSource, load_folder


def picture(path: Path, colour: tuple[int, int, int] = (255, 0, 0), size: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)


def metadata(folder: Path, *lines: object) -> None:
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / METADATA).write_text("\n".join(text))


def test_metadata_gives_pictures_in_its_order_with_captions(tmp_path: Path) -> None:
    picture(tmp_path / "b.png", (255, 0, 0))
    picture(tmp_path / "in" / "a.png", (0, 0, 255))
    picture(tmp_path / "unlisted.png")
    metadata(
        tmp_path,
        {"file_name": "in/a.png", "text": " deep  blue "},
        {"file_name": "b.png", "text": "red"},
    )
    found = load_folder(tmp_path, 16, 3)
    assert found.captions == ("deep blue", "red")
    assert found.images.shape == (2, 3, 16, 16)
    assert found.images[0, :, 8, 8].tolist() == [0, 0, 255]
    assert found.skipped == ()


def test_names_become_captions_without_metadata(tmp_path: Path) -> None:
    for name in ("red_boat_03.png", "a-blue-car (2).jpg", "dogs/001.png", "007.png"):
        picture(tmp_path / name)
    found = load_folder(tmp_path, 16, 1)
    assert found.captions == ("a blue car", "dogs", "red boat")
    assert [(s.name, s.reason) for s in found.skipped] == [("007.png", "no caption")]
    assert found.images.shape == (3, 1, 16, 16)


def test_each_bad_line_and_file_is_skipped_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 900)
    monkeypatch.setattr(folders, "MAX_PICTURE_BYTES", 4000)
    picture(tmp_path / "good.png")
    picture(tmp_path / "large.png", size=31)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"rubbish" * 9)
    (tmp_path / "heavy.png").write_bytes(b"0" * 4001)
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    metadata(
        tmp_path,
        {"file_name": "good.png", "text": "good"},
        {"file_name": "good.png", "text": "again"},
        "not json",
        "[" * 5000,
        ["a list"],
        {"text": "nameless"},
        {"file_name": "../out.png", "text": "x"},
        {"file_name": "/etc/passwd", "text": "x"},
        {"file_name": "none.png", "text": "x"},
        {"file_name": "good2.png"},
        {"file_name": "good3.png", "text": "  "},
        {"file_name": "good4.png", "text": "x" * (MAX_CAPTION_CHARS + 1)},
        {"file_name": "large.png", "text": "x"},
        {"file_name": "broken.png", "text": "x"},
        {"file_name": "heavy.png", "text": "x"},
        {"file_name": "cut.png", "text": "x"},
    )
    found = load_folder(tmp_path, 16, 1)
    assert found.captions == ("good",)
    assert [(item.reason, item.detail) for item in found.skipped] == [
        ("appears twice", "good.png"),
        ("not JSON", ""),
        ("not JSON", ""),
        ("needs file_name", ""),
        ("needs file_name", ""),
        ("leaves the folder", "../out.png"),
        ("leaves the folder", "/etc/passwd"),
        ("unreadable picture", "FileNotFoundError"),
        ("no caption", "no 'text'; there is: nothing"),
        ("no caption", ""),
        ("caption too long", f"{MAX_CAPTION_CHARS + 1} characters, at most {MAX_CAPTION_CHARS}"),
        ("too many pixels", "31x31 pixels, at most 900"),
        ("unreadable picture", "OSError"),
        ("picture too large", "over 4000 bytes"),
        ("unreadable picture", "OSError"),
    ]


def test_limits_are_inclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 400)
    picture(tmp_path / "a.png")
    size = (tmp_path / "a.png").stat().st_size
    monkeypatch.setattr(folders, "MAX_PICTURE_BYTES", size)
    metadata(tmp_path, {"file_name": "a.png", "text": "x" * MAX_CAPTION_CHARS})
    assert len(load_folder(tmp_path, 16, 1)) == 1


def test_too_many_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    monkeypatch.setattr(folders, "MAX_PICTURES", 3)
    assert len(load_folder(tmp_path, 16, 1)) == 3
    monkeypatch.setattr(folders, "MAX_PICTURES", 2)
    with pytest.raises(DataError, match="more than 2"):
        load_folder(tmp_path, 16, 1)


def test_folder_without_a_usable_picture_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        load_folder(tmp_path / "none", 16, 1)
    with pytest.raises(DataError, match=r"no usable picture \(0 skipped\)"):
        load_folder(tmp_path, 16, 1)
    (tmp_path / "a boat.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"\(1 skipped\) 1 unreadable picture: a boat.png"):
        load_folder(tmp_path, 16, 1)


def test_transparent_parts_become_white_and_wide_pictures_are_cropped(tmp_path: Path) -> None:
    wide = Image.new("RGBA", (60, 20), (0, 0, 0, 0))
    wide.paste((0, 0, 0, 255), (0, 0, 20, 20))
    wide.save(tmp_path / "x.png")
    assert int(load_folder(tmp_path, 20, 1).images.min()) == 255


@pytest.mark.parametrize("suffix", ["png", "jpeg", "gif", "webp", "bmp"])
def test_damaged_pictures_are_read_or_skipped_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    source = Image.effect_noise((24, 24), 60).convert("RGB")
    folder = tmp_path / "damaged"
    folder.mkdir()
    source.save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    chosen = random.Random(0)
    for i in range(60):
        damaged = bytearray(whole)
        for _ in range(chosen.randint(1, 8)):
            damaged[chosen.randrange(min(len(damaged), 200))] = chosen.randrange(256)
        (folder / f"red boat {i}.{suffix}").write_bytes(damaged[: chosen.randint(40, 4000)])
    picture(folder / "good one.png")
    found = load_folder(folder, 16, 3)
    assert len(found) + len(found.skipped) == 61
    assert found.skipped
    assert "good one" in found.captions


def test_formats_that_are_not_ours_are_not_decoded(tmp_path: Path) -> None:
    picture(tmp_path / "good one.png")
    picture(tmp_path / "in.tiff")
    (tmp_path / "in.tiff").rename(tmp_path / "red boat.png")
    found = load_folder(tmp_path, 16, 3)
    assert [s.name for s in found.skipped] == ["red boat.png"]


def test_links_that_leave_the_folder_and_pipes_are_skipped(tmp_path: Path) -> None:
    picture(tmp_path / "out" / "secret one.png")
    folder = tmp_path / "in"
    picture(folder / "real one.png")
    (folder / "inner link.png").symlink_to("real one.png")
    (folder / "outer link.png").symlink_to(tmp_path / "out" / "secret one.png")
    (folder / "round.png").symlink_to("round.png")
    (folder / "out").symlink_to(tmp_path / "out")
    os.mkfifo(folder / "pipe.png")
    names = ("real one.png", "inner link.png", "outer link.png", "round.png", "pipe.png",
             "out/secret one.png")  # fmt: skip
    metadata(folder, *({"file_name": name, "text": name} for name in names))
    found = load_folder(folder, 16, 3)
    assert found.captions == ("real one.png", "inner link.png")
    assert [(s.name, s.reason, s.detail) for s in found.skipped] == [
        ("outer link.png", "leaves the folder", "a link"),
        ("round.png", "unreadable picture", "RuntimeError"),
        ("pipe.png", "unreadable picture", "not a file"),
        ("out/secret one.png", "leaves the folder", "a link"),
    ]


def test_endless_line_of_metadata_is_skipped_and_the_next_one_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    long = json.dumps({"file_name": "a.png", "text": "x" * 3 * MAX_LINE_BYTES})
    metadata(tmp_path, long, {"file_name": "a.png", "text": "red"}, long)
    found = load_folder(tmp_path, 16, 3)
    assert found.captions == ("red",)
    assert [s.reason for s in found.skipped] == ["line too long", "line too long"]


def test_hostile_captions_and_names_come_out_as_plain_text(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    metadata(
        tmp_path,
        '{"file_name": "a.png", "text": "red\\u001b[2Jboat\\u0000"}',
        '{"file_name": "b.png", "text": "half \\ud800 pair"}',
        '{"file_name": "\\u001b[2J.png", "text": "x"}',
        '{"file_name": "half\\ud800.png", "text": "x"}',
    )
    found = load_folder(tmp_path, 16, 3)
    assert found.captions == ("red [2Jboat",)
    assert [(s.name, s.reason) for s in found.skipped] == [
        ("b.png", "caption is not text"),
        ("?[2J.png", "unreadable picture"),
        ("half?.png", "unreadable picture"),
    ]


def test_caption_key_may_be_another_one(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    metadata(tmp_path, {"file_name": "a.png", "title": "red"})
    assert next(iter(FolderSource(tmp_path, "title").read(range(1)))).caption == "red"  # type: ignore[union-attr]
    with pytest.raises(DataError, match="no 'text'; there is: title"):
        load_folder(tmp_path, 16, 3)


def test_fingerprint_changes_with_any_file_and_only_then(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    metadata(tmp_path, {"file_name": "a.png", "text": "red"}, {"file_name": "b.png", "text": "red"})
    first = FolderSource(tmp_path).fingerprint
    assert FolderSource(tmp_path).fingerprint == first
    os.utime(tmp_path / "a.png", ns=(1, 1))
    second = FolderSource(tmp_path).fingerprint
    metadata(tmp_path, {"file_name": "a.png", "text": "red"}, {"file_name": "b.png", "text": "b"})
    third = FolderSource(tmp_path).fingerprint
    (tmp_path / "b.png").unlink()
    assert len({first, second, third, FolderSource(tmp_path).fingerprint}) == 4


def test_any_positions_are_read_in_order(tmp_path: Path) -> None:
    for i in range(7):
        picture(tmp_path / f"boat {'abcdefg'[i]}.png")
    source = FolderSource(tmp_path)
    for positions in (range(7), range(3, 7), range(0, 7, 3), range(7, 7)):
        assert [found.name for found in source.read(positions)] == [
            f"boat {'abcdefg'[i]}.png" for i in positions
        ]
