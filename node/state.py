"""What a node must remember over a restart: its run, fencing epochs, peers, and what it published.

One SQLite file per home, written in autocommit with `synchronous=FULL`: an epoch that was seen is
never forgotten, or a paused owner could be believed. Statements are small enough for the event
loop (tens of microseconds); nothing here waits for the network.
"""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.database import execute, open_database
from node.errors import ErrorCode, NodeError
from node.lora_state import LORA_SCHEMA, LoraState
from p2p.ids import BlobId, ClusterId, PeerId, RunId

_FIRST_SCHEMA: Final = """
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
"""
_STEPS: Final = (_FIRST_SCHEMA, LORA_SCHEMA)
SCHEMA_VERSION: Final = len(_STEPS)
_MAX_PEERS: Final = 200


@dataclass(frozen=True, slots=True)
class Published:
    """The newest checkpoint of a cluster that this node made known, as owner or as an orphan."""

    cluster: ClusterId
    epoch: int
    step: int
    samples: int
    manifest: BlobId
    size: int
    loss: float
    is_orphan: bool
    published_at: float
    """Seconds since the epoch; renewed adverts keep it, so that fences can judge them."""


class State:
    """The node's memory on disk; see the module's docstring.

    Every method raises `StorageError` if the disk refuses.

    Attributes:
        loras: the tables of LoRA offers.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self.loras = LoraState(connection)

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        return execute(self._db, statement, values)

    def run(self) -> RunId | None:
        """The run this home belongs to, if it ever joined one."""
        row = self._execute("SELECT value FROM meta WHERE key = 'run'").fetchone()
        return RunId(row[0]) if row else None

    def check_run(self, run: RunId) -> None:
        """Refuse a run if the home belongs to another.

        Raises:
            NodeError: if the home already belongs to another.
        """
        bound = self.run()
        if bound is not None and bound != run:
            raise NodeError(
                ErrorCode.REFUSED,
                f"this home already belongs to run {bound}, not {run}",
                "use another home for the other run: paris-node --home DIR start --run ...",
            )

    def bind_run(self, run: RunId) -> None:
        """Remember the run for good: a node joins exactly one per home.

        Raises:
            NodeError: if the home already belongs to another.
        """
        self.check_run(run)
        self._execute("INSERT OR IGNORE INTO meta VALUES ('run', ?)", (run,))

    def highest_epoch(self, run: RunId, cluster: ClusterId) -> int:
        """Highest fencing epoch ever seen for a cluster; 0 if none."""
        row = self._execute(
            "SELECT epoch FROM epochs WHERE run = ? AND cluster = ?", (run, cluster)
        ).fetchone()
        return int(row[0]) if row else 0

    def raise_epoch(self, run: RunId, cluster: ClusterId, epoch: int) -> None:
        """Remember `epoch` if it is higher than what is remembered; never goes back."""
        self._execute(
            "INSERT INTO epochs VALUES (?, ?, ?, NULL, NULL) ON CONFLICT (run, cluster) "
            "DO UPDATE SET epoch = excluded.epoch, owner = NULL, taken_at = NULL "
            "WHERE excluded.epoch > epoch",
            (run, cluster, epoch),
        )

    def granted(self, run: RunId, cluster: ClusterId) -> tuple[int, PeerId | None, float]:
        """Highest epoch seen granted, to whom, and when it began; 0, None, infinity if never."""
        row = self._execute(
            "SELECT epoch, owner, taken_at FROM epochs WHERE run = ? AND cluster = ?",
            (run, cluster),
        ).fetchone()
        if row is None:
            return 0, None, math.inf
        owner = PeerId(row[1]) if row[1] is not None else None
        return int(row[0]), owner, math.inf if row[2] is None else row[2]

    def save_grant(
        self, run: RunId, cluster: ClusterId, epoch: int, owner: PeerId | None, taken_at: float
    ) -> None:
        """Remember whose an epoch is and when it began; an older epoch changes nothing."""
        self._execute(
            "INSERT INTO epochs VALUES (?, ?, ?, ?, ?) ON CONFLICT (run, cluster) DO UPDATE SET "
            "epoch = excluded.epoch, owner = excluded.owner, taken_at = excluded.taken_at "
            "WHERE excluded.epoch >= epoch",
            (run, cluster, epoch, owner, None if math.isinf(taken_at) else taken_at),
        )

    def remember_peer(self, peer: PeerId, address: str, now: float) -> None:
        """Keep an address that worked, for the next start; the oldest beyond 200 are forgotten."""
        self._execute("INSERT OR REPLACE INTO peers VALUES (?, ?, ?)", (peer, address, now))
        self._execute(
            "DELETE FROM peers WHERE peer NOT IN "
            "(SELECT peer FROM peers ORDER BY last_seen DESC LIMIT ?)",
            (_MAX_PEERS,),
        )

    def known_addresses(self) -> tuple[str, ...]:
        """Addresses that worked, the freshest first."""
        rows = self._execute("SELECT address FROM peers ORDER BY last_seen DESC").fetchall()
        return tuple(row[0] for row in rows)

    def save_published(self, run: RunId, item: Published) -> None:
        """Remember the newest checkpoint published for a cluster.

        An orphan is kept beside what was published as the owner: it must not take its place.
        """
        self._execute(
            "INSERT OR REPLACE INTO published VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(run, item.cluster, item.epoch, item.step, item.samples, item.manifest),
                *(item.size, item.loss, int(item.is_orphan), item.published_at),
            ),
        )

    def published(self, run: RunId) -> tuple[Published, ...]:
        """Everything this node published for a run: at most an owner's and an orphan a cluster."""
        rows = self._execute(
            "SELECT cluster, epoch, step, samples, manifest, size, loss, is_orphan, published_at "
            "FROM published WHERE run = ? ORDER BY cluster, is_orphan",
            (run,),
        )
        return tuple(
            Published(
                cluster=ClusterId(row[0]),
                epoch=row[1],
                step=row[2],
                samples=row[3],
                manifest=BlobId(row[4]),
                size=row[5],
                loss=row[6],
                is_orphan=bool(row[7]),
                published_at=row[8],
            )
            for row in rows
        )

    def save_summary(self, run: RunId, cluster: ClusterId, epoch: int, root: BlobId) -> None:
        """Remember the routing summary published for a cluster."""
        self._execute(
            "INSERT OR REPLACE INTO summaries VALUES (?, ?, ?, ?)", (run, cluster, epoch, root)
        )

    def summaries(self, run: RunId) -> tuple[tuple[ClusterId, int, BlobId], ...]:
        """(cluster, epoch, summary) of everything summarised here."""
        rows = self._execute(
            "SELECT cluster, epoch, root FROM summaries WHERE run = ? ORDER BY cluster", (run,)
        )
        return tuple((ClusterId(row[0]), row[1], BlobId(row[2])) for row in rows)


@contextmanager
def open_state(path: Path) -> Iterator[State]:
    """Open, or make, a home's database; one of an older version is brought up to date.

    Raises:
        NodeError: if the file is not ours, is damaged, or was written by a newer version.
    """
    with open_database(path, _STEPS) as connection:
        yield State(connection)
