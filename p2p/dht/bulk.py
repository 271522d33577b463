"""Pulling blobs over asyncio streams, from several providers at once, into the store's folder.

Runs in the swarm child beside the DHT, over p2pd's raw streams; imports no network library: who
opens the streams hands them in. Every blob is hashed before it appears on disk, and what is on disk
is never asked for again, so a pull that was killed resumes by being started again. The serving half
is `p2p.dht.bulk_serve`; what is on the wire is `p2p.transfer`.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p.blob_files import blob_size, prepare, write_blob
from p2p.dht.bulk_serve import ServeGate, serve_stream
from p2p.errors import (
    DecodeError,
    LimitError,
    PeerError,
    RefusedError,
    StreamClosedError,
    TransportError,
)
from p2p.ids import BlobId
from p2p.limits import CHUNK_SIZE, DIAL_TIMEOUT_S, FIRST_BYTE_TIMEOUT_S, REQUEST_TIMEOUT_S
from p2p.transfer import (
    UNKNOWN_SIZE,
    Asking,
    BlobReceived,
    BlobRefused,
    PullJob,
    PullProgress,
    PullResult,
    Status,
    check_blob,
)
from p2p.transfer_schedule import Schedule, Throttle

logger = logging.getLogger(__name__)

__all__ = ["OpenStream", "PullTiming", "ServeGate", "pull", "serve_stream"]

OpenStream = Callable[[str], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""Opens a `transfer.PROTOCOL` stream to a peer id; raises `TransportError` or `OSError`."""

Wanted = tuple[tuple[BlobId, int], ...]

_READ_SIZE: Final = 256 * 1024
_PROGRESS_EVERY_S: Final = 0.1
_LOOK_AGAIN_S: Final = 0.25
"""An idle provider looks this often whether somebody has become slow enough to be overtaken."""


@dataclass(frozen=True, slots=True)
class PullTiming:
    """How patient a pull is, in seconds."""

    dial_s: float = DIAL_TIMEOUT_S
    first_byte_s: float = FIRST_BYTE_TIMEOUT_S
    idle_s: float = REQUEST_TIMEOUT_S
    """Between two pieces of an answer."""
    blob_s: float = 120.0
    """For one blob, our own cap aside: 9 kB/s, so that who trickles cannot hold a pull."""
    retry_s: tuple[float, ...] = (0.25, 1.0, 2.0)
    """Pauses before a provider is tried again; one failure more in a row and it is given up."""


async def pull(
    job: PullJob,
    open_stream: OpenStream,
    on_progress: Callable[[PullProgress], None],
    *,
    timing: PullTiming | None = None,
) -> PullResult:
    """Fetch a job's blobs; ends when all are on disk or no provider is left that might have more.

    Providers that fail, lack blobs or lie never raise: the result names them, and what is missing.

    Args:
        job: what, from whom, where to.
        open_stream: see `OpenStream`.
        on_progress: called at most ten times a second, and once at the end.
        timing: deadlines; the defaults of `PullTiming` if None.

    Raises:
        QuotaError: if the disk is full.
        StorageError: if the disk refuses for another reason.
    """
    await asyncio.to_thread(prepare, job.store_root)
    present = await asyncio.to_thread(_present, job)
    work = _Pull(job, present, open_stream, on_progress, timing or PullTiming())
    return await work.run()


def _present(job: PullJob) -> dict[BlobId, int]:
    """Sizes of the job's blobs that are on disk already, whole."""
    present: dict[BlobId, int] = {}
    for blob, size in job.blobs:
        on_disk = blob_size(job.store_root, blob)
        if on_disk is not None and size in (UNKNOWN_SIZE, on_disk):
            present[blob] = on_disk
    return present


