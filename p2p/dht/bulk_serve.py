"""Serving blobs over asyncio streams: whole blobs of the store's folder, and nothing else.

The peer's id is proven by p2pd. A peer names blobs by digest; no path, pattern or range is read
from it. What is sent was hashed just before, so a disk that decays makes a blob missing here and
never makes this node a liar elsewhere.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from pathlib import Path
from typing import Final

from p2p.blob_files import mark_used, read_blob
from p2p.errors import BlobMissingError, PeerError, StorageError
from p2p.ids import BlobId
from p2p.limits import (
    BULK_REFUSAL_PAUSE_S,
    FIRST_BYTE_TIMEOUT_S,
    IDLE_STREAM_TIMEOUT_S,
    MAX_BULK_STREAMS,
    MAX_BULK_STREAMS_PER_PEER,
    REQUEST_TIMEOUT_S,
)
from p2p.transfer import Serving, Status
from p2p.transfer_schedule import Throttle

logger = logging.getLogger(__name__)

_READ_SIZE: Final = 16 * 1024
_SLICE: Final = 256 * 1024
"""Bytes handed to the transport at once: it copies what the socket does not take."""


class ServeGate:
    """Who may be served now, and how fast: shared by all streams of a process.

    Args:
        max_bytes_per_s: cap on what goes out, over all streams; None for no cap.
        max_streams_per_peer: streams one peer may hold.
        max_streams: streams altogether.
    """

    def __init__(
        self,
        *,
        max_bytes_per_s: float | None = None,
        max_streams_per_peer: int = MAX_BULK_STREAMS_PER_PEER,
        max_streams: int = MAX_BULK_STREAMS,
    ) -> None:
        self._per_peer = max_streams_per_peer
        self._total = max_streams
        self._streams: Counter[str] = Counter()
        self._turned_away = 0
        self.throttle = Throttle(max_bytes_per_s)
        """May be exchanged while streams run."""
        self.served_bytes = 0

    def enter(self, peer: str) -> bool:
        """Whether one more stream of `peer` is served; call `leave` after it if so."""
        if self._streams[peer] >= self._per_peer or self._streams.total() >= self._total:
            return False
        self._streams[peer] += 1
        return True

    def enter_refusal(self) -> bool:
        """Whether one more stream gets a polite refusal; call `leave_refusal` after it if so."""
        if self._turned_away >= self._total:
            return False
        self._turned_away += 1
        return True

    def leave_refusal(self) -> None:
        """A refusal was given."""
        self._turned_away -= 1

    def leave(self, peer: str) -> None:
        """A stream of `peer` ended."""
        self._streams[peer] -= 1
        if not self._streams[peer]:
            del self._streams[peer]


async def serve_stream(
    store_root: Path,
    peer: str,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    gate: ServeGate,
) -> None:
    """Answer one stream's requests until the peer ends it, breaks the protocol or stalls.

    Never raises for what a peer or the disk does; the stream is always closed at the end.

    Args:
        store_root: folder of the `p2p.blobs.BlobStore`.
        peer: who asks, as the secure channel proved.
        reader: from the peer.
        writer: to the peer.
        gate: limits shared by all streams.
    """
    stream = _Stream(store_root, reader, writer, gate)
    try:
        if gate.enter(peer):
            try:
                await stream.serve()
            finally:
                gate.leave(peer)
        elif gate.enter_refusal():
            try:
                await stream.turn_away()
            finally:
                gate.leave_refusal()
        else:
            writer.transport.abort()
    except (PeerError, OSError) as error:  # OSError: gone, or a deadline passed
        logger.debug("stream of %s ended: %s", peer, error or "too slow")
        writer.transport.abort()  # a close would go on trying to send what is buffered
    finally:
        writer.close()


class _Stream:
    def __init__(
        self,
        root: Path,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: ServeGate,
    ) -> None:
        self._root = root
        self._reader = reader
        self._writer = writer
        self._gate = gate
        self._serving = Serving()

    async def serve(self) -> None:
        limit_s = FIRST_BYTE_TIMEOUT_S
        while asked := await self._requests(limit_s):
            limit_s = IDLE_STREAM_TIMEOUT_S
            queue = deque(asked)
            ahead = self._read(queue[0])
            try:
                while queue:
                    blob = queue.popleft()
                    data = await ahead
                    if queue:
                        ahead = self._read(queue[0])
                    await self._answer(blob, data)
            finally:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    async def turn_away(self) -> None:
        """Answer the first request with BUSY and end."""
        asked = await self._requests(FIRST_BYTE_TIMEOUT_S)
        if asked:
            self._writer.write(self._serving.answer(asked[0], Status.BUSY))
            await self._drain()

    async def _requests(self, limit_s: float) -> list[BlobId]:
        """The next blobs asked for, whole requests within `limit_s`; none at the stream's end."""
        async with asyncio.timeout(limit_s):
            while data := await self._reader.read(_READ_SIZE):
                if asked := self._serving.receive(data):
                    return asked
        return []

    def _read(self, blob: BlobId) -> asyncio.Task[bytes | None]:
        return asyncio.create_task(asyncio.to_thread(_read_checked, self._root, blob))

    async def _answer(self, blob: BlobId, data: bytes | None) -> None:
        if data is None:
            self._writer.write(self._serving.answer(blob, Status.MISSING))
            await self._drain()
            return await asyncio.sleep(BULK_REFUSAL_PAUSE_S)
        self._writer.write(self._serving.answer(blob, Status.HAVE, len(data)))
        view = memoryview(data)
        while view:
            size = self._gate.throttle.piece_size(_SLICE)
            piece, view = view[:size], view[size:]
            self._writer.write(piece)
            await self._drain()
            self._gate.served_bytes += len(piece)
            pause_s = self._gate.throttle.wait_s(len(piece), time.monotonic())
            if pause_s:
                await asyncio.sleep(pause_s)
        return None

    async def _drain(self) -> None:
        """Wait until the peer takes what was written, but not for ever."""
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            await self._writer.drain()


def _read_checked(root: Path, blob: BlobId) -> bytes | None:
    """A blob to send, or None if there is none that is what its name says."""
    try:
        data = read_blob(root, blob)
    except BlobMissingError:
        return None
    except StorageError as error:
        logger.warning("blob %s is not served: %s", blob, error)
        return None
    mark_used(root, blob)
    return data
