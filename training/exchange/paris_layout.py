"""The folder layout in which the Paris experts are published, read strictly.

    model_index.json, config.json
    expert_0 .. expert_K-1/   config.json, diffusion_pytorch_model.safetensors
    router/                   config.json, pytorch_model.safetensors
    vae/ text_encoder/ tokenizer/ scheduler/

Known, from the public pages of huggingface.co/bageldotcom/paris (commit 4abc914): the files above;
every key of the top `config.json`, of `expert_k/config.json` and of `model_index.json`; an
`expert_k/model_index.json` {_class_name: DiTExpert, _diffusers_version, expert_id}. The tensors'
names and shapes are known from `training.exchange.paris_net`'s source.
Assumed, because no page shows it: the keys of `router/config.json` (taken to be among the experts'
keys and the number of experts, all optional: sizes are read off the tensors), and that the weights
are F32, F16 or BF16.  What the layout does not name may be there (README.md, pictures, Python
files) and is never opened; of its own files none may be a link, and pickles are refused.
"""

import dataclasses
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from training.config import MAX_CLUSTERS
from training.errors import ConfigError, TensorFileError, TrainingError
from training.jsonio import added, from_json, parse_json, read_bounded
from training.tensors import TensorSpec, read_header

INDEX_FILE: Final = "model_index.json"
CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "diffusion_pytorch_model.safetensors"
ROUTER_WEIGHTS_FILE: Final = "pytorch_model.safetensors"
EXPERT_PREFIX: Final = "expert_"
ROUTER_FOLDER: Final = "router"
PIXART_CLASS: Final = "PixArtTransformer2DModel"
"""Class of the experts that this program exports."""

FLOAT_TYPES: Final = ("F32", "F16", "BF16")
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PART_FILES: Final[Mapping[str, tuple[str, ...]]] = {
    "vae": (CONFIG_FILE, WEIGHTS_FILE),
    "text_encoder": (CONFIG_FILE, "model.safetensors"),
    "tokenizer": (
        "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
        "vocab.txt", "tokenizer.json",
    ),
    "scheduler": ("scheduler_config.json",),
}  # fmt: skip
"""The folders that other libraries read, and the only files of them that are ever used."""

_MOST_SHOWN: Final = 12
T = TypeVar("T")


