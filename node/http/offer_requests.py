"""What a request about offers asks for, checked: bytes and strings in, plain values out. Pure."""

from typing import Final

from node.api import Json
from node.http.fields import (
    REQUIRED,
    Fields,
    is_number,
    is_peer,
    is_whole,
    parse_fields,
    parse_object,
    usage,
)
from node.http.requests import MAX_LORA_ID_CHARS
from p2p import limits
from p2p.errors import DecodeError
from p2p.ids import parse_blob_id

LEAST_DAYS: Final = 0.01
"""A quarter of an hour: by then its proofs are made and others have heard of it."""
MOST_DAYS: Final = limits.MAX_OFFER_LIFETIME_S / 86_400
MAX_BUYERS: Final = 64
MAX_DELTA_DRAWS: Final = 64
"""A draw costs hundreds of rows of each layer, and each layer waits for the one before it."""
MAX_PATH_CHARS: Final = 4096


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAX_LORA_ID_CHARS


def _is_terms(value: object) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    return len(value) <= limits.MAX_TERMS_LENGTH and value.isprintable()


def _are_buyers(value: object) -> bool:
    if not isinstance(value, list) or len(value) > MAX_BUYERS:
        return False
    return all(map(is_peer, value)) and len(set(value)) == len(value)


def _is_cid(value: object) -> bool:
    try:
        return bool(parse_blob_id(value))
    except DecodeError:
        return False


def _is_folder(value: object) -> bool:
    """Whether it is an absolute path in form; what lies there is for whoever opens it."""
    if not isinstance(value, str) or not value.startswith("/") or len(value) > MAX_PATH_CHARS:
        return False
    return value.isprintable()


_OFFER: Final[Fields] = {
    "lora": (_is_name, f"a name of 1 to {MAX_LORA_ID_CHARS} characters", REQUIRED),
    "terms": (
        _is_terms,
        f"1 to {limits.MAX_TERMS_LENGTH} printable characters on one line",
        REQUIRED,
    ),
    "scalars": (
        is_whole(limits.OFFER_PROOF_SCALARS, limits.MAX_SCALARS_PER_MODULE),
        f"{limits.OFFER_PROOF_SCALARS} to {limits.MAX_SCALARS_PER_MODULE}",
        limits.MAX_SCALARS_PER_MODULE,
    ),
    "delta_rows": (
        is_whole(0, limits.MAX_DELTA_ROWS),
        f"a whole number from 0 to {limits.MAX_DELTA_ROWS}",
        0,
    ),
    "days": (is_number(LEAST_DAYS, MOST_DAYS), f"{LEAST_DAYS:g} to {MOST_DAYS:g}", 30),
    "buyers": (_are_buyers, f"a list of at most {MAX_BUYERS} peer ids, each once", ()),
}
_BASE: Final[Fields] = {"base": (_is_cid, "a checkpoint's CID, 'bafkrei...'", None)}
_LOOK: Final[Fields] = {
    **_BASE,
    "probe": (_is_folder, "the absolute path of a probe's folder on this machine", None),
    "pairs": (is_whole(1, limits.MAX_PROBE_PAIRS), f"1 to {limits.MAX_PROBE_PAIRS}", 1),
    "delta_draws": (
        is_whole(0, MAX_DELTA_DRAWS),
        f"a whole number from 0 to {MAX_DELTA_DRAWS}",
        0,
    ),
}


def parse_offer(body: bytes) -> Json:
    """The request of `NodeApi.make_offer`, every field present.

    Raises:
        NodeError: `USAGE` naming the field, what was got and what is expected.
    """
    parsed = parse_fields(parse_object(body), _OFFER)
    return {**parsed, "buyers": list(parsed["buyers"])}


def parse_look(body: bytes) -> Json:
    """The request of `NodeApi.verify_offer`: every field present; base and probe None if unsaid.

    Raises:
        NodeError: as `parse_offer`.
    """
    return parse_fields(parse_object(body), _LOOK)


def parse_purchase(body: bytes) -> Json:
    """The request of `NodeApi.buy_offer`: {base}, None if unsaid.

    Raises:
        NodeError: as `parse_offer`.
    """
    return parse_fields(parse_object(body), _BASE)


def parse_offer_id(text: str) -> str:
    """The offer's CID in a path.

    Raises:
        NodeError: `USAGE` if it is none.
    """
    try:
        return parse_blob_id(text)
    except DecodeError as error:
        raise usage(f"{error}.", "see the offers with: paris-node lora list") from error
