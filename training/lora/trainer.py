"""The moving parts of an adapter's training: adapted net, optimizer, counters, and its measure.

Only A and B learn. All randomness is a function of (seed, counter), so a continued training equals
the uninterrupted one bit for bit.
"""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training.clusters import Cluster, ClusterIndex
from training.config import SCHEMA, preset
from training.errors import DataError, DivergedError, LoraError
from training.experts.batches import Batches, derive_seed
from training.experts.gradients import BatchLoss, Gradients, Objective
from training.experts.loaded import Expert
from training.experts.precision import choose_precision, describe_device
from training.experts.trainer import rate_at
from training.lora.files import HeldOutLoss, LoraBase, LoraInfo
from training.lora.losses import even_draws, fitting_part, mean_loss
from training.lora.modules import (
    AdapterShape,
    adapted,
    adapter_parameters,
    fresh_weights,
    set_enabled,
)
from training.lora.probe import Probe
from training.lora.settings import LoraRows, LoraSettings, split
from training.lora.state import LoraState, read_state, write_state
from training.run import Run

MEASURED_DRAWS: Final = 512
"""(row, time, noise) triples that the held-out loss is a mean of: the same ones before and after,
so that the difference is far surer than either number."""

PROBE_ROWS: Final = 32
"""Of those held out are kept beside the adapter: 32 KiB on the bundled run."""

_MOMENTS: Final = ("exp_avg", "exp_avg_sq")


