"""Range and text checks that several records share; see `p2p.records`."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Final

from p2p.errors import DecodeError, LimitError
from p2p.limits import MAX_CLUSTERS, MAX_EPOCH, MAX_LABEL, MAX_MANIFEST_FILES, MAX_SAMPLES

_DIGEST: Final = re.compile("[0-9a-f]{64}")


def check_token(what: str, cluster: int, epoch: int) -> None:
    """Refuse a cluster or a fencing epoch out of range: `DecodeError`."""
    if not (0 <= cluster < MAX_CLUSTERS and 1 <= epoch <= MAX_EPOCH):
        raise DecodeError(f"{what}: cluster {cluster} or epoch {epoch} is out of range")


def check_cluster(what: str, cluster: int) -> None:
    """Refuse a cluster out of range: `DecodeError`."""
    check_within(what, cluster, 0, MAX_CLUSTERS - 1)


def check_progress(what: str, step: int, samples: int) -> None:
    """Refuse a step or a sample count out of range: `DecodeError`."""
    if not (0 <= step <= MAX_SAMPLES and 0 <= samples <= MAX_SAMPLES):
        raise DecodeError(f"{what}: step {step} or samples {samples} is out of range")


def check_files(names: Sequence[str]) -> None:
    """Refuse too many file names (`LimitError`), or one twice (`DecodeError`)."""
    check_count("files", names, MAX_MANIFEST_FILES)
    if len({name.lower() for name in names}) != len(names):  # some file systems fold case
        raise DecodeError("files: two of them have one name")


def check_count(what: str, items: Sequence[object], limit: int) -> None:
    """Refuse more than `limit` items: `LimitError`."""
    if len(items) > limit:
        raise LimitError(f"{what}: got {len(items)}, the limit is {limit}")


def check_labels(*texts: str) -> None:
    """Refuse names too long (`LimitError`) or not fit to be shown (`DecodeError`)."""
    check_texts("label", texts, MAX_LABEL)


def printable(text: str, limit: int) -> str:
    """What can be shown of any text: blanks for what is not printable, cut to `limit`."""
    return "".join(char if char.isprintable() else " " for char in text)[:limit]


def check_texts(what: str, texts: Iterable[str], limit: int) -> None:
    """Check what will reach a terminal or a dialler: no control characters, bounded."""
    for text in texts:
        if len(text) > limit:
            raise LimitError(f"{what}: got {len(text)} characters, the limit is {limit}")
        if not text.isprintable():
            raise DecodeError(f"{what} {text!r}: expected printable characters only")


def check_size(what: str, data: bytes, expected: int) -> None:
    """Refuse bytes that are not exactly so many: `DecodeError`."""
    if len(data) != expected:
        raise DecodeError(f"{what}: got {len(data)} bytes, expected {expected}")


def check_filled(what: str, data: bytes, limit: int) -> None:
    """Refuse no bytes at all (`DecodeError`), or more than `limit` (`LimitError`)."""
    if not data:
        raise DecodeError(f"{what}: expected bytes, got none")
    check_count(what, data, limit)


def check_digest(what: str, text: str) -> None:
    """Refuse what is not a sha2-256 digest as 64 small hexadecimal digits: `DecodeError`."""
    if _DIGEST.fullmatch(text) is None:
        raise DecodeError(f"{what}: got {text[:70]!r}, expected 64 hexadecimal digits")


def check_within(what: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high], and NaN: `DecodeError`."""
    if not low <= value <= high:
        raise DecodeError(f"{what}: got {value}, expected {low} to {high}")


def check_finite(what: str, value: float) -> None:
    """Refuse a loss or a moment that is negative, infinite or NaN: `DecodeError`."""
    if not (value >= 0 and math.isfinite(value)):
        raise DecodeError(f"{what}: got {value}, expected a number from 0 on")


def check_named(what: str, text: str, limit: int) -> None:
    """Refuse a name that is empty, or that `check_texts` refuses."""
    if not text:
        raise DecodeError(f"{what}: expected a name, got none")
    check_texts(what, (text,), limit)
