"""What a node must remember of LoRA offers: its own, what their adapters leaked, others'.

Tables of the home's database (`node.state`). What an adapter leaked outlives its offers: it does
not grow secret again. Nothing here waits for the network.
"""

import json
import sqlite3
from collections.abc import Mapping
from typing import Final

from node.database import execute, transaction
from node.lora_budget import Leak, Limits, Spend, check_spend
from node.lora_rows import OfferStanding, OwnOffer, SeenOffer, own_offer_of, seen_offer_of
from p2p.ids import BlobId, PeerId, RunId

LORA_SCHEMA: Final = """
CREATE TABLE own_offers (
    offer TEXT PRIMARY KEY, run TEXT NOT NULL, cluster INTEGER NOT NULL, adapter TEXT NOT NULL,
    folder TEXT NOT NULL, proofs TEXT NOT NULL, created_at REAL NOT NULL,
    expires_at REAL NOT NULL, withdrawn INTEGER NOT NULL
) STRICT;
CREATE TABLE leaks (
    adapter TEXT NOT NULL, module TEXT NOT NULL, scalars INTEGER NOT NULL, rows INTEGER NOT NULL,
    proofs INTEGER NOT NULL, PRIMARY KEY (adapter, module)
) STRICT;
CREATE TABLE seen_offers (
    offer TEXT PRIMARY KEY, run TEXT NOT NULL, cluster INTEGER NOT NULL, owner TEXT NOT NULL,
    proofs TEXT NOT NULL, standing TEXT NOT NULL, why TEXT NOT NULL, facts TEXT NOT NULL,
    expires_at REAL NOT NULL, updated_at REAL NOT NULL
) STRICT;
CREATE TABLE offenders (
    peer TEXT PRIMARY KEY, why TEXT NOT NULL, until REAL NOT NULL
) STRICT;
"""
MAX_SEEN: Final = 2000
"""Offers of others that are remembered; a run of 1,024 clusters has two for each."""
MAX_OFFENDERS: Final = 10_000
"""A new identity costs nothing: a list of them must not fill the disk."""

_SELECT_OWN: Final = (
    "SELECT offer, run, cluster, adapter, folder, proofs, created_at, expires_at, withdrawn "
    "FROM own_offers"
)
_SELECT_SEEN: Final = (
    "SELECT offer, run, cluster, owner, proofs, standing, why, facts, expires_at, updated_at "
    "FROM seen_offers"
)


