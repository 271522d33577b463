"""One monotonic bar a phase on a terminal; one line per 10 s anywhere else. Always on stderr."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

import click

from node.cli.options import Options
from node.cli.output import count_text, duration_text, is_interactive, size_text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_EVERY_S: Final = 10.0


class Progress:
    """Progress of one phase.

    Args:
        label: one word, "pull" or "denoise".
        unit: what is counted; bytes and pictures with their rate.
        options: --quiet silences it.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        label: str,
        *,
        unit: Literal["bytes", "steps", "pictures"],
        options: Options,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._unit = unit
        self._is_silent = options.quiet
        self._clock = clock
        self._started = self._said = clock()
        self._done = 0
        self._begun_at: int | None = None
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was, whatever happened."""
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: object, total: object, detail: object = None) -> None:
        """Say how far it is; a smaller number than before is not believed.

        Args:
            done: bytes or steps.
            total: of them.
            detail: a number of sources, or words.
        """
        if self._is_silent or not isinstance(done, int) or not isinstance(total, int):
            return
        self._done = max(self._done, min(done, total))
        if self._begun_at is None:  # what an earlier command had done says nothing about the rate
            self._begun_at, self._started = self._done, self._clock()
        if is_interactive():
            self._draw(total, detail)
        elif self._clock() - self._said >= LINE_EVERY_S:
            self._said = self._clock()
            click.echo(self._line(total, detail), err=True)

    def note(self, text: str) -> None:
        """A line of commentary, above the bar if there is one."""
        if self._bar is None:
            click.echo(text, err=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def _line(self, total: int, detail: object) -> str:
        rate = self._rate()
        show = size_text if self._unit == "bytes" else count_text
        parts = [f"{self._label}  {show(self._done)} of {show(total)}"]
        if self._unit != "steps":
            parts.append(f"{show(rate if self._unit == 'bytes' else round(rate))}/s")
        parts.append(f"{duration_text((total - self._done) / rate if rate else None)} left")
        parts.append(_detail_text(detail))
        return "  ".join(part for part in parts if part)

    def _rate(self) -> float:
        """Units per second since the first one here."""
        elapsed = max(self._clock() - self._started, 1e-9)
        return (self._done - (self._begun_at or 0)) / elapsed

    def _draw(self, total: int, detail: object) -> None:
        if self._bar is None:
            self._bar = self._make_bar()
            self._bar.start()
            self._task = self._bar.add_task(
                self._label, total=total, completed=self._done, detail=""
            )
        assert self._task is not None  # noqa: S101  # made with the bar
        text = _detail_text(detail)
        if self._unit == "pictures":
            text = f"{count_text(round(self._rate()))}/s"
        self._bar.update(self._task, completed=self._done, total=total, detail=text)

    def _make_bar(self) -> "RichProgress":
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        counts = (
            (DownloadColumn(), TransferSpeedColumn())
            if self._unit == "bytes"
            else (MofNCompleteColumn(),)
        )
        return RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            *counts,
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}"),
            console=Console(stderr=True),
        )


def _detail_text(detail: object) -> str:
    if isinstance(detail, int):
        return "1 source" if detail == 1 else f"{detail} sources"
    return detail if isinstance(detail, str) else ""
