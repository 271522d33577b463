"""The adapter worker's other half: one torch process for each order, one order at a time.

What an offer needs to know of an adapter is rare and holds an expert in memory, so that no process
is kept for the next order.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import trio

from node.adapter_facts import (
    Claimed,
    DeltaJob,
    DeltaMeasured,
    Measured,
    ModulePairs,
    Place,
    ProbePlan,
    Purchase,
)
from node.errors import ErrorCode, NodeError
from node.home import Home
from node.supervise import Worker, WorkerDiedError, open_worker
from node.workers.link import Message
from training.lora.layers import ModuleShape

_GRACE_S: Final = 1.0

Answer = Callable[[str, int, bytes], Awaitable[bytes]]
"""(layer, rows, X: int16 LE [rows, in]) -> X A B: int64 LE [rows, out]."""


@dataclass(slots=True)
class Adapters:
    """Takes orders about adapters; those that come meanwhile wait.

    Every method raises `NodeError`: what the worker refuses, with its reason; `TIMEOUT` when it and
    the orders before it took longer than `timeout_s`; `FAILED` when the worker died.
    """

    home: Home
    _turn: trio.Lock = field(default_factory=trio.Lock)

    async def claim(self, place: Place, lora: Path, out: Path, *, timeout_s: float) -> Claimed:
        """What an adapter does as it would be sold.

        Args:
            place: its base.
            lora: its folder.
            out: file for its integers, as `training.lora.arrays` lays them out; replaced.
            timeout_s: deadline.
        """
        async with self._order(place, "claim", timeout_s, lora=lora, out=out) as worker:
            found: Mapping[str, Any] = await _next(worker, "claimed")
        modules = tuple(ModuleShape(m["name"], m["in"], m["out"]) for m in found["modules"])
        facts = {name: found[name] for name in Claimed.__slots__ if name != "modules"}
        return Claimed(**facts, modules=modules)

    async def pairs(
        self, place: Place, probe: Path, targets: str, pairs: int, *, timeout_s: float
    ) -> ProbePlan:
        """What to ask of an adapter for a base, by one's own probe.

        Args:
            place: the base.
            probe: folder of the probe.
            targets: which layers the adapter changes.
            pairs: of each layer.
            timeout_s: deadline.
        """
        modules = []
        async with self._order(
            place, "pairs", timeout_s, probe=probe, targets=targets, pairs=pairs
        ) as worker:
            message: Mapping[str, Any] = await _next(worker, "pairs", "done")
            while message["kind"] == "pairs":
                modules.append(_module_pairs(message))
                message = await _next(worker, "pairs", "done")
        return ProbePlan(message["base_loss"], message["rows"], message["seed"], tuple(modules))

    async def measure(self, place: Place, probe: Path, lora: Path, *, timeout_s: float) -> Measured:
        """A probe's loss without an adapter and with it.

        Args:
            place: the adapter's base.
            probe: folder of the probe.
            lora: folder of the adapter.
            timeout_s: deadline.
        """
        async with self._order(place, "measure", timeout_s, probe=probe, lora=lora) as worker:
            found: Mapping[str, Any] = await _next(worker, "measured")
        return Measured(**{name: found[name] for name in Measured.__slots__})

    async def deltas(
        self, place: Place, job: DeltaJob, answer: Answer, *, timeout_s: float
    ) -> DeltaMeasured:
        """A few draws' loss with an adapter that lies elsewhere.

        Args:
            place: the adapter's base.
            job: what to measure.
            answer: asks the adapter's owner; its errors end the order and are raised.
            timeout_s: deadline, the answers included.
        """
        async with self._order(place, "deltas", timeout_s, **asdict(job)) as worker:
            message: Mapping[str, Any] = await _next(worker, "ask", "done")
            while message["kind"] == "ask":
                values = await answer(message["module"], message["rows"], message["x"])
                await worker.send({"kind": "answer", "values": values})
                message = await _next(worker, "ask", "done")
        return DeltaMeasured(**{name: message[name] for name in DeltaMeasured.__slots__})

    async def keep(
        self, place: Place, purchase: Purchase, folder: Path, *, timeout_s: float
    ) -> str:
        """Write a delivered adapter as a folder to use like one trained here.

        Args:
            place: its base.
            purchase: what was bought.
            folder: must not exist; its parent must.
            timeout_s: deadline.

        Returns:
            The adapter's id: sha256 of its weights file.
        """
        facts = asdict(purchase)
        async with self._order(place, "keep", timeout_s, folder=folder, **facts) as worker:
            found = await _next(worker, "kept")
        return str(found["sha256"])

    @asynccontextmanager
    async def _order(
        self, place: Place, kind: str, timeout_s: float, **facts: object
    ) -> AsyncIterator[Worker]:
        """A worker that was given an order; ended when the block ends."""
        order = {"kind": kind, **_plain(asdict(place)), **_plain(facts)}
        log = self.home.worker_log("adapter")
        try:
            with trio.move_on_after(timeout_s) as deadline:
                async with (
                    self._turn,
                    open_worker("node.workers.adapter", log=log, grace_s=_GRACE_S) as worker,
                ):
                    await worker.send(order)
                    yield worker
        except WorkerDiedError as error:
            raise NodeError(ErrorCode.FAILED, f"{error}.", "see: paris-node logs") from error
        if deadline.cancelled_caught:
            raise NodeError(
                ErrorCode.TIMEOUT, f"The work on an adapter was not done in {timeout_s:g} s."
            )


async def _next(worker: Worker, *kinds: str) -> Message:
    """The next message of one of these kinds; reports of progress are passed over."""
    while True:
        message = await worker.receive()
        if message["kind"] == "failed":
            code = ErrorCode.of_label(str(message["code"]))
            raise NodeError(code, str(message["error"]), str(message["fix"]))
        if message["kind"] in kinds:
            return message


def _module_pairs(message: Mapping[str, Any]) -> ModulePairs:
    count = len(message["weights"])
    return ModulePairs(
        module=message["module"],
        captured=message["captured"],
        norm=message["norm"],
        weights=tuple(message["weights"]),
        left=np.frombuffer(message["left"], dtype="<i2").reshape(count, -1),
        right=np.frombuffer(message["right"], dtype="<i2").reshape(count, -1),
    )


def _plain(facts: Mapping[str, object]) -> Message:
    """Paths as strings, as messages carry them."""
    return {
        name: str(value.absolute()) if isinstance(value, Path) else value
        for name, value in facts.items()
    }
