"""What happened on this node, one JSON object a line: for people, for `events`, for the demo.

Never prompts, secrets or tensors. Lines are whole: each is one `write` in append mode.
"""

import json
import logging
import time
from pathlib import Path

logger = logging.getLogger(__name__)


class Journal:
    """Appends events to a file.

    Args:
        path: the NDJSON file; made if absent.
        node: this node's peer id, in every line.
    """

    def __init__(self, path: Path, node: str) -> None:
        self._path = path
        self._node = node

    def write(self, event: str, **facts: object) -> None:
        """Append one event with the time in seconds since the epoch.

        A disk that refuses costs the line, not the work it tells of.
        """
        line = json.dumps(
            {"time": round(time.time(), 3), "node": self._node, "event": event, **facts}
        )
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            logger.warning("event %s not written to %s: %s", event, self._path, error.strerror)
