"""Keeping what is known fresh: gossip as it comes, the DHT now and then."""

import logging
from dataclasses import dataclass
from typing import Final

import trio

from node.board import Board
from node.catalog import Catalog
from node.clock import now_s
from node.context import NodeContext
from node.replication import Replicator
from p2p.codec import check_envelope, open_signed
from p2p.errors import PeerError, TransportError
from p2p.gossip_rules import GossipRules
from p2p.host import Verdict
from p2p.ids import PeerId
from p2p.records import ExpertAdvert

logger = logging.getLogger(__name__)

_REFRESH_S: Final = 10.0


@dataclass(slots=True)
class Watching:
    """Listens and looks."""

    context: NodeContext
    catalog: Catalog
    board: Board
    replicator: Replicator

    async def run(self) -> None:
        """Watch until cancelled."""
        rules = GossipRules(self.context.run, ExpertAdvert)

        def validate(sender: PeerId, data: bytes) -> Verdict:
            return rules.check(sender, data, now_s())[0]

        channel = await self.context.host.subscribe(rules.topic, validate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look)
            async for message in channel:
                self._take(message.data)

    def _take(self, envelope: bytes) -> None:
        """An advert that the topic's rules let through."""
        try:
            key = check_envelope(envelope).key
            advert = open_signed(ExpertAdvert, envelope, key=key, now=now_s())
        except PeerError as error:
            logger.info("gossiped advert dropped: %s", error)
            return
        if self.catalog.add(advert):
            self.replicator.wake.set()

    async def _look(self) -> None:
        while True:
            try:
                await self.catalog.refresh(max_age_s=_REFRESH_S / 2)
                if not self.context.config.train:  # else the claim loop reads them
                    await self.board.read()
            except TransportError as error:
                logger.info("not refreshed: %s", error)
            await trio.sleep(_REFRESH_S)
