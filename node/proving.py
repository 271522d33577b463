"""Proofs made and checked in child processes: a warm pool, a bounded queue, a deadline for each.

A worker that dies, hangs or passes its processor time fails the one job it had; the next one gets
another. What a peer claimed falsely is `RejectedByProofError`; what went wrong here, `NodeError`.
"""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from node.errors import ErrorCode, NodeError
from node.home import Home
from node.supervise import Worker, WorkerDiedError, open_worker
from node.workers.link import Message
from p2p.errors import LimitError

logger = logging.getLogger(__name__)

WORKERS: Final = 1
"""Processes at most: each proof takes every core it finds for a second or two."""
QUEUE: Final = 32
"""Jobs that may wait. The proofs of offers that come beyond are dropped, and looked for again."""
JOB_CPU_S: Final = 120
_WALL_S: Final = 240.0
"""For a job on a busy machine, its keys included."""
CPU_PER_LAYER_S: Final = 5
"""More for each further layer of an adapter that is committed to: the largest shape takes one."""
_WALL_PER_CPU: Final = 2.0
_IDLE_S: Final = 120.0
_GRACE_S: Final = 0.5
_LAST: Final = ("done", "verified", "rejected", "failed")
"""Kinds of a job's last answer."""


class RejectedByProofError(Exception):
    """What a peer claimed does not hold; says what."""


@dataclass(frozen=True, slots=True)
class Proven:
    """A proof made here.

    Attributes:
        values: of its statement, 16 bytes an integer, row by row.
        proof: raw.
    """

    values: bytes
    proof: bytes


@dataclass(slots=True)
class Proving:
    """Takes jobs; `run` must be running.

    Attributes:
        home: whose key folder and log are used.
    """

    home: Home
    _jobs: tuple[trio.MemorySendChannel["_Job"], trio.MemoryReceiveChannel["_Job"]] = field(
        default_factory=lambda: trio.open_memory_channel[_Job](QUEUE)
    )

    async def run(self) -> None:
        """Carry out jobs until cancelled; a worker is started with the first.

        When it ends, jobs that wait are given up: whoever asked for one gets a `NodeError`.
        """
        try:
            async with trio.open_nursery() as nursery:
                for number in range(WORKERS):
                    nursery.start_soon(self._work, number)
        finally:
            with suppress(trio.WouldBlock):
                while True:
                    self._jobs[1].receive_nowait().answers.close()

    async def commit(
        self, modules: Sequence[Mapping[str, object]], delivery: Path
    ) -> dict[str, bytes]:
        """Commitments to an adapter, by module.

        Args:
            modules: {name, inputs, rank, outputs} each.
            delivery: the adapter's file, see `verification.adapter`.

        Raises:
            NodeError: none could be made.
        """
        answers = await self._ask(
            {"kind": "commit", "modules": list(modules), "delivery": str(delivery)},
            extra_cpu_s=_cpu_of(modules),
        )
        return {
            str(one["module"]): _bytes(one["value"])
            for one in answers
            if one["kind"] == "commitment"
        }

    async def prove(
        self,
        modules: Sequence[Mapping[str, object]],
        delivery: Path,
        statement: Mapping[str, object],
    ) -> Proven:
        """A proof about one's own adapter.

        Raises:
            NodeError: none could be made.
            RejectedByProofError: the statement asks what no proof can show.
        """
        job: Message = {
            "kind": "prove",
            "modules": list(modules),
            "delivery": str(delivery),
            "statement": dict(statement),
        }
        first = (await self._ask(job))[0]
        return Proven(_bytes(first["values"]), _bytes(first["proof"]))

    async def verify(
        self, statement: Mapping[str, object], proof: bytes, *, may_wait: bool = True
    ) -> float:
        """Check a peer's proof.

        Args:
            statement: recomputed here, but for its values.
            proof: raw bytes.
            may_wait: whether to wait if the queue is full; else it is refused.

        Returns:
            For an offer's own proof, the estimate of ||A B||_F^2; else 0.

        Raises:
            RejectedByProofError: it does not hold.
            NodeError: nothing was decided; `RESOURCE` if the queue is full.
        """
        job: Message = {"kind": "verify", "statement": dict(statement), "proof": proof}
        last = (await self._ask(job, may_wait=may_wait))[-1]
        return float(str(last["square"]))

    async def check(self, modules: Sequence[Mapping[str, object]], delivery: Path) -> None:
        """Check that delivered weights are those that were committed to.

        Args:
            modules: {name, inputs, rank, outputs, commitment} each.
            delivery: what came.

        Raises:
            RejectedByProofError: they are not.
            NodeError: nothing was decided.
        """
        await self._ask(
            {"kind": "check", "modules": list(modules), "delivery": str(delivery)},
            extra_cpu_s=_cpu_of(modules),
        )

    async def _ask(
        self, message: Message, *, may_wait: bool = True, extra_cpu_s: int = 0
    ) -> list[Message]:
        send, receive = trio.open_memory_channel[Message](0)
        cpu_s = JOB_CPU_S + extra_cpu_s
        message = {**message, "keys": str(self.home.circuits), "cpu_s": cpu_s}
        job = _Job(message, send, _WALL_S + _WALL_PER_CPU * extra_cpu_s)
        if may_wait:
            await self._jobs[0].send(job)
        else:
            try:
                self._jobs[0].send_nowait(job)
            except trio.WouldBlock:
                raise NodeError(
                    ErrorCode.RESOURCE, f"{QUEUE} proofs wait to be checked already", "try later"
                ) from None
        answers: list[Message] = []
        async with receive:
            async for answer in receive:
                answers.append(answer)
        if not answers or answers[-1]["kind"] not in _LAST:
            raise _undecided("it was broken off")
        last = answers[-1]
        if last["kind"] == "rejected":
            raise RejectedByProofError(str(last["reason"]))
        if last["kind"] == "failed":
            raise _undecided(str(last["error"]))
        return answers

    async def _work(self, number: int) -> None:
        while True:
            job = await self._jobs[1].receive()
            async with job.answers:  # closed even if no worker can be started
                try:
                    async with self._worker(number) as worker:
                        await _serve(worker, job, self._jobs[1])
                except WorkerDiedError as error:
                    logger.warning("%s", error)
                except OSError as error:  # no process, no memory for one: the next may be luckier
                    logger.warning("no worker for a proof: %s", error)
                    with suppress(trio.ClosedResourceError):  # it was answered
                        await _tell(job, {"kind": "failed", "error": f"no process: {error}"})

    @asynccontextmanager
    async def _worker(self, number: int) -> AsyncIterator[Worker]:
        log = self.home.worker_log("proof" if number == 0 else f"proof-{number}")
        async with open_worker("node.workers.proof", log=log, grace_s=_GRACE_S) as worker:
            yield worker


