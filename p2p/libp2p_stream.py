"""A py-libp2p stream as our `Stream`: whole frames, deadlines, and one table of foreign errors."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio
from libp2p.exceptions import BaseLibp2pError

from p2p import limits
from p2p.errors import LimitError, PeerError, StreamClosedError
from p2p.ids import PeerId, parse_peer_id
from p2p.libp2p_settings import HostLimits
from p2p.wire import PREFIX_SIZE, encode_frame, frame_length

FOREIGN_ERRORS: Final[tuple[type[Exception], ...]] = (
    BaseLibp2pError,  # StreamEOF, StreamReset, StreamClosed, SwarmException, ...
    OSError,
    EOFError,
    ValueError,  # of codecs fed by the peer: UnicodeDecodeError among them
    KeyError,  # of yamux, when a stream goes away under a reader
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
"""What py-libp2p raises when the other side, or the network, fails."""

_WRITE_SIZE: Final = 256 * limits.KIB
"""One write: 16 KiB pieces were measured at half the throughput."""
_READ_SIZE: Final = 64 * limits.KIB


class LibP2PStream:
    """See `p2p.host.Stream`.

    Args:
        stream: a negotiated py-libp2p stream.
        host_limits: its deadlines.
        is_inbound: whether the peer opened it: its first byte is then due soon.
    """

    def __init__(self, stream: Any, host_limits: HostLimits, *, is_inbound: bool) -> None:  # noqa: ANN401
        self._stream = stream
        self._limits = host_limits
        self._is_first_byte_due = is_inbound
        self._peer = parse_peer_id(str(stream.muxed_conn.peer_id))
        self._buffer = bytearray()
        self._is_closed = False

    @property
    def peer(self) -> PeerId:
        """Who is at the other end, as Noise proved."""
        return self._peer

    async def send_frame(self, payload: bytes, *, max_size: int) -> None:
        """Send one frame; a peer that does not read is dropped after the idle timeout."""
        frame = memoryview(encode_frame(payload, max_size=max_size))
        if self._is_closed:
            raise StreamClosedError(f"stream to {self._peer} is closed at this end")
        for start in range(0, len(frame), _WRITE_SIZE):
            piece = bytes(frame[start : start + _WRITE_SIZE])
            await self._within(
                self._limits.idle_stream_timeout_s, partial(self._stream.write, piece)
            )

    async def receive_frame(self, *, max_size: int, timeout_s: float) -> bytes:
        """Receive one frame within `timeout_s`; a slower byte than the idle timeout is late too."""
        deadline = trio.current_time() + timeout_s
        await self._fill(PREFIX_SIZE, deadline)
        try:
            length = frame_length(bytes(self._buffer[:PREFIX_SIZE]), max_size=max_size)
        except LimitError:
            await self.reset()
            raise
        await self._fill(PREFIX_SIZE + length, deadline)
        frame = bytes(self._buffer[PREFIX_SIZE : PREFIX_SIZE + length])
        del self._buffer[: PREFIX_SIZE + length]
        return frame

    async def close(self) -> None:
        """Say that no more will be sent."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(*FOREIGN_ERRORS):
            await self._stream.close_write()

    async def finish(self) -> None:
        """Both directions are done with: close, and forget the stream."""
        self._is_closed = True
        with suppress(*FOREIGN_ERRORS):
            await self._stream.close()

    async def reset(self) -> None:
        """Drop the stream at once, both ways."""
        self._is_closed = True
        with suppress(*FOREIGN_ERRORS):
            await self._stream.reset()

    async def _fill(self, size: int, deadline: float) -> None:
        """Read until the buffer holds `size` bytes."""
        while len(self._buffer) < size:
            wait_s = min(self._limits.idle_stream_timeout_s, deadline - trio.current_time())
            if self._is_first_byte_due:
                wait_s = min(wait_s, self._limits.first_byte_timeout_s)
            data = await self._within(max(wait_s, 0.0), self._read)
            if not data:
                raise StreamClosedError(f"{self._peer} closed the stream")
            self._is_first_byte_due = False
            self._buffer += data

    async def _read(self) -> bytes:
        """Some bytes, at least one; nothing is lost when the wait is cancelled.

        `stream.read` takes the bytes and then writes a window update: cancelled there, they would
        be gone. So the two steps are made here, the second one shielded (its write is bounded).
        """
        muxed = self._stream.muxed_stream
        data = await muxed.conn.read_stream(muxed.stream_id, _READ_SIZE)
        with trio.CancelScope(shield=True):
            await muxed._auto_tune_and_send_window_update(bytes_read=len(data))
        return bytes(data)

    async def _within(self, timeout_s: float, operation: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Run one read or write; translate what it raises."""
        with trio.move_on_after(timeout_s):
            try:
                return await operation()
            except FOREIGN_ERRORS as error:
                raise StreamClosedError(f"stream with {self._peer}: {error!r}") from error
        raise PeerError(f"{self._peer} did nothing for {timeout_s:.3g} s")
