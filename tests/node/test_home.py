import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from node.errors import ErrorCode, NodeError
from node.home import (
    API_FILE_MAX_BYTES,
    ApiFile,
    Home,
    HomeLock,
    is_locked,
    is_process_alive,
    new_token,
    platform_home,
    prepare,
    read_api_file,
    remove_api_file,
    write_api_file,
)

_HOLD = """
import sys
from pathlib import Path
from node.home import Home, HomeLock
with HomeLock(Home.at(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home.at(tmp_path / "home")
    prepare(made)
    return made


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _refusal(home: Home) -> NodeError:
    with pytest.raises(NodeError) as caught:
        prepare(home)
    return caught.value


def test_platform_home_is_three_folders() -> None:
    home = Home.at(platform_home())
    assert len({home.config, home.data, home.state}) == 3


def test_prepared_home_is_private_and_prepared_again_without_harm(home: Home) -> None:
    prepare(home)
    assert _mode(home.data) == 0o700


def test_fresh_empty_folder_is_made_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    prepare(Home.at(tmp_path))
    assert _mode(tmp_path) == 0o700


@pytest.mark.parametrize("mode", [0o701, 0o704, 0o710, 0o755])
def test_used_home_open_to_others_is_refused(home: Home, mode: int) -> None:
    home.identity_key.touch()
    home.data.chmod(mode)
    error = _refusal(home)
    assert error.code is ErrorCode.REFUSED
    assert error.fix == f"chmod 700 {home.data}"


def test_file_in_place_of_the_home_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    assert "should be a folder" in _refusal(Home.at(tmp_path / "home")).message


def test_dangling_link_in_place_of_the_home_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "home").symlink_to(tmp_path / "gone")
    assert "should be a folder" in _refusal(Home.at(tmp_path / "home")).message


@pytest.mark.parametrize(
    "name", ["config.toml", "identity.key", "node.db", "node.log", "api.json", "lock"]
)
def test_folder_in_place_of_a_file_is_named_with_a_way_out(home: Home, name: str) -> None:
    (home.data / name).mkdir()
    error = _refusal(home)
    assert error.message.endswith(f"{home.data / name} should be a file.")
    assert error.fix.startswith("move it away: mv")


@pytest.mark.parametrize("name", ["blobs", "runs"])
def test_file_in_place_of_a_folder_is_named(home: Home, name: str) -> None:
    (home.data / name).touch()
    assert f"{name} should be a folder" in _refusal(home).message


def test_home_that_cannot_be_made_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = _refusal(Home.at(tmp_path / "file" / "home"))
    assert error.code is ErrorCode.RESOURCE
    assert "--home" in error.fix


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_home_of_another_user_is_refused(home: Home) -> None:
    os.chown(home.data, 12345, -1)
    assert _refusal(home).code is ErrorCode.REFUSED


def test_second_lock_is_refused_and_names_the_holder(home: Home) -> None:
    with HomeLock(home):
        assert is_locked(home)
        with pytest.raises(NodeError) as caught, HomeLock(home):
            pass
    assert caught.value.code is ErrorCode.REFUSED
    assert f"process {os.getpid()}" in caught.value.message
    assert caught.value.code.exit_code == 7


def test_lock_can_be_taken_again_after_it_was_dropped(home: Home) -> None:
    with HomeLock(home):
        pass
    assert not is_locked(home)
    with HomeLock(home):
        assert is_locked(home)


def test_refused_lock_leaves_the_holders_in_place(home: Home) -> None:
    with HomeLock(home):
        with pytest.raises(NodeError), HomeLock(home):
            pass
        assert is_locked(home)
        assert home.lock_file.read_text().strip() == str(os.getpid())


def test_home_without_a_lock_file_is_not_locked(tmp_path: Path) -> None:
    assert not is_locked(Home.at(tmp_path))


def test_lock_that_cannot_be_opened_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(NodeError) as caught, HomeLock(Home.at(tmp_path / "none")):
        pass
    assert caught.value.code is ErrorCode.RESOURCE


@pytest.mark.slow
def test_lock_of_another_process_is_seen_and_ends_with_it(home: Home) -> None:
    command = [sys.executable, "-c", _HOLD, str(home.data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(NodeError, match=f"process {holder.pid}"), HomeLock(home):
                pass
        finally:
            holder.kill()
    with HomeLock(home):
        assert is_locked(home)


def test_api_file_comes_back_and_is_private(home: Home) -> None:
    api = ApiFile("http://127.0.0.1:4180", new_token(), os.getpid())
    write_api_file(home, api)
    assert read_api_file(home) == api
    assert _mode(home.api_file) == 0o600
    assert [path.name for path in home.state.iterdir()] == ["api.json"]


def test_api_file_is_gone_after_removal_however_often(home: Home) -> None:
    write_api_file(home, ApiFile("http://127.0.0.1:4180", "t", os.getpid()))
    remove_api_file(home)
    remove_api_file(home)
    assert read_api_file(home) is None


def test_api_file_of_a_dead_process_is_no_node(home: Home, dead_pid: int) -> None:
    write_api_file(home, ApiFile("http://127.0.0.1:4180", "t", dead_pid))
    assert read_api_file(home) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff garbage",
        b"null",
        b"[]",
        b"{}",
        b'{"url": "http://127.0.0.1:1", "token": "t"}',
        b'{"url": 1, "token": "t", "pid": 1}',
        b'{"url": "http://127.0.0.1:1", "token": "t", "pid": "1"}',
        b'{"url": "http://127.0.0.1:1", "token": "t", "pid": true}',
        b'{"url": "http://127.0.0.1:1", "token": "t", "pid": -1}',
        b'{"url": "http://127.0.0.1:1", "token": "t", "pid": 0}',
        b"[" * 4000,
    ],
)
def test_api_file_that_no_node_wrote_is_a_sentence_with_a_way_out(home: Home, raw: bytes) -> None:
    home.api_file.write_bytes(raw)
    with pytest.raises(NodeError) as caught:
        read_api_file(home)
    assert caught.value.code is ErrorCode.FAILED
    assert str(home.api_file) in caught.value.message
    assert caught.value.fix.startswith(f"rm {home.api_file}")


def test_api_file_of_the_largest_size_is_read_and_one_byte_more_is_not(home: Home) -> None:
    text = f'{{"url": "u", "token": "t", "pid": {os.getpid()}}}'
    home.api_file.write_text(text.ljust(API_FILE_MAX_BYTES))
    assert read_api_file(home) is not None
    home.api_file.write_text(text.ljust(API_FILE_MAX_BYTES + 1))
    with pytest.raises(NodeError, match="not what a node writes"):
        read_api_file(home)


def test_a_folder_in_place_of_the_api_file_is_a_sentence(home: Home) -> None:
    home.api_file.mkdir()
    with pytest.raises(NodeError, match="cannot be read"):
        read_api_file(home)


def test_failed_write_of_the_api_file_leaves_the_old_one(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = ApiFile("http://127.0.0.1:1", "old", os.getpid())
    write_api_file(home, old)

    def fail(path: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_api_file(home, ApiFile("http://127.0.0.1:2", "new", os.getpid()))
    assert read_api_file(home) == old
    assert [path.name for path in home.state.iterdir()] == ["api.json"]


def test_processes_alive_dead_and_waiting_to_be_buried_are_told_apart(dead_pid: int) -> None:
    assert is_process_alive(os.getpid())
    assert is_process_alive(1)
    assert not is_process_alive(dead_pid)
    assert not is_process_alive(2**62)
    zombie = os.fork()
    if zombie == 0:
        os._exit(0)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    assert not is_process_alive(zombie)
    os.waitpid(zombie, 0)


def test_tokens_differ_and_are_long() -> None:
    assert new_token() != new_token()
    assert len(new_token()) >= 43
