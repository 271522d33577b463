import json
import random
from pathlib import Path

import pytest
from PIL import Image

from training import data
from training.data import MAX_CAPTION_CHARS, METADATA, load_folder
from training.errors import DataError


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
    monkeypatch.setattr(data, "MAX_PIXELS", 900)
    monkeypatch.setattr(data, "MAX_PICTURE_BYTES", 4000)
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
    assert [item.reason.split(":")[0] for item in found.skipped] == [
        "good.png appears twice",
        "not JSON",
        "not JSON",
        "needs file_name",
        "needs file_name",
        "file_name leaves the folder",
        "file_name leaves the folder",
        "unreadable picture",
        "no caption",
        "no caption",
        f"caption of {MAX_CAPTION_CHARS + 1} characters, at most {MAX_CAPTION_CHARS}",
        "31x31 pixels, at most 900",
        "unreadable picture",
        "over 4000 bytes",
        "unreadable picture",
    ]


def test_limits_are_inclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MAX_PIXELS", 400)
    picture(tmp_path / "a.png")
    size = (tmp_path / "a.png").stat().st_size
    monkeypatch.setattr(data, "MAX_PICTURE_BYTES", size)
    metadata(tmp_path, {"file_name": "a.png", "text": "x" * MAX_CAPTION_CHARS})
    assert len(load_folder(tmp_path, 16, 1)) == 1


def test_too_many_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    monkeypatch.setattr(data, "MAX_PICTURES", 3)
    assert len(load_folder(tmp_path, 16, 1)) == 3
    monkeypatch.setattr(data, "MAX_PICTURES", 2)
    with pytest.raises(DataError, match="more than 2"):
        load_folder(tmp_path, 16, 1)


def test_folder_without_a_usable_picture_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        load_folder(tmp_path / "none", 16, 1)
    with pytest.raises(DataError, match=r"no usable picture \(0 skipped\)"):
        load_folder(tmp_path, 16, 1)
    (tmp_path / "a boat.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"\(1 skipped\) a boat.png: unreadable picture"):
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
