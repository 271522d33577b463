"""What happens in the demo, told as it happens: lines on the terminal, events for the timeline."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_LINE_EVERY_S: Final = 10.0
"""Progress when nobody watches a terminal: one line per 10 s."""


class Story:
    """What happened, told as it happens: one line each, on the terminal and in the timeline."""

    def __init__(self) -> None:
        self.begun = time.time()
        self.events: list[dict[str, Any]] = []
        self._last_progress = 0.0

    def tell(self, text: str, event: str, **facts: object) -> None:
        """Say something that happened now."""
        at = time.time() - self.begun
        print(f"[{at:6.1f} s] {text}", flush=True)
        self.events.append({"at_s": round(at, 2), "event": event, **facts})

    def progress(self, text: str) -> None:
        """Say how far things are: over the last line on a terminal, else every 10 s."""
        at = time.time() - self.begun
        if sys.stdout.isatty():
            print(f"\r[{at:6.1f} s] {text}\x1b[K", end="", flush=True)
        elif at - self._last_progress >= _LINE_EVERY_S:
            self._last_progress = at
            print(f"[{at:6.1f} s] {text}", flush=True)

    def end_progress(self) -> None:
        """Leave the progress line standing."""
        if sys.stdout.isatty():
            print(flush=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase."""
        begun = time.monotonic()
        yield
        self.events.append({"event": "phase", "name": name, "seconds": time.monotonic() - begun})

    def seconds(self, name: str) -> float:
        """How long a phase took."""
        found = [e["seconds"] for e in self.events if e.get("name") == name]
        return round(float(sum(found)), 1)
