"""Training of one expert: a plain loop that reports each step and saves at fixed points."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from training.clusters import Cluster
from training.config import TrainConfig
from training.errors import DataError
from training.run import Run
from training.text import UNCONDITIONAL
from training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step.

    Args:
        step: steps made so far, over all owners of the cluster.
        samples: pictures seen so far, over all owners.
        loss: of this batch.
        samples_per_s: since this call began.
        lr: of this step.
        grad_norm: of this batch's gradients, before clipping.
    """

    step: int
    samples: int
    loss: float
    samples_per_s: float
    lr: float
    grad_norm: float


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A checkpoint that is complete on disk.

    Args:
        path: its published folder.
        step: steps, over all owners.
        samples: pictures seen, over all owners.
        loss: smoothed.
    """

    path: Path
    step: int
    samples: int
    loss: float


def train(
    cluster: Cluster,
    run: Run,
    config: TrainConfig,
    *,
    state_dir: Path,
    start_from: Path | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[StepReport | SavedCheckpoint]:
    """Train one expert to its budget.

    Begins from the newest of: the save in `state_dir` (exact resume), the published checkpoint
    `start_from` (same place in the schedule, fresh optimizer), fresh weights. A budget already
    reached gives one `SavedCheckpoint` and no step.

    Args:
        cluster: its data.
        run: the run it belongs to.
        config: settings; `run.spec.train` unless there is a reason.
        state_dir: this owner's saves of this cluster.
        start_from: another owner's published folder.
        should_stop: asked after every step; true saves and ends. Closing the generator does too.

    Yields:
        A `StepReport` after every step, a `SavedCheckpoint` after every save.

    Raises:
        CheckpointError: saves or `start_from` of another run, cluster or setting.
        DataError: latents made by another codec than the run's.
        DivergedError: the loss is not finite; the last save is still there.
    """
    torch.set_num_threads(config.threads)
    _check_data(cluster, run)
    trainer = Trainer(cluster, run, config)
    trainer.restore(state_dir, start_from)
    run.text.encode([UNCONDITIONAL])  # loads the encoder now, outside the measured rate
    began, first, reported = time.monotonic(), trainer.samples, -1
    try:
        while trainer.samples < config.budget_samples:
            before = trainer.samples
            found, lr = trainer.step_once()
            rate = (trainer.samples - first) / max(time.monotonic() - began, 1e-9)
            yield StepReport(trainer.step, trainer.samples, found.mean, rate, lr, found.grad_norm)
            if trainer.samples // config.save_samples > before // config.save_samples:
                yield _save(trainer, state_dir)
                reported = trainer.samples
            if should_stop is not None and should_stop():
                break
        if reported != trainer.samples:
            yield _save(trainer, state_dir)
    except GeneratorExit:
        trainer.save(state_dir)
        raise


def _save(trainer: Trainer, state_dir: Path) -> SavedCheckpoint:
    path = trainer.save(state_dir)
    return SavedCheckpoint(path, trainer.step, trainer.samples, trainer.loss)


def _check_data(cluster: Cluster, run: Run) -> None:
    if cluster.index.codec != run.codec_digest:
        raise DataError(f"cluster {cluster.number}: latents of another codec than the run's")
    if cluster.index.latent != run.facts.latent:
        raise DataError(f"cluster {cluster.number}: latents of another shape than the run's")
    if cluster.number >= run.spec.clusters:
        raise DataError(f"cluster {cluster.number} of a run of {run.spec.clusters}")