class LayoutError(TrainingError):
    """A folder is not the published layout, or its parts do not fit each other.

    Args:
        folder: as the person gave it.
        problems: each one sentence: where, what was expected, what was found.

    Attributes:
        shown: the first of them, and how many more there are.
    """

    def __init__(self, folder: Path, problems: tuple[str, ...]) -> None:
        self.shown = problems[:_MOST_SHOWN]
        if len(problems) > _MOST_SHOWN:
            self.shown += (f"and {len(problems) - _MOST_SHOWN} more",)
        super().__init__(f"{folder}: {'; '.join(self.shown)}")
        self.folder = folder
        self.problems = problems


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The top `config.json`.

    Args:
        model_name: for people.
        num_experts: K.
        image_size: side of a latent (not of a picture).
        num_channels: of a latent.
        expert_architecture: "dit" as published, "pixart" as this program exports.
        router_architecture: "dit", or as this program exports "gauss" or "none".
        vae_name: what made the latents, as its hub calls it.
        text_encoder_name: what encodes prompts, as its hub calls it.
        dataset_name: for people.
        experiment_name: for people.
        use_latents: always true here.
    """

    model_name: str
    num_experts: int
    image_size: int
    num_channels: int
    expert_architecture: str
    router_architecture: str
    vae_name: str
    text_encoder_name: str
    dataset_name: str = added("")
    experiment_name: str = added("")
    use_latents: bool = added(True)


@dataclass(frozen=True, slots=True)
class NetConfig:
    """`expert_k/config.json` and, all optional, `router/config.json`.

    Args:
        model_type: "dit_expert" for experts.
        architecture: "dit".
        expert_id: k.
        hidden_size: width of the net.
        num_layers: blocks.
        num_heads: of every attention.
        patch_size: latent pixels per token side.
        in_channels: of a latent.
        out_channels: of a velocity.
        mlp_ratio: width of a block's hidden layer, in widths of the net.
        use_text_conditioning: must be true for an expert.
        use_class_conditioning: must be false.
        num_classes: without meaning when there is no class conditioning.
        text_embed_dim: width of the text encoder's states.
        use_dit_time_embed: must be true: the sinusoidal time embedding of DiT.
        use_adaln_single: must be true for an expert: one modulation shared by its blocks.
        cfg_dropout_prob: of the training.
        num_experts: of a router.
        num_clusters: of a router; the same thing.
    """

    model_type: str = added("")
    architecture: str = added("dit")
    expert_id: int = added(-1)
    hidden_size: int = added(0)
    num_layers: int = added(0)
    num_heads: int = added(0)
    patch_size: int = added(0)
    in_channels: int = added(0)
    out_channels: int = added(0)
    mlp_ratio: float = added(4.0)
    use_text_conditioning: bool = added(True)
    use_class_conditioning: bool = added(False)
    num_classes: int = added(0)
    text_embed_dim: int = added(0)
    use_dit_time_embed: bool = added(True)
    use_adaln_single: bool = added(True)
    cfg_dropout_prob: float = added(0.0)
    num_experts: int = added(0)
    num_clusters: int = added(0)


@dataclass(frozen=True, slots=True)
class Net:
    """One net of the layout, described but not loaded: its weights file and what it holds."""

    path: Path
    config: NetConfig
    tensors: Mapping[str, TensorSpec]


class Notes:
    """Collects what is wrong (`problems`) and what was passed over on request (`ignored`)."""

    def __init__(self, folder: Path, *, ignores_unknown: bool) -> None:
        self._folder = folder
        self._ignores_unknown = ignores_unknown
        self.problems: list[str] = []
        self.ignored: list[str] = []

    def unknown(self, sentence: str) -> None:
        """Something this program does not know: passed over only if it was told to."""
        (self.ignored if self._ignores_unknown else self.problems).append(sentence)

    def wrong(self, sentence: str) -> None:
        """Something that cannot be used."""
        self.problems.append(sentence)

    def check(self) -> None:
        """Raise what was found so far.

        Raises:
            LayoutError: if anything was.
        """
        if self.problems:
            raise LayoutError(self._folder, tuple(self.problems))


def read_model_config(folder: Path, notes: Notes) -> ModelConfig:
    """The top `config.json`, agreeing with `model_index.json` where both speak.

    Raises:
        LayoutError: if it cannot be read or names a number of experts out of range.
    """
    for name in (INDEX_FILE, CONFIG_FILE):
        require_file(folder, name, notes)
    notes.check()
    config = _read_config(ModelConfig, folder / CONFIG_FILE, CONFIG_FILE, notes)
    index = read_object(folder / INDEX_FILE, INDEX_FILE, notes)
    notes.check()
    assert config is not None and index is not None  # noqa: S101, PT018  those were problems
    if not 1 <= config.num_experts <= MAX_CLUSTERS:
        notes.wrong(f"{CONFIG_FILE}: num_experts is {config.num_experts}, not 1..{MAX_CLUSTERS}")
    if not (1 <= config.image_size <= 4096 and 1 <= config.num_channels <= 4096):
        notes.wrong(f"{CONFIG_FILE}: latents of {config.num_channels} x {config.image_size}^2")
    if not config.use_latents:
        notes.wrong(f"{CONFIG_FILE}: use_latents is false: only latent models can be read")
    for key in ("num_experts", "vae_name", "text_encoder_name"):
        expected, got = getattr(config, key), index.get(key)
        if got is not None and got != expected:
            notes.wrong(f"{INDEX_FILE}: {key} is {got!r:.60}, {CONFIG_FILE} says {expected!r:.60}")
    notes.check()
    return config


def expert_places(folder: Path, count: int, notes: Notes) -> list[str]:
    """The folders expert_0..expert_{count-1}; gaps and extra ones are problems.

    Raises:
        LayoutError: naming each that is missing or too many.
    """
    found = [path.name.removeprefix(EXPERT_PREFIX) for path in folder.glob(f"{EXPERT_PREFIX}*")]
    numbers = {int(name) for name in found if re.fullmatch(r"0|[1-9][0-9]{0,9}", name)}
    for number in sorted(set(range(count)) - numbers):
        notes.wrong(f"{EXPERT_PREFIX}{number} is missing: {CONFIG_FILE} says {count} experts")
    for number in sorted(numbers - set(range(count))):
        notes.wrong(f"{EXPERT_PREFIX}{number} is one too many: {CONFIG_FILE} says {count} experts")
    notes.check()
    return [f"{EXPERT_PREFIX}{number}" for number in range(count)]


def read_net(folder: Path, place: str, weights: str, notes: Notes) -> Net | None:
    """One net's config and its weights' header; None if there were problems.

    Args:
        folder: of the layout.
        place: "expert_3" or "router".
        weights: name of the tensor file in it.
        notes: where problems go.
    """
    before = len(notes.problems)
    for name in (CONFIG_FILE, weights):
        require_file(folder, f"{place}/{name}", notes)
    if len(notes.problems) > before:
        return None
    config = _read_config(NetConfig, folder / place / CONFIG_FILE, f"{place}/{CONFIG_FILE}", notes)
    path = folder / place / weights
    try:
        tensors = read_header(path)
    except TensorFileError as error:
        notes.wrong(f"{place}/{weights}: {error.reason}")
        return None
    return Net(path, config, tensors) if config is not None else None


def require_file(folder: Path, name: str, notes: Notes) -> bool:
    """Whether `folder` has the plain file `name` ("a/b"); if not, that is a problem.

    A link anywhere below `folder` is refused: what it names is not part of what was shared.
    """
    path = folder / name
    try:
        kinds = [folder.joinpath(*part).lstat().st_mode for part in _prefixes(name)]
    except OSError:
        pickles = _pickles(path.parent) if name.endswith(".safetensors") else []
        why = f" ({pickles[0]} is a pickle: opening one runs its code)" if pickles else ""
        notes.wrong(f"{name} is missing{why}")
        return False
    if any(stat.S_ISLNK(kind) for kind in kinds):
        notes.wrong(f"{name} is a link: copy the folder with what its links name (cp -rL)")
        return False
    if not stat.S_ISREG(kinds[-1]):
        notes.wrong(f"{name} is not a plain file")
        return False
    return True


def part_files(folder: Path, notes: Notes) -> list[str]:
    """Names, relative to `folder`, of the parts' files that are there and may be used."""
    names = [f"{part}/{name}" for part, files in PART_FILES.items() for name in files]
    there = [name for name in names if (folder / name).exists() or (folder / name).is_symlink()]
    return [name for name in there if require_file(folder, name, notes)]


