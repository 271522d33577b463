"""Adverts of offers as they come: by gossip at once, from the DHT now and then.

Whatever is handed on was opened: its signature, its key and its time hold. What it names was not
looked at.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from node.catalog import Catalog
from node.clock import now_s
from node.context import NodeContext
from p2p.codec import Verified, check_envelope, open_signed
from p2p.errors import PeerError, StorageError, TransportError
from p2p.gossip_rules import GossipRules
from p2p.host import GossipMessage, Verdict
from p2p.ids import ClusterId, PeerId
from p2p.limits import MAX_OWNERS_PER_KEY
from p2p.lora_records import OfferAdvert
from p2p.records import lora_key

logger = logging.getLogger(__name__)

_REFRESH_S: Final = 30.0
_AT_ONCE: Final = 8


@dataclass(slots=True)
class OfferHearing:
    """Hears of offers of one run; may be run again after a failure.

    Attributes:
        take: told of each advert; a `StorageError` that it raises is logged.
    """

    context: NodeContext
    catalog: Catalog
    take: Callable[[Verified[OfferAdvert]], None]
    _heard: trio.MemoryReceiveChannel[GossipMessage] | None = None
    """A topic is joined once."""

    async def run(self) -> None:
        """Listen, and read; until cancelled."""
        heard = self._heard = self._heard or await self._joined()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_now_and_then)
            async for message in heard:
                self._hear(message.data)

    async def _joined(self) -> trio.MemoryReceiveChannel[GossipMessage]:
        rules = GossipRules(self.context.run, OfferAdvert)

        def validate(sender: PeerId, data: bytes) -> Verdict:
            return rules.check(sender, data, now_s())[0]

        return await self.context.host.subscribe(rules.topic, validate)

    def _hear(self, envelope: bytes) -> None:
        """An advert that the topic's rules let through."""
        try:
            self._open(envelope, check_envelope(envelope).key)
        except PeerError as error:
            logger.info("gossiped offers dropped: %s", error)

    async def _read_now_and_then(self) -> None:
        while True:
            limiter = trio.CapacityLimiter(_AT_ONCE)
            async with trio.open_nursery() as nursery:
                for cluster in self.catalog.clusters():
                    nursery.start_soon(self._read, cluster, limiter)
            await trio.sleep(_REFRESH_S)

    async def _read(self, cluster: ClusterId, limiter: trio.CapacityLimiter) -> None:
        key = lora_key(self.context.run, cluster)
        async with limiter:
            try:
                stored = (await self.context.swarm.get(key))[:MAX_OWNERS_PER_KEY]
            except TransportError as error:
                logger.info("offers of cluster %d not read: %s", cluster, error)
                return
        for each in stored:
            self._open(each.value, key)
            await trio.lowlevel.checkpoint()  # there may be 256, each with a signature

    def _open(self, envelope: bytes, key: str) -> None:
        try:
            self.take(open_signed(OfferAdvert, envelope, key=key, now=now_s()))
        except (PeerError, StorageError) as error:
            logger.info("an advert of offers dropped: %s", error)
