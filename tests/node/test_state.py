"""The node's memory: what was promised is still there after a restart, and never goes back."""

import sqlite3
import stat
from pathlib import Path

import pytest

from node.errors import ErrorCode, NodeError
from node.state import SCHEMA_VERSION, Published, State, open_state
from p2p.errors import StorageError
from p2p.ids import ClusterId, RunId
from tests.support.people import RUN, alice, bob, cid

CLUSTER = ClusterId(3)
OTHER_RUN = RunId(cid("another run"))


def published(step: int = 10, *, is_orphan: bool = False) -> Published:
    return Published(
        cluster=CLUSTER,
        epoch=2,
        step=step,
        samples=step * 64,
        manifest=cid(f"checkpoint {step} {is_orphan}"),
        size=1000,
        loss=0.5,
        is_orphan=is_orphan,
        published_at=1_800_000_000.0 + step,
    )


def test_epoch_survives_a_restart(tmp_path: Path) -> None:
    with open_state(tmp_path / "node.db") as state:
        state.raise_epoch(RUN, CLUSTER, 7)
    with open_state(tmp_path / "node.db") as state:
        assert state.highest_epoch(RUN, CLUSTER) == 7


def test_epoch_never_goes_back(tmp_path: Path) -> None:
    with open_state(tmp_path / "node.db") as state:
        for epoch in (5, 3, 4):
            state.raise_epoch(RUN, CLUSTER, epoch)
        assert state.highest_epoch(RUN, CLUSTER) == 5


def test_epochs_of_runs_and_clusters_are_apart(tmp_path: Path) -> None:
    with open_state(tmp_path / "node.db") as state:
        state.raise_epoch(RUN, CLUSTER, 5)
        assert state.highest_epoch(RUN, ClusterId(4)) == 0
        assert state.highest_epoch(OTHER_RUN, CLUSTER) == 0


def test_epoch_is_on_disk_before_the_call_returns(tmp_path: Path) -> None:
    with open_state(tmp_path / "node.db") as state:
        state.raise_epoch(RUN, CLUSTER, 9)
        other = sqlite3.connect(tmp_path / "node.db")  # as after a kill: nothing was closed
        try:
            assert other.execute("SELECT epoch FROM epochs").fetchall() == [(9,)]
        finally:
            other.close()


def test_home_belongs_to_one_run(tmp_path: Path) -> None:
    with open_state(tmp_path / "node.db") as state:
        state.bind_run(RUN)
        state.bind_run(RUN)
        with pytest.raises(NodeError, match="already belongs") as caught:
            state.bind_run(OTHER_RUN)
        assert caught.value.code is ErrorCode.REFUSED
        assert state.run() == RUN


def test_peers_come_back_freshest_first(tmp_path: Path) -> None:
    with open_state(tmp_path / "node.db") as state:
        state.remember_peer(alice.peer, "/a", 10.0)
        state.remember_peer(bob.peer, "/b", 20.0)
        state.remember_peer(alice.peer, "/a2", 30.0)
    with open_state(tmp_path / "node.db") as state:
        assert state.known_addresses() == ("/a2", "/b")


@pytest.mark.parametrize("count", [200, 201])
def test_two_hundred_peers_are_remembered_the_oldest_forgotten(tmp_path: Path, count: int) -> None:
    with open_state(tmp_path / "node.db") as state:
        state._db.execute("PRAGMA synchronous = OFF")
        for number in range(count):
            state.remember_peer(alice.peer[:-3] + f"{number:03d}", f"/{number}", float(number))  # type: ignore[arg-type]
        addresses = state.known_addresses()
    assert len(addresses) == 200
    assert addresses[0] == f"/{count - 1}"
    assert addresses[-1] == f"/{count - 200}"


def test_published_comes_back_as_it_was(tmp_path: Path) -> None:
    with open_state(tmp_path / "node.db") as state:
        state.save_published(RUN, published(10))
        state.save_published(RUN, published(20))
        state.save_summary(RUN, CLUSTER, 2, cid("summary"))
    with open_state(tmp_path / "node.db") as state:
        assert state.published(RUN) == (published(20),)
        assert state.published(OTHER_RUN) == ()
        assert state.summaries(RUN) == ((CLUSTER, 2, cid("summary")),)


