"""The private folder of an own offer: modes, whole or not at all, nothing sent that was altered."""

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import pytest

import node.offer_folder
from node.offer_folder import (
    BUYERS_FILE,
    DELIVERY_FILE,
    DIGEST_FILE,
    drop,
    read_buyers,
    read_delivery,
    settle,
    sweep,
    workplace,
    write_buyers,
    write_delivery,
)
from p2p.errors import QuotaError, StorageError
from tests.support.people import alice, bob

DATA = b"weights and salt"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_may_look_in(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with workplace(tmp_path / "offers") as folder:
            write_delivery(folder, DATA)
            write_buyers(folder, [alice.peer])
            assert mode(tmp_path / "offers") == mode(folder) == 0o700
            assert {mode(path) for path in folder.iterdir()} == {0o600}
    finally:
        os.umask(before)


def test_workplace_is_gone_when_the_work_ends_however_it_ends(tmp_path: Path) -> None:
    with workplace(tmp_path) as folder:
        write_delivery(folder, DATA)
    assert list(tmp_path.iterdir()) == []

    def broken_off() -> None:
        with workplace(tmp_path) as folder:
            write_delivery(folder, DATA)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert list(tmp_path.iterdir()) == []


def test_two_workplaces_are_apart(tmp_path: Path) -> None:
    with workplace(tmp_path) as one, workplace(tmp_path) as two:
        assert one != two


def test_settled_folder_stays_under_its_name(tmp_path: Path) -> None:
    with workplace(tmp_path) as folder:
        write_delivery(folder, DATA)
        settle(folder, tmp_path / "offer")
    assert [path.name for path in tmp_path.iterdir()] == ["offer"]
    assert read_delivery(tmp_path / "offer") == DATA


def test_delivery_that_was_altered_or_is_gone_is_not_read(tmp_path: Path) -> None:
    file = write_delivery(tmp_path, DATA)
    assert file == tmp_path / DELIVERY_FILE
    assert read_delivery(tmp_path) == DATA
    for altered in (DATA[:-1], DATA + b"x", DATA[:-1] + b"T", b""):
        file.write_bytes(altered)
        with pytest.raises(StorageError, match="altered on disk"):
            read_delivery(tmp_path)
    file.write_bytes(DATA)
    (tmp_path / DIGEST_FILE).write_bytes(b"\xff")
    with pytest.raises(StorageError, match="altered on disk"):
        read_delivery(tmp_path)
    (tmp_path / DIGEST_FILE).write_text(hashlib.sha256(DATA).hexdigest())
    assert read_delivery(tmp_path) == DATA
    file.unlink()
    with pytest.raises(StorageError, match="could not read the delivery"):
        read_delivery(tmp_path)


def test_buyers_come_back_and_none_means_everybody(tmp_path: Path) -> None:
    write_buyers(tmp_path, [alice.peer, bob.peer])
    assert read_buyers(tmp_path) == {alice.peer, bob.peer}
    write_buyers(tmp_path, [])
    assert read_buyers(tmp_path) == frozenset()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"buyers":null}', '{"buyers":"12D3"}', "{"])
def test_buyers_that_cannot_be_read_open_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / BUYERS_FILE).write_text(text)
    with pytest.raises(StorageError, match="who may buy can't be read"):
        read_buyers(tmp_path)
    (tmp_path / BUYERS_FILE).unlink()
    with pytest.raises(StorageError, match="who may buy can't be read"):
        read_buyers(tmp_path)


def test_dropped_folder_is_gone_and_may_be_dropped_again(tmp_path: Path) -> None:
    (tmp_path / "offer").mkdir()
    write_delivery(tmp_path / "offer", DATA)
    drop(tmp_path / "offer")
    drop(tmp_path / "offer")
    assert list(tmp_path.iterdir()) == []


def test_sweep_leaves_standing_offers_and_proofs_of_fraud_alone(tmp_path: Path) -> None:
    for name in ("standing", "over", ".making-x", ".tmp-old-y-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / DELIVERY_FILE).write_bytes(DATA)
    (tmp_path / ".tmp-z").write_bytes(DATA)
    (tmp_path / "offer.fraud").write_bytes(b"proof")
    sweep(tmp_path, {"standing"})
    assert {path.name for path in tmp_path.iterdir()} == {"standing", "offer.fraud"}
    sweep(tmp_path / "none", {"standing"})


def test_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(node.offer_folder, "write_file", full)
    with pytest.raises(QuotaError, match="write the delivery: the disk is full"):
        write_delivery(tmp_path, DATA)
    with pytest.raises(QuotaError, match="write who may buy: the disk is full"):
        write_buyers(tmp_path, [])


def test_disk_that_refuses_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(StorageError, match="make a folder for the offer"),
        workplace(tmp_path / "file"),
    ):
        pass
    with pytest.raises(StorageError, match="keep the offer"):
        settle(tmp_path / "none", tmp_path / "offer")
