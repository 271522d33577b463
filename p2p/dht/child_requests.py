"""What the node may ask of its swarm child: each request in its own task, answered by its id."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Final, Protocol

from p2p.dht import frames
from p2p.dht.bulk import pull
from p2p.dht.bulk_serve import ServeGate, serve_stream
from p2p.dht.child_socket import ParentSocket
from p2p.dht.frames import Message
from p2p.dht.pull_messages import job_from_message, progress_to_message, result_to_message
from p2p.dht.settings import ChildSettings
from p2p.dht.swarm import Swarm
from p2p.errors import (
    DecodeError,
    LimitError,
    P2PError,
    QuotaError,
    SignatureError,
    StorageError,
)
from p2p.ids import PeerId
from p2p.limits import DHT_CALL_TIMEOUT_S
from p2p.transfer import PROTOCOL, PullProgress
from p2p.transfer_schedule import Throttle

logger = logging.getLogger(__name__)

MAX_REQUESTS: Final = 256
"""In flight at once; the node itself keeps to fewer, so more is a bug."""


class Joiner(Protocol):
    """Whoever keeps the node in touch with others."""

    async def add(self, addresses: tuple[str, ...]) -> int:
        """Call on peers now and from now on; how many answered."""
        ...


class Requests:
    """Serves the node's requests until it leaves."""

    def __init__(
        self, link: ParentSocket, swarm: Swarm, joiner: Joiner, settings: ChildSettings
    ) -> None:
        self._link = link
        self._swarm = swarm
        self._joiner = joiner
        self._blob_root = settings.blob_root
        self._max_download = settings.max_download_bytes_per_s
        self._gate = ServeGate(max_bytes_per_s=settings.max_upload_bytes_per_s)
        self._running: dict[int, asyncio.Task[None]] = {}
        self._operations: dict[str, Callable[[Message], Awaitable[Message]]] = {
            "put": self._put,
            "get": self._get,
            "bootstrap": self._bootstrap,
            "addresses": self._addresses,
            "peers": self._peers,
            "pull": self._pull,
            "bandwidth": self._bandwidth,
            "ping": self._ping,
        }

    async def serve_blobs(self) -> None:
        """Answer other nodes' pulls, if we were given a store."""
        root = self._blob_root
        if root is None:
            return

        async def serve(
            peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            await serve_stream(root, peer, reader, writer, self._gate)

        await self._swarm.serve_streams(PROTOCOL, serve)

    async def run(self) -> None:
        """Serve until the node leaves.

        Raises:
            DecodeError, LimitError: if the node sends garbage.
        """
        try:
            async for message in self._link.messages():
                number = frames.integer(message, "id")
                operation = frames.text(message, "op")
                if operation == "cancel":
                    if (task := self._running.get(number)) is not None:
                        task.cancel()
                    continue
                if len(self._running) >= MAX_REQUESTS:
                    await self._refuse(number, "limit", f"more than {MAX_REQUESTS} requests")
                    continue
                task = asyncio.create_task(self._answer(number, operation, message))
                self._running[number] = task
                task.add_done_callback(partial(self._finished, number))
        finally:
            running = tuple(self._running.values())
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _finished(self, number: int, _task: asyncio.Task[None]) -> None:
        self._running.pop(number, None)

    async def _answer(self, number: int, operation: str, message: Message) -> None:
        perform = self._operations.get(operation)
        if perform is None:
            return await self._refuse(number, "usage", f"unknown operation {operation!r}")
        try:
            async with asyncio.timeout(None if operation == "pull" else DHT_CALL_TIMEOUT_S):
                result = await perform(message)
        except TimeoutError:
            return await self._refuse(number, "timeout", f"{operation} took too long")
        except P2PError as error:
            return await self._refuse(number, _code_of(error), str(error))
        except Exception as error:  # the guard around the foreign stack: one request, not the child
            logger.exception("%s failed", operation)
            return await self._refuse(number, "transport", f"{operation} failed: {error!r}")
        return await self._link.send({"id": number, "ok": result})

    async def _refuse(self, number: int, code: str, message: str) -> None:
        await self._link.send({"id": number, "error": code, "message": message})

    async def _put(self, message: Message) -> Message:
        outcome = await self._swarm.put(
            frames.text(message, "key"),
            frames.data(message, "subkey"),
            frames.data(message, "value"),
            frames.number(message, "expires_at"),
        )
        return {**asdict(outcome), "is_enough": outcome.is_enough}

    async def _get(self, message: Message) -> Message:
        slots = await self._swarm.get(frames.text(message, "key"))
        return {
            "records": [[subkey, slot.value, slot.expires_at] for subkey, slot in slots.items()]
        }

    async def _bootstrap(self, message: Message) -> Message:
        return {"met": await self._joiner.add(frames.texts(message, "addresses"))}

    async def _addresses(self, _message: Message) -> Message:
        return {"addresses": list(await self._swarm.addresses())}

    async def _peers(self, _message: Message) -> Message:
        return {
            "count": self._swarm.size,
            "known": list(await self._swarm.known_addresses()),
            "served_bytes": self._gate.served_bytes,
        }

    async def _ping(self, _message: Message) -> Message:
        await self._swarm.probe()
        return {}

    async def _bandwidth(self, message: Message) -> Message:
        upload = frames.optional_number(message, "max_upload_bytes_per_s")
        self._max_download = frames.optional_number(message, "max_download_bytes_per_s")
        self._gate.throttle = Throttle(upload)
        return {}

    async def _pull(self, message: Message) -> Message:
        job = job_from_message(message, max_bytes_per_s=self._max_download)
        addresses_of = {peer.peer_id: peer.addresses for peer in job.providers}
        number = frames.integer(message, "id")
        news: asyncio.Queue[PullProgress] = asyncio.Queue(maxsize=1)

        async def open_stream(
            peer: str,
        ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await self._swarm.open_stream(PROTOCOL, peer, addresses_of[peer])

        async def tell() -> None:
            while True:
                progress = await news.get()
                await self._link.send({"id": number, "progress": progress_to_message(progress)})

        def on_progress(progress: PullProgress) -> None:
            if news.full():
                news.get_nowait()  # only the newest matters
            news.put_nowait(progress)

        teller = asyncio.create_task(tell())
        try:
            result = await pull(job, open_stream, on_progress)
        finally:
            teller.cancel()
        return result_to_message(result)


def _code_of(error: P2PError) -> str:
    """The name of an error on the socket; `p2p.dht.link` turns it back into an exception."""
    match error:
        case QuotaError():
            return "quota"
        case StorageError():
            return "storage"
        case LimitError():
            return "limit"
        case DecodeError() | SignatureError():
            return "invalid"
        case _:
            return "transport"
