"""The swarm child as the node uses it: a `RecordStore` and bulk pulls, behind a child that may die.

`open_dht` returns at once and supervises the child until it is left. A child that ends is started
again on the same port, told the peers that were known, and given our own live records to put again;
hivemind republishes nothing, so records are also put again after each third of their lifetime, for
nodes that joined later and in place of replicas that died. Imports neither hivemind nor torch.
"""

import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p.dht import frames
from p2p.dht.frames import Message, pack_message
from p2p.dht.link import ChildLink, child_process, make_runtime_dir
from p2p.dht.port import StoredRecord
from p2p.dht.pull_messages import job_to_message, progress_from_message, result_from_message
from p2p.dht.settings import ChildSettings, DhtSettings, DhtState, DhtStatus, pin_ports
from p2p.dht.upkeep import BROKEN_RETRY_S, OwnRecord, OwnRecords, RestartPolicy, newest_first
from p2p.errors import (
    DecodeError,
    LimitError,
    ListenError,
    PortInUseError,
    StorageError,
    TransportError,
)
from p2p.ids import BlobId, PeerId, peer_id
from p2p.limits import DHT_CALL_TIMEOUT_S, MAX_RECORD_SIZE
from p2p.transfer import BulkPeer, PullProgress, PullResult

logger = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 60.0
HEARTBEAT_S: Final = 10.0
MAX_MISSED_HEARTBEATS: Final = 3
_UPKEEP_EVERY_S: Final = 1.0
_MAX_CALLS: Final = 64
_MAX_KNOWN: Final = 64


