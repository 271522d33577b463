"""Training one held cluster: its data, its best starting point, the trainer process, its news.

The trainer is a process of its own: whatever happens to the network costs it no step, and whatever
happens to it costs the network nothing. It is restarted from its own state, and gives up only with
a sentence in `status`.
"""

import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from node.catalog import Advert, Catalog
from node.context import NodeContext
from node.errors import NodeError
from node.folders import unpacked_expert, unpacked_folder
from node.publishing import Publisher, Saved
from node.supervise import Worker, WorkerDiedError, open_worker
from node.workers.link import Message
from p2p.errors import P2PError, StorageError
from p2p.ids import BlobId, ClusterId
from p2p.records import RunManifest

logger = logging.getLogger(__name__)

_STOP_S: Final = 3.0
"""A trainer asked to stop finishes its step, saves and says so in this time."""
_GRACE_S: Final = 0.5
"""Then its process ends; the node promises 5 s in all."""
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_PATIENT_STARTS: Final = 3
"""Tries, about a minute in all, before a cluster whose checkpoints are lost is begun anew."""


class TrainingFailedError(Exception):
    """The trainer says it cannot go on: wrong data, a bad starting checkpoint, no memory."""


@dataclass(slots=True)
class Progress:
    """How far a training is, as `status` shows it."""

    step: int = 0
    samples: int = 0
    loss: float | None = None
    samples_per_s: float | None = None
    buckets: tuple[float | None, ...] = ()
    """Smoothed loss in each tenth of t; None where no sample fell yet."""
    how: Mapping[str, object] = field(default_factory=dict)
    """How steps are computed here, and why: `experts.execution.Execution` by its fields."""
    pid: int | None = None
    note: str = ""


