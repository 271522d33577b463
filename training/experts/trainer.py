"""The moving parts of training: net, optimizer, average, counters.

All randomness is a function of (seed, cluster, counter), so nothing but counters has to be stored
and a resumed run equals the uninterrupted one bit for bit.
"""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from training.clusters import Cluster
from training.config import SCHEMA, TrainConfig, preset
from training.errors import CheckpointError, CrewError, DivergedError
from training.experts.batches import Batches, derive_seed
from training.experts.checkpoint import (
    SCHEDULES,
    ExpertInfo,
    Snapshot,
    TrainState,
    Weights,
    published_folder,
    read_guide,
    read_latest,
    read_published,
    write_save,
)
from training.experts.ema import Ema, decay_at
from training.experts.execution import Execution, continued
from training.experts.gradients import BatchLoss, Gradients, Objective
from training.experts.losses import LossBuckets
from training.experts.memory import available_bytes, fitting_batch, sample_bytes
from training.experts.nets import build_net
from training.experts.precision import choose_precision, describe_device
from training.experts.team import present_team
from training.jsonio import to_json
from training.run import Run

logger = logging.getLogger(__name__)

REWARM_STEPS: Final = 20
"""A fresh optimizer on trained weights ramps up over this many steps."""

LOSS_MEMORY: Final = 0.99
GUIDE_AT: Final = 0.25
"""Part of the budget at which an expert's average is kept as its guide (`SampleOptions.
autoguidance`).  Fashion-MNIST, 4 x 30k samples, unconditional, sticky, 1,500 pictures, one seed,
distance 6.1 without; guides from .1 / .25 / .5 of the budget, weight 0.5: 3.3 / 4.0 / 5.0, 1: 3.0 /
2.9 / 4.2, 2: 4.8 / 2.5 / 3.1.  A net trained to a quarter for this purpose gives 2.8 at 1: the
earlier checkpoint that costs nothing is as good."""
FREE_SETTINGS: Final = frozenset({"save_samples", "keep_saves", "threads", "device", "precision"})
"""Settings that may change between a save and its resumption. Those that decide about the last
bits are the machine's: `training.experts.execution` says what becomes of them."""


