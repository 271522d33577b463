"""An imported model made ready to draw, through the same sampler as a run's experts.

A published model has no captions to route by: it routes by its router alone, `top1`, `top2` or
`all`.  Its prompts are padded to 77 tokens and its experts attend to the padding, because that is
what they were trained with.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from training.drawing.ensemble import Ensemble
from training.drawing.mixture import Strategy
from training.drawing.plan import RouterName, SampleOptions
from training.errors import ConfigError, ModelMissingError
from training.exchange.export import RUN_FOLDER
from training.exchange.imported import PUBLISHED, read_import
from training.exchange.paris_layout import EXPERT_PREFIX, ROUTER_FOLDER
from training.exchange.paris_model import ExpertShelf, PublishedLayout, read_layout
from training.parts.clip import MAX_TOKENS, WIDTH, load_clip
from training.parts.hub import CLIP, SD_VAE, ModelFiles, ModelPart, Models
from training.parts.libraries import clip_tokenizer_class
from training.parts.sd_vae import REDUCTION, SdVae
from training.parts.text import TextStates
from training.routers.captions import CaptionPrior
from training.routers.learned_router import ROUTER_FILE, read_router_info

PUBLISHED_OPTIONS: Final = SampleOptions(
    strategy=Strategy.TOP2, steps=30, guidance=7.5, router=RouterName.LEARNED
)
"""Routing and guidance of the papers (arXiv 2510.03434); 30 steps of ab2, not 50 of Euler."""
EXPORT_OPTIONS: Final = SampleOptions()
MEMORY_SHARE: Final = 0.5
"""Part of the machine's memory that a published model's experts may fill."""
_FOLDERS: Final = {SD_VAE.name: "vae", CLIP.name: "text_encoder"}


def open_model(folder: Path, models: Path | None = None) -> tuple[Ensemble, SampleOptions]:
    """The model that was imported into `folder`, and how it is meant to be drawn with.

    Args:
        folder: written by `training.exchange.imported.import_model`.
        models: the user's folder of pretrained parts, for those the model does not bring.

    Raises:
        DataError, LayoutError, CheckpointError, TensorFileError: it was damaged since.
        ModelMissingError: a part it needs is neither in it nor on this machine.
    """
    record = read_import(folder)
    if record.kind != PUBLISHED:
        experts = {k: folder / f"{EXPERT_PREFIX}{k}" for k in range(record.experts)}
        summaries = {k: folder / ROUTER_FOLDER / f"summary_{k}.safetensors" for k in experts}
        here = {k: path for k, path in summaries.items() if path.exists()}
        place = folder / ROUTER_FOLDER
        has_router = (place / ROUTER_FILE).exists()
        routers = {read_router_info(place).kind: place} if has_router else {}
        ensemble = Ensemble.load(folder / RUN_FOLDER, experts, here, routers, models=models)
        return ensemble, EXPORT_OPTIONS
    layout = read_layout(folder, ignores_unknown=bool(record.ignored))
    return open_published(layout, models), PUBLISHED_OPTIONS


def open_published(layout: PublishedLayout, models: Path | None = None) -> Ensemble:
    """A published model; its experts are read when they are first asked.

    Raises:
        ModelMissingError: its autoencoder or text encoder is not to be had.
        TensorFileError: the router's weights are damaged.
    """
    parts = _LayoutParts(models, {}, True, layout)
    shelf = ExpertShelf(layout, _kept(layout))
    clusters = range(len(layout.experts))
    return Ensemble(
        SdVae(layout.latent[1] * REDUCTION, 3, parts),
        PaddedClip(parts, layout),
        UniformPrior(tuple(clusters)),
        {k: ShelvedExpert(shelf, k) for k in clusters},
        {RouterName.LEARNED: layout.load_router()},
    )


@dataclass(frozen=True, slots=True)
class ShelvedExpert:
    """An expert that is read when it is asked."""

    shelf: ExpertShelf
    cluster: int
    objective: str = "fm"

    def velocity(self, x_t: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """See `training.exchange.paris_net.PublishedExpert`."""
        return self.shelf[self.cluster].velocity(x_t, t, states, mask)


class UniformPrior(CaptionPrior):
    """p(k | caption) of a model that says nothing about captions: all clusters alike."""

    def __init__(self, clusters: tuple[int, ...]) -> None:
        self.clusters = clusters

    def probabilities(self, captions: Sequence[str]) -> Tensor:
        """[B, K] float64."""
        count = len(self.clusters)
        return torch.full((len(captions), count), 1 / count, dtype=torch.float64)


class PaddedClip:
    """CLIP's text half with every prompt padded to 77 tokens, all of them attended to.

    Args:
        models: where its weights are.
        layout: whose experts read the states.

    Raises:
        ConfigError: if the experts read states of another width.
    """

    def __init__(self, models: Models, layout: PublishedLayout) -> None:
        width = layout.experts[0].config.text_embed_dim
        if width != WIDTH:
            raise ConfigError(
                f"the experts read text states of width {width}; {layout.config.text_encoder_name} "
                f"has {WIDTH}, and this program has no other"
            )
        self._models = models
        self._folder = layout.folder / "tokenizer"

    @property
    def dim(self) -> int:
        """768."""
        return WIDTH

    def encode(self, captions: Sequence[str]) -> TextStates:
        """States [B, 77, 768] and a mask of ones [B, 77].

        Raises:
            ModelMissingError: if the weights are not to be had.
            ValueError: for no captions.
        """
        if not captions:
            raise ValueError("encode needs at least one caption")
        tokenizer, network = self._loaded
        padded = tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=MAX_TOKENS
        )
        with torch.no_grad():
            rows = [network(torch.tensor([ids])) for ids in padded["input_ids"]]
        return TextStates(torch.stack(rows), torch.ones(len(rows), MAX_TOKENS))

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        files = self._models.find(CLIP)
        here = self._folder if self._folder.is_dir() else files.paths["tokenizer.json"].parent
        try:
            tokenizer = clip_tokenizer_class().from_pretrained(here, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelMissingError(f"{CLIP.title}: tokenizer in {here}: {error}") from error
        return tokenizer, load_clip(files)


@dataclass(frozen=True, slots=True)
class _LayoutParts(Models):
    """Pretrained parts, a layout's own before any other."""

    layout: PublishedLayout | None = None

    def find(self, part: ModelPart) -> ModelFiles:
        """The files of a part."""
        assert self.layout is not None  # noqa: S101  only `open_published` makes one
        folder = _FOLDERS[part.name]
        names = [name for name in part.files if name != "tokenizer.json"]  # read from tokenizer/
        inside = {name: self.layout.folder / folder / name for name in names}
        if not all(f"{folder}/{name}" in self.layout.parts for name in names):
            # Not super(): a slotted dataclass is made anew, and super() means the one before.
            return Models.find(self, part)
        return ModelFiles(part, inside, {})


def _kept(layout: PublishedLayout) -> int:
    """How many experts fit the memory, computed in float32."""
    numbers = max(_numbers(net.tensors) for net in layout.experts)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(layout.experts), int(MEMORY_SHARE * memory) // (4 * numbers)))


def _numbers(tensors: Mapping[str, Any]) -> int:
    return sum(torch.Size(spec.shape).numel() for spec in tensors.values())
