"""One drawing at a time: queue, cancel, and a worker that dies with only its own order."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import node.studio
from node.errors import ErrorCode, NodeError
from node.home import Home
from node.studio import Studio
from node.supervise import WorkerDiedError
from node.workers.link import Message

STEPS = 5


@dataclass
class Painter:
    """A fake expert program: a step a second; does what its order's prompt says."""

    started: int = 0
    open: int = 0
    cancelled: list[str] = field(default_factory=list)
    refuses_to_start: bool = False

    @asynccontextmanager
    async def open_worker(self, module: str, **_: Any) -> AsyncIterator["Canvas"]:
        assert module == "node.workers.expert"
        if self.refuses_to_start:
            raise OSError("no more processes")
        self.started += 1
        self.open += 1
        try:
            yield Canvas(self)
        finally:
            self.open -= 1


@dataclass
class Canvas:
    painter: Painter
    prompt: str = ""
    step: int = 0
    is_cancelled: bool = False

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if message["kind"] == "cancel":
            self.is_cancelled = True
            self.painter.cancelled.append(f"{self.prompt} at step {self.step}")
        else:
            self.prompt, self.step, self.is_cancelled = str(message["prompt"]), 0, False

    async def receive(self) -> Message:
        await trio.sleep(1)
        self.step += 1
        if self.prompt == "die" and self.step == 3:
            raise WorkerDiedError("node.workers.expert", -9, Path("expert.log"))
        if self.prompt == "fail":
            return {"kind": "failed", "error": "drawing failed: no", "fix": "do"}
        if self.is_cancelled or self.step == STEPS + 2:
            return {"kind": "done"}
        if self.step == STEPS + 1:
            return {"kind": "image", "index": 0, "png": b"png", "shares": {}}
        return {"kind": "progress", "step": self.step, "steps": STEPS}


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    made = Painter()
    monkeypatch.setattr(node.studio, "open_worker", made.open_worker)
    return made


@asynccontextmanager
async def open_studio(tmp_path: Path) -> AsyncIterator[Studio]:
    studio = Studio(Home.at(tmp_path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(studio.run)
        yield studio
        nursery.cancel_scope.cancel()


async def drawn(studio: Studio, prompt: str, keep: Callable[[Message], bool] = bool) -> list[str]:
    kinds = []
    async with aclosing(studio.draw({"kind": "draw", "prompt": prompt})) as news:
        async for message in news:
            kinds.append(str(message["kind"]))
            if not keep(message):
                break
    return kinds


async def test_news_come_in_order(
    painter: Painter, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_studio(tmp_path) as studio:
        assert await drawn(studio, "boat") == ["progress"] * STEPS + ["image"]


async def test_one_worker_draws_order_after_order(
    painter: Painter, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_studio(tmp_path) as studio, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(drawn, studio, "boat")
    assert painter.started == 1


async def test_dying_worker_fails_its_own_order_only(
    painter: Painter, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_studio(tmp_path) as studio:
        with pytest.raises(NodeError, match="status -9") as caught:
            await drawn(studio, "die")
        assert caught.value.code is ErrorCode.FAILED
        assert await drawn(studio, "boat") == ["progress"] * STEPS + ["image"]
    assert painter.started == 2


async def test_order_that_fails_says_why_and_keeps_the_worker(
    painter: Painter, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_studio(tmp_path) as studio:
        with pytest.raises(NodeError, match="drawing failed") as caught:
            await drawn(studio, "fail")
        assert caught.value.fix == "do"
        assert await drawn(studio, "boat")
    assert painter.started == 1


async def test_leaving_early_cancels_within_a_step(
    painter: Painter, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_studio(tmp_path) as studio:
        await drawn(studio, "boat", keep=lambda message: message["step"] != 2)
        await trio.sleep(10)
        assert painter.cancelled == ["boat at step 3"]
        assert await drawn(studio, "ship") == ["progress"] * STEPS + ["image"]


async def test_queue_is_bounded_and_says_so(
    painter: Painter, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_studio(tmp_path) as studio, trio.open_nursery() as nursery:
        nursery.start_soon(drawn, studio, "boat")
        await trio.sleep(1.5)  # that one is being drawn
        for _ in range(16):
            nursery.start_soon(drawn, studio, "boat")
        await trio.sleep(0.1)
        with pytest.raises(NodeError, match="16 drawings wait") as caught:
            await drawn(studio, "boat")
        assert caught.value.code is ErrorCode.REFUSED


async def test_idle_worker_is_ended_and_the_next_order_starts_one(
    painter: Painter, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_studio(tmp_path) as studio:
        await drawn(studio, "boat")
        await trio.sleep(299)
        assert painter.open == 1
        await trio.sleep(3)
        assert painter.open == 0
        await drawn(studio, "boat")
    assert painter.started == 2


async def test_drawing_cut_short_is_not_taken_for_a_whole_one(
    painter: Painter, tmp_path: Path, autojump_clock: MockClock
) -> None:
    studio = Studio(Home.at(tmp_path))
    service = trio.CancelScope()

    async def run() -> None:
        with service:
            await studio.run()

    def stop_the_studio(message: Message) -> bool:
        service.cancel()
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with trio.fail_after(60), pytest.raises(NodeError, match="broken off"):
            await drawn(studio, "boat", keep=stop_the_studio)


async def test_worker_that_cannot_be_started_fails_the_order(
    painter: Painter, tmp_path: Path, autojump_clock: MockClock
) -> None:
    painter.refuses_to_start = True
    studio = Studio(Home.at(tmp_path))

    async def run() -> None:
        with pytest.raises(OSError, match="no more processes"):
            await studio.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with trio.fail_after(10), pytest.raises(NodeError, match="broken off"):
            await drawn(studio, "boat")
