"""Workers that die, babble or never leave, and services that fail: each contained, each told."""

import itertools
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from node.errors import ErrorCode, NodeError
from node.supervise import Supervisor, Worker, WorkerDiedError, is_for_people, open_worker

PROLOGUE = """
import signal, socket, struct, sys, time
from node.workers.link import ParentLink, ParentGoneError
line = socket.socket(fileno=int(sys.argv[1]))
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Make a worker program of a few lines; its module name."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))

    def make(body: str) -> str:
        (tmp_path / "stub_worker.py").write_text(PROLOGUE + body)
        return "stub_worker"

    return make


ECHO = """
link = ParentLink(line.detach())
try:
    while True:
        link.send(link.receive())
except ParentGoneError:
    print("left by itself")
"""


async def died(worker: Worker) -> WorkerDiedError:
    async def receive_all() -> None:
        while True:
            await worker.receive()

    with trio.fail_after(20), pytest.raises(WorkerDiedError) as caught:
        await receive_all()
    return caught.value


@pytest.mark.slow
async def test_messages_go_both_ways_and_leaving_is_by_itself(
    program: Callable[[str], str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with open_worker(program(ECHO), log=log, grace_s=20) as worker:
        for number in range(3):
            await worker.send({"kind": "n", "number": number, "bytes": b"\0" * 300_000})
            assert (await worker.receive())["number"] == number
        process = worker._process
    assert process.returncode == 0
    assert "left by itself" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "returncode", "says"),
    [
        ("import os; os.kill(os.getpid(), signal.SIGKILL)", -9, "status -9"),
        ("print('why'); sys.exit(3)", 3, "status 3"),
        ("line.close(); time.sleep(60)", None, "closed its line"),
        ("line.sendall(b'GET / HTTP/1.1'); time.sleep(60)", None, "garbage"),
        ("line.sendall(struct.pack('>I', 3) + b'abc'); time.sleep(60)", None, "garbage"),
        ("line.sendall(struct.pack('>I', 1) + b'\\xc1'); time.sleep(60)", None, "garbage"),
        ("line.sendall(struct.pack('>I', 1) + b'\\x80'); time.sleep(60)", None, "garbage"),
    ],
    ids=["killed", "exits", "hangs up", "too long", "trailing bytes", "not msgpack", "no kind"],
)
async def test_worker_that_ends_or_babbles_is_a_worker_that_died(
    program: Callable[[str], str],
    tmp_path: Path,
    body: str,
    returncode: int | None,
    says: str,
) -> None:
    log = tmp_path / "the.log"
    async with open_worker(program(body), log=log, grace_s=0.1) as worker:
        error = await died(worker)
        process = worker._process
    assert error.returncode == returncode
    assert says in str(error)
    assert str(log) in str(error)
    assert process.returncode is not None  # nothing is left behind


@pytest.mark.slow
async def test_worker_that_never_leaves_is_terminated_then_killed(
    program: Callable[[str], str], tmp_path: Path
) -> None:
    body = """
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
ParentLink(line.detach()).send({"kind": "ready"})
while True: time.sleep(1)
"""
    log = tmp_path / "log"
    async with open_worker(program(body), log=log, grace_s=0.2) as worker:
        assert await worker.receive() == {"kind": "ready"}
        process, started = worker._process, trio.current_time()
    assert process.returncode == -signal.SIGKILL
    assert "asked" in log.read_text()
    assert trio.current_time() - started < 5


@pytest.mark.slow
async def test_worker_is_ended_though_the_node_is_being_cancelled(
    program: Callable[[str], str], tmp_path: Path
) -> None:
    processes: list[trio.Process] = []
    is_ready = trio.Event()

    async def work() -> None:
        async with open_worker(program(ECHO), log=tmp_path / "log", grace_s=20) as worker:
            await worker.send({"kind": "hello"})
            await worker.receive()
            processes.append(worker._process)
            is_ready.set()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await is_ready.wait()
        nursery.cancel_scope.cancel()
    assert processes[0].returncode == 0


@pytest.mark.slow
async def test_sending_to_a_dead_worker_says_that_it_died(
    program: Callable[[str], str], tmp_path: Path
) -> None:
    async with open_worker(program("sys.exit(5)"), log=tmp_path / "log", grace_s=1) as worker:
        await worker._process.wait()
        with pytest.raises(WorkerDiedError, match="status 5"):
            await worker.send({"kind": "x", "bytes": b"\0" * 1_000_000})


# --- services ----------------------------------------------------------------------------------
def failing(
    error: Exception, times: int = 10**9
) -> tuple[Callable[[], Awaitable[None]], list[float]]:
    starts: list[float] = []

    async def service() -> None:
        starts.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        raise error

    return service, starts


async def test_failing_service_is_restarted_with_growing_pauses_then_left_off(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor()
    service, starts = failing(ValueError("boom"))
    await supervisor.run("studio", service)
    pauses = [round(b - a) for a, b in itertools.pairwise(starts)]
    assert pauses == [1, 2, 4, 8, 16]
    health = supervisor.health["studio"]
    assert (health.state, health.failures) == ("broken", 6)
    assert health.last_error == "ValueError: boom"
    assert "Traceback" in caplog.text


async def test_service_that_recovers_counts_anew_after_a_steady_minute(
    autojump_clock: MockClock,
) -> None:
    supervisor = Supervisor()
    starts: list[float] = []

    async def service() -> None:
        starts.append(trio.current_time())
        await trio.sleep(61 if len(starts) % 5 == 0 else 0.1)
        if len(starts) == 20:
            return
        raise ValueError("boom")

    await supervisor.run("studio", service)
    assert supervisor.health["studio"].state == "done"
    assert len(starts) == 20


async def test_sentence_for_a_person_is_not_retried(autojump_clock: MockClock) -> None:
    service, starts = failing(NodeError(ErrorCode.REFUSED, "no"))
    with pytest.raises(NodeError):
        await Supervisor().run("membership", service)
    assert len(starts) == 1


async def test_sentence_that_left_a_nursery_is_not_retried_either(
    autojump_clock: MockClock,
) -> None:
    inner, starts = failing(NodeError(ErrorCode.REFUSED, "no"))

    async def service() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inner)

    with pytest.raises(ExceptionGroup) as caught:
        await Supervisor().run("membership", service)
    assert caught.group_contains(NodeError)
    assert len(starts) == 1


def test_group_with_a_bug_in_it_is_no_sentence() -> None:
    sentence = NodeError(ErrorCode.REFUSED, "no")
    assert is_for_people(ExceptionGroup("", [sentence, ExceptionGroup("", [sentence])]))
    assert not is_for_people(ExceptionGroup("", [sentence, ValueError("bug")]))


async def test_cancelling_a_service_is_no_failure(autojump_clock: MockClock) -> None:
    supervisor = Supervisor()
    with trio.move_on_after(5):
        await supervisor.run("studio", trio.sleep_forever)
    assert supervisor.health["studio"].failures == 0
