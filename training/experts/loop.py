"""Training of one expert: a plain loop that reports each step and saves at fixed points.

With several processes (`training.experts.distributed`) each runs this loop; the first one saves.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from training.clusters import Cluster
from training.config import TrainConfig
from training.errors import DataError
from training.experts.execution import Execution
from training.experts.gradients import BatchLoss
from training.experts.losses import CURVE_FILE, LossCurve
from training.experts.trainer import Trainer
from training.parts.text import UNCONDITIONAL
from training.run import Run

logger = logging.getLogger(__name__)


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
        buckets: smoothed loss in each tenth of t; None where no sample fell yet.
        execution: how the step was computed.
    """

    step: int
    samples: int
    loss: float
    samples_per_s: float
    lr: float
    grad_norm: float
    buckets: tuple[float | None, ...]
    execution: Execution


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A checkpoint that is complete on disk.

    Args:
        path: its published folder.
        step: steps, over all owners.
        samples: pictures seen, over all owners.
        loss: smoothed.
        buckets: the same in each tenth of t; None where no sample fell yet.
    """

    path: Path
    step: int
    samples: int
    loss: float
    buckets: tuple[float | None, ...]


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
    curve = LossCurve(state_dir / CURVE_FILE, config.budget_samples, config.batch)
    own = trainer.restore(state_dir, start_from)
    if trainer.is_leader:
        curve.rewind(own)
    _tell_execution(cluster.number, trainer)
    run.text.encode([UNCONDITIONAL])  # loads the encoder now, outside the measured rate
    began, first, reported = time.monotonic(), trainer.samples, -1
    try:
        while trainer.samples < config.budget_samples:
            before = trainer.samples
            found, lr = trainer.step_once()
            rate = (trainer.samples - first) / max(time.monotonic() - began, 1e-9)
            report = _report(trainer, found, lr, rate)
            if trainer.is_leader:
                curve.add(report.samples, config.batch, _curve_facts(report, trainer.loss))
            yield report
            if trainer.samples // config.save_samples > before // config.save_samples:
                yield _save(trainer, state_dir)
                reported = trainer.samples
            if trainer.agree(stop=should_stop is not None and should_stop()):
                break
        if reported != trainer.samples:
            yield _save(trainer, state_dir)
    except GeneratorExit:
        trainer.save(state_dir)
        raise


def _report(trainer: Trainer, found: BatchLoss, lr: float, rate: float) -> StepReport:
    return StepReport(
        step=trainer.step,
        samples=trainer.samples,
        loss=found.mean,
        samples_per_s=rate,
        lr=lr,
        grad_norm=found.grad_norm,
        buckets=trainer.buckets,
        execution=trainer.execution,
    )


def _curve_facts(report: StepReport, smoothed: float) -> dict[str, object]:
    """A line of the loss curve: the same facts whenever this step is trained."""
    return {
        "step": report.step,
        "loss": smoothed,
        "batch_loss": report.loss,
        "buckets": [None if mean is None else round(mean, 5) for mean in report.buckets],
        "lr": report.lr,
        "grad_norm": report.grad_norm,
    }


def _tell_execution(cluster: int, trainer: Trainer) -> None:
    how = trainer.execution
    logger.info(
        "cluster %d: %s; %d samples at a time on %s in %d process(es) of %d thread(s)",
        *(cluster, how.reason, how.micro_batch, how.device, how.processes, how.threads),
    )


def _save(trainer: Trainer, state_dir: Path) -> SavedCheckpoint:
    path = trainer.save(state_dir)
    return SavedCheckpoint(path, trainer.step, trainer.samples, trainer.loss, trainer.buckets)


def _check_data(cluster: Cluster, run: Run) -> None:
    if cluster.index.codec != run.codec_digest:
        raise DataError(f"cluster {cluster.number}: latents of another codec than the run's")
    if cluster.index.latent != run.facts.latent:
        raise DataError(f"cluster {cluster.number}: latents of another shape than the run's")
    if cluster.number >= run.spec.clusters:
        raise DataError(f"cluster {cluster.number} of a run of {run.spec.clusters}")
