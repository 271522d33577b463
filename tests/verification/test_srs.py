"""Reference strings: the ceremony's, byte for byte, or none."""

import hashlib
import shutil
from pathlib import Path

import pytest

import verification.srs
from tests.support.foreign_srs import foreign_srs
from verification.errors import UnavailableError
from verification.srs import PINNED, SHIPPED, SrsFolder, check_srs

SHIPPED_FOLDER = Path(verification.srs.__file__).parent / "srs_data"


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped folder, where it may be altered."""
    folder = tmp_path / "srs_data"
    shutil.copytree(SHIPPED_FOLDER, folder)
    monkeypatch.setattr(verification.srs, "_SHIPPED_FOLDER", folder)
    return folder


@pytest.mark.parametrize("k", SHIPPED)
def test_every_shipped_file_is_the_pinned_one(k: int) -> None:
    path = SrsFolder()(k)
    assert path.parent == SHIPPED_FOLDER
    assert path.stat().st_size == PINNED[k].size


def test_smaller_strings_begin_like_larger_ones() -> None:
    """One secret behind all sizes: the powers of the smaller are the first of the larger."""
    points = [SrsFolder()(k).read_bytes()[4 : 4 + 64 * 1024] for k in SHIPPED]
    assert len(set(points)) == 1


@pytest.mark.parametrize("at", [0, 4, 70_000, -1])
def test_one_flipped_bit_is_refused_with_both_hashes(at: int, copied: Path) -> None:
    data = bytearray((copied / "kzg10.srs").read_bytes())
    data[at] ^= 0x10
    (copied / "kzg10.srs").write_bytes(data)
    with pytest.raises(UnavailableError, match="not the ceremony's for k = 10") as caught:
        SrsFolder()(10)
    assert PINNED[10].sha256 in str(caught.value)
    assert hashlib.sha256(data).hexdigest() in str(caught.value)
    SrsFolder()(11)


def test_file_of_another_size_of_the_ceremony_is_refused(copied: Path) -> None:
    shutil.copyfile(copied / "kzg11.srs", copied / "kzg10.srs")
    with pytest.raises(UnavailableError, match=PINNED[11].sha256):
        SrsFolder()(10)


def test_missing_file_says_what_it_must_be(copied: Path) -> None:
    (copied / "kzg10.srs").unlink()
    with pytest.raises(UnavailableError, match=f"No such file.*{PINNED[10].sha256}"):
        SrsFolder()(10)


@pytest.mark.slow
def test_string_that_no_ceremony_made_is_refused_with_both_hashes(
    tmp_path: Path, copied: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    foreign = foreign_srs(tmp_path_factory)
    assert foreign.stat().st_size == PINNED[10].size
    shutil.copyfile(foreign, copied / "kzg10.srs")
    shutil.copyfile(foreign, tmp_path / "kzg14.srs")
    found = hashlib.sha256(foreign.read_bytes()).hexdigest()
    for k in (10, 14):
        with pytest.raises(UnavailableError, match=f"not the ceremony's for k = {k}") as caught:
            SrsFolder(tmp_path)(k)
        assert found in str(caught.value)
        assert PINNED[k].sha256 in str(caught.value)


def test_altered_string_is_not_added(tmp_path: Path) -> None:
    data = bytearray((SHIPPED_FOLDER / "kzg13.srs").read_bytes())
    data[1000] ^= 1
    (tmp_path / "altered").write_bytes(data)
    with pytest.raises(UnavailableError, match="not the ceremony's for k = 13"):
        SrsFolder(tmp_path / "kept").add(13, tmp_path / "altered")
    assert not (tmp_path / "kept").exists()


def test_shipped_sizes_never_come_from_the_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "kzg10.srs").write_bytes(b"another")
    assert SrsFolder(tmp_path)(10).parent == SHIPPED_FOLDER


def test_larger_string_is_not_here_until_it_is_added(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="k = 14 is not shipped, and no folder has it"):
        SrsFolder()(14)
    with pytest.raises(UnavailableError, match="No such file"):
        SrsFolder(tmp_path)(14)


@pytest.mark.parametrize("k", [0, 9, 15, 28])
def test_size_that_is_not_pinned_is_refused(k: int, tmp_path: Path) -> None:
    (tmp_path / f"kzg{k}.srs").write_bytes(b"anything")
    for job in (
        lambda: SrsFolder(tmp_path)(k),
        lambda: SrsFolder(tmp_path / "kept").add(k, tmp_path / f"kzg{k}.srs"),
        lambda: check_srs(k, b"anything", where="here"),
    ):
        with pytest.raises(UnavailableError, match=f"no SRS is pinned for k = {k};"):
            job()


def test_pinned_file_is_kept_whole_and_private(tmp_path: Path) -> None:
    kept = SrsFolder(tmp_path / "kept").add(13, SHIPPED_FOLDER / "kzg13.srs")
    assert kept.read_bytes() == (SHIPPED_FOLDER / "kzg13.srs").read_bytes()
    assert [path.name for path in kept.parent.iterdir()] == ["kzg13.srs"]


def test_file_of_another_length_is_refused_before_it_is_read(tmp_path: Path) -> None:
    huge = tmp_path / "huge.srs"
    with huge.open("wb") as file:
        file.truncate(1 << 40)  # a hole: reading it would take hours
    with pytest.raises(UnavailableError, match="has 1099511627776 bytes"):
        SrsFolder(tmp_path / "kept").add(14, huge)


def test_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="can't be kept"):
        SrsFolder(tmp_path / "file" / "kept").add(13, SHIPPED_FOLDER / "kzg13.srs")
    with pytest.raises(UnavailableError, match="no folder to keep"):
        SrsFolder().add(13, SHIPPED_FOLDER / "kzg13.srs")


def test_no_package_makes_a_reference_string_and_one_helper_of_the_tests_does() -> None:
    root = Path(verification.srs.__file__).parent.parent
    folders = ("node", "p2p", "training", "verification", "tests")
    files = [path for folder in folders for path in (root / folder).rglob("*.py")]
    makers = [path.name for path in files if "ezkl.gen" + "_srs" in path.read_text()]
    assert makers == ["foreign_srs.py"]
