"""Loss by time, smoothed, and the loss curve as a file beside the saves."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from training.jsonio import canonical_json

logger = logging.getLogger(__name__)

BUCKETS: Final = 10
"""Equal parts of t in 0..1."""
MEMORY: Final = 0.998
"""Weight of a bucket's past per sample: it remembers about its last 500."""
CURVE_FILE: Final = "losses.ndjson"
CURVE_LINES: Final = 1000
"""A curve on a screen has no more points than this; the file stays below about 300 kB."""


class LossBuckets:
    """Mean loss of each tenth of t over its recent samples.

    Args:
        sums: discounted sum of losses per bucket, as `state` gave them; empty to begin.
        weights: discounted count per bucket.
    """

    def __init__(self, sums: Sequence[float] = (), weights: Sequence[float] = ()) -> None:
        self._sums = list(sums) or [0.0] * BUCKETS
        self._weights = list(weights) or [0.0] * BUCKETS

    def add(self, times: Sequence[float], losses: Sequence[float]) -> None:
        """Count samples of one batch.

        Args:
            times: in 0..1.
            losses: of the same samples.
        """
        for time, loss in zip(times, losses, strict=True):
            bucket = min(BUCKETS - 1, int(time * BUCKETS))
            self._sums[bucket] = MEMORY * self._sums[bucket] + loss
            self._weights[bucket] = MEMORY * self._weights[bucket] + 1.0

    @property
    def state(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Sums and weights, to begin from again exactly."""
        return tuple(self._sums), tuple(self._weights)

    @property
    def means(self) -> tuple[float | None, ...]:
        """Of each bucket; None for one that saw nothing yet."""
        pairs = zip(self._sums, self._weights, strict=True)
        return tuple(total / weight if weight else None for total, weight in pairs)


class LossCurve:
    """`losses.ndjson`: at most `CURVE_LINES` lines over a training, each a JSON object.

    Writing it never stops training: a disk that refuses is logged once, and ends the curve.

    Args:
        path: the file.
        budget: samples of the whole training.
        batch: samples per step.
    """

    def __init__(self, path: Path, budget: int, batch: int) -> None:
        self._path = path
        self._budget = budget
        self._every = max(batch, -(-budget // CURVE_LINES))
        self._is_refused = False

    def rewind(self, samples: int) -> None:
        """Drop what came after a save at `samples`: it will be trained, and written, again.

        Raises:
            OSError: the disk refused.
        """
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        size = 0
        for line in data.splitlines(keepends=True):
            if not 0 < _samples_of(line) <= samples:
                break
            size += len(line)
        if size < len(data):
            os.truncate(self._path, size)

    def add(self, samples: int, batch: int, facts: dict[str, object]) -> None:
        """Write a line if a mark was passed.

        Args:
            samples: seen so far.
            batch: samples of the step that was just made.
            facts: the line, beside `samples`; finite numbers.
        """
        is_mark = samples // self._every > (samples - batch) // self._every
        if self._is_refused or not (is_mark or samples >= self._budget):
            return
        try:
            with self._path.open("ab") as file:
                file.write(canonical_json({"samples": samples, **facts}) + b"\n")
        except OSError as error:
            self._is_refused = True
            logger.warning("loss curve %s ends here: %s", self._path, error)


def read_curve(path: Path) -> list[dict[str, object]]:
    """The lines of a curve, oldest first; one that was cut off by a crash is left out.

    Raises:
        OSError: the file cannot be read.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if _samples_of(line) > 0]


def _samples_of(line: bytes) -> int:
    """Where in the training a line stands; 0 for one that is not whole."""
    if not line.endswith(b"\n"):
        return 0
    try:
        value = json.loads(line)
    except ValueError:
        return 0
    found = value.get("samples") if isinstance(value, dict) else None
    return found if type(found) is int else 0
