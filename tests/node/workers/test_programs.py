"""The real trainer and expert programs at the end of a real line, on a tiny prepared run."""

import os
import signal
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from node.errors import NodeError
from node.home import Home
from node.studio import Studio
from node.supervise import Worker, WorkerDiedError, open_worker
from node.workers.link import Message
from node.workers.trainer import Trainer
from tests.training.conftest import TINY_SPEC, TINY_TRAIN, draw_pictures
from training.preparation.prepare import PreparedRun, prepare_run

SAVE, BATCH = 40, TINY_TRAIN.batch


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    folder = tmp_path_factory.mktemp("workers")
    train = replace(TINY_TRAIN, budget_samples=100_000, save_samples=SAVE)
    spec = replace(TINY_SPEC, train=train)
    return prepare_run(draw_pictures(folder / "pictures"), folder / "run", spec)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def order(prepared: PreparedRun, state: Path, **changes: object) -> Message:
    return {
        "kind": "train",
        "shared": str(prepared.shared),
        "models": str(prepared.root / "models"),
        "data": str(prepared.clusters[0].folder),
        "state": str(state),
        "cluster": 0,
        "start_from": None,
        "threads": 1,
        "device": "cpu",
        "gpus": "auto",
        "precision": "auto",
        **changes,
    }


async def next_of(worker: Worker, kind: str) -> Message:
    with trio.fail_after(60):
        while True:
            message = await worker.receive()
            if message["kind"] == kind:
                return message


async def rest(worker: Worker) -> list[Message]:
    """Everything up to the end of the program."""
    found: list[Message] = []
    with trio.fail_after(30):
        try:
            while True:
                found.append(await worker.receive())
        except WorkerDiedError:
            return found


@pytest.mark.slow
async def test_trainer_reports_saves_stops_and_resumes_after_a_kill(
    prepared: PreparedRun, tmp_path: Path
) -> None:
    log, state = tmp_path / "trainer.log", tmp_path / "train" / "0"
    async with open_worker("node.workers.trainer", log=log, grace_s=10) as worker:
        await worker.send(order(prepared, state))
        summary = await next_of(worker, "summary")
        assert await trio.Path(str(summary["path"])).is_file()
        assert (await next_of(worker, "started"))["samples"] == BATCH
        saved = await next_of(worker, "saved")
        assert saved["samples"] == SAVE
        step = await next_of(worker, "step")
        assert set(step) == {
            *("kind", "step", "samples", "loss", "samples_per_s", "buckets", "how")
        }
        assert len(step["buckets"]) == 10  # type: ignore[arg-type]
        how = step["how"]
        assert isinstance(how, dict)
        assert how["reason"].startswith(f"{how['precision']} because")
        assert (how["device"], how["processes"], how["threads"]) == ("cpu", 1, 1)
        os.kill(worker.pid, signal.SIGKILL)
        heard = [step, *(message for message in await rest(worker) if "samples" in message)]
        reached = max(int(str(message["samples"])) for message in heard)
    async with open_worker("node.workers.trainer", log=log, grace_s=10) as worker:
        await worker.send(order(prepared, state))
        resumed = int(str((await next_of(worker, "started"))["samples"]))
        assert resumed > SAVE
        assert resumed > reached - SAVE  # at most one save interval was lost
        await worker.send({"kind": "stop"})
        last = await rest(worker)
        process = worker._process
    assert [message["kind"] for message in last[-2:]] == ["saved", "done"]
    assert process.returncode == 0


@pytest.mark.slow
async def test_trainer_whose_node_is_gone_saves_and_leaves(
    prepared: PreparedRun, tmp_path: Path
) -> None:
    log, state = tmp_path / "trainer.log", tmp_path / "train" / "0"
    async with open_worker("node.workers.trainer", log=log, grace_s=30) as worker:
        await worker.send(order(prepared, state))
        started = await next_of(worker, "started")
        process = worker._process
        await worker._line.aclose()  # as when the node was killed
        with trio.fail_after(20):
            await process.wait()
    assert process.returncode == 0
    assert started["samples"] == BATCH
    async with open_worker("node.workers.trainer", log=log, grace_s=30) as worker:
        await worker.send(order(prepared, state))
        assert int(str((await next_of(worker, "started"))["samples"])) > BATCH
        os.kill(worker.pid, signal.SIGTERM)  # and as an operator would ask
        last = await rest(worker)
    assert [message["kind"] for message in last[-2:]] == ["saved", "done"]


@pytest.mark.slow
async def test_trainer_that_cannot_train_says_why(prepared: PreparedRun, tmp_path: Path) -> None:
    log = tmp_path / "trainer.log"
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    async with open_worker("node.workers.trainer", log=log, grace_s=10) as worker:
        await worker.send(order(prepared, tmp_path / "state", data=str(nothing)))
        failed = await next_of(worker, "failed")
        assert "nothing" in str(failed["error"])


@pytest.mark.slow
async def test_expert_program_draws_cancels_and_says_what_is_wrong(
    prepared: PreparedRun, tmp_path: Path
) -> None:
    """Through the studio, with experts that the trainer saved."""
    saved = {}
    for info in prepared.clusters:
        log = tmp_path / "trainer.log"
        async with open_worker("node.workers.trainer", log=log, grace_s=10) as worker:
            state = tmp_path / "train" / str(info.k)
            await worker.send(order(prepared, state, data=str(info.folder), cluster=info.k))
            saved[str(info.k)] = str((await next_of(worker, "saved"))["path"])
            summaries = {str(info.k): str(state.parent / f"summary-{info.k}.safetensors")}
    wanted: Message = {
        "kind": "draw",
        "shared": str(prepared.shared),
        "models": str(prepared.root / "models"),
        "experts": saved,
        "summaries": summaries,
        "routers": {},
        "loras": {},
        "prompt": "a disc",
        "n": 2,
        "seed": 1,
        "strategy": "sticky",
        "top_k": 2,
        "threshold": 0.1,
        "router": None,
        "sampler": "ab2",
        "steps": 3,
        "guidance": 2.0,
        "autoguidance": 0.0,
        "threads": 1,
        "device": "cpu",
    }
    studio = Studio(Home.at(tmp_path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(studio.run)
        with trio.fail_after(90):
            kinds = await _drawn(studio, wanted)
            assert kinds[0] == "route"
            assert kinds.count("image") == 2
            assert kinds.index("progress") < kinds.index("image")
            async with aclosing(studio.draw({**wanted, "steps": 100, "n": 16})) as news:
                await anext(news)  # and leave
            with pytest.raises(NodeError, match="drawing failed"):
                await _drawn(studio, {**wanted, "experts": {"0": str(tmp_path / "absent")}})
            assert (await _drawn(studio, wanted)).count("image") == 2
        nursery.cancel_scope.cancel()


async def _drawn(studio: Studio, wanted: Message) -> list[str]:
    async with aclosing(studio.draw(wanted)) as news:
        return [str(message["kind"]) async for message in news]


class _Interrupting:
    """A line on which nothing comes, but a SIGTERM while it is looked at."""

    trainer: Trainer

    def poll(self) -> Message | None:
        self.trainer.request_stop(signal.SIGTERM, None)
        return None


def test_signal_during_a_look_at_the_line_is_not_forgotten() -> None:
    line = _Interrupting()
    trainer = line.trainer = Trainer(line)  # type: ignore[arg-type]
    trainer.should_stop()
    assert trainer.should_stop()