class DhtClient:
    """A `RecordStore` on hivemind's DHT, and pulls over its p2pd. Made by `open_dht`."""

    def __init__(self, settings: DhtSettings) -> None:
        public = Ed25519PrivateKey.from_private_bytes(settings.seed).public_key()
        self._settings = settings
        self._peer = peer_id(public.public_bytes_raw())
        self._state = DhtState.STARTING
        self._changed = trio.Event()
        self._link: ChildLink | None = None
        self._error: TransportError | None = None
        self._restarts = 0
        self._addresses: tuple[str, ...] = ()
        self._listen = settings.listen
        self._bootstrap = settings.bootstrap
        self._known: tuple[str, ...] = ()
        self._own = OwnRecords()
        self._calls = trio.CapacityLimiter(_MAX_CALLS)
        self._ready_at: float | None = None
        self._was_ever_ready = False
        self._child_pid: int | None = None
        self._starting: ChildLink | None = None

    @property
    def peer(self) -> PeerId:
        """The child's peer id (not the node's: its key is derived from the node's)."""
        return self._peer

    @property
    def status(self) -> DhtStatus:
        """How the child is doing now."""
        error = None if self._error is None else str(self._error)
        return DhtStatus(self._state, self._restarts, error)

    @property
    def child_pid(self) -> int | None:
        """Process id of the running child, for `doctor` and for tests that kill it."""
        return self._child_pid

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs others can dial, each ending in `/p2p/<id>`; empty until first ready."""
        return self._addresses

    def remembered_peers(self) -> tuple[str, ...]:
        """Addresses of DHT nodes met so far, newest first: what the next child will call on."""
        return self._known

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the child serves.

        Raises:
            ListenError: if our address cannot be had (`PortInUseError` if the port is taken).
            TransportError: if it is broken, or not ready in time.
        """
        try:
            with trio.fail_after(timeout_s):
                await self._ready_link()
        except trio.TooSlowError:
            reason = f": {self._error}" if self._error else ""
            raise TransportError(
                f"the swarm child is not ready after {timeout_s:g} s{reason}"
            ) from None

    async def put(self, key: str, subkey: bytes, value: bytes, expires_at: float) -> bool:
        """Store our own record and keep it alive until it expires; see `RecordStore.put`."""
        if len(value) > MAX_RECORD_SIZE:
            raise LimitError(f"record: got {len(value)} bytes, the limit is {MAX_RECORD_SIZE}")
        record = OwnRecord(key, subkey, value, expires_at)
        self._own.remember(record, time.time())
        return await self._put(record)

    async def get(self, key: str) -> tuple[StoredRecord, ...]:
        """See `RecordStore.get`."""
        answer = await self._call("get", {"key": key})
        return tuple(_stored(row) for row in frames.rows(answer, "records"))

    async def bootstrap(self, addresses: Iterable[str]) -> int:
        """Call on peers now and in every later round; how many answered now.

        Args:
            addresses: multiaddrs that end in `/p2p/<id>`.

        Raises:
            TransportError: if the child is down or the deadline passed.
        """
        wanted = tuple(addresses)
        self._bootstrap = newest_first(wanted, self._bootstrap, _MAX_KNOWN)
        return frames.integer(await self._call("bootstrap", {"addresses": list(wanted)}), "met")

    async def known_peers(self) -> int:
        """Other nodes in the child's routing table. Raises `TransportError` if it is down."""
        return frames.integer(await self._call("peers", {}), "count")

    async def pull(
        self,
        blobs: Sequence[tuple[BlobId, int]],
        providers: Sequence[BulkPeer],
        on_progress: Callable[[PullProgress], None],
    ) -> PullResult:
        """Fetch blobs into the store's folder; see `p2p.dht.bulk.pull`. No deadline of its own.

        Raises:
            StorageError: if there is no store, or the disk refuses (`QuotaError` when full).
            TransportError: if the child goes away; what came by then is on disk.
        """
        root = self._settings.blob_root
        if root is None:
            raise StorageError("this node was opened without a blob store")

        def tell(message: Message) -> None:
            on_progress(progress_from_message(message))

        link = await self._link_within(DHT_CALL_TIMEOUT_S)
        return result_from_message(
            await link.request("pull", job_to_message(blobs, providers, root), tell)
        )

    async def set_bandwidth(
        self, *, max_upload_bytes_per_s: float | None, max_download_bytes_per_s: float | None
    ) -> None:
        """Change the caps on bulk transfers, now and after restarts; None lifts a cap."""
        caps: dict[str, float | None] = {
            "max_upload_bytes_per_s": max_upload_bytes_per_s,
            "max_download_bytes_per_s": max_download_bytes_per_s,
        }
        self._settings = replace(self._settings, **caps)  # type: ignore[arg-type]
        await self._call("bandwidth", {**caps})

    # --- calls -----------------------------------------------------------------------------------
    async def _put(self, record: OwnRecord) -> bool:
        fields: Message = {
            "key": record.key,
            "subkey": record.subkey,
            "value": record.value,
            "expires_at": record.expires_at,
        }
        try:
            answer = await self._call("put", fields)
        except DecodeError as error:
            logger.warning("our own record under %s is not valid: %s", record.key, error)
            self._own.forget(record)
            return False
        except TransportError:
            self._own.retry(record, time.time())
            raise
        if frames.flag(answer, "is_enough"):
            return True
        if frames.integer(answer, "refused") and not frames.integer(answer, "accepted"):
            self._own.forget(record)
        else:
            self._own.retry(record, time.time())
        return False

    async def _call(self, operation: str, fields: Message) -> Message:
        try:
            with trio.fail_after(DHT_CALL_TIMEOUT_S):
                async with self._calls:
                    link = await self._ready_link()
                    return await link.request(operation, fields)
        except trio.TooSlowError:
            raise TransportError(
                f"{operation}: no answer from the swarm child within {DHT_CALL_TIMEOUT_S:g} s"
            ) from None

    async def _link_within(self, timeout_s: float) -> ChildLink:
        await self.wait_ready(timeout_s)
        return await self._ready_link()

    async def _ready_link(self) -> ChildLink:
        """The running child's link, once it is ready. Raises at once if it is broken."""
        while self._link is None or self._state is not DhtState.READY:
            if self._state in (DhtState.BROKEN, DhtState.STOPPED):
                raise self._error or TransportError("the swarm child is stopped")
            await self._changed.wait()
        return self._link

    # --- supervision -----------------------------------------------------------------------------
    async def supervise(self) -> None:
        """Keep a child running until cancelled."""
        policy = RestartPolicy()
        try:
            while True:
                await self._live_once()
                now = trio.current_time()
                ready_s = None if self._ready_at is None else now - self._ready_at
                state, delay_s = policy.ended(now, ready_s)
                if isinstance(self._error, ListenError) and not self._was_ever_ready:
                    state, delay_s = DhtState.BROKEN, BROKEN_RETRY_S
                logger.warning("swarm child: %s; next start in %.2f s", self._error, delay_s)
                self._become(state)
                await trio.sleep(delay_s)
                self._restarts += 1
        finally:
            self._become(DhtState.STOPPED)

    async def _live_once(self) -> None:
        """One child from its start to its end; why it ended is in `_error`."""
        self._error = self._ready_at = None
        runtime_dir = make_runtime_dir(self._settings.private_dir)
        try:
            settings = ChildSettings.of(
                self._settings,
                runtime_dir=runtime_dir,
                listen=self._listen,
                bootstrap=newest_first(self._bootstrap, self._known, _MAX_KNOWN),
            )
            async with child_process(self._settings.log_path) as (process, stream):
                self._child_pid = process.pid
                await self._talk(stream, settings)
            ending = _ending(process.returncode)
            self._error = self._error or TransportError(f"the swarm child ended: {ending}")
        except (TransportError, OSError) as error:
            self._error = self._error or TransportError(f"the swarm child failed: {error}")
        finally:
            self._link = self._child_pid = None
            shutil.rmtree(runtime_dir, ignore_errors=True)

    async def _talk(self, stream: trio.SocketStream, settings: ChildSettings) -> None:
        """Use the child until it ends, misbehaves, or answers no more."""
        link = ChildLink(stream, self._on_event)
        try:
            await stream.send_all(pack_message(settings.to_message()))
            async with trio.open_nursery() as nursery:
                self._starting = link
                nursery.start_soon(self._watch, link)
                await link.run()
                nursery.cancel_scope.cancel()
        except* (DecodeError, LimitError) as errors:
            self._error = TransportError(f"the swarm child sent garbage: {errors.exceptions[0]}")
        except* trio.BrokenResourceError:
            pass  # it ended: its exit code tells more
        except* TransportError as errors:
            self._error = TransportError(str(errors.exceptions[0]))

    async def _watch(self, link: ChildLink) -> None:
        """Raise `TransportError` when the child does not start in time or stops answering."""
        with trio.move_on_after(START_TIMEOUT_S) as scope:
            while self._state is not DhtState.READY:
                await self._changed.wait()
        if scope.cancelled_caught:
            raise TransportError(f"the swarm child did not start within {START_TIMEOUT_S:g} s")
        missed = 0
        while missed < MAX_MISSED_HEARTBEATS:
            await trio.sleep(HEARTBEAT_S)
            with trio.move_on_after(HEARTBEAT_S) as scope:
                await link.request("ping", {})
            missed = missed + 1 if scope.cancelled_caught else 0
        raise TransportError("the swarm child answers no more")

    def _on_event(self, message: Message) -> None:
        match frames.text(message, "event"):
            case "ready":
                self._addresses = frames.texts(message, "addresses")
                self._listen = pin_ports(self._settings.listen, self._addresses)
                self._link = self._starting
                self._ready_at = trio.current_time()
                self._was_ever_ready = True
                self._own.make_all_due(time.time())
                self._become(DhtState.READY)
            case "failed":
                self._error = _failure(message)
            case "peers":
                self._known = newest_first(frames.texts(message, "known"), self._known, _MAX_KNOWN)
            case other:
                raise DecodeError(f"child message: unknown event {other!r}")

    def _become(self, state: DhtState) -> None:
        if state is not self._state:
            self._state = state
            self._changed.set()
            self._changed = trio.Event()

    async def keep_records(self) -> None:
        """Put our records again as they fall due, until cancelled."""
        while True:
            await trio.sleep(_UPKEEP_EVERY_S)
            if self._state is not DhtState.READY:
                continue
            for record in self._own.take_due(time.time()):
                try:
                    await self._put(record)
                except TransportError as error:
                    logger.info("record under %s not put again yet: %s", record.key, error)
                    break


