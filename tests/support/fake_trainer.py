"""A trainer program without gradients: real messages, real folders, samples by the second."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from node.supervise import WorkerDiedError
from node.workers.link import Message

BUDGET = 1000
SAVE_EVERY = 100


@dataclass
class TrainerFarm:
    """The fake trainer program: real messages, real folders, samples instead of gradients.

    Attributes:
        samples_per_s: speed, in virtual time.
        running: trainers under way, by the state folder they write to.
        dies: state folders whose trainer dies at its next message.
        orders: every order received.
    """

    samples_per_s: float = 10.0
    running: dict[str, "FakeTrainer"] = field(default_factory=dict)
    orders: list[Message] = field(default_factory=list)
    die_after_messages: int | None = None

    @asynccontextmanager
    async def open_worker(self, module: str, **_: Any) -> AsyncIterator["FakeTrainer"]:
        assert module == "node.workers.trainer"
        trainer = FakeTrainer(self)
        try:
            yield trainer
        finally:
            self.running.pop(trainer.state, None)


@dataclass(eq=False)
class FakeTrainer:
    """One trainer: `start_from` or its own state, whichever is further, then on to the budget."""

    farm: TrainerFarm
    pid: int = 4242
    state: str = ""
    samples: int = 0
    saved_at: int = -1
    is_killed: bool = False
    news: list[Message] = field(default_factory=list)
    sent: int = 0
    _stop: trio.Event = field(default_factory=trio.Event)

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if message["kind"] == "stop":
            self._stop.set()
            return
        self.farm.orders.append(message)
        self.state = str(message["state"])
        self.farm.running[self.state] = self
        starts = [
            Path(self.state),
            *([Path(str(message["start_from"]))] * bool(message["start_from"])),
        ]
        self.samples = max(map(_samples_in, starts))
        summary = Path(self.state).parent / f"summary-{message['cluster']}.safetensors"
        summary.parent.mkdir(parents=True, exist_ok=True)
        summary.write_bytes(f"summary of {message['cluster']}".encode())
        self.news += [
            {"kind": "summary", "path": str(summary)},
            {"kind": "started", "samples": self.samples},
        ]

    async def receive(self) -> Message:
        self.sent += 1
        if self.is_killed:
            raise WorkerDiedError("node.workers.trainer", -9, Path("trainer.log"))
        if self.farm.die_after_messages is not None and self.sent > self.farm.die_after_messages:
            raise WorkerDiedError("node.workers.trainer", -9, Path("trainer.log"))
        if self.news:
            await trio.lowlevel.checkpoint()
            return self.news.pop(0)
        if self.samples >= BUDGET:
            return self._leave()
        with trio.move_on_after(1.0) as second:
            await self._stop.wait()
        if not second.cancelled_caught:
            return self._leave()
        before = self.samples
        self.samples = min(BUDGET, self.samples + int(self.farm.samples_per_s))
        if self.samples // SAVE_EVERY > before // SAVE_EVERY:
            self.news.append(self._save())
        return {
            "kind": "step",
            "step": self.samples // 10,
            "samples": self.samples,
            "loss": 0.5,
            "samples_per_s": self.farm.samples_per_s,
            "buckets": [None, *[0.5] * 9],
            "how": {"precision": "fp32", "reason": "fp32 because this is no CPU"},
        }

    def kill(self) -> None:
        """As `Worker.kill`: nothing more will come."""
        self.is_killed = True

    def _leave(self) -> Message:
        if self.saved_at != self.samples:
            self.news.append({"kind": "done"})
            return self._save()
        return {"kind": "done"}

    def _save(self) -> Message:
        folder = Path(self.state) / f"step-{self.samples}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(f"{self.samples} {self.state}".encode())
        (Path(self.state) / "model.safetensors").write_bytes(f"{self.samples}".encode())
        self.saved_at = self.samples
        return {
            "kind": "saved",
            "path": str(folder),
            "step": self.samples // 10,
            "samples": self.samples,
            "loss": 0.5,
        }


def _samples_in(folder: Path) -> int:
    model = folder / "model.safetensors"
    return int(model.read_bytes().split()[0]) if model.exists() else 0
