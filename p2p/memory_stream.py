"""Streams of the in-memory network: frames through bounded channels, both ends in one process."""

from dataclasses import dataclass, field

import trio

from p2p import limits
from p2p.errors import LimitError, PeerError, StreamClosedError
from p2p.ids import PeerId


@dataclass(slots=True, eq=False)
class StreamPair:
    """What the two ends of one stream share."""

    opener: PeerId
    server: PeerId
    protocol: str
    is_reset: bool = False
    senders: list[trio.MemorySendChannel[bytes]] = field(default_factory=list)

    def reset(self) -> None:
        """Drop both ends."""
        self.is_reset = True
        for sender in self.senders:
            sender.close()


class MemoryStream:
    """One end of an in-memory stream; see `p2p.host.Stream`."""

    def __init__(
        self,
        peer: PeerId,
        pair: StreamPair,
        outgoing: trio.MemorySendChannel[bytes],
        incoming: trio.MemoryReceiveChannel[bytes],
    ) -> None:
        self._peer = peer
        self._pair = pair
        self._outgoing = outgoing
        self._incoming = incoming

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        return self._peer

    async def send_frame(self, payload: bytes, *, max_size: int) -> None:
        """Send one frame."""
        if len(payload) > max_size:
            raise LimitError(f"frame: got {len(payload)} bytes, the limit is {max_size}")
        with trio.move_on_after(limits.IDLE_STREAM_TIMEOUT_S) as scope:
            try:
                await self._outgoing.send(bytes(payload))
            except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
                raise StreamClosedError(f"stream to {self._peer} is closed") from error
        if scope.cancelled_caught:
            await self.reset()
            raise PeerError(f"{self._peer} did not read for {limits.IDLE_STREAM_TIMEOUT_S:g} s")

    async def receive_frame(self, *, max_size: int, timeout_s: float) -> bytes:
        """Receive one frame."""
        with trio.move_on_after(timeout_s):
            try:
                frame = await self._incoming.receive()
            except (trio.EndOfChannel, trio.ClosedResourceError) as error:
                raise StreamClosedError(f"{self._peer} closed the stream") from error
            if self._pair.is_reset:
                raise StreamClosedError(f"stream with {self._peer} was reset")
            if len(frame) > max_size:
                await self.reset()
                raise LimitError(f"frame: announced {len(frame)} bytes, the limit is {max_size}")
            return frame
        raise PeerError(f"{self._peer} sent no whole frame within {timeout_s:g} s")

    async def close(self) -> None:
        """Say that no more will be sent."""
        self._outgoing.close()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """Drop the stream both ways."""
        self._pair.reset()
        await trio.lowlevel.checkpoint()

    def abandon(self) -> None:
        """Both directions are done with at this end."""
        self._outgoing.close()
        self._incoming.close()
