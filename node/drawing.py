"""From a request to pictures, on this machine: gather router and experts by CID, have them draw."""

import base64
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.catalog import Advert, Catalog
from node.context import NodeContext
from node.errors import ErrorCode, NodeError
from node.folders import unpacked_expert, unpacked_folder
from node.routers import trained_routers
from node.studio import Studio
from node.workers.link import Message
from p2p.errors import PeerError, StorageError, TransportError
from p2p.ids import ClusterId
from p2p.routing import Routing

logger = logging.getLogger(__name__)

_MOST_SUMMARIES: Final = 3
"""Tried of one cluster, the owner's first."""


@dataclass(frozen=True, slots=True)
class DrawOrder:
    """What to draw, checked."""

    prompt: str
    n: int
    seed: int
    routing: Routing
    sampler: str
    steps: int
    guidance: float


@dataclass(frozen=True, slots=True)
class Materials:
    """Everything a drawing needs, on disk."""

    shared: Path
    experts: Mapping[ClusterId, tuple[Path, Advert]]
    summaries: Mapping[ClusterId, Path]
    missing: tuple[ClusterId, ...]
    """Clusters whose expert nobody could give: the router's weights are renormalised."""


@dataclass(slots=True)
class Drawing:
    """Draws with the best experts known now."""

    context: NodeContext
    catalog: Catalog
    studio: Studio

    async def materials(self) -> Materials:
        """Bring router summaries and the best expert of each cluster here.

        Raises:
            NodeError: if there is not a single expert.
        """
        try:
            await self.catalog.refresh()
        except TransportError as error:
            logger.warning("drawing with what is known: %s", error)
        experts: dict[ClusterId, tuple[Path, Advert]] = {}
        summaries: dict[ClusterId, Path] = {}
        for cluster in self.catalog.clusters():
            expert = await self._expert(cluster)
            if expert is not None:
                experts[cluster] = expert
            summary = await self._summary(cluster)
            if summary is not None:
                summaries[cluster] = summary
        if not experts:
            raise NodeError(
                ErrorCode.NOT_FOUND if self.context.peers.peers() else ErrorCode.NO_PEERS,
                "no expert of this run can be had yet",
                "see what is trained with: paris-node experts find",
            )
        missing = tuple(k for k in self.catalog.clusters() if k not in experts)
        shared = await unpacked_folder(self.context, self.catalog.manifest.shared, "shared")
        return Materials(shared, experts, summaries, missing)

    async def _expert(self, cluster: ClusterId) -> tuple[Path, Advert] | None:
        """The best expert of a cluster that can be had; the next best if its providers are gone."""
        for advert in self.catalog.adverts(cluster):
            try:
                return await unpacked_expert(self.context, advert), advert
            except (NodeError, PeerError, StorageError, TransportError) as error:
                logger.warning("expert of cluster %d left out: %s", cluster, error)
        return None

    async def _summary(self, cluster: ClusterId) -> Path | None:
        for advert in self.catalog.summaries(cluster)[:_MOST_SUMMARIES]:
            try:
                folder = await unpacked_folder(
                    self.context, advert.record.summary, f"summary/{cluster}"
                )
            except (NodeError, PeerError, StorageError, TransportError) as error:
                logger.warning("summary of cluster %d left out: %s", cluster, error)
                continue
            return next(iter(sorted(folder.iterdir())), None)
        return None

    async def draw(self, order: DrawOrder, materials: Materials) -> AsyncGenerator[Message]:
        """The expert worker's messages for one order; see `node.workers.expert`."""
        message: Message = {
            "kind": "draw",
            "shared": str(materials.shared),
            "models": str(self.context.config.models_folder),
            "experts": {str(k): str(path) for k, (path, _) in materials.experts.items()},
            "summaries": {str(k): str(path) for k, path in materials.summaries.items()},
            "routers": {k: str(path) for k, path in trained_routers(self.context.folder).items()},
            "prompt": order.prompt,
            "n": order.n,
            "seed": order.seed,
            "strategy": order.routing.strategy,
            "top_k": order.routing.top_k,
            "threshold": order.routing.threshold,
            "router": order.routing.router,
            "sampler": order.sampler,
            "steps": order.steps,
            "guidance": order.guidance,
            "autoguidance": order.routing.autoguidance,
            "threads": self.context.config.threads,
            "device": self.context.config.device,
        }
        async with aclosing(self.studio.draw(message)) as news:
            async for item in news:
                yield item


def shares_of(message: Message, field: str = "shares") -> dict[int, float]:
    """Share of each cluster, as a `route` or `image` message of the worker tells it."""
    shares = message[field]
    assert isinstance(shares, dict)  # noqa: S101  our own worker's message
    return {int(cluster): float(share) for cluster, share in shares.items()}


def image_of(message: Message) -> bytes:
    """PNG bytes of an `image` message."""
    png = message["png"]
    assert isinstance(png, bytes)  # noqa: S101  our own worker's message
    return png


def to_base64(data: bytes) -> str:
    """Bytes as JSON carries them."""
    return base64.b64encode(data).decode("ascii")