def _prefixes(name: str) -> list[tuple[str, ...]]:
    parts = tuple(name.split("/"))
    return [parts[: length + 1] for length in range(len(parts))]


def compare_tensors(
    place: str, expected: Mapping[str, tuple[int, ...]], got: Mapping[str, TensorSpec], notes: Notes
) -> None:
    """Name every tensor that is missing, unknown, of another shape or of no float type."""
    for name in sorted(expected.keys() - got.keys()):
        notes.wrong(f"{place}: tensor {name} is missing, expected {list(expected[name])}")
    for name in sorted(got.keys() - expected.keys()):
        notes.unknown(f"{place}: tensor {name} {list(got[name].shape)} is not of this architecture")
    for name in sorted(expected.keys() & got.keys()):
        if got[name].shape != expected[name]:
            notes.wrong(
                f"{place}: tensor {name}: expected {list(expected[name])}, "
                f"got {list(got[name].shape)}"
            )
        elif got[name].dtype not in FLOAT_TYPES:
            notes.wrong(f"{place}: tensor {name}: expected F32, F16 or BF16, got {got[name].dtype}")


def _pickles(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)


def read_object(path: Path, place: str, notes: Notes) -> dict[str, object] | None:
    """A JSON object of the layout; None if it was a problem."""
    try:
        return parse_json(read_bounded(path), place)
    except ConfigError as error:
        notes.wrong(str(error))
        return None


def _read_config(kind: type[T], path: Path, place: str, notes: Notes) -> T | None:
    """A config, its unknown keys noted one by one; None if it was a problem."""
    found = read_object(path, place, notes)
    if found is None:
        return None
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in sorted(found.keys() - known):
        notes.unknown(f"{place}: unknown key {key!r:.60}")
    try:
        return from_json(kind, {k: v for k, v in found.items() if k in known}, place)
    except ConfigError as error:
        notes.wrong(str(error))
        return None
