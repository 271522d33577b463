"""The part of a `NodeApi` that has to do with offers, with nothing behind it."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from node.api import SCHEMA, Json
from node.errors import ErrorCode, NodeError

OFFER = "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"
OWN_OFFER = "bafkreiefh7hxa2krrmkuvkqgzmvbfmfzcjuxzkpfwmjlbcbcngrzzzbkbi"
MISSING_OFFER = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
BASE = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
SELLER = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"
RUN_OF_OFFERS = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
TERMS = "Draw what you like; do not pass it on."
STATEMENT = (
    f"proved: whoever signed this knows weights of rank <= 4 for 40 layers of checkpoint {BASE}, "
    "fixed by its commitments; not that they are good, new, or theirs"
)


def offer_row(**changes: object) -> Json:
    """An offer that this node proved."""
    row: Json = {
        "offer": OFFER,
        "cluster": 3,
        "owner": SELLER,
        "owner_name": "calm-heron-07",
        "standing": "proved",
        "why": "",
        "name": "boots",
        "base": BASE,
        "rank": 4,
        "layers": 40,
        "base_loss": 1.318,
        "adapted_loss": 0.716,
        "rows": 32,
        "terms": TERMS,
        "licence": "CC-BY-4.0",
        "scalars": 32,
        "delta_rows": 0,
        "expires_in_s": 86_400.0 * 29,
    }
    return row | changes


def own_row(**changes: object) -> Json:
    """An offer of this node."""
    row: Json = {
        "offer": OWN_OFFER,
        "cluster": 5,
        "name": "ukiyo-e",
        "terms": TERMS,
        "expires_in_s": 86_400.0 * 3,
        "withdrawn": False,
        "buyers": [],
        "told_percent": 0.348,
        "worst_layer": "transformer_blocks.0.attn1.to_q",
        "worst_percent": 0.696,
        "proofs_made": 5,
        "proofs_limit": 34,
    }
    return row | changes


RECORD: Json = {
    "alpha": 4.0,
    "targets": "attention",
    "shapes": [
        {"inputs": 64, "rank": 4, "outputs": 64, "layers": 40, "circuit": "ab" * 32, "k": 10}
    ],
    "probe": {"cid": BASE, "rows": 32, "seed": 7},
    "leaks": {"scalars": 32, "proofs": 34, "delta_rows": 0, "percent": 6.452},
    "created_at": 1_800_000_000.0,
}
VERIFIED: Json = {
    "event": "done",
    "offer": OFFER,
    "cluster": 3,
    "base": BASE,
    "layers": 40,
    "rank": 4,
    "rows": 32,
    "base_loss": 1.31,
    "predicted": -0.52,
    "captured": 0.83,
    "ratio": 0.042,
    "claimed_base": 1.318,
    "claimed_loss": 0.716,
    "scalars_left": 15,
    "leak_percent": 3.427,
}
DELTAS: Json = {
    "delta_base": 1.3,
    "delta_loss": 0.75,
    "delta_rows": 32,
    "rows_left": 4064,
    "delta_leak_percent": 51.6,
}
BOUGHT: Json = {
    "event": "done",
    "offer": OFFER,
    "folder": "/home/x/loras/boots-v6am",
    "name": "boots-v6am",
    "cluster": 3,
    "base": BASE,
    "claimed_base": 1.318,
    "claimed_loss": 0.716,
    "ratio": 0.042,
    "measured_base": 1.3175,
    "measured_loss": 0.7204,
}


@dataclass
class FakeOffers:
    """Knows one offer of somebody else's and has one of its own.

    Attributes:
        offer_rows: others' offers.
        own_rows: its own.
        offer_asked: what was asked of it about offers: (what, offer or "", request).
        offer_error: raised by whatever is asked about offers, if set.
        late_offer_error: raised after the first progress event, if set.
        bought: more fields of the last event of a purchase.
    """

    offer_rows: list[Json] = field(default_factory=lambda: [offer_row()])
    own_rows: list[Json] = field(default_factory=lambda: [own_row()])
    offer_asked: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    offer_error: Exception | None = None
    late_offer_error: Exception | None = None
    bought: Json = field(default_factory=dict)

    def offers(self) -> Json:
        self._ask("offers")
        run = RUN_OF_OFFERS
        return {"schema": SCHEMA, "run": run, "offers": self.offer_rows, "own": self.own_rows}

    async def show_offer(self, cid: str) -> Json:
        self._ask("show", cid)
        for row in (*self.offer_rows, *self.own_rows):
            if row["offer"] == cid:
                is_own = row in self.own_rows
                said = {"own": is_own, "statement": STATEMENT, **offer_row(), **row}
                is_refused = row.get("standing") == "refused"
                extra = {"statement": f"refused: {row.get('why')}"} if is_refused else RECORD
                return {"schema": SCHEMA, "run": RUN_OF_OFFERS, **said, **extra}
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"This node has not heard of an offer {cid}.",
            "paris-node lora list",
        )

    async def make_offer(self, request: Mapping[str, object]) -> AsyncGenerator[Json]:
        self._ask("make", request=request)
        yield {"event": "progress", "phase": "measured", "done": 1, "total": 1}
        self._fail_late()
        for done in (1, 40):
            yield {"event": "progress", "phase": "proved", "done": done, "total": 40}
        yield {
            "event": "done",
            "offer": OWN_OFFER,
            "cluster": 5,
            "base": BASE,
            "layers": 40,
            "base_loss": 1.318,
            "adapted_loss": 0.717,
            "float_loss": 0.716,
            "expires_at": 1_800_000_000.0,
        }

    async def verify_offer(self, cid: str, request: Mapping[str, object]) -> AsyncGenerator[Json]:
        self._ask("verify", cid, request)
        yield {"event": "progress", "phase": "proofs", "done": 40, "total": 40}
        self._fail_late()
        yield {"event": "progress", "phase": "probe", "done": 40, "total": 40}
        yield VERIFIED | (DELTAS if request["delta_draws"] else {})

    async def buy_offer(self, cid: str, request: Mapping[str, object]) -> AsyncGenerator[Json]:
        self._ask("buy", cid, request)
        yield {"event": "progress", "phase": "proofs", "done": 40, "total": 40}
        self._fail_late()
        yield {"event": "progress", "phase": "delivered", "done": 1, "total": 1}
        yield BOUGHT | self.bought

    def withdraw_offer(self, cid: str) -> Json:
        self._ask("withdraw", cid)
        if all(row["offer"] != cid for row in self.own_rows):
            raise NodeError(ErrorCode.NOT_FOUND, f"{cid} is no offer of this node.")
        return {"schema": SCHEMA, "offer": cid, "withdrawn": True}

    def _ask(self, what: str, cid: str = "", request: Mapping[str, object] | None = None) -> None:
        self.offer_asked.append((what, cid, request or {}))
        if self.offer_error is not None:
            raise self.offer_error

    def _fail_late(self) -> None:
        if self.late_offer_error is not None:
            raise self.late_offer_error
