"""Orders about adapters: one at a time, each with a deadline, each with a worker of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

import node.adapters
from node.adapter_facts import Claimed, DeltaJob, DeltaMeasured, Measured, Place, Purchase
from node.adapters import Adapters
from node.errors import ErrorCode, NodeError
from node.home import Home
from node.supervise import WorkerDiedError
from node.workers.link import Message
from training.lora.layers import ModuleShape

PLACE = Place(Path("/shared"), Path("/models"), Path("/expert"), 2, "cpu")
JOB = DeltaJob(Path("/probe"), "attention", 2.0, 4)
PROGRESS: Message = {"kind": "progress", "part": 1, "parts": 2}
MEASURED: Message = {
    "kind": "measured", "base_loss": 2.0, "adapted_loss": 1.5, "rows": 8, "seed": 3
}  # fmt: skip


@dataclass
class Fake:
    """A fake worker program: says what it is told to, a message a second."""

    says: list[Message]
    heard: list[Message] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    dies: bool = False

    @asynccontextmanager
    async def open_worker(self, module: str, **_: Any) -> AsyncIterator["Line"]:
        assert module == "node.workers.adapter"
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            yield Line(self, list(self.says))
        finally:
            self.open -= 1


@dataclass
class Line:
    fake: Fake
    left: list[Message]

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.fake.heard.append(message)

    async def receive(self) -> Message:
        await trio.sleep(1)
        if self.fake.dies:
            raise WorkerDiedError("node.workers.adapter", -9, Path("adapter.log"))
        return self.left.pop(0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake([PROGRESS, MEASURED])
    monkeypatch.setattr(node.adapters, "open_worker", made.open_worker)
    return made


@pytest.fixture
def adapters(tmp_path: Path) -> Adapters:
    return Adapters(Home.at(tmp_path))


async def measured(adapters: Adapters, timeout_s: float = 60) -> Measured:
    return await adapters.measure(PLACE, Path("/probe"), Path("/lora"), timeout_s=timeout_s)


async def test_order_says_where_things_lie_and_its_answer_is_read(
    fake: Fake, adapters: Adapters, autojump_clock: MockClock
) -> None:
    assert await measured(adapters) == Measured(2.0, 1.5, 8, 3)
    (order,) = fake.heard
    assert order == {
        "kind": "measure",
        "shared": "/shared",
        "models": "/models",
        "expert": "/expert",
        "threads": 2,
        "device": "cpu",
        "probe": "/probe",
        "lora": "/lora",
    }
    assert fake.open == 0


async def test_claim_names_the_layers(
    fake: Fake, adapters: Adapters, autojump_clock: MockClock
) -> None:
    facts: dict[str, Any] = {
        "base_loss": 2.0, "adapted_loss": 1.5, "float_loss": 1.49, "rows": 8, "seed": 3,
        "scaling": 2.0, "rank": 4, "alpha": 8.0, "targets": "attention", "licence": "CC0-1.0",
        "base": "bafkbase", "sha256": "ab" * 32, "offer": "",
    }  # fmt: skip
    modules = [{"name": "first", "in": 3, "out": 5, "rank": 4}]
    fake.says = [PROGRESS, {"kind": "claimed", **facts, "modules": modules}]
    found = await adapters.claim(PLACE, Path("/lora"), Path("/out.bin"), timeout_s=60)
    assert found == Claimed(**facts, modules=(ModuleShape("first", 3, 5),))
    assert (fake.heard[0]["lora"], fake.heard[0]["out"]) == ("/lora", "/out.bin")


async def test_pairs_of_all_layers_make_a_plan(
    fake: Fake, adapters: Adapters, autojump_clock: MockClock
) -> None:
    left = np.arange(6, dtype="<i2").reshape(2, 3)
    right = np.arange(-8, 0, dtype="<i2").reshape(2, 4)
    layer: Message = {
        "kind": "pairs", "captured": 0.9, "norm": 3.0, "weights": [0.5, 0.25],
        "left": left.tobytes(), "right": right.tobytes(),
    }  # fmt: skip
    fake.says = [
        PROGRESS,
        {**layer, "module": "first"},
        {**layer, "module": "second"},
        {"kind": "done", "base_loss": 2.0, "rows": 8, "seed": 3},
    ]
    plan = await adapters.pairs(PLACE, Path("/probe"), "attention", 2, timeout_s=60)
    assert (plan.base_loss, plan.rows, plan.seed) == (2.0, 8, 3)
    assert [found.module for found in plan.modules] == ["first", "second"]
    found = plan.modules[1]
    assert (found.captured, found.norm, found.weights) == (0.9, 3.0, (0.5, 0.25))
    assert found.left.tolist() == left.tolist()
    assert found.right.tolist() == right.tolist()


async def test_deltas_are_answered_one_question_after_another(
    fake: Fake, adapters: Adapters, autojump_clock: MockClock
) -> None:
    ask: Message = {"kind": "ask", "module": "first", "rows": 2, "x": b"xxxx"}
    done: Message = {"kind": "done", "base_loss": 2.0, "adapted_loss": 1.5, "rows_used": 4}
    fake.says = [PROGRESS, ask, {**ask, "module": "second"}, done]

    async def answer(module: str, rows: int, x: bytes) -> bytes:
        await trio.sleep(2)
        assert (rows, x) == (2, b"xxxx")
        return module.encode()

    found = await adapters.deltas(PLACE, JOB, answer, timeout_s=60)
    assert found == DeltaMeasured(2.0, 1.5, 4)
    order, *answers = fake.heard
    assert (order["targets"], order["scaling"], order["draws"]) == ("attention", 2.0, 4)
    assert [message["values"] for message in answers] == [b"first", b"second"]


async def test_owner_who_fails_ends_the_order_with_his_error(
    fake: Fake, adapters: Adapters, autojump_clock: MockClock
) -> None:
    fake.says = [{"kind": "ask", "module": "first", "rows": 2, "x": b"xxxx"}]

    async def answer(module: str, rows: int, x: bytes) -> bytes:
        raise trio.TooSlowError  # his deadline, not the order's

    with pytest.raises(trio.TooSlowError):
        await adapters.deltas(PLACE, JOB, answer, timeout_s=60)
    assert fake.open == 0


async def test_purchase_is_kept_under_its_id(
    fake: Fake, adapters: Adapters, autojump_clock: MockClock
) -> None:
    fake.says = [{"kind": "kept", "sha256": "ab" * 32}]
    purchase = Purchase(
        Path("/arrays.bin"), "bafkbase", "bafkoffer", "attention", 4, 8.0, 6, 3, 2.0, 1.5, ""
    )
    folder = Path("/loras/bought")
    assert await adapters.keep(PLACE, purchase, folder, timeout_s=60) == "ab" * 32
    order = fake.heard[0]
    assert (order["folder"], order["arrays"]) == ("/loras/bought", "/arrays.bin")
    assert (order["cid"], order["offer"], order["probe"]) == ("bafkbase", "bafkoffer", None)


async def test_what_the_worker_refuses_is_raised_with_its_code_and_fix(
    fake: Fake, adapters: Adapters, autojump_clock: MockClock
) -> None:
    fake.says = [{"kind": "failed", "code": "verification_failed", "error": "no.", "fix": "do"}]
    with pytest.raises(NodeError, match=r"no\.") as caught:
        await measured(adapters)
    assert (caught.value.code, caught.value.fix) == (ErrorCode.VERIFICATION_FAILED, "do")
    fake.says = [MEASURED]
    await measured(adapters)  # the next one is not harmed


async def test_worker_that_dies_is_a_failure_that_names_its_log(
    fake: Fake, adapters: Adapters, autojump_clock: MockClock
) -> None:
    fake.dies = True
    with pytest.raises(NodeError, match=r"status -9; its output is in adapter\.log") as caught:
        await measured(adapters)
    assert caught.value.code is ErrorCode.FAILED


async def test_orders_are_carried_out_one_at_a_time(
    fake: Fake, adapters: Adapters, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(measured, adapters)
    assert len(fake.heard) == 4
    assert fake.most_open == 1


async def test_deadline_ends_the_worker_and_holds_for_the_wait_before_it(
    fake: Fake, adapters: Adapters, autojump_clock: MockClock
) -> None:
    with pytest.raises(NodeError, match=r"not done in 1\.5 s") as caught:
        await measured(adapters, timeout_s=1.5)
    assert caught.value.code is ErrorCode.TIMEOUT
    assert fake.open == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measured, adapters)
        await trio.sleep(0.5)
        with pytest.raises(NodeError, match="not done"):
            await measured(adapters, timeout_s=3)
    assert len(fake.heard) == 3
