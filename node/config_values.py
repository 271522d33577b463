"""Parsers of single settings: a TOML value or a string in, the checked value out.

Each raises `ValueError` whose message is what was *expected*; the caller adds what was got, and
where. Multiaddrs are checked by their grammar only, without loading a network stack.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from p2p.errors import DecodeError
from p2p.ids import parse_blob_id, parse_peer_id

NAME_MAX_LENGTH: Final = 40
"""A pet name stands in records and on one line of a terminal."""
MAX_ADDRESSES: Final = 32
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})
_UNITS: Final = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SIZE: Final = re.compile(r"(\d{1,18})(?:\.(\d{1,3}))?\s*([a-z]{0,3})", re.ASCII)
_DNS_NAME: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\Z")
_DEVICE: Final = re.compile(r"auto|cpu|mps|cuda(:\d{1,2})?")


def boolean(raw: object) -> bool:
    """True or false, or a word for it."""
    if isinstance(raw, bool):
        return raw
    word = raw.strip().lower() if isinstance(raw, str) else ""
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError("true or false")


def whole_number(low: int, high: int) -> Callable[[object], int]:
    """A parser of whole numbers in [low, high]."""

    def parse(raw: object) -> int:
        value = raw
        if isinstance(raw, str) and re.fullmatch(r"-?\d{1,18}", raw.strip(), re.ASCII):
            value = int(raw)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return parse


def byte_count(raw: object) -> int:
    """A number of bytes: 1000000, "500 MB", "20GiB"."""
    expected = 'bytes, at least 1 MB: 20000000000, "20 GB" or "20GiB"'
    match = _SIZE.fullmatch(raw.strip().lower()) if isinstance(raw, str) else None
    value = raw
    if match and match[3] in _UNITS:
        thousandths = int(match[1]) * 1000 + int((match[2] or "").ljust(3, "0"))
        value = thousandths * _UNITS[match[3]] // 1000
    if type(value) is not int or not 10**6 <= value < 2**63:
        raise ValueError(expected)
    return value


def choice(*words: str) -> Callable[[object], str]:
    """A parser of one word out of `words`."""

    def parse(raw: object) -> str:
        if isinstance(raw, str) and raw.strip().lower() in words:
            return raw.strip().lower()
        raise ValueError(f"one of {', '.join(words)}")

    return parse


def device(raw: object) -> str:
    """A torch device, by name."""
    if isinstance(raw, str) and _DEVICE.fullmatch(raw.strip().lower()):
        return raw.strip().lower()
    raise ValueError("auto, cpu, cuda, cuda:N or mps")


def folder(raw: object) -> str:
    """The path of a folder, which need not exist yet."""
    if not isinstance(raw, str) or not raw.strip() or "\0" in raw:
        raise ValueError("the path of a folder")
    try:
        return str(Path(raw).expanduser().absolute())
    except RuntimeError as error:  # ~nobody
        raise ValueError("the path of a folder; no such user") from error


def gpu_count(raw: object) -> str:
    """How many GPUs train one cluster: a number, or "auto" for all there are."""
    word = raw.strip().lower() if isinstance(raw, str) else raw
    if word == "auto":
        return "auto"
    try:
        return str(whole_number(1, 64)(word))
    except ValueError as error:
        raise ValueError("auto, or a whole number from 1 to 64") from error


def pet_name(raw: object) -> str:
    """A short printable name; empty lets the node derive one from its key."""
    if isinstance(raw, str) and len(raw) <= NAME_MAX_LENGTH and raw.isprintable():
        return raw.strip()
    raise ValueError(f"at most {NAME_MAX_LENGTH} printable characters")


def cid(raw: object) -> str:
    """The CID of a run manifest."""
    try:
        return parse_blob_id(raw)
    except DecodeError as error:
        raise ValueError('a CID, "bafkrei..." with 59 characters') from error


def host(raw: object) -> str:
    """A loopback address: the API carries a token in the clear and must not leave the machine."""
    if raw == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(raw) if isinstance(raw, str) else None
    except ValueError:
        address = None
    if address is None or not address.is_loopback or str(address) not in ("127.0.0.1", "::1"):
        raise ValueError("127.0.0.1 or ::1 (the API is for this machine only)")
    return str(address)


def listen_addresses(raw: object) -> tuple[str, ...]:
    """Multiaddrs to listen on: /ip4/ADDRESS/tcp/PORT."""
    return tuple(_checked(text, listening=True) for text in _texts(raw))


def peer_addresses(raw: object) -> tuple[str, ...]:
    """Multiaddrs of other nodes: /ip4/ADDRESS/tcp/PORT/p2p/PEER."""
    return tuple(dict.fromkeys(_checked(text, listening=False) for text in _texts(raw)))


def _texts(raw: object) -> Sequence[str]:
    items = re.split(r"[,\s]+", raw.strip()) if isinstance(raw, str) else raw
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ValueError("a list of multiaddrs")
    if len(items) > MAX_ADDRESSES:
        raise ValueError(f"at most {MAX_ADDRESSES} multiaddrs")
    return [item for item in items if item]


def _checked(text: str, *, listening: bool) -> str:
    parts = text.split("/")
    example = "/ip4/0.0.0.0/tcp/4101" if listening else "/ip4/10.0.0.7/tcp/4101/p2p/12D3KooW..."
    problem = ValueError(f"multiaddrs like {example}")
    if len(parts) < 5 or parts[0] or parts[3] != "tcp":
        raise problem
    kind, address, port, rest = parts[1], parts[2], parts[4], parts[5:]
    if not _is_address(kind, address, listening=listening) or not _is_port(port, listening):
        raise problem
    if bool(rest) is listening or (rest and not _is_peer_suffix(rest)):
        raise problem  # a peer without its id could be anyone
    return text


def _is_address(kind: str, address: str, *, listening: bool) -> bool:
    if kind in ("ip4", "ip6"):
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return parsed.version == int(kind[2]) and (listening or not parsed.is_unspecified)
    return kind in ("dns", "dns4", "dns6") and not listening and bool(_DNS_NAME.match(address))


def _is_port(text: str, listening: bool) -> bool:
    return bool(re.fullmatch(r"\d{1,5}", text, re.ASCII)) and (
        (0 if listening else 1) <= int(text) <= 65535
    )


def _is_peer_suffix(parts: Sequence[str]) -> bool:
    """`p2p/ID`, or through a relay: `p2p/RELAY/p2p-circuit/p2p/ID`."""
    relayed = len(parts) == 5 and parts[2] == "p2p-circuit"
    if not (len(parts) == 2 or relayed) or parts[0] != "p2p" or (relayed and parts[3] != "p2p"):
        return False
    try:
        parse_peer_id(parts[1])
        parse_peer_id(parts[-1])
    except DecodeError:
        return False
    return True
