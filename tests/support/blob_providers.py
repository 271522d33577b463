"""Providers of blobs for tests: real streams over socket pairs, honest ones and liars.

A provider is a coroutine that serves one stream. `Network.open_stream` is what `bulk.pull` dials.
"""

import asyncio
import hashlib
import os
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from p2p.blob_files import prepare, read_blob, write_blob
from p2p.dht.bulk import PullTiming, ServeGate, pull, serve_stream
from p2p.errors import TransportError
from p2p.ids import BlobId, blob_digest, blob_id
from p2p.transfer import BulkPeer, PullJob, PullProgress, PullResult, Serving

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Wanted = tuple[tuple[BlobId, int], ...]
QUICK = PullTiming(dial_s=1.0, first_byte_s=0.3, idle_s=0.3, retry_s=(0.01,))


def random_blobs(root: Path, count: int, size: int = 20_000) -> Wanted:
    """Write `count` random blobs of `size` bytes into the store folder `root`."""
    prepare(root)
    wanted = []
    for _ in range(count):
        data = os.urandom(size)
        write_blob(root, blob_id(data), [data])
        wanted.append((blob_id(data), size))
    return tuple(wanted)


class Network:
    """Streams between a pull and the providers by name."""

    def __init__(self, providers: dict[str, Handler]) -> None:
        self._providers = providers
        self._tasks: set[asyncio.Task[None]] = set()
        self.dialled: Counter[str] = Counter()

    async def open_stream(self, peer: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.dialled[peer] += 1
        if peer not in self._providers:
            raise TransportError(f"no route to {peer}")
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        task = asyncio.create_task(self._serve(self._providers[peer], reader, writer))
        self._tasks.add(task)
        return await asyncio.open_unix_connection(sock=ours)

    async def _serve(
        self, handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await handler(reader, writer)
        except ConnectionError:
            pass  # the pull was done with us
        finally:
            writer.transport.abort()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


def run_pull(
    providers: dict[str, Handler],
    wanted: Wanted,
    root: Path,
    *,
    names: tuple[str, ...] = (),
    timing: PullTiming = QUICK,
    max_bytes_per_s: float | None = None,
    progress: list[PullProgress] | None = None,
) -> PullResult:
    """One pull of `wanted` into `root` from `providers` (and from `names`, who may not exist)."""

    async def main() -> PullResult:
        network = Network(providers)
        peers = tuple(BulkPeer(name, ()) for name in (*providers, *names))
        job = PullJob(wanted, peers, root, max_bytes_per_s)
        seen = progress if progress is not None else []
        try:
            async with asyncio.timeout(20):
                return await pull(job, network.open_stream, seen.append, timing=timing)
        finally:
            await network.close()

    return asyncio.run(main())


def honest(root: Path, gate: ServeGate | None = None) -> Handler:
    """The real serving half over the store folder `root`."""
    shared = gate or ServeGate()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_stream(root, "puller", reader, writer, shared)

    return serve


def answering(root: Path, answer: Callable[[BlobId, bytes], bytes]) -> Handler:
    """A provider whose raw answer for each blob is `answer(blob, its true bytes)`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = Serving()
        while data := await reader.read(65536):
            for blob in serving.receive(data):
                writer.write(answer(blob, read_blob(root, blob)))
                await writer.drain()

    return serve


def breaking_off(root: Path, sent: int, *, hangs: bool) -> Handler:
    """A provider that sends `sent` bytes of its first answers, then closes, or hangs for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = Serving().receive(await reader.read(65536))
        answers = b"".join(have(blob, read_blob(root, blob)) for blob in asked)
        writer.write(answers[:sent])
        await writer.drain()
        if hangs:
            await asyncio.Event().wait()
        writer.close()
        await writer.wait_closed()

    return serve


def paced(root: Path, pause_s: float) -> Handler:
    """An honest provider that waits `pause_s` before each blob."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = Serving()
        while data := await reader.read(65536):
            for blob in serving.receive(data):
                await asyncio.sleep(pause_s)
                writer.write(have(blob, read_blob(root, blob)))
                await writer.drain()

    return serve


def have(blob: BlobId, data: bytes, *, length: int | None = None, status: int = 0) -> bytes:
    """An answer as the protocol writes it; `length` lies about the size."""
    announced = len(data) if length is None else length
    return struct.pack(">B32sI", status, blob_digest(blob), announced) + data


def flip_bit(data: bytes, bit: int) -> bytes:
    """`data` with one bit turned over."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def all_there(root: Path, wanted: Wanted) -> bool:
    """Whether every blob of `wanted` is in `root` with its right content."""
    return all(
        hashlib.sha256(read_blob(root, blob)).digest() == blob_digest(blob) for blob, _ in wanted
    )
