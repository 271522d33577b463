"""The database file: private, brought up to date whole or not at all, and never taken down."""

import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from node import database
from node.database import execute, open_database, transaction
from node.errors import ErrorCode, NodeError
from p2p.errors import StorageError

ONE = "CREATE TABLE one (a TEXT) STRICT;"
TWO = "CREATE TABLE two (a TEXT) STRICT; CREATE TABLE two_more (a TEXT) STRICT;"
BROKEN = "CREATE TABLE two (a TEXT) STRICT; CREATE TABLE one (a TEXT) STRICT;"


def tables(path: Path) -> tuple[int, list[str]]:
    """Version and tables, as a stranger to this package reads them."""
    connection = sqlite3.connect(path)
    try:
        names = connection.execute("SELECT name FROM sqlite_schema ORDER BY name").fetchall()
        return connection.execute("PRAGMA user_version").fetchone()[0], [name for (name,) in names]
    finally:
        connection.close()


def test_database_goes_through_every_step_it_has_not_had(tmp_path: Path) -> None:
    for steps in ((ONE,), (ONE,), (ONE, TWO), (ONE, TWO)):
        with open_database(tmp_path / "x.db", steps):
            assert tables(tmp_path / "x.db")[0] == len(steps)
    assert tables(tmp_path / "x.db") == (2, ["one", "two", "two_more"])


def test_step_that_fails_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    with open_database(tmp_path / "x.db", (ONE,)):
        pass
    with (
        pytest.raises(NodeError, match="already exists"),
        open_database(tmp_path / "x.db", (ONE, BROKEN)),
    ):
        pass
    assert tables(tmp_path / "x.db") == (1, ["one"])


KILLED = """
import os, sqlite3, sys
from pathlib import Path
from node import database
def kill(statement):
    if "two_more" in statement:
        os._exit(9)
connect = sqlite3.connect
def connect_watched(*args, **options):
    connection = connect(*args, **options)
    connection.set_trace_callback(kill)
    return connection
sqlite3.connect = connect_watched
with database.open_database(Path(sys.argv[1]), sys.argv[2:]):
    pass
"""


@pytest.mark.slow
def test_process_killed_between_two_statements_of_a_step_leaves_none_of_it(tmp_path: Path) -> None:
    with open_database(tmp_path / "x.db", (ONE,)):
        pass
    command = [sys.executable, "-c", KILLED, str(tmp_path / "x.db"), ONE, TWO]
    assert subprocess.run(command, check=False, cwd=Path(__file__).parents[2]).returncode == 9
    assert tables(tmp_path / "x.db") == (1, ["one"])
    with open_database(tmp_path / "x.db", (ONE, TWO)):
        assert tables(tmp_path / "x.db")[0] == 2


def test_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    with open_database(tmp_path / "x.db", (ONE, TWO)):
        pass
    with (
        pytest.raises(NodeError, match="schema 2") as caught,
        open_database(tmp_path / "x.db", (ONE,)),
    ):
        pass
    assert caught.value.code is ErrorCode.REFUSED
    assert tables(tmp_path / "x.db")[0] == 2


def test_many_that_open_an_old_database_at_once_all_have_it(tmp_path: Path) -> None:
    with open_database(tmp_path / "x.db", (ONE,)):
        pass
    errors: list[BaseException] = []
    together = threading.Barrier(4)

    def open_it() -> None:
        together.wait()
        try:
            with open_database(tmp_path / "x.db", (ONE, TWO)):
                pass
        except NodeError as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert tables(tmp_path / "x.db") == (2, ["one", "two", "two_more"])


@pytest.mark.parametrize("before", [None, 0o644, 0o660])
def test_nobody_else_may_read_it(tmp_path: Path, before: int | None) -> None:
    path = tmp_path / "x.db"
    if before is not None:
        path.touch()
        path.chmod(before)
    with open_database(path, (ONE,)) as connection:
        execute(connection, "INSERT INTO one VALUES ('a')")
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("x.db", "x.db-shm", "x.db-wal"), 0o600)


def test_new_file_is_private_from_its_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_close_to_others", lambda path: None)
    with open_database(tmp_path / "x.db", (ONE,)):
        assert stat.S_IMODE((tmp_path / "x.db").stat().st_mode) == 0o600


def test_newer_version_that_came_in_between_is_not_set_back(tmp_path: Path) -> None:
    """Another process upgraded the file after this one had looked at it."""
    with open_database(tmp_path / "x.db", (ONE, TWO)) as connection:
        database._upgrade(connection, (ONE,))
        assert tables(tmp_path / "x.db")[0] == 2


def test_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(NodeError, match="No such file") as caught,
        open_database(tmp_path / "none" / "x.db", (ONE,)),
    ):
        pass
    assert caught.value.code is ErrorCode.FAILED


def test_transaction_is_whole_or_not_at_all(tmp_path: Path) -> None:
    with open_database(tmp_path / "x.db", (ONE,)) as connection:
        with transaction(connection):
            execute(connection, "INSERT INTO one VALUES ('kept')")

        def write_half() -> None:
            with transaction(connection):
                execute(connection, "INSERT INTO one VALUES ('lost')")
                execute(connection, "INSERT INTO nowhere VALUES ('lost')")

        with pytest.raises(StorageError, match="nowhere"):
            write_half()
        assert execute(connection, "SELECT a FROM one").fetchall() == [("kept",)]
        assert not connection.in_transaction


def test_transaction_waits_for_nobody_longer_than_it_may(tmp_path: Path) -> None:
    with (
        open_database(tmp_path / "x.db", (ONE,)) as mine,
        open_database(tmp_path / "x.db", (ONE,)) as theirs,
    ):
        mine.execute("PRAGMA busy_timeout = 10")
        with transaction(theirs):
            with pytest.raises(StorageError, match="locked"), transaction(mine):
                pass
            assert not mine.in_transaction
