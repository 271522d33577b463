"""Weights of pretrained networks: a published safetensors file into a network of a library.

Read by `training.tensors` against the exact schema of the network, built without memory on torch's
meta device, rather than by the libraries' own loaders: those accept missing and surplus tensors
with a warning, convert dtypes in silence, and would take a pickle if it lay beside.  What the
libraries' loaders do know is that names have changed since the files were published; a `Naming`
says so.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.errors import ConfigError, ModelMissingError, TensorFileError
from training.jsonio import read_json
from training.parts.hub import ModelFiles
from training.tensors import TensorSpec, read_header, read_tensors, spec_of


@dataclass(frozen=True, slots=True)
class Naming:
    """How names of tensors differ between published files and versions of a library.

    Args:
        renames: (pattern, replacement), applied in this order to the names of both sides: those
            that become equal mean the same tensor.
        unread: prefixes of tensors that a file may hold beside the network's own.
    """

    renames: tuple[tuple[str, str], ...] = ()
    unread: tuple[str, ...] = ()

    def common(self, name: str) -> str:
        """The name that all versions of `name` share."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


def build_frozen(
    construct: Callable[[], nn.Module], files: ModelFiles, weights: str, naming: Naming
) -> nn.Module:
    """A network with published weights, in evaluation mode, in float32.

    Args:
        construct: builds it from its settings; run on the meta device, so it draws no random
            number and takes no memory.
        files: of the part.
        weights: the name of the weights file among them.
        naming: how its names are to be read.

    Raises:
        ModelMissingError: the settings or the weights are not those of such a network; names the
            file and the tensor.
    """
    try:
        with torch.device("meta"):
            net = construct()
    except (ArithmeticError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelMissingError(
            f"{files.part.title}: its config.json describes no such network: {error}"
        ) from error
    try:
        found = _read(files.paths[weights], net.state_dict(), naming)
    except TensorFileError as error:
        raise ModelMissingError(f"{files.part.title}: {error}") from error
    net.load_state_dict(found, assign=True)
    return net.eval().requires_grad_(False)


def _read(path: Path, wanted: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """The network's tensors by its own names."""
    ours = {naming.common(name): name for name in wanted}
    header = read_header(path)
    schema: dict[str, TensorSpec] = {}
    place: dict[str, str] = {}
    for name, spec in header.items():
        common = naming.common(name)
        if common in ours:
            schema[name] = spec_of(wanted[ours[common]])
            place[name] = ours[common]
        elif name.startswith(naming.unread):
            schema[name] = spec
        else:
            raise TensorFileError(path, f"has unexpected tensor {name}")
    lacking = sorted(set(wanted) - set(place.values()))
    if lacking:
        raise TensorFileError(path, f"lacks tensor {lacking[0]} ({len(lacking)} missing)")
    if len(place) != len(wanted):
        raise TensorFileError(path, "holds a tensor twice, under two names")
    found = read_tensors(path, schema, only=place)
    return {place[name]: tensor for name, tensor in found.items()}


def read_settings(
    files: ModelFiles, known: Mapping[str, type | tuple[type, ...]]
) -> dict[str, Any]:
    """What a part's `config.json` says of the settings in `known`; others are not looked at.

    Args:
        files: of the part.
        known: setting -> its JSON type; one that is absent takes the library's default.

    Raises:
        ModelMissingError: it is not a JSON object, or a value is of another type.
    """
    try:
        settings = read_json(files.paths["config.json"])
    except ConfigError as error:
        raise ModelMissingError(f"{files.part.title}: {error}") from error
    return chosen_settings(files, settings, known)


def chosen_settings(
    files: ModelFiles, settings: Mapping[str, object], known: Mapping[str, type | tuple[type, ...]]
) -> dict[str, Any]:
    """Those of `settings` that are in `known`, each of its type.

    Raises:
        ModelMissingError: a value is of another type.
    """
    found = {name: settings[name] for name in known if name in settings}
    for name, value in found.items():
        if not isinstance(value, known[name]) or (
            isinstance(value, bool) and known[name] is not bool
        ):
            raise ModelMissingError(
                f"{files.part.title}: config.json: {name}: unexpected value {value!r:.60}"
            )
    return found