class LoraState:
    """The LoRA tables; see the module's docstring.

    Every method raises `StorageError` if the disk refuses.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        return execute(self._db, statement, values)

    def save_own_offer(self, item: OwnOffer) -> None:
        """Remember an offer before it is told to anybody.

        Saved again it may have moved, have other proofs or live longer; withdrawn stays withdrawn.
        """
        self._execute(
            "INSERT INTO own_offers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (offer) "
            "DO UPDATE SET folder = excluded.folder, proofs = excluded.proofs, "
            "expires_at = excluded.expires_at",
            (
                *(item.offer, item.run, item.cluster, item.adapter, item.folder),
                *(item.proofs, item.created_at, item.expires_at, int(item.is_withdrawn)),
            ),
        )

    def own_offers(self, run: RunId) -> tuple[OwnOffer, ...]:
        """This node's offers for a run, the oldest first, withdrawn and expired ones too."""
        rows = self._execute(
            f"{_SELECT_OWN} WHERE run = ? ORDER BY created_at, offer",
            (run,),
        )
        return tuple(own_offer_of(row) for row in rows)

    def all_own_offers(self) -> tuple[OwnOffer, ...]:
        """This node's offers for every run of its home: their files lie in one folder."""
        return tuple(map(own_offer_of, self._execute(f"{_SELECT_OWN} ORDER BY created_at, offer")))

    def own_offer(self, offer: BlobId) -> OwnOffer | None:
        """One of this node's offers; None if it is not this node's."""
        row = self._execute(f"{_SELECT_OWN} WHERE offer = ?", (offer,)).fetchone()
        return None if row is None else own_offer_of(row)

    def withdraw(self, offer: BlobId) -> bool:
        """Stop an offer for good; says whether it ran until now."""
        changed = self._execute(
            "UPDATE own_offers SET withdrawn = 1 WHERE offer = ? AND withdrawn = 0", (offer,)
        )
        return changed.rowcount > 0

    def spend(self, adapter: str, wanted: Mapping[str, Spend], limits: Limits) -> None:
        """Count an answer on disk before it is given: for all its layers, or for none.

        Args:
            adapter: sha256 of its weights.
            wanted: by layer.
            limits: of the offer that is answered for.

        Raises:
            BudgetSpentError: a limit would be passed; nothing is spent.
        """
        with transaction(self._db):
            leaks = self.leaks(adapter)
            for module, spend in wanted.items():
                leak = check_spend(module, leaks.get(module, Leak()), spend, limits)
                self._execute(
                    "INSERT OR REPLACE INTO leaks VALUES (?, ?, ?, ?, ?)",
                    (adapter, module, leak.scalars, leak.rows, leak.proofs),
                )

    def leaks(self, adapter: str) -> Mapping[str, Leak]:
        """What was said of an adapter, by layer, in all its offers together."""
        rows = self._execute(
            "SELECT module, scalars, rows, proofs FROM leaks WHERE adapter = ? ORDER BY module",
            (adapter,),
        )
        return {module: Leak(*counts) for module, *counts in rows}

    def note_seen(self, item: SeenOffer) -> None:
        """Remember what is known of an offer, in place of what was.

        Beyond `MAX_SEEN`, those that were never proved and those refused go first, then the oldest:
        anybody can make up a thousand claims, but not proofs.
        """
        facts = json.dumps(dict(item.facts), sort_keys=True, allow_nan=False)
        with transaction(self._db):
            self._execute(
                "INSERT OR REPLACE INTO seen_offers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(item.offer, item.run, item.cluster, item.owner, item.proofs),
                    *(item.standing.value, item.why, facts, item.expires_at, item.updated_at),
                ),
            )
            self._execute(
                "DELETE FROM seen_offers WHERE offer IN (SELECT offer FROM seen_offers "
                "ORDER BY standing IN (?, ?), updated_at DESC, offer LIMIT -1 OFFSET ?)",
                (OfferStanding.CLAIMED.value, OfferStanding.REFUSED.value, MAX_SEEN),
            )

    def seen(self, offer: BlobId) -> SeenOffer | None:
        """What is known of an offer; None if it was never seen, or is forgotten."""
        row = self._execute(f"{_SELECT_SEEN} WHERE offer = ?", (offer,)).fetchone()
        return None if row is None else seen_offer_of(row)

    def seen_all(self, run: RunId) -> tuple[SeenOffer, ...]:
        """All offers seen of a run, the newest first, expired ones too."""
        rows = self._execute(
            f"{_SELECT_SEEN} WHERE run = ? ORDER BY updated_at DESC, offer",
            (run,),
        )
        return tuple(seen_offer_of(row) for row in rows)

    def forget_expired(self, now: float) -> int:
        """Drop others' offers whose time is over; how many."""
        return self._execute("DELETE FROM seen_offers WHERE expires_at <= ?", (now,)).rowcount

    def ban(self, peer: PeerId, why: str, until: float) -> None:
        """Have nothing to do with a peer's offers until then; a longer ban stays."""
        with transaction(self._db):
            self._execute(
                "INSERT INTO offenders VALUES (?, ?, ?) ON CONFLICT (peer) DO UPDATE SET "
                "why = excluded.why, until = excluded.until WHERE excluded.until > until",
                (peer, why, until),
            )
            self._execute(
                "DELETE FROM offenders WHERE peer IN (SELECT peer FROM offenders "
                "ORDER BY until DESC, peer LIMIT -1 OFFSET ?)",
                (MAX_OFFENDERS,),
            )

    def is_banned(self, peer: PeerId, now: float) -> bool:
        """Whether a peer's offers are to be left alone now."""
        row = self._execute(
            "SELECT 1 FROM offenders WHERE peer = ? AND until > ?", (peer, now)
        ).fetchone()
        return row is not None