@asynccontextmanager
async def open_dht(settings: DhtSettings) -> AsyncIterator[DhtClient]:
    """Run a swarm child for as long as the block; yields before the child is ready.

    A child that cannot start is a status (`DhtClient.status`, `wait_ready`), never an error here.
    Leaving stops the child and its p2pd in under 3 s.
    """
    client = DhtClient(settings)
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.supervise)
            nursery.start_soon(client.keep_records)
            try:
                yield client
            except BaseException as error:
                raised = error
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if raised is None or group.exceptions != (raised,):
            raise
    if raised is not None:  # the block's own error, as if there were no nursery around it
        raise raised


def _stored(row: list[object]) -> StoredRecord:
    match row:
        case [bytes(subkey), bytes(value), float(expires_at)]:
            return StoredRecord(subkey, value, expires_at)
    raise DecodeError("child message: expected [subkey, value, expiry] for each record")


def _failure(message: Message) -> TransportError:
    """Why a child could not start."""
    address, reason = frames.text(message, "address"), frames.text(message, "message")
    match frames.text(message, "code"):
        case "port_in_use":
            return PortInUseError(address)
        case "listen":
            return ListenError(address, reason)
        case _:
            return TransportError(reason)


def _ending(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"killed by signal {-returncode}"
    return {3: "it could not start", 4: "p2pd was gone", 5: "its socket broke"}.get(
        returncode or 0, f"code {returncode}"
    )
