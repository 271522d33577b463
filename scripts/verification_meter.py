"""What a stretch of a child process costs, for bench_verification.

Imports nothing that would count: a process that verifies should hold what verifying needs.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Figures: TypeAlias = dict[str, Any]
"""JSON-shaped."""


class Meter:
    """CPU-seconds of all threads, and seconds, since it was made."""

    def __init__(self) -> None:
        self._cpu_s, self._wall_s = _cpu_s(), time.perf_counter()

    def spent(self) -> dict[str, float]:
        """Since then."""
        return {"cpu_s": _cpu_s() - self._cpu_s, "wall_s": time.perf_counter() - self._wall_s}


def middle(values: Sequence[float]) -> float:
    """The median, of an odd number of them; `statistics` would be loaded for nothing else."""
    return sorted(values)[len(values) // 2]


def peak_mb() -> float:
    """The most memory this program ever had resident, in 10^6 bytes.

    From /proc: `ru_maxrss` would count what the parent had when it forked.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status has no VmHWM")


def do_job(jobs: Mapping[str, Callable[..., Figures]]) -> None:
    """Be a child: do the job that the arguments name, and print its figures as one line."""
    job, arguments = sys.argv[1], json.loads(sys.argv[2])
    figures = jobs[job](**arguments)
    print(json.dumps(figures | {"rss_mb": peak_mb()}), flush=True)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
