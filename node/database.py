"""The node's SQLite file: private, in the form of this version, written whole or not at all."""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from node.errors import ErrorCode, NodeError
from p2p.errors import StorageError

_OTHERS_MAY: Final = 0o077


@contextmanager
def open_database(path: Path, steps: Sequence[str]) -> Iterator[sqlite3.Connection]:
    """Open, or make, a database in autocommit; one of an older version is brought up to date.

    Args:
        path: the file; its folder must exist.
        steps: statements that lead from each version to the next one; version 0 is an empty file.

    Raises:
        NodeError: if the file is not ours, is damaged, or was written by a newer version.
    """
    _make_private(path)
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            _prepare(connection, path, steps)
            yield connection
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise _unusable(path, error) from error


def execute(
    connection: sqlite3.Connection, statement: str, values: tuple[object, ...] = ()
) -> sqlite3.Cursor:
    """Run one statement.

    Raises:
        StorageError: the disk refuses, or another process holds the database for too long.
    """
    try:
        return connection.execute(statement, values)
    except sqlite3.OperationalError as error:
        raise StorageError(f"the node's database can't be written: {error}") from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is written in the block or, if it fails, nothing; nobody writes in between.

    The write lock is taken at the start: what the block reads is still so when it writes.

    Raises:
        StorageError: as `execute`.
    """
    execute(connection, "BEGIN IMMEDIATE")
    try:
        yield
        execute(connection, "COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk rolls back by itself
            connection.execute("ROLLBACK")
        raise


def _make_private(path: Path) -> None:
    """Make the file if it is not there, and let nobody else read it; SQLite's own files follow it.

    A file that is there is not opened: closing it would drop this process's locks on it.
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            with contextlib.suppress(FileNotFoundError):
                _close_to_others(path.with_name(name))
    except OSError as error:
        raise _unusable(path, error) from error


def _close_to_others(path: Path) -> None:
    mode = path.stat().st_mode
    if mode & _OTHERS_MAY:  # made before there were secrets in it
        path.chmod(stat.S_IMODE(mode) & ~_OTHERS_MAY)


def _prepare(connection: sqlite3.Connection, path: Path, steps: Sequence[str]) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    version = _version(connection)
    if not 0 <= version <= len(steps):
        raise NodeError(
            ErrorCode.REFUSED,
            f"{path} has schema {version}; this version of paris-node reads {len(steps)}",
            "update paris-node, or use another home",
        )
    if version < len(steps):
        try:
            _upgrade(connection, steps)
        except StorageError as error:
            raise _unusable(path, error) from error


def _upgrade(connection: sqlite3.Connection, steps: Sequence[str]) -> None:
    """Bring the file to this version in one transaction: a power cut leaves it as it was."""
    with transaction(connection):
        version = _version(connection)
        if version >= len(steps):  # another process was faster
            return
        for statement in "".join(steps[version:]).split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(steps)}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _unusable(path: Path, error: Exception) -> NodeError:
    return NodeError(
        ErrorCode.FAILED,
        f"the node's database {path} can't be used: {error}",
        "move it away and start again; epochs are learned anew, but what LoRAs offered here gave "
        f"away is forgotten: mv {path} {path}.bad",
    )
