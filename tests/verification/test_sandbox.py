"""Limits a process puts on itself: what passes them ends that process, and only that."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from verification.sandbox import FILE_BYTES, MAX_THREADS, MEMORY_BYTES, OPEN_FILES

pytestmark = pytest.mark.slow

PROLOGUE = """
import json, os, resource
from verification.sandbox import limit_job, limit_process
"""


def child(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROLOGUE + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )


def said(code: str, **env: str) -> Any:
    done = child(code, **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_process_is_limited_for_good() -> None:
    names = ("RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE")
    limits = said(
        "limit_process()\n"
        f"print(json.dumps([resource.getrlimit(getattr(resource, n)) for n in {names}]))"
    )
    assert limits == [[n, n] for n in (MEMORY_BYTES, FILE_BYTES, OPEN_FILES, 0)]


def test_stricter_limit_that_is_there_already_stays() -> None:
    limits = said(
        "resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))\n"
        "limit_process()\n"
        "print(json.dumps(resource.getrlimit(resource.RLIMIT_NOFILE)))"
    )
    assert limits == [50, 50]


def test_proofs_give_way_to_others() -> None:
    before, after = said("a = os.nice(0); limit_process(); print(json.dumps([a, os.nice(0)]))")
    assert after == min(19, before + 5)


def test_threads_of_native_libraries_are_few_unless_somebody_says_how_many() -> None:
    code = "limit_process(); print(json.dumps(os.environ['RAYON_NUM_THREADS']))"
    many = "os.environ.pop('RAYON_NUM_THREADS', None); os.cpu_count = lambda: 128\n"
    assert said(many + code) == str(MAX_THREADS)
    assert said(code, RAYON_NUM_THREADS="3") == "3"


def test_job_that_passes_its_processor_time_is_ended() -> None:
    done = child("limit_job(1)\nwhile True: pass")
    assert done.returncode == -signal.SIGXCPU


def test_each_job_has_the_whole_of_its_processor_time() -> None:
    """What earlier jobs used does not count."""
    limits = said(
        "import time\n"
        "limit_job(5); first = resource.getrlimit(resource.RLIMIT_CPU)[0]\n"
        "while time.process_time() < 1.2: pass\n"
        "limit_job(5); print(json.dumps([first, resource.getrlimit(resource.RLIMIT_CPU)[0]]))"
    )
    assert limits[0] + 1 <= limits[1] <= limits[0] + 3


def test_processor_time_somebody_else_limited_is_not_raised() -> None:
    limits = said(
        "resource.setrlimit(resource.RLIMIT_CPU, (9, 9)); limit_job(120)\n"
        "print(json.dumps(resource.getrlimit(resource.RLIMIT_CPU)))"
    )
    assert limits == [9, 9]


def test_memory_past_the_limit_is_refused_to_python() -> None:
    code = "limit_process()\ntry: bytearray(5 << 30)\nexcept MemoryError: print('null')"
    assert said(code) is None


def test_file_past_the_limit_is_refused(tmp_path: Any) -> None:
    code = (
        "limit_process()\n"
        f"with open({str(tmp_path / 'big')!r}, 'wb') as file:\n"
        "    try: file.truncate((1 << 30) + 1)\n"
        "    except OSError as error: print(error.errno)"
    )
    assert said(code) == 27  # EFBIG
