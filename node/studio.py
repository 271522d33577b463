"""The expert worker's other half: one torch process that draws, one picture order at a time.

Started at the first order, ended after a while without one (it holds the experts in memory). If it
dies, the order it was at fails with a reason and the next one starts a new process.
"""

import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Final

import trio

from node.errors import ErrorCode, NodeError
from node.home import Home
from node.supervise import Worker, WorkerDiedError, open_worker
from node.workers.link import Message

logger = logging.getLogger(__name__)

_IDLE_S: Final = 300.0
_GRACE_S: Final = 2.0
_QUEUE: Final = 16
_NEWS: Final = 64
"""Messages of one drawing that may wait for a slow reader; then the worker waits too."""


@dataclass(slots=True, eq=False)
class _Job:
    order: Message
    news: trio.MemorySendChannel[Message]
    is_done: bool = False


@dataclass(slots=True)
class Studio:
    """Takes drawing orders; `run` must be running."""

    home: Home
    _jobs: tuple[trio.MemorySendChannel[_Job], trio.MemoryReceiveChannel[_Job]] = field(
        default_factory=lambda: trio.open_memory_channel[_Job](_QUEUE)
    )

    async def run(self) -> None:
        """Carry out orders until cancelled."""
        while True:
            first = await self._jobs[1].receive()
            with first.news:  # its asker hears of it even if no worker can be started
                await self._hold_worker(first)

    async def _hold_worker(self, first: _Job) -> None:
        log = self.home.worker_log("expert")
        async with open_worker("node.workers.expert", log=log, grace_s=_GRACE_S) as worker:
            try:
                await self._draw(worker, first)
                await self._serve(worker)
            except WorkerDiedError as error:
                logger.warning("%s", error)

    async def draw(self, order: Message) -> AsyncGenerator[Message]:
        """Draw: `route`, `progress` and `image` messages, in the order they come.

        Leaving the iteration early cancels the drawing within one step.

        Raises:
            NodeError: if the drawing failed, or too many orders wait.
        """
        send, receive = trio.open_memory_channel[Message](_NEWS)
        job = _Job(order, send)
        try:
            self._jobs[0].send_nowait(job)
        except trio.WouldBlock:
            raise NodeError(
                ErrorCode.REFUSED, f"{_QUEUE} drawings wait already", "try again in a moment"
            ) from None
        async with receive:
            async for message in receive:
                if message["kind"] == "failed":
                    code = ErrorCode.of_label(str(message.get("code", ErrorCode.FAILED.label)))
                    raise NodeError(code, str(message["error"]), str(message["fix"]))
                yield message
        if not job.is_done:
            raise NodeError(
                ErrorCode.FAILED, "the drawing was broken off", "try again; see: paris-node logs"
            )

    async def _serve(self, worker: Worker) -> None:
        while True:
            with trio.move_on_after(_IDLE_S) as idle:
                job = await self._jobs[1].receive()
            if idle.cancelled_caught:
                return
            await self._draw(worker, job)

    async def _draw(self, worker: Worker, job: _Job) -> None:
        async with job.news:
            try:
                await worker.send(job.order)
                await self._forward(worker, job)
            except WorkerDiedError as error:
                await self._tell(job, {"kind": "failed", "error": str(error), "fix": ""})
                raise

    async def _forward(self, worker: Worker, job: _Job) -> None:
        is_heard = True
        while True:
            message = await worker.receive()
            if message["kind"] == "done":
                job.is_done = True
                return
            if is_heard and not await self._tell(job, message):
                is_heard = False
                await worker.send({"kind": "cancel"})
            if message["kind"] == "failed":
                return

    async def _tell(self, job: _Job, message: Message) -> bool:
        try:
            await job.news.send(message)
        except trio.BrokenResourceError:
            return False
        return True
