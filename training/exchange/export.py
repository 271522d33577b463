"""A run's experts as a folder that others can use: the published Paris layout, for diffusers.

    README.md                      model card                        (`exchange.model_card`)
    config.json, model_index.json  with the keys of the published ones
    pipeline.py                    draws with diffusers alone        (`exchange.exported_pipeline`)
    expert_0 .. expert_K-1/        config.json, diffusion_pytorch_model.safetensors, expert.json:
                                   `PixArtTransformer2DModel.from_pretrained` reads each
    router/                        config.json says which one: the trained one, in the published
                                   tensors, if there is one; the clusters' summaries beside it
    vae/ text_encoder/ tokenizer/ scheduler/
    run/                           the run's shared folder, as the nodes hold it
    export.json                    where all of it came from, and every file's sha256

Written whole or not at all.  `training.exchange.imported` reads it back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from training.config import SCHEMA
from training.errors import CheckpointError, ExportError
from training.exchange.model_card import CardExpert, CardFacts, model_card
from training.exchange.paris_layout import (
    CONFIG_FILE,
    EXPERT_PREFIX,
    INDEX_FILE,
    ROUTER_FOLDER,
    ROUTER_WEIGHTS_FILE,
)
from training.experts.checkpoint import PUBLISHED_FILES, ExpertInfo, read_published
from training.files import SHARED, copy_synced, digest_of, whole_folder, write_synced
from training.jsonio import canonical_json, to_json
from training.parts.codecs import codec_is_fitted
from training.parts.hub import MINILM, Models
from training.routers.learned_router import (
    ROUTER_FILE,
    ROUTER_WEIGHTS,
    load_router,
    read_router_info,
)
from training.routers.summary import load_summary
from training.run import CODEC_FILE, RUN_FILE, Run, load_run, shared_files

CARD_FILE: Final = "README.md"
EXPORT_FILE: Final = "export.json"
PIPELINE_FILE: Final = "pipeline.py"
RUN_FOLDER: Final = "run"
CAPTION_ROUTER, GAUSS_ROUTER = "caption", "gauss"
ARCHITECTURE: Final = "pixart"
"""`expert_architecture` of what this program exports; the published experts say "dit"."""


@dataclass(frozen=True, slots=True)
class ExpertSource:
    """One expert to export.

    Args:
        folder: a published checkpoint.
        cid: of that checkpoint; empty if unknown.
        owner: peer id of who trained it last; empty if unknown.
    """

    folder: Path
    cid: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True)
class ExportSource:
    """What to export.

    Args:
        shared: the run's shared folder.
        experts: by cluster; all clusters must be there.
        summaries: cluster -> file of the gauss router's summary; all of them, or none is used.
        router: folder of a trained router (`training.routers.learned_router`), if there is one.
        run_id: CID of the run; empty if unknown.
        license: of the weights, as the user said; empty if not said.
        data_license: of the training data; empty if unknown.
        has_text: put the text encoder's weights into the folder, if they are small (MiniLM's).
    """

    shared: Path
    experts: Mapping[int, ExpertSource]
    summaries: Mapping[int, Path] = field(default_factory=dict)
    router: Path | None = None
    run_id: str = ""
    license: str = ""
    data_license: str = ""
    has_text: bool = True


@dataclass(frozen=True, slots=True)
class ExpertRecord:
    """One expert in `export.json`."""

    cluster: int
    cid: str
    owner: str
    info: ExpertInfo


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """`export.json`.

    Args:
        schema: 1.
        run_id: CID of the run; empty if unknown.
        run: sha256 of its `run.json`.
        name: of the run.
        experts: by cluster number.
        routers: best first.
        license: of the weights; empty if unknown.
        data_license: of the training data; empty if unknown.
        files: sha256 of every other file of the folder.
    """

    schema: int
    run_id: str
    run: str
    name: str
    experts: tuple[ExpertRecord, ...]
    routers: tuple[str, ...]
    license: str
    data_license: str
    files: dict[str, str]


def export_model(target: Path, source: ExportSource) -> ExportRecord:
    """Write the folder.

    Args:
        target: must not exist, or be an empty folder; its parent must exist.
        source: what to export.

    Returns:
        What `export.json` says.

    Raises:
        ExportError: `target` is in use, an expert is missing, or one of another cluster.
        CheckpointError, DataError, TensorFileError: the run, an expert or a summary is damaged.
        OSError: the disk refuses; nothing is left then.
    """
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise ExportError(f"{target} is there already: give a folder that is new or empty")
    run = load_run(source.shared)
    export = _Export(run, source, _checked_experts(run, source), _routers(run, source))
    with whole_folder(target) as folder:
        writer = _Writer(folder)
        _copy_run(writer, export)
        has_text = _write_parts(writer, export)
        for name, config in _configs(export, has_text).items():
            writer.json(name, config)
        writer.copy(Path(__file__).with_name("exported_pipeline.py"), PIPELINE_FILE)
        card = model_card(_card_facts(export, has_text, writer.digests))
        writer.bytes(CARD_FILE, card.encode())
        record = _record(export, writer.digests)
        write_synced(folder / EXPORT_FILE, canonical_json(to_json(record)), SHARED)
    return record


@dataclass(frozen=True, slots=True, eq=False)
class _Export:
    """What was asked for, checked."""

    run: Run
    source: ExportSource
    infos: Mapping[int, ExpertInfo]
    routers: tuple[str, ...]

    @property
    def router_architecture(self) -> str:
        """As the published config calls it; a trained router has the published tensors."""
        return self.routers[0] if self.source.router is None else "dit"


class _Writer:
    """Writes files below a folder and remembers their digests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.digests: dict[str, str] = {}

    def copy(self, source: Path, name: str) -> None:
        self.digests[name] = copy_synced(source.resolve(), self._folder / name, SHARED)

    def bytes(self, name: str, data: bytes) -> None:
        write_synced(self._folder / name, data, SHARED)
        self.digests[name] = digest_of(data)

    def json(self, name: str, value: object) -> None:
        self.bytes(name, canonical_json(value))


