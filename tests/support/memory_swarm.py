"""A swarm child in memory: records over a shared `MemoryDht`, blobs copied between real stores."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from node.fetching import ProgressHook
from p2p import blob_files
from p2p.blobs import BlobStore
from p2p.dht.memory import MemoryRecordStore
from p2p.dht.port import StoredRecord
from p2p.errors import DecodeError, TransportError
from p2p.ids import BlobId
from p2p.limits import DHT_CALL_TIMEOUT_S
from p2p.transfer import BulkPeer, PullProgress, PullResult, check_blob

STALL_S = 10.0
"""After which the bulk transport gives a silent provider up, as the real one does."""


@dataclass
class BulkHub:
    """Whose store is behind which swarm child, and who misbehaves how.

    Attributes:
        stores: blob stores by the child's id.
        faults: "lie" (altered bytes), "stall" (silence), "die" (gone after one blob), "empty".
        pulls: what was asked, one entry per call.
        gate: calls wait here while it is set to an event.
        served: blobs each child gave.
    """

    stores: dict[str, BlobStore] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    pulls: list[tuple[BlobId, ...]] = field(default_factory=list)
    gate: trio.Event | None = None
    served: dict[str, int] = field(default_factory=dict)


@dataclass
class _Outcome:
    """What one pull came to so far."""

    fetched: dict[BlobId, tuple[str, int]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class MemorySwarm:
    """One node's swarm child: records over a `MemoryDht`, bulk over a `BulkHub`."""

    name: str
    records: MemoryRecordStore
    hub: BulkHub
    blobs: BlobStore
    bootstraps: list[tuple[str, ...]] = field(default_factory=list)
    hangs: bool = False
    """Every DHT call takes until its deadline, as a `get` of the real one was seen to do."""
    is_ready: bool = True
    puts: int = 0

    @property
    def child_id(self) -> str:
        return f"child-{self.name}"

    def addresses(self) -> tuple[str, ...]:
        return (f"/ip4/127.0.0.1/tcp/9/p2p/{self.child_id}",) if self.is_ready else ()

    async def put(self, key: str, subkey: bytes, value: bytes, expires_at: float) -> bool:
        self.puts += 1
        await self._hang()
        return await self.records.put(key, subkey, value, expires_at)

    async def get(self, key: str) -> tuple[StoredRecord, ...]:
        await self._hang()
        return await self.records.get(key)

    async def _hang(self) -> None:
        if self.hangs:
            await trio.sleep(DHT_CALL_TIMEOUT_S)
            raise TransportError("the DHT did not answer in time")

    async def bootstrap(self, addresses: Sequence[str]) -> int:
        await trio.lowlevel.checkpoint()
        self.bootstraps.append(tuple(addresses))
        return len(addresses)

    async def wait_ready(self, timeout_s: float) -> None:
        if not self.is_ready:
            await trio.sleep(timeout_s)
            raise TransportError("the swarm child is not ready")
        await trio.lowlevel.checkpoint()

    async def known_peers(self) -> int:
        await trio.lowlevel.checkpoint()
        return len(self.hub.stores) - 1

    async def pull(
        self,
        blobs: Sequence[tuple[BlobId, int]],
        providers: Sequence[BulkPeer],
        on_progress: ProgressHook,
    ) -> PullResult:
        self.hub.pulls.append(tuple(blob for blob, _ in blobs))
        await trio.sleep(0.01)
        if self.hub.gate is not None:
            await self.hub.gate.wait()
        outcome = _Outcome()
        for provider in providers:
            missing = [blob for blob, _ in blobs if blob not in outcome.fetched]
            if missing:
                await self._from(provider.peer_id, missing, outcome)
                on_progress(_progress(len(outcome.fetched), len(blobs)))
        return _result(blobs, outcome)

    async def _from(self, child: str, wanted: list[BlobId], outcome: _Outcome) -> None:
        fault, store = self.hub.faults.get(child), self.hub.stores.get(child)
        if store is None or fault == "stall":
            await trio.sleep(STALL_S)
            outcome.failed.append((child, "no answer"))
            return
        for number, blob in enumerate(wanted):
            if fault == "die" and number == 1:
                outcome.failed.append((child, "went away"))
                return
            if fault == "empty" or not store.has(blob):
                continue
            data = store.get(blob)
            data = data[:-1] + bytes([data[-1] ^ 1]) if fault == "lie" else data
            try:
                check_blob(blob, [data])
            except DecodeError as error:
                outcome.bad.append((child, str(error)))
                return
            blob_files.write_blob(self.blobs.root, blob, [data])
            self.hub.served[child] = self.hub.served.get(child, 0) + 1
            outcome.fetched[blob] = (child, len(data))


def _progress(done: int, total: int) -> PullProgress:
    return PullProgress(done, total, done, total, sources=1)


def _result(blobs: Sequence[tuple[BlobId, int]], outcome: _Outcome) -> PullResult:
    by_peer: dict[str, int] = {}
    for child, size in outcome.fetched.values():
        by_peer[child] = by_peer.get(child, 0) + size
    return PullResult(
        fetched_blobs=len(outcome.fetched),
        fetched_bytes=sum(by_peer.values()),
        present_blobs=0,
        duplicate_bytes=0,
        missing=tuple(blob for blob, _ in blobs if blob not in outcome.fetched),
        bad_peers=tuple(outcome.bad),
        failed_peers=tuple(outcome.failed),
        bytes_by_peer=tuple(by_peer.items()),
        seconds=0.01,
    )
