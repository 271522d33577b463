"""Length-prefixed frames as a state machine with no socket in it: bytes in, frames out.

A frame is a 4-byte big-endian length and that many bytes. The length is checked against the limit
before a byte of the body is kept, so that a peer cannot make us allocate what we would refuse.
"""

import struct
from typing import Final

from p2p.errors import LimitError

_LENGTH: Final = struct.Struct(">I")
PREFIX_SIZE: Final = _LENGTH.size


def encode_frame(payload: bytes, *, max_size: int) -> bytes:
    """One frame ready to send.

    Raises:
        LimitError: if the payload is larger than `max_size` bytes (ours to fix: raised, not cut).
    """
    if len(payload) > max_size:
        raise LimitError(f"frame: got {len(payload)} bytes, the limit is {max_size}")
    return _LENGTH.pack(len(payload)) + payload


def frame_length(prefix: bytes, *, max_size: int) -> int:
    """Body length announced by a frame's 4-byte prefix.

    Raises:
        LimitError: if it is larger than `max_size`.
    """
    (length,) = _LENGTH.unpack(prefix)
    if length > max_size:
        raise LimitError(f"frame: announced {length} bytes, the limit is {max_size}")
    return int(length)


class FrameDecoder:
    """Collects bytes and gives whole frames.

    Args:
        max_size: the largest body in bytes that is accepted.
    """

    def __init__(self, *, max_size: int) -> None:
        self._max_size = max_size
        self._buffer = bytearray()

    @property
    def buffered(self) -> int:
        """Bytes held that are not yet a whole frame."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes as they came and return the frames they complete, in order.

        Raises:
            LimitError: if a frame announces more than the limit; the decoder is then unusable.
        """
        self._buffer += data
        frames: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= PREFIX_SIZE:
            prefix = bytes(self._buffer[start : start + PREFIX_SIZE])
            end = start + PREFIX_SIZE + frame_length(prefix, max_size=self._max_size)
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[start + PREFIX_SIZE : end]))
            start = end
        del self._buffer[:start]
        return frames