@dataclass(slots=True)
class TrainingJob:
    """One cluster's training under one claim."""

    context: NodeContext
    manifest: RunManifest
    catalog: Catalog
    publisher: Publisher
    cluster: ClusterId
    epoch: int
    progress: Progress = field(default_factory=Progress)
    lost_claim: bool = False
    """Set before the job is cancelled when the cluster went to another owner."""
    lapses_at: float = math.inf
    """When the claim must not be trained under any more: a node that was paused finds out here."""
    _parent: BlobId | None = None
    _failed_starts: int = 0
    _is_started: bool = False
    """Whether the worker that runs now has made a step."""

    async def run(self) -> None:
        """Train to the end of the budget. Cancel to stop: the trainer then saves and leaves."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._train_once()
                return
            except (WorkerDiedError, TrainingFailedError, NodeError, P2PError, OSError) as error:
                logger.warning("training cluster %d: %s", self.cluster, error)
                self.context.journal.write("trainer_failed", cluster=self.cluster, why=str(error))
                self.progress.note = str(error)
            await trio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    async def _train_once(self) -> None:
        order = await self._order()
        log = self.context.config.paths.worker_log("trainer")
        async with open_worker("node.workers.trainer", log=log, grace_s=_GRACE_S) as worker:
            self.progress.pid = worker.pid
            self._is_started = False
            await worker.send(order)
            try:
                await self._follow(worker)
            except trio.Cancelled:
                if not self._is_started:
                    worker.kill()  # still importing torch: nothing to save, no ear for a request
                with trio.move_on_after(_STOP_S) as scope:
                    scope.shield = True
                    await self._stop(worker)
                raise
            finally:
                self.progress.pid = None

    async def _order(self) -> Message:
        """Everything the trainer needs, on disk; where it is."""
        context = self.context
        shared = await unpacked_folder(context, self.manifest.shared, "shared")
        data = await unpacked_folder(
            context, self.manifest.data[self.cluster], f"data/{self.cluster}"
        )
        state = context.folder / "train" / str(self.cluster)
        return {
            "kind": "train",
            "shared": str(shared),
            "models": str(context.config.models_folder),
            "data": str(data),
            "state": str(state),
            "cluster": self.cluster,
            "start_from": await self._starting_point(state),
            "threads": context.config.threads,
            "device": context.config.device,
            "gpus": context.config.gpus,
            "precision": context.config.precision,
        }

    async def _starting_point(self, state: Path) -> str | None:
        """The published checkpoint to go on from; the trainer prefers its own state if as far.

        An owner that was killed may have taken its newest checkpoint with it: then the one before.

        Raises:
            NodeError, P2PError: why none can be had; after some tries training begins without.
        """
        failure: NodeError | P2PError | None = None
        for advert in self.catalog.bases(self.cluster):
            self._parent = advert.record.manifest
            if advert.owner == self.context.identity.peer and await trio.Path(state).exists():
                return None
            try:
                folder = await unpacked_expert(self.context, advert)
            except (NodeError, P2PError) as error:
                logger.warning("checkpoint %s can't be had: %s", advert.record.manifest, error)
                failure = failure or error
                continue
            if advert.record.epoch > self._last_epoch():
                await trio.to_thread.run_sync(_discard, state)  # ours became an orphan's
            self._tell_continues(advert)
            return str(folder)
        self._parent = None
        self._failed_starts += 1
        if failure is not None and self._failed_starts < _PATIENT_STARTS:
            raise failure
        return None

    def _last_epoch(self) -> int:
        """The token under which this node last trained the cluster; 0 if never."""
        published = self.context.state.published(self.context.run)
        return max((item.epoch for item in published if item.cluster == self.cluster), default=0)

    def _tell_continues(self, advert: Advert) -> None:
        self.context.journal.write(
            "continues",
            cluster=self.cluster,
            epoch=self.epoch,
            samples=advert.record.samples,
            cid=advert.record.manifest,
            owner=advert.owner,
        )

    async def _follow(self, worker: Worker) -> None:
        while True:
            message = await worker.receive()
            if await self._handle(message):
                return

    async def _stop(self, worker: Worker) -> None:
        """Ask for a last checkpoint and publish it: no training is wasted."""
        try:
            await worker.send({"kind": "stop"})
            while not await self._handle(await worker.receive()):
                pass
        except (WorkerDiedError, TrainingFailedError, P2PError) as error:
            logger.warning("stopping cluster %d: %s", self.cluster, error)

    async def _handle(self, message: Message) -> bool:
        """Take one message of the trainer; True when it is done."""
        progress = self.progress
        match message:
            case {"kind": "step"}:
                progress.step = int(str(message["step"]))
                progress.samples = int(str(message["samples"]))
                progress.loss = float(str(message["loss"]))
                progress.samples_per_s = float(str(message["samples_per_s"]))
                progress.buckets = _means(message["buckets"])
                progress.how = _facts(message["how"])
                progress.note = ""
            case {"kind": "saved"}:
                await self._publish(message)
            case {"kind": "summary"}:
                await self._publish_summary(Path(str(message["path"])))
            case {"kind": "started"}:
                self._is_started = True
                self.context.journal.write(
                    "training", cluster=self.cluster, epoch=self.epoch, samples=message["samples"]
                )
            case {"kind": "done"}:
                return True
            case {"kind": "failed"}:
                raise TrainingFailedError(str(message["error"]))
        return False

    async def _publish(self, message: Message) -> None:
        saved = Saved(
            cluster=self.cluster,
            epoch=self.epoch,
            folder=Path(str(message["path"])),
            step=int(str(message["step"])),
            samples=int(str(message["samples"])),
            loss=float(str(message["loss"])),
            parent=self._parent,
            is_orphan=self.lost_claim or trio.current_time() >= self.lapses_at,
        )
        try:
            self._parent = await self.publisher.checkpoint(saved)
        except StorageError as error:  # training goes on: the next save is published instead
            logger.warning("checkpoint of cluster %d not published: %s", self.cluster, error)
            self.progress.note = str(error)

    async def _publish_summary(self, path: Path) -> None:
        try:
            await self.publisher.summary(self.cluster, self.epoch, path)
        except StorageError as error:  # the router has others', or does without
            logger.warning("summary of cluster %d not published: %s", self.cluster, error)
            self.progress.note = str(error)


def _means(value: object) -> tuple[float | None, ...]:
    items = value if isinstance(value, list) else []
    return tuple(None if item is None else float(item) for item in items)


def _facts(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _discard(state: Path) -> None:
    if state.exists():
        shutil.rmtree(state)
