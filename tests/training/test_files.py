"""Folders that appear whole or not at all."""

import errno
import os
from hashlib import sha256
from pathlib import Path

import pytest

from training import files
from training.files import copy_synced, whole_folder, write_folder, write_synced


def test_folder_appears_with_all_its_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "made", {"a": b"1", "deep/er/b": b"2"})
    assert (tmp_path / "made" / "deep" / "er" / "b").read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with whole_folder(tmp_path / "made") as folder:
            write_synced(folder / "a", b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = os.write

    def refuse(descriptor: int, data: bytes) -> int:
        if bytes(data) == b"the second":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(descriptor, data)

    monkeypatch.setattr("training.files.os.write", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_folder(tmp_path / "made", {"a": b"the first", "b": b"the second"})
    assert list(tmp_path.iterdir()) == []


def test_folder_with_something_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("keep")
    with pytest.raises(OSError, match="not empty"):
        write_folder(tmp_path / "made", {"a": b"1"})
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "mine"]


def test_copy_tells_the_digest_and_follows_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "COPY_BYTES", 3)
    (tmp_path / "a").write_bytes(b"0123456789")
    digest = copy_synced(tmp_path / "a", tmp_path / "new" / "b")
    assert (tmp_path / "new" / "b").read_bytes() == b"0123456789"
    assert digest == sha256(b"0123456789").hexdigest()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic links"):
        copy_synced(tmp_path / "link", tmp_path / "c")
    assert not (tmp_path / "c").exists()
