"""Limits a process that runs ezkl puts on itself: what hostile bytes could do stays in it.

Nothing here is a security boundary against native code execution; it bounds time, memory and disk.
"""

import os
import resource
from typing import Final

GIB: Final = 1 << 30
MEMORY_BYTES: Final = 4 * GIB
"""Of address space: the largest circuit of a preset takes 0.4 GB resident and 1.5 GB mapped."""
FILE_BYTES: Final = 1 * GIB
"""Of one file: the largest proving key of a preset has 150 MB."""
OPEN_FILES: Final = 128
MAX_THREADS: Final = 8
"""Of each native library: each one maps some 64 MB for itself, whether it uses them or not."""
JOB_CPU_S: Final = 120
"""Processor seconds of one job: setting up the largest circuit of a preset takes about 15."""


def limit_process() -> None:
    """Bound memory, files and core dumps for the rest of this process's life.

    Bounds threads too, so it comes before native libraries are imported.
    """
    for name in ("RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, str(min(MAX_THREADS, os.cpu_count() or 1)))
    _lower(resource.RLIMIT_AS, MEMORY_BYTES)
    _lower(resource.RLIMIT_FSIZE, FILE_BYTES)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES)
    _lower(resource.RLIMIT_CORE, 0)
    os.nice(5)  # proofs can wait; gossip and pictures cannot


def limit_job(cpu_s: int = JOB_CPU_S) -> None:
    """Bound the processor time of what comes next; the kernel ends a process that passes it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime) + 1 + cpu_s
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _lower(which: int, limit: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(which, (limit, limit))
