"""Training of a router: cross-entropy on noisy latents, from data or from the experts' pictures.

Part of the latents is held out to measure and mend its confidence.  All randomness is a function of
(seed, step), so a resumed training equals an uninterrupted one.  Source: arXiv 2510.03434.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from training.clusters import Cluster
from training.config import SCHEMA, TrainConfig
from training.errors import CheckpointError, ConfigError, DataError, DivergedError
from training.experts.ema import Ema
from training.experts.trainer import rate_at
from training.files import remove_folder, sweep, write_folder
from training.flow import interpolate
from training.jsonio import canonical_json, read_json, to_json
from training.routers.calibration import MIN_ROWS, LabelledLatents, calibrate
from training.routers.learned_router import KINDS, LEARNED, LearnedRouter, RouterInfo
from training.routers.router_net import build_router_net, router_shape
from training.run import Run
from training.tensors import pack_tensors, read_tensors

logger = logging.getLogger(__name__)

MIN_ROUTED_ROWS: Final = 8
SAVE_PREFIX: Final = "router-save-"
STATE_FILE: Final = "state.json"
STATE_PARTS: Final = ("raw", "average", "exp_avg", "exp_avg_sq")
# Times: uniform against logit-normal, 32k noisy latents of Fashion-MNIST (K = 4), latents held out:
# negative log-likelihood, mean over t, .514 and .513; but at t = .05, where a decision is not taken
# back, right .938 and .909 of the time.
DEFAULT_TRAIN: Final = TrainConfig(
    batch=128, learning_rate=2e-3, warmup_steps=50, budget_samples=64_000, save_samples=16_000,
    ema_decay=0.99, times="uniform",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """How a router is trained.

    Args:
        preset: one of `routers.router_net.ROUTER_PRESETS`; None for what suits the latents.
        kind: one of `training.routers.learned_router.KINDS`.
        held_out: part of the latents kept for calibration, 0 to 0.5.
        train: batch, rate, budget, seed, times, threads, device; the rest does not concern routers.
        experts: model digests of the experts that drew the latents, by cluster.

    Raises:
        ConfigError: for what cannot be meant.
    """

    preset: str | None = None
    kind: str = LEARNED
    held_out: float = 0.1
    train: TrainConfig = DEFAULT_TRAIN
    experts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"router kind {self.kind!r}: expected one of {', '.join(KINDS)}")
        if not 0 <= self.held_out <= 0.5:
            raise ConfigError(f"router: held_out must lie in 0..0.5, got {self.held_out}")


@dataclass(frozen=True, slots=True)
class RouterStep:
    """One optimizer step: steps and noisy latents so far, this batch's loss, the rate."""

    step: int
    samples: int
    loss: float
    lr: float


@dataclass(frozen=True, slots=True, eq=False)
class TrainedRouter:
    """The end of a training: a calibrated router and its smoothed last loss."""

    router: LearnedRouter
    loss: float


def labelled(clusters: Sequence[Cluster]) -> LabelledLatents:
    """The data of clusters as one set.

    Raises:
        DataError: for none, or for latents of different codecs.
    """
    if len({cluster.index.codec for cluster in clusters}) != 1:
        raise DataError("a router needs the data of clusters made with one and the same codec")
    numbers = [torch.full((len(cluster),), cluster.number) for cluster in clusters]
    return LabelledLatents(torch.cat([c.latents() for c in clusters]), torch.cat(numbers))


def train_router(
    rows: LabelledLatents,
    run: Run,
    settings: RouterSettings,
    *,
    state_dir: Path | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[RouterStep | TrainedRouter]:
    """Train a router on labelled latents and calibrate it on those held out.

    Args:
        rows: latents of two clusters or more; p(k) of the training is their share.
        run: the run they belong to.
        settings: see `RouterSettings`.
        state_dir: saves go there; a training that was stopped goes on from its save, exactly.
        should_stop: asked after every step; true saves and ends without a `TrainedRouter`.

    Yields:
        A `RouterStep` after every step; at the end the `TrainedRouter`.

    Raises:
        CheckpointError: the save in `state_dir` is of another run, setting or data.
        ConfigError: latents that do not divide into the preset's patches.
        DataError: latents of another shape than the run's, or of fewer than two clusters.
        DivergedError: the loss is not finite.
    """
    torch.set_num_threads(settings.train.threads)
    job = _Job(_checked(rows, run), run, settings)
    if state_dir is not None:
        job.restore(state_dir)
    config = settings.train
    while job.samples < config.budget_samples:
        yield job.step_once()
        is_stopping = should_stop is not None and should_stop()
        is_due = job.samples // config.save_samples > (job.samples - config.batch) // (
            config.save_samples
        )
        if state_dir is not None and (is_stopping or is_due):
            job.save(state_dir)
        if is_stopping:
            return
    yield TrainedRouter(job.finished(), job.loss)


