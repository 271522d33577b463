"""Making a saved checkpoint known: blobs, signed manifest, advert in the DHT, a word on the gossip.

A failure to publish never stops training: what was saved is in the state file, and is advertised
again until it succeeds, then renewed for as long as the node lives.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from node.catalog import Catalog
from node.clock import now_s
from node.context import NodeContext
from node.keeping import keep_checkpoint, keep_folder
from node.providers import RENEW_S, announce_roots
from node.state import Published
from p2p.claims import Standing
from p2p.codec import BLOB_KEY, open_signed, seal
from p2p.errors import LimitError, TransportError
from p2p.file_sets import FileSet
from p2p.gossip_rules import topic
from p2p.ids import BlobId, ClusterId
from p2p.records import CheckpointManifest, ExpertAdvert, RouterAdvert, expert_key, router_key

logger = logging.getLogger(__name__)

ADVERT_LIFETIME_S: Final = 3600.0
_RETRY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint the trainer wrote, and the claim it was trained under."""

    cluster: ClusterId
    epoch: int
    folder: Path
    step: int
    samples: int
    loss: float
    parent: BlobId | None
    is_orphan: bool


@dataclass(slots=True)
class Publisher:
    """Publishes this node's checkpoints and summaries, and keeps them alive in the DHT."""

    context: NodeContext
    catalog: Catalog
    _wake: trio.Event = field(default_factory=trio.Event)

    async def checkpoint(self, saved: Saved) -> BlobId:
        """Store a saved checkpoint as blobs, remember it, and have it advertised soon.

        What comes after another owner was granted the cluster is an orphan, whatever `saved` says.

        Raises:
            StorageError: if the store is full.
        """
        context = self.context
        is_orphan = saved.is_orphan or saved.epoch < self.catalog.fence(saved.cluster).epoch
        paths = {path.name: path for path in sorted(saved.folder.iterdir()) if path.is_file()}
        entries = await trio.to_thread.run_sync(context.blobs.add_files, paths)
        manifest = CheckpointManifest(
            run=context.run,
            cluster=saved.cluster,
            epoch=saved.epoch,
            step=saved.step,
            samples=saved.samples,
            loss=saved.loss,
            parent=saved.parent,
            files=entries,
            created_at=now_s(),
        )
        envelope = seal(manifest, context.identity, key=BLOB_KEY, expires_at=None)
        cid = await trio.to_thread.run_sync(
            keep_checkpoint, context.blobs, envelope, manifest.cluster, manifest.samples, entries
        )
        published = Published(
            cluster=saved.cluster,
            epoch=saved.epoch,
            step=saved.step,
            samples=saved.samples,
            manifest=cid,
            size=manifest.size,
            loss=saved.loss,
            is_orphan=is_orphan,
            published_at=manifest.created_at,
        )
        context.state.save_published(context.run, published)
        context.journal.write(
            "published",
            cluster=saved.cluster,
            epoch=saved.epoch,
            step=saved.step,
            samples=saved.samples,
            cid=cid,
            bytes=manifest.size,
            parent=saved.parent,
            orphan=is_orphan,
        )
        self._wake.set()
        return cid

    async def summary(self, cluster: ClusterId, epoch: int, file: Path) -> None:
        """Store a cluster's routing summary and advertise it."""
        context = self.context
        entries = await trio.to_thread.run_sync(context.blobs.add_files, {file.name: file})
        root = await trio.to_thread.run_sync(
            keep_folder, context.blobs, FileSet(entries), f"summary/{cluster}"
        )
        context.state.save_summary(context.run, cluster, epoch, root)
        self._wake.set()

    async def run(self) -> None:
        """Advertise what is published: at once when there is news, again before it expires."""
        while True:
            wake = self._wake = trio.Event()
            try:
                await self._advertise_all()
                pause_s = RENEW_S
            except TransportError as error:
                logger.warning("not advertised yet: %s", error)
                pause_s = _RETRY_S
            with trio.move_on_after(pause_s):
                await wake.wait()

    async def _advertise_all(self) -> None:
        context = self.context
        for item in context.state.published(context.run):
            await self._advertise(item)
        for cluster, epoch, root in context.state.summaries(context.run):
            await self._advertise_summary(cluster, epoch, root)
        roots = [pin.root for pin in context.blobs.pins()]
        await announce_roots(context.swarm, context.identity, context.run, roots[::-1])

    async def _advertise(self, item: Published) -> None:
        context = self.context
        base = self.catalog.base(item.cluster)
        if item.is_orphan and base is not None and base.owner == context.identity.peer:
            return  # a node has one advert a cluster: the orphan's would hide the base
        now = now_s()
        advert = ExpertAdvert(
            run=context.run,
            cluster=item.cluster,
            epoch=item.epoch,
            step=item.step,
            samples=item.samples,
            manifest=item.manifest,
            size=item.size,
            loss=item.loss,
            is_orphan=item.is_orphan,
            issued_at=item.published_at,
        )
        key = expert_key(context.run, item.cluster)
        expires_at = now + ADVERT_LIFETIME_S
        envelope = seal(advert, context.identity, key=key, expires_at=expires_at)
        opened = open_signed(ExpertAdvert, envelope, key=key, now=now)
        if self.catalog.fence(item.cluster).judge(opened) is Standing.STALE:
            logger.info("cluster %d was taken over: advert not renewed", item.cluster)
            return
        self.catalog.add(opened)
        await context.swarm.put(key, context.identity.public_key, envelope, expires_at)
        try:
            await context.host.publish(topic(context.run, "expert"), envelope)
        except (LimitError, TransportError) as error:
            logger.info("advert not gossiped: %s", error)  # the DHT has it; gossip is a hint

    async def _advertise_summary(self, cluster: ClusterId, epoch: int, root: BlobId) -> None:
        context = self.context
        now = now_s()
        advert = RouterAdvert(context.run, cluster, epoch, summary=root, issued_at=now)
        key = router_key(context.run, cluster)
        expires_at = now + ADVERT_LIFETIME_S
        envelope = seal(advert, context.identity, key=key, expires_at=expires_at)
        await context.swarm.put(key, context.identity.public_key, envelope, expires_at)
