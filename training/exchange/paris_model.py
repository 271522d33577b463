"""A folder in the published Paris layout as a model: every part checked, then loaded as needed.

Knows nothing about where such folders are kept, or about runs of this program (`exchange.export`
writes those in the same layout).
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from torch import Tensor

from training.config import LatentShape
from training.errors import ConfigError
from training.exchange.paris_layout import (
    CONFIG_FILE,
    ROUTER_FOLDER,
    ROUTER_WEIGHTS_FILE,
    WEIGHTS_FILE,
    LayoutError,
    ModelConfig,
    Net,
    NetConfig,
    Notes,
    compare_tensors,
    expert_places,
    part_files,
    read_model_config,
    read_net,
    read_object,
)
from training.exchange.paris_net import (
    PublishedExpert,
    PublishedRouter,
    build_expert,
    build_router,
    expert_shapes,
    router_shape,
    router_shapes,
    sized_router,
)
from training.tensors import TensorSpec, read_tensors

MAX_LAYERS: Final = 1024
MAX_WIDTH: Final = 2**16


@dataclass(frozen=True, slots=True)
class PublishedLayout:
    """A folder that was read and whose parts fit each other; no weights are loaded.

    Args:
        folder: the folder.
        config: its top config.
        experts: by cluster number.
        router: the learned router.
        parts: files of vae/, text_encoder/, tokenizer/ and scheduler/ that are there.
        ignored: what this program does not know and was told to pass over.
    """

    folder: Path
    config: ModelConfig
    experts: tuple[Net, ...]
    router: Net
    parts: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def latent(self) -> LatentShape:
        """Channels, height, width."""
        return (self.config.num_channels, self.config.image_size, self.config.image_size)

    def load_expert(self, cluster: int) -> PublishedExpert:
        """Read one expert's weights.

        Raises:
            TensorFileError: if they were altered since, or hold NaN.
        """
        net = self.experts[cluster]
        shapes = expert_shapes(net.config, self.latent)
        weights = _read(net, set(shapes))
        return PublishedExpert(build_expert(net.config, self.latent, weights))

    def load_router(self) -> PublishedRouter:
        """Read the router's weights.

        Raises:
            TensorFileError: if they were altered since, or hold NaN.
        """
        config = sized_router(self.router.config, self.router.tensors)
        shapes = router_shapes(config, self.latent, len(self.experts))
        weights = _read(self.router, set(shapes))
        return PublishedRouter(build_router(config, self.latent, weights))


class ExpertShelf:
    """The experts of a layout, the last few used kept in memory."""

    def __init__(self, layout: PublishedLayout, most: int) -> None:
        """Start empty.

        Args:
            layout: whose experts.
            most: kept at a time, at least 1; an XL/2 takes 2.4 GB.
        """
        self._layout = layout
        self._most = most
        self._loaded: OrderedDict[int, PublishedExpert] = OrderedDict()

    def __getitem__(self, cluster: int) -> PublishedExpert:
        """The expert of a cluster, loaded if need be."""
        if cluster not in self._loaded:
            while len(self._loaded) >= self._most:
                self._loaded.popitem(last=False)
            self._loaded[cluster] = self._layout.load_expert(cluster)
        self._loaded.move_to_end(cluster)
        return self._loaded[cluster]


def read_layout(folder: Path, *, ignores_unknown: bool = False) -> PublishedLayout:
    """Read a folder in the published layout, strictly; only headers of tensor files are read.

    Args:
        folder: may itself be reached by a link; nothing in it may.
        ignores_unknown: pass over config keys and tensors that this program does not know.

    Raises:
        LayoutError: naming every mismatch that could be found.
    """
    notes = Notes(folder, ignores_unknown=ignores_unknown)
    root = folder.resolve()
    if not root.is_dir():
        raise LayoutError(folder, ("there is no such folder",))
    config = read_model_config(root, notes)
    if config.expert_architecture != "dit":
        notes.wrong(
            f"{CONFIG_FILE}: expert_architecture {config.expert_architecture!r:.40}, not 'dit'"
        )
    if config.router_architecture != "dit":
        notes.wrong(
            f"{CONFIG_FILE}: router_architecture {config.router_architecture!r:.40}, not 'dit'"
        )
    notes.check()
    places = expert_places(root, config.num_experts, notes)
    found = [read_net(root, place, WEIGHTS_FILE, notes) for place in places]
    router = read_net(root, ROUTER_FOLDER, ROUTER_WEIGHTS_FILE, notes)
    parts = tuple(part_files(root, notes))
    experts = tuple(net for net in found if net is not None)
    if router is None or len(experts) < len(found):
        notes.check()
    assert router is not None  # noqa: S101  a missing one was a problem
    layout = PublishedLayout(root, config, experts, router, parts, ())
    for number, net in enumerate(experts):
        _check_expert(layout, number, net, notes)
    _check_router(layout, notes)
    _check_text(layout, notes)
    notes.check()
    return replace(layout, ignored=tuple(notes.ignored))


def _check_expert(layout: PublishedLayout, number: int, net: Net, notes: Notes) -> None:
    place = f"expert_{number}"
    config = net.config
    facts = {
        "model_type": (config.model_type, "dit_expert"),
        "architecture": (config.architecture, "dit"),
        "expert_id": (config.expert_id, number),
        "use_text_conditioning": (config.use_text_conditioning, True),
        "use_class_conditioning": (config.use_class_conditioning, False),
        "use_adaln_single": (config.use_adaln_single, True),
        "out_channels": (config.out_channels, layout.config.num_channels),
    }
    if _check_net(layout, place, config, notes, facts):
        if not 1 <= config.text_embed_dim <= MAX_WIDTH:
            notes.wrong(f"{place}/{CONFIG_FILE}: text_embed_dim is {config.text_embed_dim}")
            return
        shapes = expert_shapes(config, layout.latent)
        compare_tensors(f"{place}/{WEIGHTS_FILE}", shapes, net.tensors, notes)


def _check_router(layout: PublishedLayout, notes: Notes) -> None:
    config = sized_router(layout.router.config, layout.router.tensors)
    count = len(layout.experts)
    said = {config.num_experts, config.num_clusters} - {0, count}
    if said:
        notes.wrong(f"{ROUTER_FOLDER}/{CONFIG_FILE}: a router of {said.pop()} for {count} experts")
    head = layout.router.tensors.get("head.4.bias", TensorSpec("F32", (count,))).shape
    if head != (count,):
        notes.wrong(f"{ROUTER_FOLDER}: a router for {list(head)} clusters, but {count} experts")
    if _check_net(layout, ROUTER_FOLDER, config, notes, {}):
        shapes = router_shapes(config, layout.latent, count)
        place = f"{ROUTER_FOLDER}/{ROUTER_WEIGHTS_FILE}"
        compare_tensors(place, shapes, layout.router.tensors, notes)
        try:
            router_shape(config, layout.latent, count)
        except ConfigError as error:
            notes.wrong(f"{place}: {error}")


def _check_net(
    layout: PublishedLayout,
    place: str,
    config: NetConfig,
    notes: Notes,
    facts: dict[str, tuple[object, object]],
) -> bool:
    """Whether the sizes are possible, so that shapes can be computed from them."""
    where, before = f"{place}/{CONFIG_FILE}", len(notes.problems)
    wanted = facts | {
        "in_channels": (config.in_channels, layout.config.num_channels),
        "use_dit_time_embed": (config.use_dit_time_embed, True),
        "mlp_ratio": (config.mlp_ratio, 4.0),
    }
    for key, (got, expected) in wanted.items():
        if got != expected:
            notes.wrong(f"{where}: {key} is {got!r:.40}, expected {expected!r}")
    if not (1 <= config.hidden_size <= MAX_WIDTH and 1 <= config.num_layers <= MAX_LAYERS):
        notes.wrong(f"{where}: {config.num_layers} layers of width {config.hidden_size}")
    elif config.num_heads < 1 or config.hidden_size % config.num_heads:
        notes.wrong(f"{where}: {config.num_heads} heads do not divide {config.hidden_size}")
    if config.patch_size < 1 or layout.config.image_size % config.patch_size:
        notes.wrong(
            f"{where}: patch_size {config.patch_size} does not divide the latent's side "
            f"{layout.config.image_size}"
        )
    return len(notes.problems) == before


def _check_text(layout: PublishedLayout, notes: Notes) -> None:
    """The text encoder's width is what every expert's `text_proj` takes."""
    widths = {number: net.config.text_embed_dim for number, net in enumerate(layout.experts)}
    if len(set(widths.values())) != 1:
        notes.wrong(f"experts take text states of different widths: {sorted(set(widths.values()))}")
    name = f"text_encoder/{CONFIG_FILE}"
    if name not in layout.parts:
        return
    found = read_object(layout.folder / name, name, notes)
    width = found.get("hidden_size") if found else None
    if found is not None and width != widths[0]:
        notes.wrong(f"{name}: hidden_size is {width!r:.20}, the experts take {widths[0]}")


def _read(net: Net, wanted: set[str]) -> dict[str, Tensor]:
    """The wanted tensors; those that were passed over stay on the disk."""
    return read_tensors(net.path, net.tensors, only=wanted)
