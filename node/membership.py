"""Being in a swarm: find the first peer, say hello, learn the others, stay findable.

One address is enough. A bootstrap that is down is a status, retried with a growing pause. Truth
about who is there are the signed node records in the DHT; hellos and LAN discovery are shortcuts.
"""

import logging
import math
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

import trio

from node.clock import now_s
from node.context import NodeContext
from p2p.codec import check_envelope, open_signed, pack, seal, unpack
from p2p.errors import LimitError, P2PError, PeerError, TransportError
from p2p.hello import MAX_HELLO_SIZE, MAX_OTHERS, PROTOCOL, Hello
from p2p.host import Stream
from p2p.ids import PeerId, peer_id
from p2p.limits import (
    DIAL_TIMEOUT_S,
    MAX_ADDRESS_LENGTH,
    MAX_OWNERS_PER_KEY,
    REQUEST_TIMEOUT_S,
)
from p2p.records import NodeRecord, node_key, node_keys

logger = logging.getLogger(__name__)

RECORD_LIFETIME_S: Final = 600.0
RECORD_RENEW_S: Final = 180.0
TARGET_PEERS: Final = 8
"""Connections we seek ourselves; GossipSub wants a mesh of 6, and some spare."""
_SWARM_PATIENCE_S: Final = 30.0
_FIRST_RETRY_S: Final = 1.0
_LONGEST_RETRY_S: Final = 30.0
_LOOK_AROUND_S: Final = 30.0
_LOOK_AROUND_ALONE_S: Final = 3.0
_MAX_ADDRESSES: Final = 8
"""Of each kind in a node record; fewer if they are so long that it would not fit 2 KiB."""
_MAX_OTHER_RUNS: Final = 256