def _checked_experts(run: Run, source: ExportSource) -> dict[int, ExpertInfo]:
    """The facts of every expert, each read once in every part; one is in memory at a time."""
    clusters = set(range(run.spec.clusters))
    if missing := sorted(clusters - set(source.experts)):
        raise ExportError(
            f"no expert of cluster {', '.join(map(str, missing))}: a model has all "
            f"{run.spec.clusters} of its run"
        )
    if strangers := sorted(set(source.experts) - clusters):
        raise ExportError(f"the run has no cluster {', '.join(map(str, strangers))}")
    infos = {}
    for cluster, expert in sorted(source.experts.items()):
        infos[cluster] = read_published(expert.folder, run)[0]
        if infos[cluster].cluster != cluster:
            raise CheckpointError(
                f"{expert.folder.name}: an expert of cluster {infos[cluster].cluster}, "
                f"expected {cluster}"
            )
    return infos


def _routers(run: Run, source: ExportSource) -> tuple[str, ...]:
    """Those the folder will hold, the trained one first.

    Summaries of some clusters alone are no router, and are left out.
    """
    clusters = tuple(range(run.spec.clusters))
    found = [CAPTION_ROUTER]
    if tuple(sorted(source.summaries)) == clusters:
        channels, height, width = run.facts.latent
        for path in source.summaries.values():
            load_summary(path, channels * height * width)
        found.insert(0, GAUSS_ROUTER)
    if source.router is not None:
        info = load_router(source.router, run).info
        if info.clusters != clusters:
            raise ExportError(
                f"the router knows clusters {list(info.clusters)} alone: train it anew"
            )
        found.insert(0, info.kind)
    return tuple(found)


def _copy_run(writer: _Writer, export: _Export) -> None:
    """Experts, the run's own files and the router."""
    run, source = export.run, export.source
    for cluster, expert in sorted(source.experts.items()):
        for name in PUBLISHED_FILES:
            writer.copy(expert.folder / name, f"{EXPERT_PREFIX}{cluster}/{name}")
    for name in (RUN_FILE, *shared_files(run.spec)):
        writer.copy(run.folder / name, f"{RUN_FOLDER}/{name}")
    config: dict[str, object] = {"architecture": export.router_architecture}
    if source.router is not None:
        shape = read_router_info(source.router).shape
        config |= {
            "hidden_size": shape.width, "num_layers": shape.layers, "num_heads": shape.heads,
            "patch_size": shape.patch_size, "in_channels": shape.latent[0],
        }  # fmt: skip
        weights = f"{ROUTER_FOLDER}/{ROUTER_WEIGHTS_FILE}"
        writer.copy(source.router / ROUTER_WEIGHTS, weights)
        writer.copy(source.router / ROUTER_FILE, f"{ROUTER_FOLDER}/{ROUTER_FILE}")
    writer.json(f"{ROUTER_FOLDER}/{CONFIG_FILE}", {**config, "num_experts": run.spec.clusters})
    if GAUSS_ROUTER in export.routers:
        for cluster, path in sorted(source.summaries.items()):
            writer.copy(path, f"{ROUTER_FOLDER}/summary_{cluster}.safetensors")


