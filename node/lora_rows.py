"""Rows of the LoRA tables as values: an offer of this node's, and one of somebody else's."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from p2p.ids import BlobId, ClusterId, PeerId, RunId


class OfferStanding(StrEnum):
    """How far somebody else's offer was looked into."""

    CLAIMED = "claimed"
    """It says so, and its form is right."""
    PROVED = "proved"
    """Its proofs hold: somebody knows an adapter of this shape behind its commitments."""
    MEASURED = "measured"
    """It was bought, is what was committed to, and does what it claims."""
    REFUSED = "refused"
    """It is not what it says."""


@dataclass(frozen=True, slots=True)
class OwnOffer:
    """An offer of this node.

    Attributes:
        offer: CID of the sealed offer.
        run: whose expert it is for.
        cluster: likewise.
        adapter: sha256 of its weights: what budgets are counted by.
        folder: of the adapter.
        proofs: root of the folder of its proofs.
        created_at: seconds since the epoch.
        expires_at: likewise.
        is_withdrawn: no longer advertised nor answered for.
    """

    offer: BlobId
    run: RunId
    cluster: ClusterId
    adapter: str
    folder: str
    proofs: BlobId
    created_at: float
    expires_at: float
    is_withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class SeenOffer:
    """Somebody else's offer, and what this node found out about it.

    Attributes:
        offer: CID of the sealed offer.
        run: whose expert it is for.
        cluster: likewise.
        owner: who signed it.
        proofs: root of the folder of its proofs.
        standing: how far it was looked into.
        why: of a refusal, or what is still open; for a person.
        facts: what was found out, as JSON keeps it.
        expires_at: of the offer, seconds since the epoch.
        updated_at: of this entry, likewise.
    """

    offer: BlobId
    run: RunId
    cluster: ClusterId
    owner: PeerId
    proofs: BlobId
    standing: OfferStanding
    why: str
    facts: Mapping[str, object]
    expires_at: float
    updated_at: float


def own_offer_of(row: tuple[str, str, int, str, str, str, float, float, int]) -> OwnOffer:
    """The columns of `own_offers`, in their order."""
    return OwnOffer(
        offer=BlobId(row[0]),
        run=RunId(row[1]),
        cluster=ClusterId(row[2]),
        adapter=row[3],
        folder=row[4],
        proofs=BlobId(row[5]),
        created_at=row[6],
        expires_at=row[7],
        is_withdrawn=bool(row[8]),
    )


def seen_offer_of(row: tuple[str, str, int, str, str, str, str, str, float, float]) -> SeenOffer:
    """The columns of `seen_offers`, in their order."""
    return SeenOffer(
        offer=BlobId(row[0]),
        run=RunId(row[1]),
        cluster=ClusterId(row[2]),
        owner=PeerId(row[3]),
        proofs=BlobId(row[4]),
        standing=OfferStanding(row[5]),
        why=row[6],
        facts=_facts_of(row[7]),
        expires_at=row[8],
        updated_at=row[9],
    )


def _facts_of(text: str) -> Mapping[str, object]:
    """What was found out; nothing if the text is damaged: it can be found out again."""
    try:
        facts = json.loads(text)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}
