"""One node of the DHT on top of a running p2pd: join, put, get. All on asyncio, inside the child.

hivemind's own `store` says True when nobody took the record, and its `get` stops at the first
replica that claims an infinite expiry. So both are done here over its node search: a put counts who
took the record, a get merges what every replica near the key holds.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p.dht import guards, lean
from p2p.dht.table import Slot
from p2p.dht.validator import check_record, key_hash
from p2p.errors import TransportError
from p2p.ids import PeerId
from p2p.limits import DIAL_TIMEOUT_S, MAX_OWNERS_PER_KEY

lean.prepare_hivemind()

from hivemind.dht.node import DHTNode  # noqa: E402
from hivemind.dht.routing import DHTID  # noqa: E402
from hivemind.dht.traverse import traverse_dht  # noqa: E402
from hivemind.p2p import P2P, P2PDaemonError, P2PHandlerError, PeerID  # noqa: E402
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo  # noqa: E402
from hivemind.utils.multiaddr import Multiaddr  # noqa: E402
from hivemind.utils.timed_storage import ValueWithExpiration  # noqa: E402

logger = logging.getLogger(__name__)

REPLICAS: Final = 5
"""60 of 60 records survived kill -9 of 4 of 8 nodes at 4 replicas; one more for hostile ones."""
_SPARE_REPLICAS: Final = 5
"""Candidates beyond `REPLICAS`, asked when nearer ones do not answer."""
_SEARCH_WIDTH: Final = 20
_SEARCH_WORKERS: Final = 8
_RPC_TIMEOUT_S: Final = 3.0
_SEARCH_TIMEOUT_S: Final = 2 * _RPC_TIMEOUT_S
"""Within the caller's deadline, so that a peer that stalls cannot turn a found record into none."""
MAX_KNOWN_PEERS: Final = 64

