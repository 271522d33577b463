"""The child's end of the socket to its node, on asyncio."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Final

from p2p.dht.frames import Message, MessageDecoder, pack_message

_READ_SIZE: Final = 65536


class ParentSocket:
    """Messages from and to the node. Sends never interleave; a lost node is seen by the reader."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, connected: socket.socket) -> "ParentSocket":
        """Take over a connected socket (a duplicate: the caller closes its own)."""
        own = connected.dup()
        own.setblocking(False)
        return cls(*await asyncio.open_connection(sock=own))

    async def send(self, message: Message) -> None:
        """Send one message; says nothing if the node is gone, `messages` then ends.

        Raises:
            LimitError: if the message is too large.
        """
        frame = pack_message(message)
        with contextlib.suppress(ConnectionError):
            self._writer.write(frame)
            await self._writer.drain()

    async def messages(self) -> AsyncIterator[Message]:
        """What the node sends, until it leaves.

        Raises:
            DecodeError, LimitError: if that is not a message.
        """
        decoder = MessageDecoder()
        while True:
            try:
                received = await self._reader.read(_READ_SIZE)
            except ConnectionError:
                return
            if not received:
                return
            for message in decoder.feed(received):
                yield message

    async def close(self) -> None:
        """Close our end."""
        self._writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(0.5):
                await self._writer.wait_closed()
