"""The running node as `node.api` promises it: answers for the command line and the web page."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

import trio

from node.api import SCHEMA, Json
from node.artist import Artist
from node.catalog import Advert, Catalog
from node.claiming import Claiming
from node.clock import now_s
from node.context import NodeContext
from node.errors import ErrorCode, NodeError
from node.failures import for_people
from node.folders import checkpoint_folder, unpacked_checkpoint
from node.keeping import PULLED
from node.lora_service import LoraService
from node.membership import Membership
from node.orders import order_of
from node.providers import find_providers
from node.supervise import Supervisor
from p2p.codec import Verified
from p2p.errors import DecodeError, P2PError, TransportError
from p2p.ids import BlobId, ClusterId, PeerId, parse_blob_id
from p2p.records import CheckpointManifest, RunManifest
from p2p.transfer import PullProgress

_FIND: Final = "copy it from: paris-node experts find"
_COUNT_EVERY_S: Final = 5.0
_NEWS: Final = 32
"""Events of one pull that may wait for a slow reader; progress beyond that is dropped."""


@dataclass(slots=True)
class NodeService:
    """Stands behind the HTTP API."""

    context: NodeContext
    manifest: RunManifest
    catalog: Catalog
    claiming: Claiming
    artist: Artist
    membership: Membership
    supervisor: Supervisor
    nursery: trio.Nursery
    stop_event: trio.Event
    loras: LoraService
    _started: float = field(default_factory=time.monotonic)
    _stored_bytes: int = 0

    def status(self) -> Json:
        """The node on one screen."""
        context = self.context
        now = now_s()
        return {
            "schema": SCHEMA,
            "peer_id": context.identity.peer,
            "name": context.config.name,
            "version": version("paris-node"),
            "run": context.run,
            "run_name": self.manifest.name,
            "listening": list(context.host.listening()),
            "peers": len(context.host.connected()),
            "network": self.membership.network,
            "claims": [
                {
                    "cluster": held.claim.cluster,
                    "epoch": held.claim.epoch,
                    "expires_in_s": round(held.claim.expires_at - now, 1),
                }
                for held in self.claiming.held()
            ],
            "claim_note": "" if self.claiming.held() else self.claiming.reason,
            "training": self._training(),
            "storage": {"bytes": self._stored_bytes, "quota": context.config.quota_bytes},
            "experts_held": sum(pin.label.startswith("expert/") for pin in context.blobs.pins()),
            "services": {
                name: {
                    "state": health.state,
                    "failures": health.failures,
                    "error": health.last_error,
                }
                for name, health in self.supervisor.health.items()
            },
            "uptime_s": round(time.monotonic() - self._started, 1),
        }

    def _training(self) -> Json | None:
        for job in self.claiming.trainings():
            progress = job.progress
            return {
                "cluster": job.cluster,
                "step": progress.step,
                "samples": progress.samples,
                "budget": self.manifest.budget_samples,
                "loss": progress.loss,
                "samples_per_s": progress.samples_per_s,
                "loss_by_t": list(progress.buckets),
                "how": dict(progress.how),
                "pid": progress.pid,
                "note": progress.note,
            }
        return None

    async def watch_storage(self) -> None:
        """Count what is stored now and then, off the event loop, until cancelled."""
        while True:
            usage = await trio.to_thread.run_sync(self.context.blobs.usage)
            self._stored_bytes = usage.used
            await trio.sleep(_COUNT_EVERY_S)

    def peers(self) -> Json:
        """Live connections."""
        return {
            "schema": SCHEMA,
            "peers": [
                {
                    "peer_id": connected.peer,
                    "name": self._name(connected.peer),
                    "address": connected.address,
                    "direct": not connected.is_relayed,
                    "outbound": connected.is_outbound,
                    "rtt_ms": None if connected.rtt_s is None else round(1000 * connected.rtt_s, 1),
                }
                for connected in self.context.host.connected()
            ],
        }

    def _name(self, peer: PeerId | None) -> str | None:
        if peer is None:
            return None
        if peer == self.context.identity.peer:
            return self.context.config.name
        record = self.context.peers.get(peer)
        return record.name if record else None

    def clusters(self) -> Json:
        """Who owns what, as this node sees it."""
        me, now = self.context.identity.peer, now_s()
        rows: list[Json] = []
        for cluster in self.catalog.clusters():
            ownership = self.claiming.board.ownerships.get(cluster)
            claim = ownership.claim if ownership else None
            best = self.catalog.best(cluster)
            rows.append(
                {
                    "cluster": cluster,
                    "owner": claim.owner if claim else None,
                    "owner_name": self._name(claim.owner) if claim else None,
                    "epoch": ownership.epoch if ownership else 0,
                    "expires_in_s": round(claim.record.expires_at - now, 1) if claim else None,
                    "samples": best.record.samples if best else 0,
                    "budget": self.manifest.budget_samples,
                    "complete": self.catalog.is_complete(cluster),
                    "mine": claim is not None and claim.owner == me,
                }
            )
        return {
            "schema": SCHEMA,
            "run": self.context.run,
            "clusters": rows,
            "coverage": self.catalog.coverage(),
            "next": next(
                (row["cluster"] for row in rows if not row["owner"] and not row["complete"]), None
            ),
        }

    async def find_experts(self, cluster: int | None) -> Json:
        """The experts the DHT tells of now."""
        if cluster is not None and not 0 <= cluster < self.manifest.clusters:
            raise NodeError(
                ErrorCode.NOT_FOUND,
                f"this run has clusters 0 to {self.manifest.clusters - 1}, not {cluster}",
                "see them with: paris-node clusters",
            )
        wanted = self.catalog.clusters() if cluster is None else (ClusterId(cluster),)
        try:
            await self.catalog.refresh(wanted)
            experts = [
                await self._expert_row(advert)
                for each in wanted
                for advert in self.catalog.adverts(each)
            ]
        except TransportError as error:
            raise NodeError(
                ErrorCode.FAILED, f"the DHT can't be read: {error}", "see: paris-node logs"
            ) from error
        return {
            "schema": SCHEMA,
            "run": self.context.run,
            "clusters": self.manifest.clusters,
            "coverage": self.catalog.coverage(),
            "experts": experts,
        }

    async def _expert_row(self, advert: Advert) -> Json:
        record = advert.record
        return {
            "cluster": record.cluster,
            "owner": advert.owner,
            "owner_name": self._name(advert.owner),
            "epoch": record.epoch,
            "step": record.step,
            "samples": record.samples,
            "loss": record.loss,
            "cid": record.manifest,
            "bytes": record.size,
            "replicas": await self.catalog.replicas(advert),
            "seen_s": round(max(0.0, now_s() - record.issued_at), 1),
            "orphan": record.is_orphan,
        }

    async def show_expert(self, cid: str) -> Json:
        """One checkpoint's signed manifest."""
        blob = _blob(cid)
        manifest = await self._manifest(blob)
        record = manifest.record
        try:
            holders = await find_providers(self.context.swarm, self.context.run, blob)
        except TransportError as error:
            raise for_people(error) from error
        return {
            "schema": SCHEMA,
            "cid": blob,
            "run": record.run,
            "cluster": record.cluster,
            "owner": manifest.owner,
            "owner_name": self._name(manifest.owner),
            "epoch": record.epoch,
            "step": record.step,
            "samples": record.samples,
            "loss": record.loss,
            "parent": record.parent,
            "bytes": record.size,
            "files": [{"name": entry.name, "bytes": entry.size} for entry in record.files],
            "local": checkpoint_folder(self.context.folder, record, blob).exists(),
            "providers": sorted({*holders, manifest.owner}),
        }

    async def pull_expert(self, cid: str) -> AsyncGenerator[Json]:
        """Fetch one checkpoint, verified; leaving early lets the pull go on."""
        blob = _blob(cid)
        manifest = await self._manifest(blob)
        send, receive = trio.open_memory_channel[Json](_NEWS)
        self.nursery.start_soon(self._pull, blob, manifest, send)
        async with receive:
            async for event in receive:
                if isinstance(failure := event.get("failure"), NodeError):
                    raise failure
                yield event

    async def _pull(
        self,
        blob: BlobId,
        manifest: Verified[CheckpointManifest],
        news: trio.MemorySendChannel[Json],
    ) -> None:
        started = time.monotonic()

        def tell(event: Json) -> None:
            with suppress(trio.WouldBlock, trio.BrokenResourceError):
                news.send_nowait(event)

        def on_progress(progress: PullProgress) -> None:
            tell(
                {
                    "event": "progress",
                    "bytes": progress.done_bytes,
                    "total": progress.total_bytes,
                    "sources": progress.sources,
                }
            )

        last: Json
        try:
            path = await unpacked_checkpoint(
                self.context, blob, manifest.owner, label=PULLED, on_progress=on_progress
            )
            last = {
                "event": "done",
                "cid": blob,
                "cluster": manifest.record.cluster,
                "path": str(path),
                "bytes": manifest.record.size,
                "seconds": round(time.monotonic() - started, 3),
            }
        except (NodeError, P2PError) as error:
            last = {"failure": for_people(error)}
        async with news:
            with suppress(trio.BrokenResourceError):
                await news.send(last)

    async def generate(self, request: Mapping[str, object]) -> AsyncGenerator[Json]:
        """Draw here, or have a peer draw."""
        try:
            async with aclosing(self.artist.generate(order_of(request))) as events:
                async for event in events:
                    yield event
        except P2PError as error:
            raise for_people(error) from error

    def offers(self) -> Json:
        """Offers of LoRAs, others' and our own."""
        return self.loras.offers()

    async def show_offer(self, cid: str) -> Json:
        """One offer."""
        return await self.loras.show_offer(cid)

    def make_offer(self, request: Mapping[str, object]) -> AsyncGenerator[Json]:
        """Offer a LoRA of this home."""
        return self.loras.make_offer(request)

    def verify_offer(self, cid: str, request: Mapping[str, object]) -> AsyncGenerator[Json]:
        """Look into an offer."""
        return self.loras.verify_offer(cid, request)

    def buy_offer(self, cid: str, request: Mapping[str, object]) -> AsyncGenerator[Json]:
        """Sign an offer's terms and take the LoRA."""
        return self.loras.buy_offer(cid, request)

    def withdraw_offer(self, cid: str) -> Json:
        """Stop an own offer for good."""
        return self.loras.withdraw_offer(cid)

    def stop(self) -> None:
        """Begin a graceful stop."""
        self.stop_event.set()

    async def _manifest(self, blob: BlobId) -> Verified[CheckpointManifest]:
        try:
            return await self.context.fetcher.manifest(blob)
        except DecodeError as error:
            raise NodeError(
                ErrorCode.NOT_FOUND, f"{blob} is not a checkpoint: {error}", _FIND
            ) from error
        except P2PError as error:
            raise for_people(error) from error


def _blob(cid: str) -> BlobId:
    try:
        return parse_blob_id(cid)
    except DecodeError as error:
        raise NodeError(ErrorCode.USAGE, str(error), _FIND) from error
