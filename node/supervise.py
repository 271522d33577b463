"""Keeping parts alive: worker processes at the end of a line, and services that restart.

The one place of the node that catches every error: a service that fails is logged with its
traceback, counted, and started again with a growing pause; one that fails too often in a row is
left broken and shown as such, since a loop of crashes helps nobody.
"""

import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import STDOUT
from typing import Final

import msgpack
import trio

from node.errors import NodeError
from node.workers.link import Message, decode_message, encode_message
from p2p.errors import LimitError
from p2p.limits import MAX_CHILD_FRAME_SIZE
from p2p.wire import FrameDecoder

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_BREAKER_FAILURES: Final = 6
_STEADY_AFTER_S: Final = 60.0
"""A service that ran this long starts its count of failures anew."""
_READ_SIZE: Final = 1 << 18
_TERM_GRACE_S: Final = 1.0


class WorkerDiedError(Exception):
    """A worker process ended, or became unusable, while the node still needed it.

    Args:
        name: the worker's module.
        returncode: its exit status, negative for a signal; None if only the line broke.
        log: where its output is.
        what: what happened, if it did not just end.
    """

    def __init__(self, name: str, returncode: int | None, log: Path, what: str = "") -> None:
        ended = "closed its line" if returncode is None else f"ended with status {returncode}"
        super().__init__(f"worker {name} {what or ended}; its output is in {log}")
        self.returncode = returncode


class Worker:
    """A running worker process and the line to it. Made by `open_worker`."""

    def __init__(
        self, name: str, process: trio.Process, line: trio.SocketStream, log: Path
    ) -> None:
        self.name = name
        self._process = process
        self._line = line
        self._log = log
        self._decoder = FrameDecoder(max_size=MAX_CHILD_FRAME_SIZE)
        self._pending: list[Message] = []
        self._send_lock = trio.Lock()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            WorkerDiedError: if the worker is gone.
        """
        try:
            async with self._send_lock:
                await self._line.send_all(encode_message(message))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise await self._died() from error

    async def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            WorkerDiedError: if the worker ended first.
        """
        while not self._pending:
            try:
                data = await self._line.receive_some(_READ_SIZE)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise await self._died() from error
            if not data:
                raise await self._died()
            try:
                self._pending += [decode_message(frame) for frame in self._decoder.feed(data)]
            except (ValueError, msgpack.UnpackException, LimitError) as error:
                self.kill()  # nothing it says after this can be made out
                raise WorkerDiedError(self.name, None, self._log, "wrote garbage") from error
        return self._pending.pop(0)

    def kill(self) -> None:
        """SIGKILL: for a worker that has nothing to save."""
        self._process.kill()

    async def finish(self, grace_s: float) -> None:
        """Close the line and wait; then SIGTERM, then SIGKILL. Works under cancellation."""
        with trio.CancelScope(shield=True):
            await self._line.aclose()
            with trio.move_on_after(grace_s) as patience:
                await self._process.wait()
            if not patience.cancelled_caught:
                return
            logger.warning("worker %s did not leave in %.1f s: terminating it", self.name, grace_s)
            self._process.terminate()
            with trio.move_on_after(_TERM_GRACE_S) as patience:
                await self._process.wait()
            if not patience.cancelled_caught:
                return
            self._process.kill()
            await self._process.wait()

    async def _died(self) -> WorkerDiedError:
        with trio.move_on_after(_TERM_GRACE_S):
            await self._process.wait()
        return WorkerDiedError(self.name, self._process.returncode, self._log)


@asynccontextmanager
async def open_worker(
    module: str, *, log: Path, grace_s: float, env: Mapping[str, str] | None = None
) -> AsyncIterator[Worker]:
    """Start `python -m module FD` and hold it for as long as the context lasts.

    Args:
        module: a program that speaks `node.workers.link` on the descriptor it is given.
        log: file that takes its standard output and error.
        grace_s: seconds it is given to leave by itself when the context ends.
        env: variables added to our environment.
    """
    ours, theirs = socket.socketpair()
    with theirs, log.open("ab") as output:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", module, str(theirs.fileno())],
            stdout=output.fileno(),
            stderr=STDOUT,
            pass_fds=[theirs.fileno()],
            env={**os.environ, **(env or {})},
            start_new_session=True,  # a Ctrl-C in the terminal is the node's to pass on
        )
    line = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    worker = Worker(module, process, line, log)
    try:
        yield worker
    finally:
        await worker.finish(grace_s)


def is_for_people(error: BaseException) -> bool:
    """Whether an error is a `NodeError`, or a nursery's group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_for_people, error.exceptions))
    return isinstance(error, NodeError)


@dataclass(slots=True)
class ServiceHealth:
    """How one service of the node is doing."""

    state: str = "running"
    """running, restarting or broken."""
    failures: int = 0
    last_error: str = ""


@dataclass(slots=True)
class Supervisor:
    """Runs named services until the node stops, and knows how each is doing."""

    health: dict[str, ServiceHealth] = field(default_factory=dict)

    async def run(self, name: str, service: Callable[[], Awaitable[None]]) -> None:
        """Run a service for good; see the module's docstring. Returns only if it is broken.

        A `NodeError` is meant for the person who started the node: it is not retried but raised.
        """
        health = self.health.setdefault(name, ServiceHealth())
        pause_s = _FIRST_PAUSE_S
        in_a_row = 0
        while True:
            started = trio.current_time()
            try:
                await service()
                health.state = "done"
                return
            except Exception as error:
                if is_for_people(error):
                    raise
                logger.exception("service %s failed", name)
                health.failures += 1
                health.last_error = f"{type(error).__name__}: {error}"
            if trio.current_time() - started > _STEADY_AFTER_S:
                pause_s, in_a_row = _FIRST_PAUSE_S, 0
            in_a_row += 1
            if in_a_row >= _BREAKER_FAILURES:
                health.state = "broken"
                logger.error("service %s failed %d times in a row: left off", name, in_a_row)
                return
            health.state = "restarting"
            await trio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
            health.state = "running"
