"""A LoRA as a folder: PEFT's two files, and `lora.json`, which says what it is and for which base.

adapter_config.json          PEFT's settings
adapter_model.safetensors    A and B of every adapted layer, float32, by PEFT's names
lora.json                    base checkpoint, shapes, provenance, loss on rows held out
probe.safetensors, .json     some of those rows (`training.lora.probe`); may be absent
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from training.config import OBJECTIVES, SCHEMA
from training.errors import ConfigError, LoraError, WrongBaseError
from training.experts.checkpoint import ExpertInfo
from training.experts.nets import NetShape
from training.files import digest_of, write_folder
from training.jsonio import added, canonical_json, from_json, read_json, to_json
from training.lora.layers import PROBE_FILES, TARGETS, ModuleShape
from training.lora.modules import MAX_SCALE, MAX_WEIGHT, AdapterShape
from training.lora.probe import Probe, probe_files
from training.lora.settings import MAX_LICENCE_CHARS
from training.tensors import pack_tensors, read_tensors

ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
ADAPTER_WEIGHTS_FILE: Final = "adapter_model.safetensors"
LORA_FILE: Final = "lora.json"
LORA_FILES: Final = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, LORA_FILE, *PROBE_FILES)
"""What a training leaves; older adapters, and some that were bought, lack the probe."""

MAX_OFFER_CHARS: Final = 100
"""A CID has about 60."""


@dataclass(frozen=True, slots=True)
class LoraBase:
    """The checkpoint an adapter was trained on.

    Args:
        model_digest: sha256 of its weights file: what decides whether the adapter fits.
        cid: of its signed manifest in the network; empty if it never was there.
        run: digest of the run's `run.json`.
        cluster: its number.
        objective: what its net predicts.
        preset: of its net.
        text: name of its text encoder.
        latent: channels, height, width.
    """

    model_digest: str
    cid: str
    run: str
    cluster: int
    objective: str
    preset: str
    text: str
    latent: tuple[int, int, int]

    @classmethod
    def of(cls, info: ExpertInfo, cid: str = "") -> "LoraBase":
        """The facts about an expert that its adapters record."""
        return cls(
            model_digest=info.model_digest,
            cid=cid,
            run=info.run,
            cluster=info.cluster,
            objective=info.objective,
            preset=info.preset,
            text=info.text,
            latent=info.latent,
        )

    @property
    def shape(self) -> NetShape:
        """What fixes the base's tensors."""
        return NetShape(self.preset, self.latent, self.text)

    def __str__(self) -> str:
        named = f"{self.cid} " if self.cid else ""
        return f"{named}(cluster {self.cluster}, weights {self.model_digest[:12]})"


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """The expert's own loss on rows that training never saw, without the adapter and with it."""

    rows: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class LoraInfo:
    """`lora.json`: what an adapter is.

    Args:
        schema: 1.
        base: the checkpoint it belongs to; it fits no other.
        targets: which layers, a name of `training.lora.modules.TARGETS`.
        rank: of every layer's B A.
        alpha: B A is multiplied by alpha / rank.
        modules: the adapted layers with their shapes.
        samples: pictures seen in training.
        batch: of them per optimizer step.
        learning_rate: peak of the schedule.
        caption_drop: probability of training a picture without its caption.
        seed: of weights, order, noise and times.
        rows: pictures it was trained on.
        data: sha256 over their latents and captions.
        held_out: what it does on others.
        licence: of the adapter, in the trainer's words; empty if nothing was said.
        sha256: of `adapter_model.safetensors`: the adapter's id.
        offer: CID of the signed offer it was bought under; empty for one trained here. What only
            its seller knows of a bought one is 0 or empty: samples, batch, learning rate, caption
            drop, rows and data; `held_out` is then what the offer claims, and `seed` its probe's.
    """

    schema: int
    base: LoraBase
    targets: str
    rank: int
    alpha: float
    modules: tuple[ModuleShape, ...]
    samples: int
    batch: int
    learning_rate: float
    caption_drop: float
    seed: int
    rows: int
    data: str
    held_out: HeldOutLoss
    licence: str
    sha256: str
    offer: str = added("")

    @property
    def shape(self) -> AdapterShape:
        """What fixes the adapter's tensors.

        Raises:
            ConfigError: for an unknown name, or a rank out of range.
        """
        return AdapterShape(self.base.shape, self.targets, self.rank)

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(self.rank * (m.in_features + m.out_features) for m in self.modules)

    @property
    def scaling(self) -> float:
        """What B A is multiplied by at full strength."""
        return self.alpha / self.rank


def lora_files(
    info: LoraInfo, weights: Mapping[str, Tensor], probe: Probe | None = None
) -> dict[str, bytes]:
    """The files of an adapter's folder; the same facts and weights give the same bytes.

    Args:
        info: its `sha256` is filled in here.
        weights: as `AdapterShape.schema` names them.
        probe: rows to measure it on, kept beside it.

    Raises:
        ConfigError: a fact that nothing could have.
        LoraError: a weight is not finite, or larger than `MAX_WEIGHT`.
    """
    _check_facts(info)
    _check_values(weights)
    packed = pack_tensors(weights)
    return {
        ADAPTER_CONFIG_FILE: canonical_json(_peft_config(info)),
        ADAPTER_WEIGHTS_FILE: packed,
        LORA_FILE: canonical_json({**to_json(info), "sha256": digest_of(packed)}),
        **({} if probe is None else probe_files(probe)),
    }