@dataclass(slots=True, eq=False)
class _Job:
    message: Message
    answers: trio.MemorySendChannel[Message]
    wall_s: float

    @property
    def is_wanted(self) -> bool:
        return self.answers.statistics().open_receive_channels > 0


async def _serve(worker: Worker, first: _Job, jobs: trio.MemoryReceiveChannel[_Job]) -> None:
    """Do jobs until none came for a while, or the worker is gone."""
    await _do(worker, first)
    while True:
        with trio.move_on_after(_IDLE_S) as idle:
            job = await jobs.receive()
        if idle.cancelled_caught:
            return
        await _do(worker, job)


async def _do(worker: Worker, job: _Job) -> None:
    async with job.answers:
        if not job.is_wanted:
            return
        with trio.move_on_after(job.wall_s) as deadline:
            try:
                await worker.send(job.message)
                await _forward(worker, job)
            except LimitError as error:  # too large for the line: nothing was sent
                await _tell(job, {"kind": "failed", "error": str(error)})
            except WorkerDiedError as error:
                await _tell(job, {"kind": "failed", "error": str(error)})
                raise
        if deadline.cancelled_caught:
            worker.kill()
            await _tell(job, {"kind": "failed", "error": f"not done within {job.wall_s:g} s"})
            while True:
                await worker.receive()  # what it had said still, then that it is dead


async def _forward(worker: Worker, job: _Job) -> None:
    while True:
        answer = await worker.receive()
        await _tell(job, answer)
        if answer["kind"] in _LAST:
            return


async def _tell(job: _Job, answer: Message) -> None:
    with suppress(trio.BrokenResourceError):  # whoever asked has left; the job is finished anyway
        await job.answers.send(answer)


def _cpu_of(modules: Sequence[object]) -> int:
    return CPU_PER_LAYER_S * max(0, len(modules) - 1)


def _undecided(why: str) -> NodeError:
    return NodeError(ErrorCode.FAILED, f"the proof could not be made or checked: {why}", "")


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)  # noqa: S101  our own worker's message
    return value
