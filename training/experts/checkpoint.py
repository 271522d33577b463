"""Checkpoints: the folder an expert is published as, and the private state beside it.

save-000000024000/            appears whole or not at all
  expert/                     published: diffusers' layout with averaged weights
    config.json, diffusion_pytorch_model.safetensors, expert.json
    guide.safetensors         the average at a quarter of the budget, float16; once it is reached
  state/                      private: what a bit-exact resume needs
    raw.safetensors, exp_avg.safetensors, exp_avg_sq.safetensors, state.json
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from training.config import OBJECTIVES, SCHEMA, TrainConfig
from training.errors import CheckpointError, ConfigError, TensorFileError
from training.experts.execution import Execution
from training.experts.nets import NetShape
from training.files import digest_of, remove_folder, sweep, write_folder
from training.jsonio import added, canonical_json, from_json, read_json, to_json
from training.run import Run
from training.tensors import TensorSpec, pack_tensors, read_tensors

logger = logging.getLogger(__name__)

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "diffusion_pytorch_model.safetensors"
EXPERT_FILE: Final = "expert.json"
PUBLISHED_FILES: Final = (CONFIG_FILE, WEIGHTS_FILE, EXPERT_FILE)
GUIDE_FILE: Final = "guide.safetensors"
"""In half precision: half the bytes, and content addressing sends them once per expert, not once
per checkpoint."""
EXPERT_FOLDER: Final = "expert"
STATE_FOLDER: Final = "state"
STATE_FILE: Final = "state.json"
STATE_PARTS: Final = ("raw", "exp_avg", "exp_avg_sq")
SAVE_PREFIX: Final = "save-"
SCHEDULES: Final = {"fm": "linear", "ddpm-eps": "vp-cosine"}

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class ExpertInfo:
    """`expert.json`: what a published checkpoint is.

    Args:
        schema: 1.
        objective: what the net predicts, one of `training.config.OBJECTIVES`.
        schedule: the path it was trained on.
        cluster: the number of the cluster whose data it saw.
        run: digest of the run's `run.json`.
        preset: of the net.
        codec: digest of the codec that made its latents.
        text: name of the text encoder.
        latent: channels, height, width.
        samples: pictures seen, over all its owners.
        step: optimizer steps, over all its owners.
        seed: of the training.
        loss: smoothed training loss at this step.
        model_digest: sha256 of the weights file.
        guide_digest: sha256 of the guide's file; empty if there is none.
    """

    schema: int
    objective: str
    schedule: str
    cluster: int
    run: str
    preset: str
    codec: str
    text: str
    latent: tuple[int, int, int]
    samples: int
    step: int
    seed: int
    loss: float
    model_digest: str
    guide_digest: str = added("")

    @property
    def shape(self) -> NetShape:
        """What fixes the weights' names and shapes."""
        return NetShape(self.preset, self.latent, self.text)


