"""Fresh processes with one job each, for bench_verification: what they say and what they took."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from verification_meter import Figures

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 300.0
"""For any one job; the slowest takes a tenth of it on two idle cores."""


class ChildError(RuntimeError):
    """A process failed or was too slow; says which, and the last lines it wrote."""


@dataclass(frozen=True)
class Ended:
    """A process that ended well.

    Args:
        output: what it printed.
        cpu_s: of all its threads, from its start to its end.
        wall_s: likewise.
        rss_mb: the most it had resident; no less than this process has.
    """

    output: str
    cpu_s: float
    wall_s: float
    rss_mb: float


def run_alone(arguments: Sequence[str], limit_s: float = LIMIT_S) -> Ended:
    """Run a program to its end.

    Args:
        arguments: of the interpreter.
        limit_s: it is killed then.

    Raises:
        ChildError: another exit status than 0.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=out, stderr=errors, cwd=ROOT
        )
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            timer.cancel()
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            what = " ".join(arguments)[:200]
            why = f"over {limit_s:g} s" if wall_s >= limit_s else _end_of(errors)
            raise ChildError(f"{what}: exit status {process.returncode}: {why}")
        out.seek(0)
        output = out.read().decode()
    spent = usage.ru_utime + usage.ru_stime
    return Ended(output, spent, wall_s, usage.ru_maxrss * 1024 / 1e6)


def child(
    program: str, job: str, arguments: Mapping[str, object], limit_s: float = LIMIT_S
) -> Figures:
    """Do one job of `scripts/verification_<program>.py` in a process of its own.

    Returns:
        Its figures, with what the whole process took beside them: `start_cpu_s`, `start_wall_s`.

    Raises:
        ChildError: it failed, or was too slow.
    """
    path = Path(__file__).with_name(f"verification_{program}.py")
    plain = {name: str(x) if isinstance(x, Path) else x for name, x in arguments.items()}
    ended = run_alone([str(path), job, json.dumps(plain)], limit_s)
    figures: Figures = json.loads(ended.output.splitlines()[-1])
    return figures | {"start_cpu_s": ended.cpu_s, "start_wall_s": ended.wall_s}


def medians(rows: Sequence[Mapping[str, Any]]) -> Figures:
    """Of every number that all rows have; of anything else the first row's."""
    found: Figures = dict(rows[0])
    for name, value in rows[0].items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            middle = statistics.median(row[name] for row in rows)
            found[name] = int(middle) if isinstance(value, int) else middle
    return found


def say(text: str) -> None:
    """What is done now, for whoever waits."""
    print(f"... {text}", file=sys.stderr, flush=True)


def _end_of(file: IO[bytes]) -> str:
    file.seek(0)
    lines: Iterable[str] = file.read().decode(errors="replace").splitlines()
    return " | ".join([line for line in lines if line.strip()][-3:])
