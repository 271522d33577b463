"""Proofs in child processes: what becomes of jobs whose worker dies, hangs, or was never there."""

import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import node.proving
from node.errors import ErrorCode, NodeError
from node.home import Home
from node.proving import QUEUE, Proven, Proving, RejectedByProofError
from node.supervise import Worker, WorkerDiedError, open_worker
from node.workers.link import Message
from tests.support.proofs import (
    SEED,
    SQUARE,
    WIDE,
    ShownAll,
    layer,
    shape_numbers,
    shared_keys,
    show_all,
    store_in,
)
from verification import prover
from verification.adapter import QuantisedModule, pack_delivery
from verification.circuit import Shape, circuit_of, known
from verification.jobs import plain_of
from verification.keys import KeyStore
from verification.statement import Statement

Opener = Callable[..., AbstractAsyncContextManager[Any]]
STATEMENT: Mapping[str, object] = {"module": "to_q"}


@asynccontextmanager
async def running(home: Home) -> AsyncIterator[Proving]:
    proving = Proving(home)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proving.run)
        yield proving
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[None]:
    with trio.fail_after(seconds):
        yield


# --- with a worker that plays its part ------------------------------------------------------------


class Player:
    """Stands in for the worker program: answers by the name of the statement's module."""

    def __init__(self) -> None:
        self.started = 0
        self.open = 0
        self.done: list[str] = []
        self.refuses_to_start = False
        self.kills = 0
        self.is_dead = False
        self._answers: list[Message] = []
        self._job = ""

    @asynccontextmanager
    async def open_worker(self, module: str, **_: object) -> AsyncIterator["Player"]:
        assert module == "node.workers.proof"
        if self.refuses_to_start:
            raise OSError("no more processes")
        self.started += 1
        self.open += 1
        self.is_dead = False
        self._answers = []
        try:
            yield self
        finally:
            self.open -= 1

    async def send(self, message: Message) -> None:
        if self.is_dead:
            raise self._death()
        statement: Any = message.get("statement", {"module": "commit"})
        self._job = statement["module"]
        last: Message = {"kind": "verified", "square": 2.5}
        if self._job == "false":
            last = {"kind": "rejected", "reason": "it is false"}
        elif self._job == "unlucky":
            last = {"kind": "failed", "error": "no ezkl"}
        self._answers = [last]
        if message["kind"] == "commit":
            parts: list[Message] = [
                {"kind": "commitment", "module": name, "value": b"C"} for name in ("q", "k")
            ]
            self._answers = [*parts, {"kind": "done"}]

    async def receive(self) -> Message:
        if self.is_dead and not self._answers:
            raise self._death()
        await trio.sleep(1)
        if self._job == "die":
            raise self._death()
        if self._job == "hang":
            await trio.sleep_forever()
        if len(self._answers) == 1:
            self.done.append(self._job)
        return self._answers.pop(0)

    def kill(self) -> None:
        self.kills += 1
        self.is_dead = True
        self._job = ""
        self._answers = []

    def _death(self) -> WorkerDiedError:
        return WorkerDiedError("node.workers.proof", -9, Path("proof.log"))


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch) -> Player:
    made = Player()
    monkeypatch.setattr(node.proving, "open_worker", made.open_worker)
    return made


async def asked(proving: Proving, module: str = "true", **more: bool) -> float:
    return await proving.verify({"module": module}, b"proof", **more)