class _Pull:
    """State of one pull; lives in one task tree."""

    def __init__(
        self,
        job: PullJob,
        present: dict[BlobId, int],
        open_stream: OpenStream,
        on_progress: Callable[[PullProgress], None],
        timing: PullTiming,
    ) -> None:
        wanted = {blob: size for blob, size in job.blobs if blob not in present}
        self._job = job
        self._open_stream = open_stream
        self._on_progress = on_progress
        self.schedule = Schedule(wanted.items(), (peer.peer_id for peer in job.providers))
        self.throttle = Throttle(job.max_bytes_per_s)
        self.timing = timing
        self.blob_s = timing.blob_s
        if job.max_bytes_per_s is not None:
            self.blob_s += 2 * CHUNK_SIZE * len(job.providers) / job.max_bytes_per_s
        self.root = job.store_root
        self._present_blobs = len(present)
        self._present_bytes = sum(present.values())
        self._fetched_blobs = 0
        self._fetched_bytes = 0
        self._by_peer: Counter[str] = Counter()
        self._duplicate_bytes = 0
        self._bad: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._open = 0
        self._total_bytes = self._present_bytes + sum(wanted.values())
        self._told_at = float("-inf")
        self._changed = asyncio.Event()
        self._all_here = asyncio.Event()

    async def run(self) -> PullResult:
        started = time.monotonic()
        self._tell()
        peers = dict.fromkeys(peer.peer_id for peer in self._job.providers)
        workers = {asyncio.create_task(self._provider(peer)) for peer in peers}
        all_here = asyncio.create_task(self._all_here.wait())
        try:
            while workers and not self.schedule.is_done:
                done, _ = await asyncio.wait(
                    {*workers, all_here}, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
                workers -= done
        finally:
            for task in (*workers, all_here):
                task.cancel()
            await asyncio.gather(*workers, all_here, return_exceptions=True)
        self._tell(is_last=True)
        return PullResult(
            fetched_blobs=self._fetched_blobs,
            fetched_bytes=self._fetched_bytes,
            present_blobs=self._present_blobs,
            duplicate_bytes=self._duplicate_bytes,
            missing=self.schedule.missing(),
            bad_peers=tuple(self._bad.items()),
            failed_peers=tuple(self._failed.items()),
            bytes_by_peer=tuple(self._by_peer.items()),
            seconds=time.monotonic() - started,
        )

    async def _provider(self, peer: str) -> None:
        """Work with one provider until it is of no more use, or out of patience with it."""
        failures = 0
        while self.schedule.is_useful(peer):
            given = self._by_peer[peer]
            try:
                await self._session(peer)
            except (DecodeError, LimitError) as error:
                logger.warning("provider %s dropped: %s", peer, error)
                self._bad[peer] = str(error)
                return self._drop(peer)
            except (PeerError, TransportError, OSError) as error:  # TimeoutError is an OSError
                failures = failures + 1 if self._by_peer[peer] == given else 1
                if failures > len(self.timing.retry_s):
                    logger.info("provider %s given up: %s", peer, error)
                    self._failed[peer] = str(error) or "timed out"
                    return self._drop(peer)
                self.schedule.released(peer)
                self.notify()
                await asyncio.sleep(self.timing.retry_s[failures - 1])
        return None

    def _drop(self, peer: str) -> None:
        self.schedule.dropped(peer)
        self.notify()

    async def _session(self, peer: str) -> None:
        wanted = self.schedule.ask(peer, time.monotonic())
        if not wanted:
            return await self.wait_for_change()  # a stream is opened when there is something to ask
        async with asyncio.timeout(self.timing.dial_s):
            reader, writer = await self._open_stream(peer)
        self._open += 1
        session = _Session(self, peer, reader, writer)
        try:
            await session.run(wanted)
        finally:
            self._open -= 1
            await session.close()

    def notice(self, peer: str, blob: BlobId, size: int) -> None:
        """A blob from `peer` is verified and on disk."""
        self._by_peer[peer] += size
        if self.schedule.arrived(peer, blob, size, time.monotonic()):
            self._fetched_blobs += 1
            self._fetched_bytes += size
        else:
            self._duplicate_bytes += size
        if self.schedule.is_complete:
            self._all_here.set()  # who still sends what came from another need not be waited for
        self._tell()

    def notify(self) -> None:
        """Wake idle providers: something was given back."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self) -> None:
        """Wait until something was given back, or somebody may have become slow."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_AGAIN_S):
                await self._changed.wait()

    def _tell(self, *, is_last: bool = False) -> None:
        now = time.monotonic()
        if not is_last and now - self._told_at < _PROGRESS_EVERY_S:
            return
        self._told_at = now
        done = self._present_blobs + self._fetched_blobs
        done_bytes = self._present_bytes + self._fetched_bytes
        total = done + len(self.schedule.missing())
        self._on_progress(
            PullProgress(done, total, done_bytes, max(self._total_bytes, done_bytes), self._open)
        )


class _Session:
    """One open stream to one provider: ask, receive, check, write."""

    def __init__(
        self, pull: _Pull, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._pull = pull
        self._peer = peer
        self._reader = reader
        self._writer = writer
        self._asking = Asking()
        self._storing: asyncio.Task[None] | None = None
        self._has_heard = False
        self._due = 0.0
        """When the next blob must be whole, monotonic."""

    async def run(self, wanted: Wanted) -> None:
        """Ask for `wanted`, and for more until the provider is of no more use."""
        try:
            self._ask(wanted)
            while self._pull.schedule.is_useful(self._peer):
                self._ask(self._pull.schedule.ask(self._peer, time.monotonic()))
                if self._asking.outstanding:
                    await self._receive()
                elif self._storing is not None:
                    await self._stored()
                else:
                    await self._pull.wait_for_change()
        except (PeerError, OSError):
            await self._stored()  # a bad blob just before the end of the stream is the real reason
            raise

    async def close(self) -> None:
        """Drop the stream at once; a write that runs in its thread is waited for."""
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        if self._storing is not None:
            await asyncio.gather(self._storing, return_exceptions=True)

    def _ask(self, wanted: Wanted) -> None:
        if not wanted:
            return
        if not self._asking.outstanding:
            self._has_heard = False
            self._due = time.monotonic() + self._pull.blob_s
        self._writer.write(self._asking.ask(wanted))

    async def _receive(self) -> None:
        timing = self._pull.timing
        limit_s = timing.idle_s if self._has_heard else timing.first_byte_s
        if time.monotonic() >= self._due:
            raise StreamClosedError(f"no whole blob came for {self._pull.blob_s:.0f} s")
        try:
            async with asyncio.timeout(limit_s):
                data = await self._reader.read(self._pull.throttle.piece_size(_READ_SIZE))
        except TimeoutError as error:
            raise StreamClosedError(f"nothing came for {limit_s} s") from error
        if not data:
            raise StreamClosedError("the provider ended the stream before the answer")
        self._has_heard = True
        for event in self._asking.receive(data):
            self._due = time.monotonic() + self._pull.blob_s
            match event:
                case BlobReceived():
                    await self._stored()
                    self._storing = asyncio.create_task(self._store(event))
                case BlobRefused(blob, Status.BUSY):
                    raise RefusedError("busy", f"the provider serves too many to give {blob}")
                case BlobRefused(blob):
                    self._pull.schedule.refused(self._peer, blob)
                    self._pull.notify()
        pause_s = self._pull.throttle.wait_s(len(data), time.monotonic())
        if pause_s:
            await asyncio.sleep(pause_s)

    async def _store(self, event: BlobReceived) -> None:
        """Check and write one blob in a thread, while the next one comes in."""
        await asyncio.to_thread(_check_and_write, self._pull.root, event)
        self._pull.notice(self._peer, event.blob, event.size)

    async def _stored(self) -> None:
        """Wait for the write that runs, and raise what it found."""
        task, self._storing = self._storing, None
        if task is not None:
            await task


def _check_and_write(root: Path, event: BlobReceived) -> None:
    check_blob(event.blob, event.pieces)
    write_blob(root, event.blob, event.pieces)
