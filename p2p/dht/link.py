"""One life of a swarm child as its node sees it, on trio: the process, its socket, its answers.

A `ChildLink` is used for one process and thrown away with it. Whatever is wrong with the child (it
ended, it wrote garbage, it stopped answering) ends `run`, and every call that waits gets an error;
`p2p.dht.client` decides what comes next.
"""

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

import p2p
from p2p.dht import frames
from p2p.dht.frames import Message, MessageDecoder, pack_message
from p2p.errors import (
    DecodeError,
    LimitError,
    P2PError,
    QuotaError,
    StorageError,
    TransportError,
)

logger = logging.getLogger(__name__)

GRACE_S: Final = 1.5
"""From the end of the socket to SIGTERM: the child stops p2pd in this time."""
TERM_S: Final = 0.5
"""From SIGTERM to SIGKILL."""
_READ_SIZE: Final = 65536
_SEND_QUEUE: Final = 64
_MAX_SOCKET_DIR: Final = 60
"""Bytes of a folder that leave room for the socket names in the 107 of a unix address."""
_RUNTIME_PREFIX: Final = "paris-dht-"

_ERRORS: Final[dict[str, type[P2PError]]] = {
    "invalid": DecodeError,
    "limit": LimitError,
    "quota": QuotaError,
    "storage": StorageError,
}


@dataclass(slots=True)
class _Pending:
    """A request that waits for its answer."""

    woken: trio.Event = field(default_factory=trio.Event)
    progress: Message | None = None
    answer: Message | None = None
    lost: str | None = None

    def wake(self) -> None:
        self.woken.set()
        self.woken = trio.Event()


class ChildLink:
    """Requests to, and events from, one running child.

    Args:
        stream: our end of the socket pair.
        on_event: called with each `{event, ...}` message, from within `run`.
    """

    def __init__(self, stream: trio.abc.Stream, on_event: Callable[[Message], None]) -> None:
        self._stream = stream
        self._on_event = on_event
        self._pending: dict[int, _Pending] = {}
        self._next_id = 1
        self._outbox, self._queue = trio.open_memory_channel[bytes](_SEND_QUEUE)
        self._lost: str | None = None

    async def run(self) -> None:
        """Move messages until the child closes its end or misbehaves.

        Raises:
            DecodeError, LimitError: if the child sent garbage.
        """
        failure: DecodeError | LimitError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                try:
                    await self._read()
                except (DecodeError, LimitError) as error:
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            self._lose("the swarm child went away")
        if failure is not None:
            raise failure

    async def request(
        self,
        operation: str,
        fields: Message,
        on_progress: Callable[[Message], None] | None = None,
    ) -> Message:
        """Ask for one thing and wait for the answer; cancelling tells the child to stop.

        Args:
            operation: its name.
            fields: its arguments.
            on_progress: called with each progress message.

        Raises:
            TransportError: if the child went away or could not do it.
            LimitError, DecodeError, StorageError: what the child says went wrong.
        """
        if self._lost is not None:
            raise TransportError(self._lost)
        number, self._next_id = self._next_id, self._next_id + 1
        pending = self._pending[number] = _Pending()
        try:
            await self._outbox.send(pack_message({**fields, "id": number, "op": operation}))
            while pending.answer is None and pending.lost is None:
                await pending.woken.wait()
                if on_progress is not None and pending.progress is not None:
                    news, pending.progress = pending.progress, None
                    on_progress(news)
        except trio.Cancelled:
            with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError):
                self._outbox.send_nowait(pack_message({"id": number, "op": "cancel"}))
            raise
        except trio.BrokenResourceError:
            raise TransportError("the swarm child went away") from None
        finally:
            del self._pending[number]
        if pending.answer is None:
            raise TransportError(pending.lost or "the swarm child went away")
        return _result(pending.answer)

    async def _write(self) -> None:
        async for frame in self._queue:
            try:
                await self._stream.send_all(frame)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the reader sees the end too, and says so

    async def _read(self) -> None:
        decoder = MessageDecoder()
        while True:
            try:
                received = await self._stream.receive_some(_READ_SIZE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not received:
                return
            for message in decoder.feed(bytes(received)):
                self._dispatch(message)

    def _dispatch(self, message: Message) -> None:
        if "event" in message:
            self._on_event(message)
            return
        pending = self._pending.get(frames.integer(message, "id"))
        if pending is None:
            return  # cancelled meanwhile
        if "progress" in message:
            pending.progress = frames.mapping(message, "progress")
        else:
            pending.answer = message
        pending.wake()

    def _lose(self, reason: str) -> None:
        self._lost = reason
        self._queue.close()
        for pending in self._pending.values():
            pending.lost = reason
            pending.wake()


def _result(answer: Message) -> Message:
    """The `ok` part of an answer. Raises what its `error` part names."""
    if "ok" in answer:
        return frames.mapping(answer, "ok")
    error = _ERRORS.get(frames.text(answer, "error"), TransportError)
    raise error(frames.text(answer, "message"))


@asynccontextmanager
async def child_process(
    log_path: Path | None,
) -> AsyncIterator[tuple[trio.Process, trio.SocketStream]]:
    """A child and our end of its socket. On leaving: socket closed, child (and p2pd) surely gone.

    Raises:
        TransportError: if the program cannot be run.
    """
    ours, theirs = socket.socketpair()
    async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
        try:
            with theirs:
                process = await _spawn(theirs, log_path)
        except OSError as error:
            raise TransportError(f"the swarm child cannot be run: {error}") from error
        try:
            yield process, stream
        finally:
            await _end(process, stream)


async def _spawn(socket_end: socket.socket, log_path: Path | None) -> trio.Process:
    log = None if log_path is None else _open_log(log_path)
    root = str(Path(p2p.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    try:
        return await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", "p2p.dht.child", str(socket_end.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(socket_end.fileno(),),
            start_new_session=True,  # Ctrl-C is for the node, which then ends us in order
            env={**os.environ, "PYTHONPATH": path},
        )
    finally:
        if log is not None:
            os.close(log)


def _open_log(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


async def _end(process: trio.Process, stream: trio.SocketStream) -> None:
    """Close the socket (the child's sign to leave), then SIGTERM, then SIGKILL."""
    with trio.CancelScope(shield=True):
        await trio.aclose_forcefully(stream)
        for patience_s, number in ((GRACE_S, signal.SIGTERM), (TERM_S, signal.SIGKILL)):
            with trio.move_on_after(patience_s):
                await process.wait()
            if process.returncode is not None:
                break
            process.send_signal(number)
        await process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # p2pd, if the child had no time to end it


def make_runtime_dir(private_dir: Path) -> Path:
    """A new folder (0700) for one child's sockets; old ones in `private_dir` are swept.

    In the system's temp folder if `private_dir` is too long for a unix socket's address.
    """
    private_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for leftover in private_dir.glob(f"{_RUNTIME_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    is_short = len(os.fsencode(private_dir.resolve())) <= _MAX_SOCKET_DIR
    parent = private_dir.resolve() if is_short else None
    return Path(tempfile.mkdtemp(prefix=_RUNTIME_PREFIX, dir=parent))
