"""Models that others made: a folder is checked, copied whole into a place of ours, then drawn with.

Two kinds have the same layout: `published`, the released Paris experts, and `export`, what
`exchange.export` writes.  Only files that the layout names are copied, never code; the copy
carries `import.json`, and from then on nothing outside it is read.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from training.config import SCHEMA
from training.errors import ConfigError, DataError
from training.exchange.export import (
    ARCHITECTURE,
    EXPORT_FILE,
    PIPELINE_FILE,
    RUN_FOLDER,
    ExportRecord,
)
from training.exchange.paris_layout import (
    CONFIG_FILE,
    EXPERT_PREFIX,
    INDEX_FILE,
    ROUTER_FOLDER,
    ROUTER_WEIGHTS_FILE,
    WEIGHTS_FILE,
    LayoutError,
    Notes,
    read_model_config,
    require_file,
)
from training.exchange.paris_model import PublishedLayout, read_layout
from training.experts.checkpoint import PUBLISHED_FILES, read_published
from training.files import copy_synced, whole_folder, write_synced
from training.jsonio import canonical_json, from_json, read_json, to_json
from training.routers.learned_router import ROUTER_FILE, ROUTER_WEIGHTS, load_router
from training.run import load_run

IMPORT_FILE: Final = "import.json"
PUBLISHED, EXPORT = "published", "export"
MAX_FILES: Final = 5 * 4096
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,2}")

OnFile = Callable[[int, int], None]
"""(files copied and checked, files in all)."""


@dataclass(frozen=True, slots=True)
class ImportRecord:
    """`import.json`.

    Args:
        schema: 1.
        kind: "published" or "export".
        name: of the model, as its maker calls it.
        experts: how many.
        latent: channels, height, width.
        vae: what decodes its latents.
        text: what encodes its prompts.
        run_id: CID of the run it came from; empty if unknown.
        license: of the weights; empty if unknown.
        ignored: what was passed over when it was read.
        files: sha256 of every other file, by the name it came with.
    """

    schema: int
    kind: str
    name: str
    experts: int
    latent: tuple[int, int, int]
    vae: str
    text: str
    run_id: str
    license: str
    ignored: tuple[str, ...]
    files: dict[str, str]


def import_model(
    source: Path, target: Path, *, ignores_unknown: bool = False, on_file: OnFile | None = None
) -> ImportRecord:
    """Check a folder in every part and copy it.

    Args:
        source: someone's folder.
        target: must not exist; its parent must.
        ignores_unknown: pass over config keys and tensors that this program does not know.
        on_file: told of progress.

    Raises:
        LayoutError: naming every mismatch.
        CheckpointError, DataError, TensorFileError: a part of an export is damaged.
        OSError: the disk refuses; nothing is left then.
    """
    root = source.resolve()
    if not root.is_dir():
        raise LayoutError(source, ("there is no such folder",))
    notes = Notes(source, ignores_unknown=ignores_unknown)
    config = read_model_config(root, notes)
    if config.expert_architecture == ARCHITECTURE:
        return _import_export(root, target, on_file)
    layout = read_layout(source, ignores_unknown=ignores_unknown)
    return _import_published(layout, target, on_file)


def read_import(folder: Path) -> ImportRecord:
    """What was imported into `folder`.

    Raises:
        DataError: if nothing was, or its record is damaged.
    """
    try:
        return from_json(ImportRecord, read_json(folder / IMPORT_FILE), IMPORT_FILE)
    except ConfigError as error:
        raise DataError(f"{folder.name}: not an imported model: {error}") from error


def _import_published(
    layout: PublishedLayout, target: Path, on_file: OnFile | None
) -> ImportRecord:
    names = [INDEX_FILE, CONFIG_FILE, *layout.parts]
    for number in range(len(layout.experts)):
        names += [f"{EXPERT_PREFIX}{number}/{name}" for name in (CONFIG_FILE, WEIGHTS_FILE)]
    names += [f"{ROUTER_FOLDER}/{name}" for name in (CONFIG_FILE, ROUTER_WEIGHTS_FILE)]
    with whole_folder(target) as folder:
        digests = _copy(layout.folder, folder, names, on_file)
        copied = read_layout(folder, ignores_unknown=bool(layout.ignored))
        for number in range(len(copied.experts)):
            copied.load_expert(number)  # NaN is found now rather than in a picture
        copied.load_router()
        config = copied.config
        record = ImportRecord(
            schema=SCHEMA,
            kind=PUBLISHED,
            name=config.model_name,
            experts=config.num_experts,
            latent=copied.latent,
            vae=config.vae_name,
            text=config.text_encoder_name,
            run_id="",
            license="",
            ignored=layout.ignored,
            files=digests,
        )
        write_synced(folder / IMPORT_FILE, canonical_json(to_json(record)))
    return record


def _import_export(source: Path, target: Path, on_file: OnFile | None) -> ImportRecord:
    said = _export_record(source)
    names = [name for name in said.files if name != PIPELINE_FILE]
    with whole_folder(target) as folder:
        digests = _copy(source, folder, names, on_file)
        altered = sorted(name for name, digest in digests.items() if digest != said.files[name])
        if altered:
            sentences = (f"{name} does not match {EXPORT_FILE}: it was altered" for name in altered)
            raise LayoutError(source, tuple(sentences))
        _keep_router(folder)
        run = load_run(folder / RUN_FOLDER)
        for number in range(run.spec.clusters):
            read_published(folder / f"{EXPERT_PREFIX}{number}", run)
        record = ImportRecord(
            schema=SCHEMA,
            kind=EXPORT,
            name=run.spec.name,
            experts=run.spec.clusters,
            latent=run.facts.latent,
            vae=run.spec.codec,
            text=run.spec.text,
            run_id=said.run_id,
            license=said.license,
            ignored=(),
            files=digests,
        )
        write_synced(folder / IMPORT_FILE, canonical_json(to_json(record)))
    return record


def _keep_router(folder: Path) -> None:
    """Give a trained router's weights the name that `training.routers.learned_router` reads."""
    place = folder / ROUTER_FOLDER
    if (place / ROUTER_FILE).exists() and (place / ROUTER_WEIGHTS_FILE).exists():
        (place / ROUTER_WEIGHTS_FILE).rename(place / ROUTER_WEIGHTS)
        load_router(place)


