"""What an interrupted adapter training left behind: everything a bit-exact continuation needs.

<state>/save-000000002000/     appears whole or not at all
  weight.safetensors, exp_avg.safetensors, exp_avg_sq.safetensors, state.json
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from torch import Tensor

from training.errors import ConfigError, LoraError, TensorFileError
from training.experts.checkpoint import SAVE_PREFIX, saves
from training.files import digest_of, remove_folder, sweep, write_folder
from training.jsonio import canonical_json, from_json, read_json, to_json
from training.lora.modules import AdapterShape
from training.lora.settings import LoraSettings
from training.tensors import pack_tensors, read_tensors

logger = logging.getLogger(__name__)

PARTS: Final = ("weight", "exp_avg", "exp_avg_sq")
STATE_FILE: Final = "state.json"
FREE_SETTINGS: Final = ("save_samples", "threads", "licence")
"""May change between a save and its continuation: they do not change the weights."""

_KEPT: Final = 2


@dataclass(frozen=True, slots=True)
class LoraState:
    """`state.json`: where a training stands.

    Args:
        schema: 1.
        base: sha256 of the base's weights.
        data: fingerprint of the rows.
        settings: it was begun with.
        step: optimizer steps.
        samples: pictures seen.
        digests: sha256 of the files of `PARTS`.
    """

    schema: int
    base: str
    data: str
    settings: LoraSettings
    step: int
    samples: int
    digests: dict[str, str]


Parts = Mapping[str, Mapping[str, Tensor]]
"""The adapter's weights and the optimizer's two moments, by `PARTS`."""


def write_state(folder: Path, state: LoraState, parts: Parts) -> None:
    """Save, atomically, then drop all but the newest two.

    Args:
        folder: made if it is not there.
        state: its `digests` are filled in.
        parts: see `Parts`.

    Raises:
        OSError: disk full and the like; every earlier save is untouched then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{name}.safetensors": pack_tensors(parts[name]) for name in PARTS}
    digests = {name: digest_of(data) for name, data in files.items()}
    files[STATE_FILE] = canonical_json({**to_json(state), "digests": digests})
    target = folder / f"{SAVE_PREFIX}{state.samples:012d}"
    if target.exists():  # a damaged save of the same point, passed over when resuming
        remove_folder(target)
    write_folder(target, files)
    for old in saves(folder)[_KEPT:]:
        remove_folder(old)


def read_state(
    folder: Path, wanted: LoraState, shape: AdapterShape
) -> tuple[LoraState, dict[str, dict[str, Tensor]]] | None:
    """The newest complete save; a damaged one is logged and passed over.

    Args:
        folder: may not exist.
        wanted: base, data and settings that the save must have been made with.
        shape: of the adapter.

    Raises:
        LoraError: the save was made for another base, other pictures or other settings; says which.
    """
    if not folder.is_dir():
        return None
    sweep(folder)
    for save in saves(folder):
        try:
            state = from_json(LoraState, read_json(save / STATE_FILE), STATE_FILE)
            _check_same(state, wanted)
            parts = {name: _read_part(save, name, state, shape) for name in PARTS}
        except (ConfigError, TensorFileError) as error:
            logger.warning("LoRA state %s is damaged, trying an older one: %s", save.name, error)
            continue
        return state, parts
    return None


def _read_part(save: Path, name: str, state: LoraState, shape: AdapterShape) -> dict[str, Tensor]:
    path = save / f"{name}.safetensors"
    tensors = read_tensors(path, shape.schema())
    if digest_of(pack_tensors(tensors)) != state.digests.get(path.name):
        raise TensorFileError(path, f"does not match its digest in {STATE_FILE}")
    return tensors


def _check_same(saved: LoraState, wanted: LoraState) -> None:
    free = {name: getattr(wanted.settings, name) for name in FREE_SETTINGS}
    before = {
        "schema": saved.schema,
        "base": saved.base,
        "data": saved.data,
        **to_json(replace(saved.settings, **free)),
    }
    now = {
        "schema": wanted.schema,
        "base": wanted.base,
        "data": wanted.data,
        **to_json(wanted.settings),
    }
    for name, value in now.items():
        if before[name] != value:
            raise LoraError(
                f"an interrupted training lies here, made with {name} = {before[name]}, now "
                f"{value}: continue it as it was begun, or start anew"
            )