StreamHandler = Callable[[PeerId, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PutOutcome:
    """What the replicas nearest to a key said to one record."""

    accepted: int
    refused: int
    """Answered no: they hold a later record of the same owner, or have no room."""
    silent: int

    @property
    def is_enough(self) -> bool:
        """Whether a majority of the replicas there are took it."""
        asked = min(REPLICAS, self.accepted + self.refused + self.silent)
        return self.accepted * 2 > asked


class Swarm:
    """Our node in the DHT. Made by `open_swarm`."""

    def __init__(self, p2p: P2P, node: DHTNode) -> None:
        self._p2p = p2p
        self._node = node

    @property
    def peer(self) -> PeerId:
        """The child's peer id."""
        return PeerId(self._p2p.peer_id.to_base58())

    @property
    def size(self) -> int:
        """Other nodes in the routing table."""
        return len(self._node.protocol.routing_table.uid_to_peer_id)

    async def addresses(self) -> tuple[str, ...]:
        """Multiaddrs others can dial, each ending in `/p2p/<our id>`."""
        with _daemon_errors("p2pd has no address"):
            visible = await self._p2p.get_visible_maddrs(latest=True)
        return tuple(str(address) for address in visible)

    async def put(self, key: str, subkey: bytes, value: bytes, expires_at: float) -> PutOutcome:
        """Store a record at the replicas nearest to its key.

        Raises:
            DecodeError, SignatureError: if it is not a valid envelope (every replica would refuse).
        """
        place = key_hash(key)
        check_record(place, subkey, value, expires_at, now=time.time())
        key_id = DHTID.from_bytes(place)
        found = await self._node.find_nearest_nodes([key_id], k_nearest=REPLICAS + _SPARE_REPLICAS)
        candidates = list(found[key_id].items())
        answers: list[bool | None] = []
        while candidates and (missing := REPLICAS - sum(a is not None for a in answers)) > 0:
            batch, candidates = candidates[:missing], candidates[missing:]
            answers += await asyncio.gather(
                *(
                    self._store_at(node_id, peer, (key_id, subkey, value, expires_at))
                    for node_id, peer in batch
                )
            )
        return PutOutcome(answers.count(True), answers.count(False), answers.count(None))

    async def _store_at(
        self, node_id: DHTID, peer: PeerID, record: tuple[DHTID, bytes, bytes, float]
    ) -> bool | None:
        """Store one record at one replica; None if it did not answer."""
        key_id, subkey, value, expires_at = record
        if node_id == self._node.node_id:
            return bool(self._node.protocol.storage.store_subkey(key_id, subkey, value, expires_at))
        answer = await self._node.protocol.call_store(
            peer, [key_id], [value], [expires_at], subkeys=[subkey]
        )
        return bool(answer[0]) if answer else None

    async def get(self, key: str) -> dict[bytes, Slot]:
        """Every valid record under a key that any replica near it holds, the latest per owner.

        Replicas that stall are not waited for: what the others said by `_SEARCH_TIMEOUT_S` counts.

        Raises:
            TransportError: if time is up and nobody has answered.
        """
        key_id = DHTID.from_bytes(key_hash(key))
        found: dict[bytes, Slot] = {}
        answered = 0
        _merge(found, self._node.protocol.storage.get(key_id))
        peers: dict[DHTID, PeerID] = dict(
            self._node.protocol.routing_table.get_nearest_neighbors(
                key_id, _SEARCH_WIDTH, exclude=self._node.node_id
            )
        )

        async def ask(node_id: DHTID, _: object) -> dict[DHTID, tuple[tuple[DHTID, ...], bool]]:
            response = await self._node._call_find_with_blacklist(peers[node_id], [key_id])
            if not response:
                return {key_id: ((), False)}
            nonlocal answered
            answered += 1
            item, neighbors = response[key_id]
            _merge(found, item)
            peers.update(neighbors)
            return {key_id: (tuple(neighbors), False)}

        try:
            async with asyncio.timeout(_SEARCH_TIMEOUT_S):
                await traverse_dht(
                    queries=[key_id],
                    initial_nodes=list(peers),
                    beam_size=_SEARCH_WIDTH,
                    num_workers=_SEARCH_WORKERS,
                    queries_per_call=1,
                    get_neighbors=ask,
                    visited_nodes={key_id: {self._node.node_id}},
                )
        except TimeoutError:
            if not answered:
                raise TransportError(f"no replica answered within {_SEARCH_TIMEOUT_S} s") from None
            logger.warning("some replicas of %s did not answer in time", key)
        return found

    async def join(self, addresses: Iterable[str]) -> int:
        """Call on peers by address, then fill the routing table from those that answer.

        Returns:
            How many answered.
        """
        results = await asyncio.gather(*(self._meet(address) for address in set(addresses)))
        if any(results):
            await self._node.find_nearest_nodes([self._node.node_id])
        return sum(results)

    async def _meet(self, address: str) -> bool:
        try:
            peer_id, maddr = _split_address(address)
            if peer_id == self._p2p.peer_id:
                return False
            with _daemon_errors(f"cannot reach {address}"):
                async with asyncio.timeout(DIAL_TIMEOUT_S):
                    await self._p2p._client.connect(peer_id, [maddr])
                    return await self._node.protocol.call_ping(peer_id) is not None
        except TransportError as error:
            logger.info("%s", error)
        return False

    async def known_addresses(self) -> tuple[str, ...]:
        """Addresses of connected nodes of the DHT, to be called on again after a restart."""
        table = self._node.protocol.routing_table
        with _daemon_errors("p2pd does not answer"):
            async with asyncio.timeout(_RPC_TIMEOUT_S):
                connected = await self._p2p.list_peers()
        return tuple(
            f"{address}/p2p/{info.peer_id.to_base58()}"
            for info in connected
            if table.get(peer_id=info.peer_id) is not None
            for address in info.addrs[:1]
        )[:MAX_KNOWN_PEERS]

    async def serve_streams(self, protocol: str, handler: StreamHandler) -> None:
        """Answer binary streams of a protocol; the handler's errors end its stream only."""

        async def serve(
            info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            try:
                await handler(PeerId(info.peer_id.to_base58()), reader, writer)
            except Exception as error:  # noqa: BLE001  # the guard: one stream, not the node
                logger.warning("stream of %s failed: %r", protocol, error)
            finally:
                writer.close()

        await self._p2p.add_binary_stream_handler(protocol, serve)

    async def open_stream(
        self, protocol: str, peer: str, addresses: Iterable[str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a binary stream to a peer, dialling its addresses first.

        Raises:
            TransportError: if it cannot be reached or does not speak the protocol.
        """
        maddrs = [_split_address(address)[1] for address in addresses]
        with _daemon_errors(f"cannot open a stream to {peer}"):
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                peer_id = PeerID.from_base58(peer)
                if maddrs:
                    await self._p2p._client.connect(peer_id, maddrs)
                _, reader, writer = await self._p2p.call_binary_stream_handler(peer_id, protocol)
        return reader, writer

    async def probe(self) -> None:
        """One real call through each of the two connections to p2pd.

        Raises:
            TransportError: if p2pd does not answer in time.
        """
        with _daemon_errors("p2pd does not answer"):
            async with asyncio.timeout(_RPC_TIMEOUT_S):
                await self._p2p._client.identify()
                with contextlib.suppress(P2PDaemonError, P2PHandlerError):
                    # p2pd refuses to dial itself: its refusal is the answer we are after
                    await self._p2p._client.call_unary_handler(
                        self._p2p.peer_id, "paris/probe", b""
                    )

    async def close(self) -> None:
        """Leave; p2pd itself is stopped by who started it."""
        await self._p2p.shutdown()


async def open_swarm(control_path: Path) -> Swarm:
    """Make a node of the DHT on a running p2pd, which knows nobody yet.

    Args:
        control_path: p2pd's control socket; hivemind's own socket is made beside it.

    Raises:
        TransportError: if p2pd does not answer.
    """
    guards.install()
    P2P._UNIX_SOCKET_PREFIX = f"/unix{control_path.parent}/"
    with _daemon_errors("p2pd does not answer"):
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            p2p = await P2P.replicate(Multiaddr(f"/unix{control_path}"))
            node = await DHTNode.create(
                p2p=p2p,
                node_id=guards.expected_node_id(p2p.peer_id),
                num_replicas=REPLICAS,
                wait_timeout=_RPC_TIMEOUT_S,
                cache_locally=False,
                cache_nearest=0,
                cache_on_store=False,
                reuse_get_requests=False,
                record_validator=guards.EnvelopeValidator(),
            )
    return Swarm(p2p, node)


@contextlib.contextmanager
def _daemon_errors(context: str) -> Iterator[None]:
    """Translate what p2pd and hivemind's client of it raise into `TransportError`."""
    try:
        yield
    except (P2PDaemonError, P2PHandlerError, OSError, EOFError, ValueError) as error:
        raise TransportError(f"{context}: {error or type(error).__name__}") from error


def _split_address(address: str) -> tuple[PeerID, Multiaddr]:
    """Peer id and plain address of a multiaddr that ends in `/p2p/<id>`."""
    plain, separator, peer = address.rpartition("/p2p/")
    try:
        if separator:
            return PeerID.from_base58(peer), Multiaddr(plain)
    except ValueError as error:
        raise TransportError(f"{address!r} is not a multiaddr: {error}") from error
    raise TransportError(f"{address!r} does not end in /p2p/<peer id>")


def _merge(found: dict[bytes, Slot], item: ValueWithExpiration | None) -> None:
    """Add a replica's valid records; the one that expires later stays; newcomers up to a limit."""
    if item is None:
        return
    for subkey, (value, expires_at) in item.value.items():
        held = found.get(subkey)
        if held is None and len(found) >= MAX_OWNERS_PER_KEY:
            continue
        if held is None or held.expires_at < expires_at:
            found[subkey] = Slot(value, expires_at)