def _export_record(source: Path) -> ExportRecord:
    """`export.json`, every file it names checked for being a plain one below `source`.

    Raises:
        LayoutError: naming what is missing, a link, or named in a way that leads elsewhere.
    """
    notes = Notes(source, ignores_unknown=False)
    require_file(source, EXPORT_FILE, notes)
    notes.check()
    try:
        record = from_json(ExportRecord, read_json(source / EXPORT_FILE), EXPORT_FILE)
    except ConfigError as error:
        raise LayoutError(source, (str(error),)) from error
    if len(record.files) > MAX_FILES:
        raise LayoutError(source, (f"{EXPORT_FILE} names {len(record.files)} files",))
    for name in sorted(record.files):
        if not _NAME.fullmatch(name) or ".." in name:
            notes.wrong(f"{EXPORT_FILE}: file name {name!r:.80} is not allowed")
        else:
            require_file(source, name, notes)
    for number in range(len(record.experts)):
        for name in PUBLISHED_FILES:
            if f"{EXPERT_PREFIX}{number}/{name}" not in record.files:
                notes.wrong(f"{EXPORT_FILE} does not name {EXPERT_PREFIX}{number}/{name}")
    notes.check()
    return record


def _copy(source: Path, target: Path, names: list[str], on_file: OnFile | None) -> dict[str, str]:
    digests = {}
    for done, name in enumerate(names):
        if on_file is not None:
            on_file(done, len(names))
        digests[name] = copy_synced(source / name, target / name)
    if on_file is not None:
        on_file(len(names), len(names))
    return digests
