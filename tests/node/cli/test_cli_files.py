import errno
import os
from pathlib import Path
from typing import Any

import pytest

from node.cli.files import check_folder, write_whole
from node.errors import ErrorCode, NodeError


def test_file_is_written_whole_with_the_persons_mode(tmp_path: Path) -> None:
    old_mask = os.umask(0o027)
    try:
        write_whole(tmp_path / "a.png", b"data")
    finally:
        os.umask(old_mask)
    assert (tmp_path / "a.png").read_bytes() == b"data"
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_full_disk_keeps_the_old_file_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "a.png").write_bytes(b"old")

    def fail(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"node.cli.files.os.{call}", fail)
    with pytest.raises(NodeError, match="No space left") as caught:
        write_whole(tmp_path / "a.png", b"new")
    assert caught.value.code is ErrorCode.RESOURCE
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_checked_folder_is_left_as_it_was(tmp_path: Path) -> None:
    check_folder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="No such file") as caught:
        check_folder(tmp_path / "none")
    assert caught.value.code is ErrorCode.RESOURCE
