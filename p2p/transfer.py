"""Blobs in bulk, without a socket: what is asked, what is answered, and what both may not do.

One stream, one direction of blobs. The asking side sends request frames (`p2p.wire`) that name
blobs by their raw sha2-256 digests; the serving side answers each digest in the order asked with a
37-byte header (status, digest, length) and, for `HAVE`, that many bytes. There are no paths, no
offsets and no sizes to trust: a blob is at most `CHUNK_SIZE`, so it is the unit of retry, of
verification and of resuming. The asking side knows each size beforehand and refuses the rest.
Knows nothing of disks, clocks or asyncio (`p2p.dht.bulk` drives it).
"""

import hashlib
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from p2p.errors import DecodeError, LimitError
from p2p.ids import BlobId, blob_digest, blob_id_of_digest
from p2p.limits import CHUNK_SIZE, MAX_BLOBS_OUTSTANDING, MAX_BLOBS_PER_REQUEST, MAX_REQUEST_SIZE
from p2p.wire import FrameDecoder, encode_frame

PROTOCOL: Final = "/paris/blob/1"
UNKNOWN_SIZE: Final = 0
"""Size of a blob known by name only (a manifest): anything up to `CHUNK_SIZE` is taken."""
DIGEST_SIZE: Final = 32
_SMALL_PIECE: Final = 4096
_HEADER: Final = struct.Struct(f">B{DIGEST_SIZE}sI")
HEADER_SIZE: Final = _HEADER.size


# --- the job, as it travels to the child --------------------------------------------------------
@dataclass(frozen=True, slots=True)
class BulkPeer:
    """Somebody who may have the blobs."""

    peer_id: str
    """Peer id of its swarm child, as p2pd proves it."""
    addresses: tuple[str, ...]
    """Multiaddrs to dial."""


@dataclass(frozen=True, slots=True)
class PullJob:
    """What to fetch, from whom, where to."""

    blobs: tuple[tuple[BlobId, int], ...]
    """(name, size in bytes), in the order wanted; `UNKNOWN_SIZE` if only the name is known."""
    providers: tuple[BulkPeer, ...]
    store_root: Path
    """Folder of the `p2p.blobs.BlobStore`; whoever asks has reserved the space there."""
    max_bytes_per_s: float | None
    """Cap on what comes in, over all providers; None for no cap."""


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a pull is; blobs that were on disk before count as done."""

    done_blobs: int
    total_blobs: int
    done_bytes: int
    """Bytes of finished blobs (what was on disk before included)."""
    total_bytes: int
    sources: int
    """Providers with an open stream now."""


@dataclass(frozen=True, slots=True)
class PullResult:
    """How a pull ended. Complete if `missing` is empty."""

    fetched_blobs: int
    """Blobs that came over the network and are now on disk."""
    fetched_bytes: int
    present_blobs: int
    """Blobs that were on disk before and were not asked for."""
    duplicate_bytes: int
    """Bytes fetched twice to overtake a slow provider, and thrown away."""
    missing: tuple[BlobId, ...]
    """Blobs that no provider gave, in the job's order."""
    bad_peers: tuple[tuple[str, str], ...]
    """(peer id, what it did wrong): sent bytes that are not the blob, or broke the protocol."""
    failed_peers: tuple[tuple[str, str], ...]
    """(peer id, reason): could not be reached, went away, or was too late. Nobody's fault."""
    bytes_by_peer: tuple[tuple[str, int], ...]
    """Verified bytes each provider gave."""
    seconds: float


# --- the asking side ----------------------------------------------------------------------------
class Status(IntEnum):
    """First byte of every answer."""

    HAVE = 0
    """`length` bytes of the blob follow."""
    MISSING = 1
    """Not in the store (or no longer what its name says). Nothing follows."""
    BUSY = 2
    """Too many streams or blobs outstanding: ask again later. Nothing follows; the stream ends."""


@dataclass(frozen=True, slots=True)
class BlobReceived:
    """All bytes of a blob came, as pieces in order. **Not yet verified**: see `check_blob`."""

    blob: BlobId
    pieces: tuple[memoryview, ...]
    size: int


@dataclass(frozen=True, slots=True)
class BlobRefused:
    """The peer does not have the blob, or not now."""

    blob: BlobId
    status: Status


Event = BlobReceived | BlobRefused


