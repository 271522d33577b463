"""How long jobs of a prover may take: more for adapters of many layers, and no more than that."""

from pathlib import Path

import pytest
from trio.testing import MockClock

import node.proving
from node.errors import NodeError
from node.home import Home
from node.proving import CPU_PER_LAYER_S, JOB_CPU_S
from node.workers.link import Message
from tests.node.test_proving import Player, running


class Noting(Player):
    """Notes the processor time that each job is given; may never be done."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_s: list[object] = []
        self.is_slow = False

    async def send(self, message: Message) -> None:
        self.cpu_s.append(message["cpu_s"])
        await super().send(message)
        if self.is_slow:
            self._job = "hang"


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch) -> Noting:
    made = Noting()
    monkeypatch.setattr(node.proving, "open_worker", made.open_worker)
    return made


async def test_each_layer_that_is_committed_to_has_its_time(
    player: Noting, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """280 layers of rank 16 take two and a half minutes of one processor."""
    modules = [{"name": str(number)} for number in range(280)]
    async with running(Home.at(tmp_path)) as proving:
        await proving.commit(modules, tmp_path)
        await proving.check(modules, tmp_path)
        await proving.commit(modules[:1], tmp_path)
        await proving.verify({"module": "x"}, b"proof")
    much = JOB_CPU_S + 279 * CPU_PER_LAYER_S
    assert player.cpu_s == [much, much, JOB_CPU_S, JOB_CPU_S]


async def test_check_of_many_layers_is_waited_for_longer_and_not_for_ever(
    player: Noting, tmp_path: Path, autojump_clock: MockClock
) -> None:
    modules = [{"name": str(number)} for number in range(11)]
    player.is_slow = True
    async with running(Home.at(tmp_path)) as proving:
        with pytest.raises(NodeError, match="not done within 340 s"):
            await proving.check(modules, tmp_path)