@dataclass(frozen=True, slots=True)
class TrainState:
    """`state.json`: where training stands.

    Args:
        schema: 1.
        run: digest of the run's `run.json`.
        cluster: its number.
        config: the settings it was made with.
        step: optimizer steps, over all owners.
        samples: pictures seen, over all owners.
        updates: steps of this optimizer: less than `step` after a takeover.
        loss: smoothed.
        digests: sha256 of every other file of the save, by its name in it.
        bucket_sums: of `experts.losses.LossBuckets`; empty in saves made before there were any.
        bucket_weights: likewise.
        execution: how its steps were computed; None in saves that do not say.
    """

    schema: int
    run: str
    cluster: int
    config: TrainConfig
    step: int
    samples: int
    updates: int
    loss: float
    digests: dict[str, str]
    bucket_sums: tuple[float, ...] = added(())
    bucket_weights: tuple[float, ...] = added(())
    execution: Execution | None = added(None)  # noqa: RUF009  a field, as above


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Everything a save holds, in memory.

    Args:
        info: of the published half; its digests are filled in by `write_save`.
        state: of the private half; its `digests` are filled in by `write_save`.
        average: the published weights.
        parts: raw weights and the optimizer's two moments, by `STATE_PARTS`.
        guide: the published weights of an earlier time, float16.
    """

    info: ExpertInfo
    state: TrainState
    average: Weights
    parts: Mapping[str, Weights]
    guide: Weights | None = None


def published_files(
    info: ExpertInfo, average: Weights, guide: Weights | None = None
) -> dict[str, bytes]:
    """The files of a published checkpoint; the same facts and weights give the same bytes."""
    files = {
        CONFIG_FILE: canonical_json(_net_config(info.shape)),
        WEIGHTS_FILE: pack_tensors(average),
    }
    facts = {**to_json(info), "model_digest": digest_of(files[WEIGHTS_FILE]), "guide_digest": ""}
    if guide is not None:
        files[GUIDE_FILE] = pack_tensors(guide)
        facts["guide_digest"] = digest_of(files[GUIDE_FILE])
    return files | {EXPERT_FILE: canonical_json(facts)}


def published_folder(state_dir: Path, samples: int) -> Path:
    """Where the published half of the save at `samples` lies."""
    return state_dir / f"{SAVE_PREFIX}{samples:012d}" / EXPERT_FOLDER


def write_save(state_dir: Path, snapshot: Snapshot, keep: int) -> None:
    """Write one save atomically, then drop all but the newest `keep`.

    Raises:
        OSError: disk full and the like; every earlier save is untouched then.
    """
    published = published_files(snapshot.info, snapshot.average, snapshot.guide)
    files = {f"{EXPERT_FOLDER}/{name}": data for name, data in published.items()}
    for part in STATE_PARTS:
        files[f"{STATE_FOLDER}/{part}.safetensors"] = pack_tensors(snapshot.parts[part])
    digests = {name: digest_of(data) for name, data in files.items()}
    state = {**to_json(snapshot.state), "digests": digests}
    files[f"{STATE_FOLDER}/{STATE_FILE}"] = canonical_json(state)
    target = published_folder(state_dir, snapshot.state.samples).parent
    if target.exists():  # an altered save of the same point, passed over when resuming
        remove_folder(target)
    write_folder(target, files)
    for old in saves(state_dir)[keep:]:
        remove_folder(old)


def saves(state_dir: Path) -> list[Path]:
    """The saves there are, newest first."""
    found = (p for p in state_dir.glob(f"{SAVE_PREFIX}*") if p.name[len(SAVE_PREFIX) :].isdigit())
    return sorted(found, key=lambda path: path.name, reverse=True)


def read_latest(state_dir: Path, run: Run, cluster: int) -> Snapshot | None:
    """The newest complete save; a damaged one is logged and passed over.

    Raises:
        CheckpointError: if the saves belong to another run or cluster.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    sweep(state_dir)
    for save in saves(state_dir):
        try:
            return _read_save(save, run, cluster)
        except _DamagedError as error:
            logger.warning("checkpoint %s is damaged, trying an older one: %s", save.name, error)
    return None


def read_published(folder: Path, run: Run | None = None) -> tuple[ExpertInfo, Weights]:
    """A published checkpoint, checked in every part.

    Args:
        folder: holds what `PUBLISHED_FILES` names (more is ignored, `read_guide` reads the guide).
        run: the run it must belong to, if given.

    Raises:
        CheckpointError: a file is missing or altered, or a fact differs from the run's.
        TensorFileError: the weights file is malformed, of another shape, or holds NaN.
    """
    try:
        info = from_json(ExpertInfo, read_json(folder / EXPERT_FILE), EXPERT_FILE)
        _check_info(info)
        if run is not None:
            _check_same_run(info, run)
        if read_json(folder / CONFIG_FILE) != _net_config(info.shape):
            raise CheckpointError(f"{CONFIG_FILE}: not the configuration of preset {info.preset}")
        schema = info.shape.schema()
    except ConfigError as error:
        raise CheckpointError(f"checkpoint: {error}") from error
    weights = read_tensors(folder / WEIGHTS_FILE, schema)
    if digest_of(pack_tensors(weights)) != info.model_digest:
        raise CheckpointError(f"{WEIGHTS_FILE}: does not match {EXPERT_FILE}: it was altered")
    return info, weights