def write_lora(
    folder: Path, info: LoraInfo, weights: Mapping[str, Tensor], probe: Probe | None = None
) -> LoraInfo:
    """Write an adapter's folder, whole or not at all.

    Args:
        folder: must not exist; its parent must.
        info: its `sha256` is filled in.
        weights: as `AdapterShape.schema` names them.
        probe: rows to measure it on, kept beside it.

    Returns:
        The facts as written.

    Raises:
        ConfigError, LoraError: as `lora_files`; nothing is written then.
        OSError: the disk refuses.
    """
    write_folder(folder, lora_files(info, weights, probe))
    return read_info(folder)


def read_info(folder: Path) -> LoraInfo:
    """`lora.json`, checked in itself and against PEFT's settings beside it; no weight is read.

    Raises:
        LoraError: missing, malformed, or saying what cannot be.
    """
    try:
        info = from_json(LoraInfo, read_json(folder / LORA_FILE), LORA_FILE)
        _check_facts(info)
        expected = info.shape.modules()
        settings = read_json(folder / ADAPTER_CONFIG_FILE)
    except ConfigError as error:
        raise LoraError(f"LoRA {folder.name}: {error}") from error
    for got, wanted in zip(info.modules, expected, strict=False):
        if got != wanted:
            raise LoraError(f"LoRA {folder.name}: {LORA_FILE}: expected {wanted}, got {got}")
    if len(info.modules) != len(expected):
        raise LoraError(
            f"LoRA {folder.name}: {LORA_FILE}: {len(info.modules)} layers, its base has "
            f"{len(expected)}"
        )
    if settings != _peft_config(info):
        raise LoraError(f"LoRA {folder.name}: {ADAPTER_CONFIG_FILE} does not match {LORA_FILE}")
    return info


def read_lora(folder: Path) -> tuple[LoraInfo, dict[str, Tensor]]:
    """An adapter, checked in every part; it may come from a stranger.

    Returns:
        Its facts, and its weights as `AdapterShape.schema` names them.

    Raises:
        LoraError: a file is missing or altered, or a weight is larger than `MAX_WEIGHT`.
        TensorFileError: the weights file is malformed, of another shape, or holds NaN.
    """
    info = read_info(folder)
    path = folder / ADAPTER_WEIGHTS_FILE
    weights = read_tensors(path, info.shape.schema())
    if digest_of(pack_tensors(weights)) != info.sha256:
        raise LoraError(f"LoRA {folder.name}: {path.name} does not match {LORA_FILE}: altered")
    _check_values(weights)
    return info, weights


def check_base(info: LoraInfo, expert: ExpertInfo) -> None:
    """Refuse to put an adapter on any checkpoint but its own.

    Raises:
        WrongBaseError: naming both checkpoints.
    """
    theirs, ours = info.base, LoraBase.of(expert)
    for name, got, expected in (
        ("preset", ours.preset, theirs.preset),
        ("latent shape", list(ours.latent), list(theirs.latent)),
        ("text encoder", ours.text, theirs.text),
    ):
        if got != expected:
            raise WrongBaseError(
                f"this LoRA is for a base of {name} {expected}, not {got}: it was made for "
                f"{theirs}, and this is {ours}"
            )
    if ours.model_digest != theirs.model_digest:
        raise WrongBaseError(
            f"this LoRA was made for the checkpoint {theirs}; the one at hand is {ours}"
        )


def _check_facts(info: LoraInfo) -> None:
    """Raises `ConfigError` for numbers that nothing could have."""
    if info.schema != SCHEMA:
        raise ConfigError(f"{LORA_FILE}: schema {info.schema}, this program reads {SCHEMA}")
    if info.base.objective not in OBJECTIVES:
        raise ConfigError(f"{LORA_FILE}: unknown objective {info.base.objective!r:.40}")
    if not all(0 < side <= 4096 for side in info.base.latent):
        raise ConfigError(f"{LORA_FILE}: impossible latent shape {list(info.base.latent)}")
    if min(info.base.cluster, info.samples, info.rows, info.held_out.rows) < 0:
        raise ConfigError(f"{LORA_FILE}: counts must not be negative")
    if not 0 < info.alpha <= MAX_SCALE * info.rank:
        raise ConfigError(
            f"{LORA_FILE}: alpha {info.alpha:g} at rank {info.rank}, "
            f"expected above 0 and at most {MAX_SCALE:g} times the rank"
        )
    if len(info.licence) > MAX_LICENCE_CHARS:
        raise ConfigError(f"{LORA_FILE}: licence of {len(info.licence)} characters")
    if len(info.offer) > MAX_OFFER_CHARS:
        raise ConfigError(f"{LORA_FILE}: offer named in {len(info.offer)} characters")


def _check_values(weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        largest = float(tensor.abs().max())
        if not largest <= MAX_WEIGHT:  # NaN is not, either
            raise LoraError(f"tensor {name} reaches {largest:g}, expected within {MAX_WEIGHT:g}")


def _peft_config(info: LoraInfo) -> dict[str, object]:
    """`adapter_config.json` as PEFT reads it; what is not here has PEFT's default."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": info.base.cid or None,
        "inference_mode": True,
        "r": info.rank,
        "lora_alpha": info.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": list(TARGETS[info.targets]),
        "use_dora": False,
        "use_rslora": False,
    }
