"""LoRA: a small adapter on one published expert, trained on your own pictures.

The base is frozen and shared; an adapter knows its base by digest and goes on no other. Taken off,
or at scale 0, the expert answers exactly as before.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from training.errors import ConfigError, DataError, DivergedError, LoraError
from training.experts.loaded import Expert
from training.files import remove_folder
from training.lora.files import LoraInfo, check_base, read_lora, write_lora
from training.lora.losses import with_weights
from training.lora.modules import MAX_SCALE, merged
from training.lora.settings import LoraRows, LoraSettings
from training.lora.trainer import LoraTrainer
from training.parts.text import UNCONDITIONAL
from training.run import Run


@dataclass(frozen=True, slots=True, eq=False)
class LoraJob:
    """What to train on what, and where it is to lie.

    Args:
        base: the expert; its device is where training runs.
        run: the run it belongs to.
        rows: what to learn.
        settings: how.
        folder: of the adapter; must not exist; its parent must.
        cid: of the base's signed manifest; empty if it never was in the network.
    """

    base: Expert
    run: Run
    rows: LoraRows
    settings: LoraSettings
    folder: Path
    cid: str = ""

    @property
    def state_folder(self) -> Path:
        """Where an interrupted training waits, beside the adapter's folder."""
        return self.folder.with_name(f".{self.folder.name}.training")


@dataclass(frozen=True, slots=True)
class LoraStep:
    """One optimizer step.

    Args:
        step: made so far.
        samples: pictures seen so far.
        loss: of this batch.
        samples_per_s: since this call began.
        lr: of this step.
    """

    step: int
    samples: int
    loss: float
    samples_per_s: float
    lr: float


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The training was stopped and saved: the same call goes on from `samples`."""

    samples: int


@dataclass(frozen=True, slots=True)
class TrainedLora:
    """The end: the adapter is complete in `folder`."""

    folder: Path
    info: LoraInfo


LoraEvent = LoraStep | Interrupted | TrainedLora


def train_lora(job: LoraJob, should_stop: Callable[[], bool] | None = None) -> Iterator[LoraEvent]:
    """Train an adapter to its budget; an interrupted training goes on where it was saved.

    Args:
        job: what to train.
        should_stop: asked after every step; true saves and ends. Closing the generator does too.

    Yields:
        A `LoraStep` after every step, then the `TrainedLora`, or `Interrupted`.

    Raises:
        ConfigError: the rank exceeds a layer of the base.
        DataError: the folder exists, or latents of another shape than the base's.
        DivergedError: the loss is not finite, or a weight outgrew what an adapter may hold. The
            same seed would end there again, so nothing is left behind.
        LoraError: base and run differ, or an interrupted training of other settings lies here.
    """
    if job.folder.exists():
        raise DataError(f"{job.folder} exists already: choose another name, or remove it")
    torch.set_num_threads(job.settings.threads)
    job.run.text.encode([UNCONDITIONAL])  # loads the encoder now, outside the measured rate
    trainer = LoraTrainer(job.base, job.run, job.rows, job.settings)
    trainer.restore(job.state_folder)
    try:
        finished = yield from _steps(trainer, job, should_stop)
        if not finished:
            trainer.save(job.state_folder)
            yield Interrupted(trainer.samples)
            return
        yield TrainedLora(job.folder, _finish(trainer, job))
    except GeneratorExit:
        if not job.folder.exists():
            trainer.save(job.state_folder)
        raise
    except DivergedError:
        discard(job)
        raise


def discard(job: LoraJob) -> None:
    """Forget an interrupted training, if there is one."""
    if job.state_folder.exists():
        remove_folder(job.state_folder)


def with_lora(expert: Expert, folder: Path, scale: float = 1.0) -> Expert:
    """An expert with an adapter on; the given one is unchanged and shares its weights.

    Args:
        expert: the checkpoint that the adapter was trained on.
        folder: of the adapter; checked in every part.
        scale: strength; 1 as trained, 0 the base exactly.

    Raises:
        ConfigError: a scale out of range.
        LoraError: altered, or made for another base (`WrongBaseError`); names both.
        TensorFileError: malformed weights.
    """
    _check_scale(scale)
    info, weights = read_lora(folder)
    check_base(info, expert.info)
    if scale == 0:
        return expert
    return with_weights(expert, info.shape, weights, info.scaling * scale)


def with_loras(
    experts: Mapping[int, Expert], loras: Mapping[int, tuple[Path, float]]
) -> dict[int, Expert]:
    """Experts by cluster, some of them with an adapter on; their earlier selves stay as they were.

    Args:
        experts: by cluster.
        loras: cluster -> folder of an adapter, and its scale.

    Raises:
        ConfigError: a scale out of range.
        LoraError: as `with_lora`, or the adapter's expert is not here.
        TensorFileError: malformed weights.
    """
    absent = sorted(set(loras) - set(experts))
    if absent:
        raise LoraError(f"a LoRA for the expert of cluster {absent[0]}, which is not here")
    put_on = {k: with_lora(experts[k], folder, scale) for k, (folder, scale) in loras.items()}
    return {**experts, **put_on}


def merge_lora(expert: Expert, folder: Path, scale: float = 1.0) -> Expert:
    """An expert of its own with the adapter worked into its weights: to export, or to draw faster.

    Equals `with_lora` up to rounding; takes the memory of a second expert. Raises likewise.
    """
    _check_scale(scale)
    info, weights = read_lora(folder)
    check_base(info, expert.info)
    return replace(expert, net=merged(expert.net, info.shape, weights, info.scaling * scale))


def _check_scale(scale: float) -> None:
    if not -MAX_SCALE <= scale <= MAX_SCALE:
        raise ConfigError(f"a LoRA's scale must lie within {MAX_SCALE:g} of 0, got {scale}")


def _steps(
    trainer: LoraTrainer, job: LoraJob, should_stop: Callable[[], bool] | None
) -> Generator[LoraStep, None, bool]:
    """Train to the budget, saving at its marks; whether it was reached."""
    settings = job.settings
    began, first = time.monotonic(), trainer.samples
    while trainer.samples < settings.samples:
        before = trainer.samples
        found, lr = trainer.step_once()
        rate = (trainer.samples - first) / max(time.monotonic() - began, 1e-9)
        yield LoraStep(trainer.step, trainer.samples, found.mean, rate, lr)
        if trainer.samples >= settings.samples:
            break
        if trainer.samples // settings.save_samples > before // settings.save_samples:
            trainer.save(job.state_folder)
        if should_stop is not None and should_stop():
            return False
    return True


def _finish(trainer: LoraTrainer, job: LoraJob) -> LoraInfo:
    """Measure, write the folder, forget the state."""
    held_out = trainer.measure(is_on=False), trainer.measure(is_on=True)
    try:
        info = write_lora(
            job.folder, trainer.info(job.cid, held_out), trainer.weights(), trainer.probe()
        )
    except LoraError as error:
        raise DivergedError(f"{error}: use a lower learning rate") from error
    discard(job)
    return info