def _checked(rows: LabelledLatents, run: Run) -> LabelledLatents:
    if tuple(rows.latents.shape[1:]) != run.facts.latent:
        raise DataError(
            f"latents {tuple(rows.latents.shape[1:])}, the run's are {run.facts.latent}"
        )
    if len(rows) < MIN_ROUTED_ROWS or not bool(rows.latents.isfinite().all()):
        raise DataError(f"{len(rows)} latents, expected {MIN_ROUTED_ROWS} or more, all finite")
    found = sorted(set(rows.clusters.tolist()))
    if len(found) < 2 or found[0] < 0 or found[-1] >= run.spec.clusters:
        raise DataError(
            f"a router needs latents of two or more of the run's {run.spec.clusters} clusters, "
            f"got clusters {found[:8]}"
        )
    return rows


class _Job:
    """Net, optimizer, average and counters of one training."""

    def __init__(self, rows: LabelledLatents, run: Run, settings: RouterSettings) -> None:
        self._run, self._settings = run, settings
        self._device = torch.device(settings.train.device)
        config = settings.train
        held = int(settings.held_out * len(rows))
        order = torch.randperm(len(rows), generator=_generator(config.seed, "rows"))
        self._held_out, trained = rows.select(order[:held]), rows.select(order[held:])
        self._clusters = sorted(set(trained.clusters.tolist()))
        self._columns = torch.bucketize(trained.clusters, torch.tensor(self._clusters))
        self._latents = trained.latents
        self._digest = _digest(rows)
        self._shape = router_shape(run.facts.latent, len(self._clusters), settings.preset)
        self._net = build_router_net(self._shape, config.seed).to(self._device).train()
        self._names = [name for name, _ in self._net.named_parameters()]
        self._optimizer = torch.optim.AdamW(
            self._net.parameters(), lr=config.learning_rate, betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay, fused=True,
        )  # fmt: skip
        self._average = Ema(self._net.parameters(), config.ema_decay)
        self.step, self.samples, self.loss = 0, 0, 0.0

    def step_once(self) -> RouterStep:
        """One optimizer step on fresh rows, noise and times."""
        config = self._settings.train
        rate = rate_at(config, self.samples, self.step, is_fresh=True)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        generator = _generator(config.seed, f"step {self.step}")
        picked = torch.randint(len(self._latents), (config.batch,), generator=generator)
        data = self._latents[picked]
        noise = torch.randn(data.shape, generator=generator)
        times = _times(config, generator)
        x_t = interpolate(data, noise, times).to(self._device)
        logits = self._net(x_t, times.to(self._device))
        loss = functional.cross_entropy(logits, self._columns[picked].to(self._device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(f"router: the loss at step {self.step} is {value}")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._average.update(self._net.parameters(), self.step)
        self.loss = value if not self.step else 0.98 * self.loss + 0.02 * value
        self.step += 1
        self.samples += config.batch
        return RouterStep(self.step, self.samples, value, rate)

    def finished(self) -> LearnedRouter:
        """The averaged net as a router, calibrated if enough was held out."""
        info = self._info()
        net = build_router_net(self._shape, seed=0)
        net.load_state_dict(self._named(self._average.values))
        router = LearnedRouter(net.to(self._device), info)
        known = torch.isin(self._held_out.clusters, torch.tensor(self._clusters))
        held_out = self._held_out.select(known.nonzero().squeeze(1))
        if len(held_out) < MIN_ROWS:
            logger.warning("router: %d latents held out: too few to calibrate", len(held_out))
            return router
        calibration = calibrate(router, held_out, info.seed)
        return LearnedRouter(net, replace(info, calibration=calibration))

    def _info(self) -> RouterInfo:
        settings, run = self._settings, self._run
        clusters = tuple(self._clusters)
        return RouterInfo(
            schema=SCHEMA,
            kind=settings.kind,
            run=run.digest,
            codec=run.codec_digest,
            clusters=clusters,
            rows=tuple(run.facts.rows[cluster] for cluster in clusters),
            counts=tuple(torch.bincount(self._columns).tolist()),
            shape=self._shape,
            times=settings.train.times,
            samples=self.samples,
            seed=settings.train.seed,
            experts=settings.experts,
            calibration=None,
            model_digest="",
        )

    def save(self, state_dir: Path) -> None:
        """Write one save atomically and drop older ones."""
        moments = [self._optimizer.state[parameter] for parameter in self._net.parameters()]
        parts: dict[str, Sequence[Tensor]] = {
            "raw": list(self._net.parameters()),
            "average": self._average.values,
            "exp_avg": [moment["exp_avg"] for moment in moments],
            "exp_avg_sq": [moment["exp_avg_sq"] for moment in moments],
        }
        files = {f"{n}.safetensors": pack_tensors(self._named(v)) for n, v in parts.items()}
        files[STATE_FILE] = canonical_json({**self._identity(), "at": self._place()})
        state_dir.mkdir(parents=True, exist_ok=True)
        target = state_dir / f"{SAVE_PREFIX}{self.samples:012d}"
        older = list(state_dir.glob(f"{SAVE_PREFIX}*"))
        if target not in older:
            write_folder(target, files)
        for folder in older:
            if folder != target:
                remove_folder(folder)

    def restore(self, state_dir: Path) -> None:
        """Go on from the newest save, if there is one."""
        state_dir.mkdir(parents=True, exist_ok=True)
        sweep(state_dir)
        found = sorted(state_dir.glob(f"{SAVE_PREFIX}*"))
        if not found:
            return
        folder = found[-1]
        state = read_json(folder / STATE_FILE)
        at = state.pop("at", None)
        if canonical_json(state) != canonical_json(self._identity()) or not isinstance(at, dict):
            raise CheckpointError(
                f"the router's save {folder} is of another run, setting or data: "
                "restore them, or delete it to begin anew"
            )
        schema = self._shape.schema()
        parts = {n: read_tensors(folder / f"{n}.safetensors", schema) for n in STATE_PARTS}
        self._net.load_state_dict(parts["raw"])
        for value, name in zip(self._average.values, self._names, strict=True):
            value.copy_(parts["average"][name])
        self.step, self.samples, self.loss = int(at["step"]), int(at["samples"]), float(at["loss"])
        moments = {
            i: {"step": torch.tensor(float(self.step)), "exp_avg": parts["exp_avg"][name],
                "exp_avg_sq": parts["exp_avg_sq"][name]}
            for i, name in enumerate(self._names)
        }  # fmt: skip
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _place(self) -> dict[str, object]:
        return {"step": self.step, "samples": self.samples, "loss": self.loss}

    def _identity(self) -> dict[str, object]:
        """What a save must share with the training that goes on from it."""
        free = replace(self._settings.train, threads=1, device="cpu", save_samples=1, keep_saves=1)
        settings = replace(self._settings, train=free)
        return {"run": self._run.digest, "data": self._digest, "settings": to_json(settings)}

    def _named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        return {n: v.detach().cpu() for n, v in zip(self._names, values, strict=True)}


def _generator(seed: int, purpose: str) -> torch.Generator:
    """Random numbers of their own for every use."""
    digest = sha256(f"router/{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _times(config: TrainConfig, generator: torch.Generator) -> Tensor:
    if config.times == "logit-normal":
        return torch.randn(config.batch, generator=generator).sigmoid()
    return torch.rand(config.batch, generator=generator)


def _digest(rows: LabelledLatents) -> str:
    found = sha256(rows.clusters.numpy().tobytes())
    found.update(rows.latents.contiguous().numpy().data)
    return found.hexdigest()