class Asking:
    """The asking side of one stream: requests out, bytes in, events out.

    Holds at most one blob in memory, plus what one `receive` call brought.
    """

    def __init__(self) -> None:
        self._expected: deque[tuple[BlobId, int]] = deque()
        self._header = bytearray()
        self._pieces: list[memoryview | bytearray] = []
        self._left = 0

    @property
    def outstanding(self) -> int:
        """Blobs asked for and not yet answered whole."""
        return len(self._expected)

    @property
    def is_mid_answer(self) -> bool:
        """Whether an answer has begun that is not whole yet."""
        return self._left > 0 or bool(self._header)

    def ask(self, blobs: Iterable[tuple[BlobId, int]]) -> bytes:
        """Bytes to send to ask for `blobs`, each (name, size or `UNKNOWN_SIZE`).

        Raises:
            LimitError: if that is more than one request, or one stream, may hold.
        """
        wanted = list(blobs)
        if not 0 < len(wanted) <= MAX_BLOBS_PER_REQUEST:
            raise LimitError(f"request: got {len(wanted)} blobs, limit 1..{MAX_BLOBS_PER_REQUEST}")
        if len(wanted) + len(self._expected) > MAX_BLOBS_OUTSTANDING:
            raise LimitError(f"stream: more than {MAX_BLOBS_OUTSTANDING} blobs outstanding")
        body = b"".join(blob_digest(blob) for blob, _ in wanted)
        self._expected.extend(wanted)
        return encode_frame(body, max_size=MAX_REQUEST_SIZE)

    def receive(self, data: bytes | bytearray) -> list[Event]:
        """Take bytes as they came; give the answers they complete, in order.

        Blob bytes are not copied: pieces are views of `data`, but for the small ones.

        Raises:
            DecodeError: if the peer answers what was not asked, in another order, or with another
                size; the stream is then unusable and the peer at fault.
        """
        events: list[Event] = []
        view = memoryview(data)
        while view:
            if self._left:
                piece, view = view[: self._left], view[self._left :]
                self._keep(piece)
                self._left -= len(piece)
                if not self._left:
                    events.append(self._whole())
                continue
            need = HEADER_SIZE - len(self._header)
            self._header += view[:need]
            view = view[need:]
            if len(self._header) == HEADER_SIZE:
                events += self._begin(*_HEADER.unpack(bytes(self._header)))
                self._header.clear()
        return events

    def _begin(self, status_code: int, digest: bytes, length: int) -> Iterator[Event]:
        if not self._expected:
            raise DecodeError("blob answer: got one that was not asked for")
        blob, size = self._expected[0]
        if digest != blob_digest(blob):
            raise DecodeError(f"blob answer: got {blob_id_of_digest(digest)}, expected {blob}")
        try:
            status = Status(status_code)
        except ValueError as error:
            raise DecodeError(f"blob answer: unknown status {status_code}") from error
        if status is not Status.HAVE:
            if length:
                raise DecodeError(f"blob answer: {status.name} with {length} bytes")
            self._expected.popleft()
            yield BlobRefused(blob, status)
            return
        if length > CHUNK_SIZE or size not in (UNKNOWN_SIZE, length):
            expected = f"{size}" if size != UNKNOWN_SIZE else f"at most {CHUNK_SIZE}"
            raise DecodeError(f"blob {blob}: announced {length} bytes, expected {expected}")
        self._left = length
        if not length:
            yield self._whole()

    def _keep(self, piece: memoryview) -> None:
        """Hold a piece; small ones together: a peer's single bytes would take 200 times that."""
        if len(piece) >= _SMALL_PIECE:
            self._pieces.append(piece)
        elif self._pieces and isinstance(self._pieces[-1], bytearray):
            self._pieces[-1] += piece
        else:
            self._pieces.append(bytearray(piece))

    def _whole(self) -> BlobReceived:
        blob, _ = self._expected.popleft()
        pieces = tuple(memoryview(piece) for piece in self._pieces)
        self._pieces = []
        return BlobReceived(blob, pieces, sum(map(len, pieces)))


def check_blob(blob: BlobId, pieces: Iterable[bytes | memoryview]) -> None:
    """Hash what came and compare it with the name (about 1 ms per MiB; releases the GIL).

    Raises:
        DecodeError: if the bytes are not the blob.
    """
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    if digest.digest() != blob_digest(blob):
        got = blob_id_of_digest(digest.digest())
        raise DecodeError(f"blob {blob}: got bytes of {got}, altered on the way or at the source")


# --- the serving side ---------------------------------------------------------------------------
class Serving:
    """The serving side of one stream: request bytes in, names of blobs to answer out."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder(max_size=MAX_BLOBS_PER_REQUEST * DIGEST_SIZE)
        self._outstanding = 0

    def receive(self, data: bytes) -> list[BlobId]:
        """Take bytes as they came; give the blobs they ask for, in order.

        Raises:
            LimitError: if a request is too large or more than `MAX_BLOBS_OUTSTANDING` blobs wait.
            DecodeError: if a request is empty or not a list of digests.
        """
        asked: list[BlobId] = []
        for body in self._decoder.feed(data):
            if not body or len(body) % DIGEST_SIZE:
                raise DecodeError(
                    f"blob request: got {len(body)} bytes, expected n * {DIGEST_SIZE}"
                )
            asked += [
                blob_id_of_digest(body[start : start + DIGEST_SIZE])
                for start in range(0, len(body), DIGEST_SIZE)
            ]
        self._outstanding += len(asked)
        if self._outstanding > MAX_BLOBS_OUTSTANDING:
            raise LimitError(f"stream: more than {MAX_BLOBS_OUTSTANDING} blobs outstanding")
        return asked

    def answer(self, blob: BlobId, status: Status, length: int = 0) -> bytes:
        """Header of the answer for `blob`; for `HAVE`, `length` bytes of it follow."""
        self._outstanding -= 1
        return _HEADER.pack(status, blob_digest(blob), length)