async def test_jobs_are_done_one_after_the_other_by_one_worker(
    player: Player, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(Home.at(tmp_path)) as proving, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(asked, proving)
    assert (player.started, player.done) == (1, ["true"] * 5)


async def test_answers_become_values_and_errors(
    player: Player, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(Home.at(tmp_path)) as proving:
        assert await asked(proving) == 2.5
        with pytest.raises(RejectedByProofError, match="it is false"):
            await asked(proving, "false")
        with pytest.raises(NodeError, match="could not be made or checked: no ezkl") as caught:
            await asked(proving, "unlucky")
        assert caught.value.code is ErrorCode.FAILED
        assert await proving.commit([], tmp_path) == {"q": b"C", "k": b"C"}
    assert player.started == 1


async def test_worker_that_dies_fails_its_own_job_only(
    player: Player, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(Home.at(tmp_path)) as proving:
        with pytest.raises(NodeError, match="status -9"):
            await asked(proving, "die")
        assert await asked(proving) == 2.5
    assert player.started == 2


async def test_worker_that_hangs_is_killed_after_its_time(
    player: Player, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(Home.at(tmp_path)) as proving, timeout(1000):
        with pytest.raises(NodeError, match="not done within 240 s"):
            await asked(proving, "hang")
        assert trio.current_time() < 300
        assert await asked(proving) == 2.5
    assert (player.started, player.done) == (2, ["true"])
    assert player.kills == 1


async def test_answer_that_comes_as_the_worker_is_killed_is_nobodys(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next job would go to a worker that is dead."""

    class Late(Player):
        def kill(self) -> None:
            super().kill()
            self._answers = [{"kind": "verified", "square": 9.0}]

    late = Late()
    monkeypatch.setattr(node.proving, "open_worker", late.open_worker)
    async with running(Home.at(tmp_path)) as proving:
        with pytest.raises(NodeError, match="not done within"):
            await asked(proving, "hang")
        assert await asked(proving) == 2.5
    assert late.started == 2


async def test_full_queue_is_refused_to_who_may_not_wait(
    player: Player, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(Home.at(tmp_path)) as proving, trio.open_nursery() as nursery:
        nursery.start_soon(asked, proving)
        await trio.sleep(0.5)  # that one is being checked
        for _ in range(QUEUE):
            nursery.start_soon(asked, proving)
        await trio.sleep(0.1)
        with pytest.raises(NodeError, match="32 proofs wait") as caught:
            await asked(proving, may_wait=False)
        assert caught.value.code is ErrorCode.RESOURCE
        assert await asked(proving) == 2.5
    assert len(player.done) == QUEUE + 2


async def test_job_nobody_waits_for_any_more_is_not_begun(
    player: Player, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(Home.at(tmp_path)) as proving, trio.open_nursery() as nursery:
        nursery.start_soon(asked, proving)
        await trio.sleep(0.5)
        with trio.move_on_after(0.1):
            await asked(proving, "left")
        assert await asked(proving, "next") == 2.5
    assert player.done == ["true", "next"]


async def test_job_whose_asker_leaves_is_finished_and_hurts_no_other(
    player: Player, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(Home.at(tmp_path)) as proving:
        with trio.move_on_after(0.5):
            await asked(proving, "left")
        assert await asked(proving, "next") == 2.5
    assert (player.started, player.done) == (1, ["left", "next"])


async def test_idle_worker_is_ended_and_the_next_job_starts_one(
    player: Player, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(Home.at(tmp_path)) as proving:
        await asked(proving)
        await trio.sleep(119)
        assert player.open == 1
        await trio.sleep(3)
        assert player.open == 0
        await asked(proving)
    assert player.started == 2


async def test_half_of_an_answer_is_not_taken_for_the_whole(
    player: Player, tmp_path: Path, autojump_clock: MockClock
) -> None:
    proving = Proving(Home.at(tmp_path))
    service = trio.CancelScope()

    async def run() -> None:
        with service:
            await proving.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(asked_and_broken_off, proving)
        await trio.sleep(1.5)  # one commitment of two has come
        service.cancel()


async def asked_and_broken_off(proving: Proving) -> None:
    with trio.fail_after(60), pytest.raises(NodeError, match="it was broken off"):
        await proving.commit([], Path("delivery"))


async def test_jobs_that_wait_are_given_up_when_the_service_ends(
    player: Player, tmp_path: Path, autojump_clock: MockClock
) -> None:
    proving = Proving(Home.at(tmp_path))
    service = trio.CancelScope()

    async def run() -> None:
        with service:
            await proving.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        for _ in range(QUEUE + 3):
            nursery.start_soon(asked_and_broken_off, proving)
        await trio.sleep(0.5)
        service.cancel()


async def test_worker_that_cannot_be_started_fails_the_one_job(
    player: Player, tmp_path: Path, autojump_clock: MockClock
) -> None:
    player.refuses_to_start = True
    proving = Proving(Home.at(tmp_path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proving.run)
        with pytest.raises(NodeError, match="no process: no more processes"):
            await asked(proving)
        player.refuses_to_start = False
        assert await asked(proving) == 2.5  # the service went on
        nursery.cancel_scope.cancel()


# --- with the real program ------------------------------------------------------------------------


def module_plain(module: QuantisedModule) -> dict[str, object]:
    inputs, rank, outputs = shape_numbers(module.shape)
    return {"name": module.name, "inputs": inputs, "rank": rank, "outputs": outputs}


def statement_plain(statement: Statement, **changes: object) -> dict[str, object]:
    inputs, rank, outputs = shape_numbers(statement.shape)
    return {
        "kind": statement.kind,
        "base": statement.base,
        "offer": statement.offer,
        "module": statement.module,
        "inputs": inputs,
        "rank": rank,
        "outputs": outputs,
        "commitment": statement.commitment,
        "nonce": statement.nonce,
        "left": plain_of(statement.left),
        "right": None if statement.right is None else plain_of(statement.right),
        "values": plain_of(statement.values),
        **changes,
    }


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    return shared_keys(tmp_path_factory)


@pytest.fixture(scope="module")
def shown(keys: KeyStore) -> ShownAll:
    return show_all(keys)


@pytest.fixture
def home(tmp_path: Path, keys: KeyStore) -> Home:
    """A home that has the keys of one circuit already."""
    home = Home.at(tmp_path)
    found = keys.proving(circuit_of(SQUARE))
    shutil.copytree(found.vk.parent, home.circuits / found.vk.parent.name)
    home.circuits.chmod(0o700)
    return home


@pytest.fixture
def delivery(tmp_path: Path) -> Path:
    path = tmp_path / "delivery"
    path.write_bytes(pack_delivery(SEED, [layer()]))
    return path


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Worker]]:
    """Every worker that is started."""
    seen: list[Worker] = []

    @asynccontextmanager
    async def watched(*args: Any, **named: Any) -> AsyncIterator[Worker]:
        async with open_worker(*args, **named) as worker:
            seen.append(worker)
            yield worker

    monkeypatch.setattr(node.proving, "open_worker", watched)
    yield seen
    assert all(worker._process.returncode is not None for worker in seen)


async def verified(proving: Proving, shown: ShownAll) -> float:
    return await proving.verify(statement_plain(shown.offer.statement), shown.offer.proof)


@pytest.mark.slow
async def test_commit_prove_verify_and_check_fit_together(
    home: Home, delivery: Path, shown: ShownAll, workers: list[Worker]
) -> None:
    asked, module = shown.probe.statement, module_plain(layer())
    async with running(home) as proving:
        with trio.fail_after(60):
            commitments = await proving.commit([module], delivery)
            assert commitments == {"to_q": asked.commitment}
            made = await proving.prove([module], delivery, statement_plain(asked, values=None))
            values = (2, 2, 16, made.values)
            assert await proving.verify(statement_plain(asked, values=values), made.proof) == 0.0
            assert await verified(proving, shown) > 0.0
            await proving.check([{**module, "commitment": asked.commitment}], delivery)
    assert len(workers) == 1
    assert isinstance(made, Proven)


@pytest.mark.slow
async def test_what_is_false_is_rejected_and_what_is_missing_is_not(
    home: Home, delivery: Path, shown: ShownAll, workers: list[Worker]
) -> None:
    asked, module = shown.probe.statement, module_plain(layer())
    async with running(home) as proving:
        with trio.fail_after(60):
            with pytest.raises(RejectedByProofError, match="does not show what is stated"):
                await proving.verify(statement_plain(asked, base="other"), shown.probe.proof)
            with pytest.raises(RejectedByProofError, match="expected rows, columns"):
                await proving.verify({**statement_plain(asked), "left": None}, shown.probe.proof)
            with pytest.raises(RejectedByProofError, match="delivered weights give"):
                await proving.check([{**module, "commitment": bytes(64)}], delivery)
            with pytest.raises(NodeError, match="No such file"):
                await proving.commit([module], delivery.parent / "none")
    assert len(workers) == 1


async def is_at_work(home: Home) -> None:
    while not list(home.circuits.glob(".work-*/witness.json")):  # noqa: ASYNC110  no file has events
        await trio.sleep(0.002)


@pytest.mark.slow
async def test_prover_killed_in_the_middle_fails_that_job_and_leaves_nothing(
    home: Home, delivery: Path, shown: ShownAll, workers: list[Worker]
) -> None:
    statement = statement_plain(shown.probe.statement)

    async def is_killed(proving: Proving) -> None:
        with pytest.raises(NodeError, match="status -9"):
            await proving.prove([module_plain(layer())], delivery, statement)

    async with running(home) as proving:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(is_killed, proving)
                await is_at_work(home)
                os.kill(workers[0].pid, signal.SIGKILL)
            (left,) = home.circuits.glob(".work-*")
            assert (left / "model.onnx").exists()  # weights and salt
            assert await verified(proving, shown) > 0.0
            assert list(home.circuits.iterdir()) == [home.circuits / known(SQUARE).circuit]
    assert len(workers) == 2


@pytest.mark.slow
async def test_job_past_its_processor_time_is_ended_by_the_kernel(
    home: Home,
    tmp_path: Path,
    shown: ShownAll,
    workers: list[Worker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """These keys take six seconds to derive."""
    monkeypatch.setattr(node.proving, "JOB_CPU_S", 1)
    costly = layer(shape=Shape(1152, 16, 1152))
    (tmp_path / "costly").write_bytes(pack_delivery(SEED, [costly]))
    async with running(home) as proving:
        with trio.fail_after(60):
            with pytest.raises(NodeError, match=f"status -{signal.SIGXCPU.value}"):
                await proving.commit([module_plain(costly)], tmp_path / "costly")
            assert await verified(proving, shown) > 0.0
    assert len(workers) == 2


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make the first worker another program; those after it are the real one."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))
    real: Opener = vars(node.proving)["open_worker"]  # which notes whom it started

    def make(body: str) -> None:
        (tmp_path / "stub_prover.py").write_text(body)
        programs = ["stub_prover"]

        def opened(module: str, **named: Any) -> AbstractAsyncContextManager[Any]:
            return real(programs.pop() if programs else module, **named)

        monkeypatch.setattr(node.proving, "open_worker", opened)

    return make


@pytest.mark.slow
async def test_worker_that_hangs_for_real_is_killed(
    workers: list[Worker],
    stand_in: Callable[[str], None],
    home: Home,
    shown: ShownAll,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even one that takes no notice of being asked to leave."""
    stand_in(
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "while True: time.sleep(60)\n"
    )
    async with running(home) as proving:
        with trio.fail_after(60):
            monkeypatch.setattr(node.proving, "_WALL_S", 0.3)
            with pytest.raises(NodeError, match=r"not done within 0\.3 s"):
                await verified(proving, shown)
            assert workers[0]._process.returncode == -signal.SIGKILL
            monkeypatch.setattr(node.proving, "_WALL_S", 60.0)
            assert await verified(proving, shown) > 0.0
    assert len(workers) == 2


@pytest.mark.slow
async def test_worker_short_of_memory_fails_and_the_next_does_not(
    workers: list[Worker], stand_in: Callable[[str], None], home: Home, shown: ShownAll
) -> None:
    stand_in(
        "import verification.sandbox\n"
        "verification.sandbox.MEMORY_BYTES = 60 << 20\n"
        "from node.workers.proof import main\n"
        "main()\n"
    )
    async with running(home) as proving:
        with trio.fail_after(60):
            with pytest.raises(NodeError):
                await verified(proving, shown)
            workers[0].kill()
            with suppress(NodeError):  # the job that finds it dead
                await verified(proving, shown)
            assert await verified(proving, shown) > 0.0
    assert len(workers) == 2


@pytest.mark.slow
async def test_job_too_large_for_the_line_fails_and_the_worker_goes_on(
    home: Home, shown: ShownAll, workers: list[Worker]
) -> None:
    values = (1024, 1024, 5, bytes(5 << 20))
    async with running(home) as proving:
        with trio.fail_after(60):
            with pytest.raises(NodeError, match="frame: got"):
                await proving.verify(statement_plain(shown.delta.statement, values=values), b"")
            assert await verified(proving, shown) > 0.0
    assert len(workers) == 1


@pytest.mark.slow
async def test_answer_too_large_for_the_line_fails_and_the_worker_goes_on(
    home: Home, tmp_path: Path, keys: KeyStore, shown: ShownAll, workers: list[Worker]
) -> None:
    """1,024 rows of 256 numbers take four megabytes; the question takes a thirtieth of that."""
    wide = layer(shape=WIDE)
    found = keys.proving(circuit_of(WIDE))
    shutil.copytree(found.vk.parent, home.circuits / found.vk.parent.name)
    (tmp_path / "wide").write_bytes(pack_delivery(SEED, [wide]))
    statement = statement_plain(
        shown.delta.statement,
        outputs=256,
        rank=2,
        commitment=prover.commit(wide, SEED, keys),
        left=(1024, 64, 2, bytes(1024 * 64 * 2)),
        values=None,
    )
    async with running(home) as proving:
        with trio.fail_after(60):
            with pytest.raises(NodeError, match="frame: got 419"):
                await proving.prove([module_plain(wide)], tmp_path / "wide", statement)
            assert await verified(proving, shown) > 0.0
    assert len(workers) == 1


@pytest.mark.slow
async def test_node_goes_on_while_a_proof_is_made(
    home: Home, delivery: Path, shown: ShownAll, workers: list[Worker]
) -> None:
    """The library holds the interpreter's lock for as long as it proves."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            before = trio.current_time()
            await trio.sleep(0.001)
            lags.append(trio.current_time() - before - 0.001)

    async with running(home) as proving:
        await verified(proving, shown)  # the worker is there
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                for _ in range(3):
                    await proving.prove(
                        [module_plain(layer())], delivery, statement_plain(shown.probe.statement)
                    )
                nursery.cancel_scope.cancel()
    assert len(lags) > 100
    assert sorted(lags)[int(0.99 * len(lags))] < 0.05


@pytest.mark.slow
async def test_keys_are_derived_in_the_homes_own_folder(
    tmp_path: Path, delivery: Path, workers: list[Worker]
) -> None:
    home = Home.at(tmp_path / "fresh")
    home.state.mkdir(parents=True)
    async with running(home) as proving:
        with trio.fail_after(60):
            await proving.commit([module_plain(layer())], delivery)
    assert store_in(home.circuits).verifying(circuit_of(SQUARE)).vk.exists()
    assert home.circuits.stat().st_mode & 0o777 == 0o700
