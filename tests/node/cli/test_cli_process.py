"""The command line as a process of its own: what it imports, how it ends, what signals do."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.home import Home, prepare
from tests.support.fake_node import FakeNode, served
from tests.support.fake_offers import OFFER

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "hivemind", "libp2p", "diffusers", "transformers", "numpy", "trio", "rich")
_LIST_MODULES = """
import atexit, sys
atexit.register(lambda: print("MODULES", *sorted(sys.modules), file=sys.stderr))
from node.cli import main
main()
"""
_SUPERVISED = """
import sys, trio
from node.cli.command import run_guarded
from node.cli.options import Options
from node.cli.start import run_to_the_end
from node.errors import ErrorCode, NodeError

async def node():
    try:
        print("running", flush=True)
        if sys.argv[1] == "fails":
            raise NodeError(ErrorCode.NO_PEERS, "nobody is there", "wait")
        await trio.sleep_forever()
    finally:
        if sys.argv[1] == "hangs":
            with trio.CancelScope(shield=True):
                print("cleaning", flush=True)
                await trio.sleep_forever()
        print("cleaned", flush=True)

sys.exit(run_guarded(lambda: run_to_the_end(node), Options()))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def node(home: Path) -> Iterator[FakeNode]:
    fake = FakeNode()
    with served(fake, home, pid=os.getpid()):
        yield fake


def _environ(**extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PARIS_NODE_")}
    return {**kept, "PYTHONPATH": str(ROOT), **extra}


def _run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "node", *arguments],
        env=_environ(**extra),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _modules(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _LIST_MODULES, *arguments],
        env=_environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return set(done.stderr.rpartition("MODULES ")[2].split())


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("start", "--help")])
def test_help_and_version_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    found = _modules(*arguments)
    assert "node.cli.root" in found
    assert not found.intersection(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",), ("peers",), ("id",), ("lora", "show", OFFER), ("lora", "verify", OFFER),
        ("lora", "buy", OFFER, "--yes"), ("lora", "offer", "boots", "--terms", "free"),
    ],
)  # fmt: skip
def test_questions_to_a_running_node_import_nothing_heavy(
    node: FakeNode, home: Path, arguments: tuple[str, ...]
) -> None:
    found = _modules("--home", str(home), *arguments)
    assert "node.client" in found
    assert not found.intersection(HEAVY)


def test_help_is_quick() -> None:
    """Under 0.3 s of processor time, which a busy machine does not lengthen as it does the wall."""
    spent = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert _run("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.3, spent


def test_exit_codes_reach_the_shell(home: Path) -> None:
    assert _run("--home", str(home), "status").returncode == 3
    assert _run("statu").returncode == 2
    assert _run("--version").returncode == 0


def test_second_node_on_a_home_is_refused_before_anything_is_loaded(home: Path) -> None:
    from node.home import HomeLock

    prepare(Home.at(home))
    with HomeLock(Home.at(home)):
        begun = time.monotonic()
        done = _run("start", "--home", str(home))
        assert time.monotonic() - begun < 2
    assert done.returncode == 7
    assert f"process {os.getpid()}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "found"),
    [
        (("--run", "nothing"), 2, "a CID"),
        (("--peer", "10.0.0.7:4101"), 2, "multiaddrs like"),
        (("--api-port", "80000"), 2, "65535"),
        (("--quota", "1"), 2, "at least 1 MB"),
    ],
)
def test_bad_start_is_a_sentence(
    home: Path, arguments: tuple[str, ...], code: int, found: str
) -> None:
    done = _run("start", "--home", str(home), *arguments)
    assert done.returncode == code
    assert found in done.stderr
    assert "Traceback" not in done.stderr


def test_start_on_a_broken_home_is_a_sentence(home: Path) -> None:
    home.touch()
    done = _run("start", "--home", str(home))
    assert done.returncode == 1
    assert "should be a folder" in done.stderr


def test_ctrl_c_while_drawing_is_130_and_cancels_the_work(node: FakeNode, home: Path) -> None:
    node.is_endless = True
    with subprocess.Popen(
        [sys.executable, "-m", "node", "--home", str(home), "generate", "x", "-o", f"{home}/b.png"],
        env=_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _wait_until(lambda: bool(node.requests))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    _wait_until(lambda: node.cancelled == 1)
    assert not list(home.glob("*.png"))


def test_colours_are_for_terminals_that_want_them(home: Path) -> None:
    assert "\x1b[" not in _run("--home", str(home), "status").stderr
    for extra, is_coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        out = subprocess.run(
            ["script", "-qec", f"{sys.executable} -m node --home {home} status", "/dev/null"],
            env=_environ(**extra),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        ).stdout
        assert ("\x1b[31m" in out) is is_coloured, out


def test_closed_pipe_ends_quietly(home: Path) -> None:
    prepare(Home.at(home))
    (home / "node.log").write_text("a line\n" * 50_000)
    shell = f"{sys.executable} -m node --home {home} logs -n 50000 | head -n 1"
    done = subprocess.run(
        ["bash", "-c", shell],
        env=_environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "a line\n"
    assert done.stderr == ""


def test_logs_are_followed_over_a_rotation(home: Path) -> None:
    prepare(Home.at(home))
    log = home / "node.log"
    log.write_text("old\n")
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "node", "--home", str(home), "logs", "-f"],
        env=_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "old\n"
        with log.open("a") as file:
            file.write("more\n")
        assert process.stdout.readline() == "more\n"
        log.rename(home / "node.log.1")
        log.write_text("new\n")
        assert process.stdout.readline() == "new\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (130, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_ends_the_node_in_order(number: signal.Signals) -> None:
    with _supervised("runs") as process:
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stdout, stderr) == (0, "cleaned\n", "")


def test_second_signal_ends_a_node_that_hangs() -> None:
    with _supervised("hangs") as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == 130


def test_failure_of_the_node_leaves_its_nursery_as_it_was() -> None:
    with _supervised("fails") as process:
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 5
    assert stderr.startswith("error: nobody is there")


def _supervised(mode: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _SUPERVISED, mode],
        env=_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    return process


def _wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