@dataclass(slots=True)
class Membership:
    """This node's place among the others."""

    context: NodeContext
    discovered: trio.MemoryReceiveChannel[str] | None = None
    """Addresses seen on the local network, if it is watched."""
    network: str = "starting"
    """One phrase for `status`."""
    other_runs: dict[PeerId, str] = field(default_factory=dict)
    """Peers that answered but belong to another run."""
    met_somebody: trio.Event = field(default_factory=trio.Event)

    async def run(self) -> None:
        """Serve hellos, dial, look around and keep our record alive, until cancelled."""
        try:  # our node record is of no use before it can name the swarm child's addresses
            await self.context.swarm.wait_ready(_SWARM_PATIENCE_S)
        except TransportError as error:
            logger.warning("no DHT and no bulk transfer yet: %s", error)
        self.context.host.set_handler(PROTOCOL, self._answer)
        async with trio.open_nursery() as nursery:
            remembered = self.context.state.known_addresses()[:TARGET_PEERS]
            for address in dict.fromkeys((*self.context.config.peers, *remembered)):
                nursery.start_soon(self._keep_dialling, address)
            if self.discovered is not None:
                nursery.start_soon(self._dial_discovered, self.discovered)
            nursery.start_soon(self._keep_record)
            nursery.start_soon(self._look_around)

    def node_envelope(self) -> tuple[bytes, float]:
        """Our own node record, sealed now, and its expiry; with as many addresses as fit.

        Raises:
            LimitError: if not even one of each kind fits.
        """
        for most in range(_MAX_ADDRESSES, 1, -1):
            with suppress(LimitError):
                return self._seal_node(most)
        return self._seal_node(1)

    def _seal_node(self, most: int) -> tuple[bytes, float]:
        context = self.context
        now = now_s()
        record = NodeRecord(
            run=context.run,
            name=context.config.name,
            version=version("paris-node"),
            host_addresses=_short(context.host.listening())[:most],
            bulk_addresses=_short(context.swarm.addresses())[:most],
            serves=context.config.serve,
            issued_at=now,
        )
        key = node_key(context.run, context.identity.peer)
        expires_at = now + RECORD_LIFETIME_S
        return seal(record, context.identity, key=key, expires_at=expires_at), expires_at

    async def greet(self, peer: PeerId) -> None:
        """Exchange hellos with a connected peer.

        Raises:
            P2PError: if it does not answer, or answers nonsense.
        """
        host = self.context.host
        async with host.open_stream(peer, PROTOCOL, timeout_s=DIAL_TIMEOUT_S) as stream:
            await stream.send_frame(pack(self._hello()), max_size=MAX_HELLO_SIZE)
            reply = await stream.receive_frame(max_size=MAX_HELLO_SIZE, timeout_s=REQUEST_TIMEOUT_S)
        await self._learn(peer, unpack(Hello, reply, max_size=MAX_HELLO_SIZE))

    async def _answer(self, stream: Stream) -> None:
        frame = await stream.receive_frame(max_size=MAX_HELLO_SIZE, timeout_s=REQUEST_TIMEOUT_S)
        hello = unpack(Hello, frame, max_size=MAX_HELLO_SIZE)
        await stream.send_frame(pack(self._hello()), max_size=MAX_HELLO_SIZE)
        await stream.close()
        await self._learn(stream.peer, hello)

    def _hello(self) -> Hello:
        others = self.context.peers.newest_envelopes(MAX_OTHERS)
        return Hello(run=self.context.run, node=self.node_envelope()[0], others=others)

    async def _learn(self, sender: PeerId, hello: Hello) -> None:
        if hello.run != self.context.run:
            if len(self.other_runs) < _MAX_OTHER_RUNS:
                self.other_runs[sender] = hello.run
            logger.warning("peer %s belongs to run %s, not to ours", sender, hello.run)
            await self.context.host.disconnect(sender)
            return
        self.other_runs.pop(sender, None)
        fresh = [self._learn_record(envelope, sender) for envelope in (hello.node, *hello.others)]
        await self._enter_dht([record for record in fresh if record is not None])
        self.met_somebody.set()

    def _learn_record(self, envelope: bytes, sender: PeerId | None) -> NodeRecord | None:
        """Open a node record of unknown owner; the record if it told something new."""
        run = self.context.run
        try:
            owner = peer_id(check_envelope(envelope).subkey)
            opened = open_signed(NodeRecord, envelope, key=node_key(run, owner), now=now_s())
        except PeerError as error:
            logger.info("node record from %s dropped: %s", sender or "the DHT", error)
            return None
        if opened.record.run == run and self.context.peers.add(opened):
            return opened.record
        return None

    async def _enter_dht(self, records: list[NodeRecord]) -> None:
        addresses = [address for record in records for address in record.bulk_addresses]
        if addresses:
            try:
                await self.context.swarm.bootstrap(addresses)
            except TransportError as error:
                logger.warning("could not enter the DHT yet: %s", error)

    async def _keep_dialling(self, address: str) -> None:
        """Connect to one address; once connected look again now and then."""
        pause_s = _FIRST_RETRY_S
        while True:
            if await self._dial(address):
                pause_s = _LOOK_AROUND_S
            elif not self.context.host.connected() and not self.other_runs:
                self.network = f"0 peers, retrying in {math.ceil(pause_s)} s"
            await trio.sleep(pause_s * random.uniform(0.8, 1.2))
            pause_s = min(_LONGEST_RETRY_S, 2 * pause_s)

    async def _dial(self, address: str) -> bool:
        host = self.context.host
        head, _, target = address.rpartition("/p2p/")
        if target == host.peer or (head and target in self.other_runs):
            return False
        if any(connected.peer == target for connected in host.connected()):
            return True
        try:
            peer = await host.connect(address, timeout_s=DIAL_TIMEOUT_S)
            await self.greet(peer)
        except P2PError as error:
            logger.info("dialling %s: %s", address, error)
            if target:  # whoever does not say hello is no company
                await host.disconnect(PeerId(target))
            return False
        if peer in self.other_runs:
            self.network = f"0 peers: {address} is in another run, {self.other_runs[peer]}"
            return False
        self.context.state.remember_peer(peer, address, now_s())
        self.network = "connected"
        return True

    async def _dial_discovered(self, channel: trio.MemoryReceiveChannel[str]) -> None:
        async for address in channel:
            await self._dial(address)

    async def _keep_record(self) -> None:
        context = self.context
        key = node_key(context.run, context.identity.peer)
        while True:
            is_reachable = bool(context.swarm.addresses())
            envelope, expires_at = self.node_envelope()
            try:
                is_stored = await context.swarm.put(
                    key, context.identity.public_key, envelope, expires_at
                )
                is_reachable = is_reachable and is_stored
            except TransportError as error:
                logger.warning("node record not stored: %s", error)
                is_reachable = False
            pause_s = RECORD_RENEW_S if is_reachable else _LOOK_AROUND_ALONE_S
            await trio.sleep(pause_s * random.uniform(0.8, 1.0))

    async def _look_around(self) -> None:
        """Read who is there, forget who is gone, and connect to a few more."""
        while True:
            await self._guarded(self._read_node_records)
            self.context.peers.forget_expired(now_s())
            await self._connect_some()
            alone = not self.context.host.connected()
            if not alone:
                self.network = "connected"
            elif not self.network.startswith("0 peers"):
                self.network = "0 peers"
            await trio.sleep(_LOOK_AROUND_ALONE_S if alone else _LOOK_AROUND_S)

    async def _read_node_records(self) -> None:
        fresh = []
        for key in node_keys(self.context.run):
            for stored in (await self.context.swarm.get(key))[:MAX_OWNERS_PER_KEY]:
                record = self._learn_record(stored.value, None)
                if record is not None:
                    fresh.append(record)
        await self._enter_dht(fresh)

    async def _connect_some(self) -> None:
        host = self.context.host
        connected = {peer.peer for peer in host.connected()}
        unconnected = [peer for peer in self.context.peers.peers() if peer not in connected]
        random.shuffle(unconnected)
        for peer in unconnected[: max(0, TARGET_PEERS - len(connected))]:
            record = self.context.peers.get(peer)
            for address in record.host_addresses if record else ():
                if address.endswith(f"/p2p/{peer}") and await self._dial(address):
                    break

    async def _guarded(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except TransportError as error:
            logger.info("membership: %s", error)


def _short(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(address for address in addresses if len(address) <= MAX_ADDRESS_LENGTH)