def _write_parts(writer: _Writer, export: _Export) -> bool:
    """The codec, the scheduler's settings and the text encoder; says whether the last is there."""
    run, spec = export.run, export.run.spec
    codec = {"_class_name": spec.codec, "sha256": run.codec_digest}
    sizes = {"image_size": spec.image_size, "image_channels": spec.image_channels}
    writer.json(f"vae/{CONFIG_FILE}", {**codec, **sizes})
    if codec_is_fitted(spec.codec):
        writer.copy(run.folder / CODEC_FILE, "vae/codec.safetensors")
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    writer.json("scheduler/scheduler_config.json", {**scheduler, "shift": 1.0})
    files = _text_files(run) if export.source.has_text else {}
    for name, path in files.items():
        writer.copy(path, name)
    if files:
        tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
        writer.json("tokenizer/tokenizer_config.json", tokenizer)
    return bool(files)


def _text_files(run: Run) -> dict[str, Path]:
    """The text encoder's files by their names in an export; none if it is too large to travel."""
    if run.spec.text != MINILM.name:
        return {}
    paths = Models(pins=run.facts.models or {}).find(MINILM).paths
    folders = {"config.json": "text_encoder", "model.safetensors": "text_encoder"}
    return {f"{folders.get(name, 'tokenizer')}/{name}": path for name, path in paths.items()}


def _configs(export: _Export, has_text: bool) -> dict[str, dict[str, object]]:
    """The two files at the top, with the keys of the published ones."""
    spec, latent = export.run.spec, export.run.facts.latent
    shared: dict[str, object] = {
        "num_experts": spec.clusters,
        "expert_architecture": ARCHITECTURE,
        "router_architecture": export.router_architecture,
        "vae_name": spec.codec,
        "text_encoder_name": spec.text,
    }
    config = {
        "model_name": spec.name,
        "dataset_name": spec.name,
        "image_size": latent[1],
        "num_channels": latent[0],
        "use_latents": True,
    }
    index: dict[str, object] = {
        "_class_name": [PIPELINE_FILE.removesuffix(".py"), "ParisPipeline"],
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "BertModel"] if has_text else [None, None],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"] if has_text else [None, None],
        "vae": [None, None],
    }
    return {CONFIG_FILE: {**config, **shared}, INDEX_FILE: {**index, **shared}}


def _card_facts(export: _Export, has_text: bool, digests: Mapping[str, str]) -> CardFacts:
    run, source = export.run, export.source
    captions = run.caption_counts.by_cluster()
    experts = tuple(
        CardExpert(info, source.experts[k].cid, source.experts[k].owner, captions[k])
        for k, info in sorted(export.infos.items())
    )
    return CardFacts(
        run_id=source.run_id,
        run=run.facts,
        run_digest=run.digest,
        experts=experts,
        parameters=run.shape.parameters(),
        routers=export.routers,
        has_text=has_text,
        parts=_parts(run, digests),
        license=source.license,
        data_license=source.data_license,
    )


def _parts(run: Run, digests: Mapping[str, str]) -> dict[str, str]:
    """What the card lists: tensor files in the folder, and pretrained parts that are not in it."""
    inside = {
        name: digest
        for name, digest in digests.items()
        if name.endswith(".safetensors") and name != f"{RUN_FOLDER}/{CODEC_FILE}"  # vae/ has it
    }
    pins = {f"{name} (not here)": digest for name, digest in (run.facts.models or {}).items()
            if digest not in digests.values()}  # fmt: skip
    return inside | pins


def _record(export: _Export, digests: Mapping[str, str]) -> ExportRecord:
    source = export.source
    experts = tuple(
        ExpertRecord(k, source.experts[k].cid, source.experts[k].owner, info)
        for k, info in sorted(export.infos.items())
    )
    return ExportRecord(
        schema=SCHEMA,
        run_id=source.run_id,
        run=export.run.digest,
        name=export.run.spec.name,
        experts=experts,
        routers=export.routers,
        license=source.license,
        data_license=source.data_license,
        files=dict(digests),
    )
