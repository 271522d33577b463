"""From a request to pictures, on this machine: gather router and experts by CID, have them draw."""

import base64
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.catalog import Catalog
from node.context import NodeContext
from node.errors import ErrorCode, NodeError
from node.folders import unpacked_checkpoint, unpacked_expert, unpacked_folder
from node.keeping import PULLED
from node.lora_choice import ChosenLora
from node.routers import trained_routers
from node.studio import Studio
from node.workers.link import Message
from p2p.codec import Verified
from p2p.errors import PeerError, StorageError, TransportError
from p2p.ids import BlobId, ClusterId, PeerId
from p2p.records import CheckpointManifest
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
class ExpertHere:
    """A checkpoint on this disk: where it lies, its CID, and who published it."""

    folder: Path
    cid: BlobId
    owner: PeerId


@dataclass(frozen=True, slots=True)
class Materials:
    """Everything a drawing needs, on disk."""

    shared: Path
    experts: Mapping[ClusterId, ExpertHere]
    summaries: Mapping[ClusterId, Path]
    missing: tuple[ClusterId, ...]
    """Clusters whose expert nobody could give: the router's weights are renormalised."""
    loras: tuple[ChosenLora, ...] = ()
    """Each one's base is the expert of its cluster."""


@dataclass(slots=True)
class Drawing:
    """Draws with the best experts known now."""

    context: NodeContext
    catalog: Catalog
    studio: Studio

    async def materials(self, loras: Sequence[ChosenLora] = ()) -> Materials:
        """Bring router summaries and the best expert of each cluster here.

        Args:
            loras: at most one a cluster, whose expert is then the adapter's base, whatever newer
                ones there are.

        Raises:
            NodeError: if there is not a single expert; `REFUSED` for an adapter whose base is not
                of this run, before any weights are fetched, or cannot be had.
            StorageError: if the disk refuses an adapter's base.
        """
        try:
            await self.catalog.refresh()
        except TransportError as error:
            logger.warning("drawing with what is known: %s", error)
        published = {lora.cluster: await self._published(lora) for lora in loras}
        bases = {lora.cluster: await self._base(lora, published[lora.cluster]) for lora in loras}
        experts: dict[ClusterId, ExpertHere] = {}
        summaries: dict[ClusterId, Path] = {}
        for cluster in self.catalog.clusters():
            expert = bases.get(cluster) or await self._expert(cluster)
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
        return Materials(shared, experts, summaries, missing, tuple(loras))

    async def _published(self, lora: ChosenLora) -> Verified[CheckpointManifest]:
        """The signed manifest of an adapter's base; none of its weights yet."""
        try:
            manifest = await self.context.fetcher.manifest(lora.base)
        except (NodeError, PeerError, TransportError) as error:
            raise self._refusal(lora, error) from error
        cluster, clusters = manifest.record.cluster, self.catalog.clusters()
        if cluster != lora.cluster or cluster not in clusters:
            why = f"that is an expert of cluster {cluster}, and this run has {len(clusters)}"
            raise self._refusal(lora, PeerError(why))
        return manifest

    async def _base(self, lora: ChosenLora, manifest: Verified[CheckpointManifest]) -> ExpertHere:
        """An adapter's base, kept for good: nobody may have it once newer ones are published."""
        try:
            folder = await unpacked_checkpoint(
                self.context, lora.base, manifest.owner, label=PULLED
            )
        except (NodeError, PeerError, TransportError) as error:
            raise self._refusal(lora, error) from error
        return ExpertHere(folder, lora.base, manifest.owner)

    def _refusal(self, lora: ChosenLora, error: Exception) -> NodeError:
        """Why an adapter's base is not drawn with; a `PeerError` says that it is another one."""
        ours = self.catalog.best(lora.cluster)
        drawn_with = ours.record.manifest if ours else "nothing"
        way = f"bring it here while somebody has it: paris-node experts pull {lora.base}"
        if isinstance(error, PeerError):
            way = "train one for this run: paris-node lora train DATA --expert CID"
        return NodeError(
            ErrorCode.REFUSED,
            f"The LoRA {lora.folder.name} was made for the checkpoint {lora.base} alone, while "
            f"this node draws cluster {lora.cluster} with {drawn_with}: {str(error).rstrip('.')}.",
            f"{way}; or draw without it: --no-lora",
        )

    async def _expert(self, cluster: ClusterId) -> ExpertHere | None:
        """The best expert of a cluster that can be had; the next best if its providers are gone."""
        for advert in self.catalog.adverts(cluster):
            try:
                folder = await unpacked_expert(self.context, advert)
                return ExpertHere(folder, advert.record.manifest, advert.owner)
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
            "experts": {str(k): str(here.folder) for k, here in materials.experts.items()},
            "loras": {str(one.cluster): [str(one.folder), one.scale] for one in materials.loras},
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
