"""Offers as the API tells of them: rows of plain values, and what is shown in words. Pure.

The words say no more than the statement does: knowing weights is not having made them, and small
numbers are not good pictures.
"""

from collections import Counter
from collections.abc import Mapping, Set
from typing import Final

from node.api import Json
from node.lora_budget import Leak, ModuleSize, adapter_leak
from node.lora_convert import shape_of
from node.lora_rows import OfferStanding, OwnOffer, SeenOffer
from p2p.ids import BlobId, PeerId
from p2p.lora_records import LoraOffer
from verification.circuit import circuit_of

_SUMMARY: Final = (
    *("name", "base", "rank", "layers", "base_loss", "adapted_loss", "rows", "terms", "licence"),
    *("scalars", "delta_rows"),
)
_MEASURED: Final = ("measured_base", "measured_loss", "folder")
_PERCENT_DIGITS: Final = 3


def seen_row(seen: SeenOffer, *, owner_name: str | None, now: float) -> Json:
    """Somebody else's offer, as far as this node looked into it."""
    row: Json = {
        "offer": seen.offer,
        "cluster": seen.cluster,
        "owner": seen.owner,
        "owner_name": owner_name,
        "standing": seen.standing.value,
        "why": seen.why,
        **{name: seen.facts.get(name) for name in _SUMMARY},
        "expires_in_s": round(seen.expires_at - now, 1),
    }
    return row | {name: seen.facts[name] for name in _MEASURED if name in seen.facts}


def own_row(
    own: OwnOffer,
    record: LoraOffer,
    leaks: Mapping[str, Leak],
    buyers: Set[PeerId],
    *,
    now: float,
) -> Json:
    """An offer of this node, and how much of its adapter all answers have told.

    Args:
        own: the offer.
        record: as it was signed.
        leaks: of its adapter, by layer.
        buyers: who may buy; empty for whoever signs the terms.
        now: seconds since the epoch.
    """
    told = adapter_leak(sizes_of(record), leaks)
    return {
        "offer": own.offer,
        "cluster": own.cluster,
        "name": record.name,
        "terms": record.terms,
        "expires_in_s": round(own.expires_at - now, 1),
        "withdrawn": own.is_withdrawn,
        "buyers": sorted(buyers),
        "told_percent": round(told.percent, _PERCENT_DIGITS),
        "worst_layer": told.worst,
        "worst_percent": round(told.worst_percent, _PERCENT_DIGITS),
        "proofs_made": max((leak.proofs for leak in leaks.values()), default=0),
        "proofs_limit": record.leaks.proofs,
    }


def record_row(record: LoraOffer) -> Json:
    """What an offer's signed record says beyond its row.

    Raises:
        StatementError: a shape that no circuit fits.
    """
    shapes = Counter(shape_of(record, module) for module in record.modules)
    names = {shape_of(record, module): module.circuit for module in record.modules}
    most = Leak(record.leaks.scalars, record.leaks.delta_rows)
    sizes = sizes_of(record)
    return {
        "name": record.name,
        "base": record.base,
        "rank": record.rank,
        "alpha": record.alpha,
        "targets": record.targets,
        "layers": len(record.modules),
        "base_loss": record.claims.base_loss,
        "adapted_loss": record.claims.adapted_loss,
        "rows": record.claims.rows,
        "terms": record.terms,
        "licence": record.licence,
        "shapes": [
            {
                "inputs": shape.inputs,
                "rank": shape.rank,
                "outputs": shape.outputs,
                "layers": count,
                "circuit": names[shape],
                "k": circuit_of(shape).logrows,
            }
            for shape, count in sorted(shapes.items())
        ],
        "probe": {
            "cid": record.claims.probe,
            "rows": record.claims.rows,
            "seed": record.claims.seed,
        },
        "leaks": {
            "scalars": record.leaks.scalars,
            "proofs": record.leaks.proofs,
            "delta_rows": record.leaks.delta_rows,
            "percent": round(
                adapter_leak(sizes, dict.fromkeys(sizes, most)).percent, _PERCENT_DIGITS
            ),
        },
        "created_at": record.created_at,
    }


def sizes_of(record: LoraOffer) -> dict[str, ModuleSize]:
    """An offer's layers, by name."""
    return {
        module.name: ModuleSize(module.inputs, record.rank, module.outputs)
        for module in record.modules
    }


def statement_in_words(seen: SeenOffer, record: LoraOffer | None) -> str:
    """How far somebody else's offer was looked into, and what that does not show.

    Args:
        seen: what this node found out.
        record: as it was signed; None for a refused one.
    """
    if record is None or seen.standing is OfferStanding.REFUSED:
        return f"refused: {seen.why or 'it is not what it says'}"
    if seen.standing is OfferStanding.CLAIMED:
        return (
            "claimed: its owner signed it and its form is right; that anybody has such weights is "
            "not shown" + (f" ({seen.why})" if seen.why else "")
        )
    knows = knowledge_in_words(record)
    if seen.standing is OfferStanding.PROVED:
        return f"proved: whoever signed this {knows}"
    found = seen.facts
    worse = f", which is worse: {seen.why}" if seen.why else ""
    return (
        "measured: it was bought here, and is what its commitments fix; the probe's loss is "
        f"{_loss(found.get('measured_base'))} without it and {_loss(found.get('measured_loss'))} "
        f"with it; claimed was {_loss(record.claims.adapted_loss)}{worse}"
    )


def own_in_words(record: LoraOffer) -> str:
    """What an own offer lets everybody check."""
    return f"yours: anybody can check that whoever signed this {knowledge_in_words(record)}"


def knowledge_in_words(record: LoraOffer) -> str:
    """What an offer's proofs show, and what they do not."""
    count = len(record.modules)
    layers = "1 layer" if count == 1 else f"{count} layers"
    return (
        f"knows weights of rank <= {record.rank} for {layers} of checkpoint "
        f"{BlobId(record.base)}, fixed by its commitments; not that they are good, new, or theirs"
    )


def _loss(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "not known"