def test_orphan_does_not_replace_what_was_published_as_the_owner(tmp_path: Path) -> None:
    with open_state(tmp_path / "node.db") as state:
        state.save_published(RUN, published(10))
        state.save_published(RUN, published(20, is_orphan=True))
        assert set(state.published(RUN)) == {published(10), published(20, is_orphan=True)}


def test_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(NodeError, match=r"node\.db") as caught, open_state(path):
        pass
    assert caught.value.code is ErrorCode.FAILED
    assert "mv " in caught.value.fix


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    with open_state(path) as state:
        state._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(NodeError, match=f"schema {SCHEMA_VERSION + 1}") as caught, open_state(path):
        pass
    assert caught.value.code is ErrorCode.REFUSED


FIRST_VERSION = """BEGIN;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE epochs (
    run TEXT NOT NULL, cluster INTEGER NOT NULL, epoch INTEGER NOT NULL,
    owner TEXT, taken_at REAL,
    PRIMARY KEY (run, cluster)
) STRICT;
CREATE TABLE peers (
    peer TEXT PRIMARY KEY, address TEXT NOT NULL, last_seen REAL NOT NULL
) STRICT;
CREATE TABLE published (
    run TEXT NOT NULL, cluster INTEGER NOT NULL, epoch INTEGER NOT NULL, step INTEGER NOT NULL,
    samples INTEGER NOT NULL, manifest TEXT NOT NULL, size INTEGER NOT NULL, loss REAL NOT NULL,
    is_orphan INTEGER NOT NULL, published_at REAL NOT NULL,
    PRIMARY KEY (run, cluster, is_orphan)
) STRICT;
CREATE TABLE summaries (
    run TEXT NOT NULL, cluster INTEGER NOT NULL, epoch INTEGER NOT NULL, root TEXT NOT NULL,
    PRIMARY KEY (run, cluster)
) STRICT;
 PRAGMA user_version = 1; COMMIT;"""
"""As the first version of this program made its databases, letter by letter."""


def make_first_version(path: Path) -> None:
    """A database of the first version with a row in each table."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(FIRST_VERSION)
    connection.execute("INSERT INTO meta VALUES ('run', ?)", (RUN,))
    connection.execute("INSERT INTO epochs VALUES (?, 3, 7, ?, 5.0)", (RUN, alice.peer))
    connection.execute("INSERT INTO peers VALUES (?, '/a', 10.0)", (bob.peer,))
    connection.execute("INSERT INTO summaries VALUES (?, 3, 2, ?)", (RUN, cid("summary")))
    row = (RUN, 3, 2, 10, 640, cid("checkpoint 10 False"), 1000, 0.5, 0, 1_800_000_010.0)
    connection.execute("INSERT INTO published VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.close()


def test_database_of_the_first_version_opens_with_all_its_rows(tmp_path: Path) -> None:
    make_first_version(tmp_path / "node.db")
    for _ in range(2):  # brought up to date, and then as any other
        with open_state(tmp_path / "node.db") as state:
            assert state.run() == RUN
            assert state.granted(RUN, CLUSTER) == (7, alice.peer, 5.0)
            assert state.known_addresses() == ("/a",)
            assert state.published(RUN) == (published(10),)
            assert state.summaries(RUN) == ((CLUSTER, 2, cid("summary")),)
            assert state.loras.own_offers(RUN) == ()
            assert state._db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_updated_database_is_the_same_as_a_new_one(tmp_path: Path) -> None:
    make_first_version(tmp_path / "old.db")
    schemas = []
    for name in ("old.db", "new.db"):
        with open_state(tmp_path / name) as state:
            rows = state._db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema")
            schemas.append(sorted(rows.fetchall(), key=str))
    assert schemas[0] == schemas[1]


def test_secrets_of_the_home_are_readable_by_its_owner_alone(tmp_path: Path) -> None:
    make_first_version(tmp_path / "node.db")
    (tmp_path / "node.db").chmod(0o644)
    with open_state(tmp_path / "node.db") as state:
        state.bind_run(RUN)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("node.db", "node.db-shm", "node.db-wal"), 0o600)


def test_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    with open_state(tmp_path / "node.db") as state:
        pages = state._db.execute("PRAGMA page_count").fetchone()[0]
        state._db.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite says on a full disk
        with pytest.raises(StorageError, match="full"):
            _fill(state)


def _fill(state: State) -> None:
    state._db.execute("PRAGMA synchronous = OFF")
    for cluster in range(5000):
        state.save_summary(RUN, ClusterId(cluster), 1, cid("summary"))