def read_guide(folder: Path, info: ExpertInfo) -> Weights | None:
    """The guide beside a published checkpoint; None if it has none, or was sent without.

    Raises:
        CheckpointError: the file was altered.
        TensorFileError: the file is malformed, of another shape, or holds NaN.
    """
    path = folder / GUIDE_FILE
    if not info.guide_digest or not path.exists():
        return None
    schema = {name: TensorSpec("F16", spec.shape) for name, spec in info.shape.schema().items()}
    weights = read_tensors(path, schema)
    if digest_of(pack_tensors(weights)) != info.guide_digest:
        raise CheckpointError(f"{GUIDE_FILE}: does not match {EXPERT_FILE}: it was altered")
    return weights


class _DamagedError(Exception):
    """This save cannot be used; an older one may."""


def _read_save(save: Path, run: Run, cluster: int) -> Snapshot:
    try:
        state = from_json(TrainState, read_json(save / STATE_FOLDER / STATE_FILE), STATE_FILE)
    except ConfigError as error:
        raise _DamagedError(str(error)) from error
    if state.run != run.digest or state.cluster != cluster:
        raise CheckpointError(
            f"{save.name} was made for cluster {state.cluster} of run {state.run[:12]}, "
            f"not for cluster {cluster} of run {run.digest[:12]}"
        )
    try:
        _check_digests(save, state)
        info, average = read_published(save / EXPERT_FOLDER, run)
        schema = info.shape.schema()
        folder = save / STATE_FOLDER
        parts = {p: read_tensors(folder / f"{p}.safetensors", schema) for p in STATE_PARTS}
        guide = read_guide(save / EXPERT_FOLDER, info)
    except (CheckpointError, TensorFileError) as error:
        raise _DamagedError(str(error)) from error
    return Snapshot(info, state, average, parts, guide)


def _check_digests(save: Path, state: TrainState) -> None:
    if state.digests.keys() - {f"{EXPERT_FOLDER}/{GUIDE_FILE}"} != set(_digested_names()):
        raise _DamagedError(f"{STATE_FILE} does not list the save's files")
    for name, expected in state.digests.items():
        try:
            data = (save / name).read_bytes()
        except OSError as error:
            raise _DamagedError(f"{name}: {error.strerror}") from error
        if digest_of(data) != expected:
            raise _DamagedError(f"{name} does not match its digest")


def _digested_names() -> Iterator[str]:
    yield from (f"{EXPERT_FOLDER}/{name}" for name in PUBLISHED_FILES)
    yield from (f"{STATE_FOLDER}/{part}.safetensors" for part in STATE_PARTS)


def _net_config(shape: NetShape) -> dict[str, object]:
    """`config.json` as diffusers reads it."""
    return {"_class_name": "PixArtTransformer2DModel", **shape.config()}


def _check_info(info: ExpertInfo) -> None:
    if info.schema != SCHEMA:
        raise CheckpointError(f"{EXPERT_FILE}: schema {info.schema}, this program reads {SCHEMA}")
    if info.objective not in OBJECTIVES or info.schedule != SCHEDULES[info.objective]:
        raise CheckpointError(
            f"{EXPERT_FILE}: unknown objective {info.objective!r:.40} on {info.schedule!r:.40}"
        )
    if not all(0 < side <= 4096 for side in info.latent):
        raise CheckpointError(f"{EXPERT_FILE}: impossible latent shape {list(info.latent)}")
    if min(info.cluster, info.samples, info.step) < 0:
        raise CheckpointError(f"{EXPERT_FILE}: cluster, samples and step must not be negative")


def _check_same_run(info: ExpertInfo, run: Run) -> None:
    facts = (
        ("preset", info.preset, run.spec.preset),
        ("text encoder", info.text, run.spec.text),
        ("latent shape", list(info.latent), list(run.facts.latent)),
        ("codec", info.codec, run.codec_digest),
        ("run", info.run, run.digest),
    )
    for name, got, expected in facts:
        if got != expected:
            raise CheckpointError(f"checkpoint of another {name}: expected {expected}, got {got}")
    if info.cluster >= run.spec.clusters:
        raise CheckpointError(f"checkpoint of cluster {info.cluster} of {run.spec.clusters}")