class Trainer:
    """The moving parts: net, optimizer, average, counters.

    `step`, `samples` and `loss` (smoothed) count over all owners of the cluster. With several
    processes (`experts.team`) each has a trainer; they stay equal, and the first one saves.

    Args:
        cluster: its data.
        run: the run it belongs to.
        config: settings.
    """

    def __init__(self, cluster: Cluster, run: Run, config: TrainConfig) -> None:
        self._cluster, self._run, self._config = cluster, run, config
        self._device = torch.device(config.device)
        seed = derive_seed(config.seed, cluster.number, "weights", 0)
        self._net = build_net(run.shape, seed).to(self._device).train()
        self._names = [name for name, _ in self._net.named_parameters()]
        self._optimizer = _optimizer(self._net, config)
        self._ema = Ema(self._net.parameters(), config.ema_decay)
        self._batches = Batches(cluster, config)
        self._team = present_team(config.device)
        self._buckets = LossBuckets()
        self._wanted = self._present_execution()
        self._compute_as(self._wanted)
        self._updates = 0
        self._saved_samples = -1
        self._guide: Weights | None = None
        self.step = 0
        self.samples = 0
        self.loss = 0.0

    def step_once(self) -> tuple[BatchLoss, float]:
        """One optimizer step; what its batch taught, and its learning rate.

        Raises:
            DivergedError: the loss or the gradients are not finite; the weights are not changed.
            TooLargeError: not even one sample fits the memory.
        """
        lr = self._set_rate()
        batch = self._batches.take(self.samples, self.step)
        try:
            found = self._gradients.fill(batch)
        except DivergedError as error:
            raise DivergedError(
                f"cluster {self._cluster.number}: at step {self.step} {error}"
            ) from error
        self._optimizer.step()
        self._ema.update(self._net.parameters(), self.step)
        memory = decay_at(self.step, LOSS_MEMORY) if self.step else 0.0
        self.loss = memory * self.loss + (1 - memory) * found.mean
        self._buckets.add(batch.times.tolist(), found.each)
        self.step += 1
        self._updates += 1
        before, self.samples = self.samples, self.samples + self._config.batch
        if before < GUIDE_AT * self._config.budget_samples <= self.samples:
            most = torch.finfo(torch.float16).max
            halves = [value.clamp(-most, most).half() for value in self._ema.values]
            self._guide = self._named(halves)
        return found, lr

    @property
    def buckets(self) -> tuple[float | None, ...]:
        """Smoothed loss in each tenth of t; None where no sample fell yet."""
        return self._buckets.means

    @property
    def execution(self) -> Execution:
        """How steps are computed now."""
        return replace(self._execution, micro_batch=self._gradients.micro_batch)

    @property
    def is_leader(self) -> bool:
        """Whether this process saves and reports."""
        return self._team.rank == 0

    def agree(self, *, stop: bool) -> bool:
        """Whether the processes of this training stop now: all of them, or none."""
        return self._team.is_any(stop)

    def save(self, state_dir: Path) -> Path:
        """Write a checkpoint, unless this very point is already on disk.

        Returns:
            Its published folder.

        Raises:
            OSError: the disk refused; earlier saves are untouched.
        """
        if self._saved_samples != self.samples and self.is_leader:
            write_save(state_dir, self.snapshot(), self._config.keep_saves)
            self._saved_samples = self.samples
        return published_folder(state_dir, self.samples)

    def restore(self, state_dir: Path, start_from: Path | None) -> int:
        """Begin where the newest of a save and a published checkpoint ended.

        Returns:
            Samples of the save in `state_dir`, 0 if there is none: what is beside it stands there.

        Raises:
            CheckpointError: either belongs to another run, cluster or setting.
        """
        snapshot = read_latest(state_dir, self._run, self._cluster.number)
        if snapshot is not None:
            self._resume(snapshot)
        own = self.samples
        if start_from is not None:
            info, weights = read_published(start_from, self._run)
            if info.cluster != self._cluster.number or info.objective != self._config.objective:
                raise CheckpointError(
                    f"checkpoint of cluster {info.cluster} ({info.objective}), expected cluster "
                    f"{self._cluster.number} ({self._config.objective})"
                )
            if info.samples > self.samples:
                self._take_over(info, weights)
                self._guide = read_guide(start_from, info) or self._guide
        self._check_team()
        return own

    def _check_team(self) -> None:
        """All processes stand at the same point, and none writes before all have read.

        Raises:
            CrewError: they read different saves.
        """
        place = (self.step, self.samples, self._updates, self._gradients.micro_batch)
        both = self._team.least([*place, *(-value for value in place)])
        if any(low != -high for low, high in zip(both[:4], both[4:], strict=True)):
            raise CrewError(f"processes of one training read different saves; this one {place}")

    def _present_execution(self) -> Execution:
        """How this machine would compute, as it is set and as it is today."""
        facts, width = describe_device(self._device), preset(self._run.spec.preset).width
        chosen = choose_precision(self._config.precision, facts, width)
        size = -(-self._config.batch // self._team.size)
        if facts.kind == "cpu":
            size = self._fitting(size)
        return Execution(
            device=facts.kind,
            precision=chosen.name,
            reason=chosen.reason,
            threads=self._config.threads,
            processes=self._team.size,
            micro_batch=self._team.least([size])[0],
        )

    def _fitting(self, batch: int) -> int:
        """Samples at a time that fit this machine's memory; all of them where it does not tell."""
        available = available_bytes()
        if available is None:
            return batch
        each = sample_bytes(self._net, self._run.facts.latent, self._run.text.dim)
        weights = sum(p.nbytes for p in self._net.parameters())
        return fitting_batch(batch, each, weights, available // self._team.size)

    def _compute_as(self, execution: Execution) -> None:
        torch.set_num_threads(execution.threads)
        config = self._config
        objective = Objective(config.objective, config.clip_norm, execution.precision)
        self._gradients = Gradients(
            self._net, self._run.text, objective, execution.micro_batch, self._team
        )
        self._execution = execution

    def _set_rate(self) -> float:
        lr = rate_at(self._config, self.samples, self._updates, is_fresh=self._updates == self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        return lr

    def snapshot(self) -> Snapshot:
        """Everything a save of this point holds; shares memory with the trainer."""
        config, run, number = self._config, self._run, self._cluster.number
        info = ExpertInfo(
            schema=SCHEMA,
            objective=config.objective,
            schedule=SCHEDULES[config.objective],
            cluster=number,
            run=run.digest,
            preset=run.spec.preset,
            codec=run.codec_digest,
            text=run.spec.text,
            latent=run.facts.latent,
            samples=self.samples,
            step=self.step,
            seed=config.seed,
            loss=self.loss,
            model_digest="",
        )
        state = TrainState(
            schema=SCHEMA,
            run=run.digest,
            cluster=number,
            config=config,
            step=self.step,
            samples=self.samples,
            updates=self._updates,
            loss=self.loss,
            digests={},
            bucket_sums=self._buckets.state[0],
            bucket_weights=self._buckets.state[1],
            execution=self.execution,
        )
        parameters = list(self._net.parameters())
        moments = [self._optimizer.state.get(p, {}) for p in parameters]
        parts = {"raw": self._named(parameters)}
        for key in ("exp_avg", "exp_avg_sq"):
            values = [
                m.get(key, torch.zeros_like(p)) for m, p in zip(moments, parameters, strict=True)
            ]
            parts[key] = self._named(values)
        return Snapshot(info, state, self._named(self._ema.values), parts, self._guide)

    def _named(self, values: list[Tensor] | list[nn.Parameter]) -> dict[str, Tensor]:
        return dict(zip(self._names, values, strict=True))

    def _resume(self, snapshot: Snapshot) -> None:
        """Exactly where the save was made."""
        state = snapshot.state
        _check_settings(state.config, self._config)
        self._net.load_state_dict(snapshot.parts["raw"])
        self._set_average(snapshot.average)
        moments = {
            i: {
                "step": torch.tensor(float(state.updates)),
                "exp_avg": snapshot.parts["exp_avg"][name],
                "exp_avg_sq": snapshot.parts["exp_avg_sq"][name],
            }
            for i, name in enumerate(self._names)
            if state.updates
        }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step, self.samples = state.step, state.samples
        self._updates, self.loss = state.updates, state.loss
        self._buckets = LossBuckets(state.bucket_sums, state.bucket_weights)
        self._saved_samples = state.samples
        self._guide = snapshot.guide
        execution, notes = continued(
            state.execution, self._wanted, is_precision_set=self._config.precision != "auto"
        )
        for note in notes:
            logger.warning("cluster %d: %s", self._cluster.number, note)
        self._compute_as(execution)

    def _take_over(self, info: ExpertInfo, weights: dict[str, Tensor]) -> None:
        """From another owner's average: its place in the schedule, an optimizer of our own."""
        self._net.load_state_dict(weights)
        self._set_average(weights)
        self._optimizer = _optimizer(self._net, self._config)
        self.step, self.samples = info.step, info.samples
        self._updates, self.loss = 0, info.loss
        self._buckets = LossBuckets()
        self._saved_samples = -1
        self._compute_as(self._wanted)

    def _set_average(self, weights: dict[str, Tensor]) -> None:
        for value, name in zip(self._ema.values, self._names, strict=True):
            value.copy_(weights[name])


def rate_at(config: TrainConfig, samples: int, updates: int, *, is_fresh: bool) -> float:
    """The learning rate of the next step: cosine over the budget, ramped up at a start.

    Args:
        config: peak, budget, warm-up, end.
        samples: seen so far, over all owners: the place on the cosine.
        updates: steps this optimizer made.
        is_fresh: the weights began with this optimizer; after a takeover the ramp is shorter.
    """
    ramp = config.warmup_steps if is_fresh else min(config.warmup_steps, REWARM_STEPS)
    part = min(1.0, samples / config.budget_samples)
    low = config.final_lr_fraction
    cosine = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * part))
    return config.learning_rate * cosine * min(1.0, (updates + 1) / max(ramp, 1))


def _optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        net.parameters(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def _check_settings(saved: TrainConfig, wanted: TrainConfig) -> None:
    """A save continues only under the settings that shaped it."""
    free = {name: getattr(wanted, name) for name in FREE_SETTINGS}
    before, now = to_json(replace(saved, **free)), to_json(wanted)
    for name, value in now.items():
        if before[name] != value:
            raise CheckpointError(
                f"the save in this folder was trained with {name} = {before[name]}, "
                f"now {value}: restore it or use another folder"
            )
