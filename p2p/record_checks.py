"""Range and text checks that several records share; see `p2p.records`."""

from collections.abc import Iterable, Sequence

from p2p.errors import DecodeError, LimitError
from p2p.limits import MAX_CLUSTERS, MAX_EPOCH, MAX_LABEL, MAX_MANIFEST_FILES, MAX_SAMPLES


def check_token(what: str, cluster: int, epoch: int) -> None:
    """Refuse a cluster or a fencing epoch out of range: `DecodeError`."""
    if not (0 <= cluster < MAX_CLUSTERS and 1 <= epoch <= MAX_EPOCH):
        raise DecodeError(f"{what}: cluster {cluster} or epoch {epoch} is out of range")


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


def check_texts(what: str, texts: Iterable[str], limit: int) -> None:
    """Check what will reach a terminal or a dialler: no control characters, bounded."""
    for text in texts:
        if len(text) > limit:
            raise LimitError(f"{what}: got {len(text)} characters, the limit is {limit}")
        if not text.isprintable():
            raise DecodeError(f"{what} {text!r}: expected printable characters only")