class LoraTrainer:
    """One adapter on its way.

    `step` and `samples` count from its beginning.

    Args:
        base: the expert, which is not changed; its device is where training runs.
        run: the run it belongs to.
        rows: what to learn.
        settings: how.

    Raises:
        ConfigError: the rank exceeds a layer of the base.
        DataError: latents of another shape than the run's.
        LoraError: the expert belongs to another run.
        TooLargeError: not even one sample fits the memory.
    """

    def __init__(self, base: Expert, run: Run, rows: LoraRows, settings: LoraSettings) -> None:
        if base.info.run != run.digest:
            raise LoraError(
                f"the expert belongs to run {base.info.run[:12]}, not to {run.digest[:12]}"
            )
        if tuple(rows.latents.shape[1:]) != base.info.latent:
            raise DataError(
                f"latents of {list(rows.latents.shape[1:])}, the base takes "
                f"{list(base.info.latent)}"
            )
        self._base, self._run, self._rows, self._settings = base, run, rows, settings
        self._config = settings.train_config(base.objective)
        self._shape = AdapterShape(base.info.shape, settings.targets, settings.rank)
        self._trained, self._held_out = split(rows, settings.seed)
        weights = fresh_weights(self._shape, self._seed("weights"))
        self._net = adapted(base.net, self._shape, weights, settings.strength).train()
        self._parameters = adapter_parameters(self._net, self._shape)
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=settings.learning_rate,
            betas=(self._config.beta1, self._config.beta2),
            weight_decay=self._config.weight_decay,
            fused=True,
        )
        self._device = next(base.net.parameters()).device
        self._objective = Objective(base.objective, self._config.clip_norm, self._precision())
        self._batches = Batches(self._cluster(self._trained), self._config)
        self._gradients = Gradients(self._net, run.text, self._objective, self._micro_batch())
        self._data = rows.fingerprint
        self.step = 0
        self.samples = 0

    def step_once(self) -> tuple[BatchLoss, float]:
        """One optimizer step; what its batch taught, and its learning rate.

        Raises:
            DivergedError: the loss or the gradients are not finite; the weights are not changed.
            TooLargeError: not even one sample fits the memory.
        """
        lr = rate_at(self._config, self.samples, self.step, is_fresh=True)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        try:
            found = self._gradients.fill(self._batches.take(self.samples, self.step))
        except DivergedError as error:
            raise DivergedError(
                f"at step {self.step} {error}: use a lower learning rate than "
                f"{self._settings.learning_rate:g}"
            ) from error
        self._optimizer.step()
        self.step += 1
        self.samples += self._settings.batch
        return found, lr

    def measure(self, *, is_on: bool) -> float:
        """Mean squared error on the rows held out, with the adapter or without it.

        Times are spread evenly over 0..1, captions are never dropped.
        """
        rows = self._held_out
        captions = [self._rows.captions[i] for i in rows.tolist()]
        seed = self._seed("measure")
        draws = even_draws(self._rows.latents[rows], captions, MEASURED_DRAWS, seed)
        set_enabled(self._net, self._shape, is_on=is_on)
        loss = mean_loss(self._net, self._run.text, draws, self._objective, self._settings.batch)
        set_enabled(self._net, self._shape, is_on=True)
        return loss

    def probe(self) -> Probe:
        """Some of the rows held out, for others to measure the adapter on."""
        rows = self._held_out[:PROBE_ROWS]
        captions = [self._rows.captions[i] for i in rows.tolist()]
        return Probe.of(self._rows.latents[rows], captions, self._seed("probe"))

    def save(self, folder: Path) -> None:
        """Write what `restore` needs.

        Raises:
            OSError: the disk refused; earlier saves are untouched.
        """
        state = self._optimizer.state
        parts: dict[str, dict[str, Tensor]] = {"weight": self.weights()}
        for key in _MOMENTS:
            parts[key] = {
                name: state[parameter][key] if self.step else torch.zeros_like(parameter)
                for name, parameter in self._parameters.items()
            }
        write_state(folder, self._state(), parts)

    def restore(self, folder: Path) -> None:
        """Go on exactly where the newest save of `folder` was made, if there is one.

        Raises:
            LoraError: it was made for another base, other pictures or other settings.
        """
        found = read_state(folder, self._state(), self._shape)
        if found is None:
            return
        state, parts = found
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(parts["weight"][name])
        moments = {
            i: {"step": torch.tensor(float(state.step)), **{k: parts[k][name] for k in _MOMENTS}}
            for i, name in enumerate(self._parameters)
            if state.step
        }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step, self.samples = state.step, state.samples

    def weights(self) -> dict[str, Tensor]:
        """The adapter's weights by their names in its file; they share memory with the trainer."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def info(self, cid: str, held_out: tuple[float, float]) -> LoraInfo:
        """What the adapter is at this point.

        Args:
            cid: of the base's signed manifest; may be empty.
            held_out: loss before and after.
        """
        settings = self._settings
        return LoraInfo(
            schema=SCHEMA,
            base=LoraBase.of(self._base.info, cid),
            targets=settings.targets,
            rank=settings.rank,
            alpha=settings.strength * settings.rank,
            modules=self._shape.modules(),
            samples=self.samples,
            batch=settings.batch,
            learning_rate=settings.learning_rate,
            caption_drop=settings.caption_drop,
            seed=settings.seed,
            rows=len(self._trained),
            data=self._data,
            held_out=HeldOutLoss(len(self._held_out), *held_out),
            licence=settings.licence,
            sha256="",
        )

    def _precision(self) -> str:
        """As experts are trained."""
        width = preset(self._base.info.preset).width
        return choose_precision("auto", describe_device(self._device), width).name

    def _micro_batch(self) -> int:
        """Samples at a time that fit the memory."""
        latent, width = self._base.info.latent, self._run.text.dim
        return fitting_part(self._net, latent, width, self._settings.batch)

    def _seed(self, purpose: str) -> int:
        return derive_seed(self._settings.seed, self._base.info.cluster, f"lora {purpose}", 0)

    def _cluster(self, chosen: Tensor) -> Cluster:
        """Rows as training knows them: unique captions, and pointers into them."""
        info = self._base.info
        texts = [self._rows.captions[i] for i in chosen.tolist()]
        unique = tuple(sorted(set(texts)))
        place = {caption: i for i, caption in enumerate(unique)}
        index = ClusterIndex(SCHEMA, info.cluster, info.codec, info.latent, (len(texts),), unique)
        pointers = torch.tensor([place[text] for text in texts], dtype=torch.int64)
        return Cluster(index, self._rows.latents[chosen], pointers)

    def _state(self) -> LoraState:
        return LoraState(
            schema=SCHEMA,
            base=self._base.info.model_digest,
            data=self._data,
            settings=self._settings,
            step=self.step,
            samples=self.samples,
            digests={},
        )
