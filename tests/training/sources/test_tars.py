import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from training.errors import DataError
from training.sources import tars
from training.sources.data import PictureShape, Skipped, read_all, read_pictures
from training.sources.tars import TarSource

SHAPE = PictureShape(16, 3)


def png(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(out, "PNG")
    return out.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def reasons(source: TarSource) -> list[tuple[str, str]]:
    found = read_pictures(source, range(len(source)), SHAPE)
    return [(item.name, item.reason) for item in found.skipped]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_of_one_key_are_one_captioned_picture(tmp_path: Path, form: int) -> None:
    long = "in/" + "x" * (60 if form == tarfile.USTAR_FORMAT else 200)
    members = [
        ("in/1.png", png()),
        ("in/1.txt", b" a red\nsquare "),
        ("in/1.meta.json", b"{}"),
        (f"{long}.jpeg", png("blue")),
        (f"{long}.json", json.dumps({"text": "a blue square"}).encode()),
        ("3.json", json.dumps({"caption": "lime", "text": "other"}).encode()),
        ("3.webp", png("lime")),
    ]
    source = TarSource("set", [write_tar(tmp_path / "a.tar", members, form)])
    found = read_all(source, SHAPE)
    assert found.captions == ("a red square", "a blue square", "lime")
    assert found.images[:, :, 8, 8].tolist() == [[255, 0, 0], [0, 0, 255], [0, 255, 0]]
    assert found.skipped == ()


def test_samples_of_several_files_are_read_at_any_positions(tmp_path: Path) -> None:
    paths = [
        write_tar(
            tmp_path / f"{file}.tar",
            [
                (f"{file}{i}.{end}", data)
                for i in range(4)
                for end, data in (("png", png()), ("txt", b"x"))
            ],
        )
        for file in "abc"
    ]
    source = TarSource("set", paths)
    names = [f"{file}{i}" for file in "abc" for i in range(4)]
    assert len(source) == 12
    for positions in (range(12), range(5, 12), range(0, 12, 5), range(3, 4), range(12, 12)):
        assert [found.name for found in source.read(positions)] == [names[i] for i in positions]


def test_samples_that_are_not_whole_are_skipped_by_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MAX_PICTURE_BYTES", 5000)
    members = [
        ("a.png", png()),
        ("b.txt", b"only text"),
        ("c.png", png()),
        ("c.jpg", png()),
        ("c.txt", b"two"),
        ("d.png", b"x" * 5001),
        ("d.txt", b"large"),
        ("e.png", png()),
        ("e.txt", b"\xff\xfe"),
        ("f.png", png()),
        ("f.json", b"[1"),
        ("g.png", png()),
        ("g.json", b'{"alt": "x"}'),
        ("h.png", png()),
        ("h.txt", b"y" * (tars.MAX_TEXT_BYTES + 1)),
        ("i.png", b"no picture"),
        ("i.txt", b"x"),
        ("j.png", png()),
        ("j.txt", b"good"),
    ]
    source = TarSource("set", [write_tar(tmp_path / "a.tar", members)])
    assert read_all(source, SHAPE).captions == ("good",)
    assert reasons(source) == [
        ("a", "no caption"),
        ("b", "no picture in the sample"),
        ("c", "several pictures in the sample"),
        ("d", "picture too large"),
        ("e", "caption is not text"),
        ("f", "not JSON"),
        ("g", "no caption"),
        ("h", "caption too long"),
        ("i", "unreadable picture"),
    ]


def test_links_devices_and_odd_names_are_never_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind, target in (
            ("a.png", tarfile.SYMTYPE, str(tmp_path / "secret.png")),
            ("b.png", tarfile.LNKTYPE, "/etc/passwd"),
            ("c.png", tarfile.CHRTYPE, ""),
            ("d.png", tarfile.FIFOTYPE, ""),
            ("folder.png", tarfile.DIRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
        for name in ("/abs/e", "../../f", "g\x1b[2J"):
            for end, data in (("png", png()), ("txt", b"fine")):
                member = tarfile.TarInfo(f"{name}.{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    source = TarSource("set", [path])
    assert reasons(source) == [(name, "not a plain file in the tar") for name in "abcd"]
    names = [found.name for found in source.read(range(4, 7))]
    assert names == ["/abs/e", "../../f", "g?[2J"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "secret.png"]


def whole_tar(tmp_path: Path) -> tuple[Path, bytes]:
    members = [
        (f"{i}.{end}", data) for i in range(4) for end, data in (("txt", b"x"), ("png", png()))
    ]
    path = write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)
    return path, path.read_bytes()


def test_tar_cut_anywhere_gives_the_samples_before_and_says_so(tmp_path: Path) -> None:
    path, whole = whole_tar(tmp_path)
    for cut in (513, 700, 1500, 2048, 3000, 4600, 8 * 1024):
        path.write_bytes(whole[:cut])
        source = TarSource("set", [path])
        found = read_pictures(source, range(len(source)), SHAPE)
        assert len(found) == min(4, cut // 2048)
        assert found.skipped[-1].reason == "damaged tar"


def test_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path, whole = whole_tar(tmp_path)
    damaged = bytearray(whole)
    damaged[2048 + 148 : 2048 + 154] = b"999999"  # the second sample's checksum
    path.write_bytes(damaged)
    source = TarSource("set", [path])
    assert len(read_pictures(source, range(len(source)), SHAPE)) == 1
    assert reasons(source) == [("a.tar", "damaged tar")]


def pax_member(records: bytes, claimed: int | None = None) -> bytes:
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, len(records) if claimed is None else claimed
    return member.tobuf(tarfile.GNU_FORMAT) + records + bytes(-len(records) % 512)


@pytest.mark.parametrize(
    "hostile",
    [
        pax_member(b"18 size=-99999999\n"),
        pax_member(b"14 size=-1536\n"),
        pax_member(b"29 size=99999999999999999999\n"),
        pax_member(b"x" * 512, claimed=2**40),
        pax_member(b"12 path=xxx\n") * 3000,
        pax_member(b"0 path=x\n"),
    ],
    ids=["backwards", "round and round", "beyond", "huge header", "chain", "rubbish"],
)
def test_hostile_headers_end_the_file_and_nothing_else(tmp_path: Path, hostile: bytes) -> None:
    path, whole = whole_tar(tmp_path)
    path.write_bytes(whole[:2048] + hostile + whole[2048:])
    source = TarSource("set", [path])
    found = read_pictures(source, range(len(source)), SHAPE)
    assert found.captions[0] == "x"
    assert found.skipped[-1].reason == "damaged tar"


def test_what_is_no_tar_is_refused_with_the_mend(tmp_path: Path) -> None:
    for content in (b"", b"\x1f\x8b" + bytes(600), b"x" * 2000):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.tar: not an uncompressed tar file; unpack it"):
            TarSource("set", [tmp_path / "a.tar"])


def test_fingerprint_changes_with_a_file(tmp_path: Path) -> None:
    path, _ = whole_tar(tmp_path)
    first = TarSource("set", [path]).fingerprint
    assert TarSource("set", [path]).fingerprint == first
    os.utime(path, ns=(1, 1))
    assert TarSource("set", [path]).fingerprint != first


def test_headers_read_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = whole_tar(tmp_path)
    kept: list[int] = []
    real = tarfile.TarFile.next

    def spy(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        member = real(tar)
        kept.append(len(vars(tar)["members"]))
        return member

    monkeypatch.setattr(tarfile.TarFile, "next", spy)
    source = TarSource("set", [path])
    assert not any(isinstance(found, Skipped) for found in source.read(range(4)))
    assert max(kept) <= 1
