"""Models as folders: export a run's experts, import what others published, list, show, draw."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.api import SCHEMA, Json
from node.cli.command import VerbGroup
from node.cli.files import plan_pictures, write_whole
from node.cli.options import Options, pass_options
from node.cli.output import (
    count_text,
    duration_text,
    print_fields,
    print_json,
    print_table,
    size_text,
)
from node.cli.progress import Progress
from node.errors import ErrorCode, NodeError

if TYPE_CHECKING:
    from node.config import Config
    from node.models import KeptModel
    from training.exchange.export import ExportRecord


@click.group(
    cls=VerbGroup,
    examples=(
        "paris-node models export --out ./fashion --license apache-2.0",
        "paris-node models import ./paris --name paris",
        'paris-node models draw paris "a red boat at dawn" -o boat.png',
    ),
)
def models() -> None:
    """Export a run as a diffusers folder; import and draw with published models."""


@models.command(
    "export",
    examples=(
        "paris-node models export --out ./fashion",
        "paris-node models export bafkrei... bafkrei... --out ./fashion --license apache-2.0",
        "paris-node models export --out ./fashion --json | jq .experts",
    ),
)
@click.argument("cids", metavar="[CID]...", nargs=-1)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
    help="New or empty folder to write; by default named after the run.",
)  # fmt: skip
@click.option("--run", "run_id", metavar="RUN", help="Which run; this home's by default.")
@click.option("--license", metavar="TEXT", default="", help="Of the weights, for the model card.")
@click.option("--data-license", metavar="TEXT", default="", help="Of the training data.")
@click.option(
    "--text-encoder/--no-text-encoder", "has_text", default=True,
    help="Put the text encoder (91 MB) into the folder.",
)  # fmt: skip
@pass_options
def export_(options: Options, cids: tuple[str, ...], out: Path | None, **said: Any) -> None:  # noqa: ANN401
    """Write a run's experts in the published Paris layout, with a model card.

    Takes the furthest trained checkpoint of each cluster that is in this home, or those named by
    CID. The folder draws with plain diffusers; its README.md says how.
    """
    from node.exporting import ExportOptions, export_run
    from p2p.ids import BlobId

    config = options.settings()
    run, blobs = _run_and_store(config, said["run_id"])
    chosen = ExportOptions(
        cids=tuple(BlobId(_checked_cid(cid)) for cid in cids),
        license=said["license"],
        data_license=said["data_license"],
        has_text=said["has_text"],
    )
    target = out or Path(_default_folder(run, blobs))
    record = export_run(run, config.paths, blobs, target, chosen)
    if options.json:
        print_json(_export_json(target, record))
        return
    click.echo(f"exported   {target}")
    if not options.quiet:
        print_fields(
            [
                ("name", record.name),
                ("experts", _experts_text(record)),
                ("router", ", ".join(record.routers)),
                ("license", record.license or "unknown: say it with --license TEXT"),
                ("data license", record.data_license or "unknown: say it with --data-license TEXT"),
                ("read first", str(target / "README.md")),
            ]
        )


@models.command(
    "import",
    examples=(
        "paris-node models import ./paris",
        "paris-node models import ./paris --name paris --ignore-unknown",
        "paris-node models import ./fashion --json | jq -r .name",
    ),
)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", metavar="NAME", help="What to call it here; the folder's name by default.")
@click.option(
    "--ignore-unknown", is_flag=True,
    help="Pass over config keys and tensors that this program does not know.",
)  # fmt: skip
@pass_options
def import_(options: Options, folder: Path, name: str | None, ignore_unknown: bool) -> None:
    """Check FOLDER in every part and keep a copy of it.

    FOLDER is in the published Paris layout (config.json, model_index.json, expert_0 .. expert_K-1,
    router) or was written by `models export`. Only safetensors are read, never a pickle or a link.
    """
    from node.home import prepare
    from node.models import import_folder

    config = options.settings()
    prepare(config.paths)
    with Progress("import", unit="steps", options=options) as progress:
        kept = import_folder(
            config.paths, folder, name, ignores_unknown=ignore_unknown, on_file=progress.update
        )
    if options.json:
        print_json(_model_json(kept))
        return
    click.echo(kept.name)
    if not options.quiet:
        print_fields(_fields(kept))


@models.command(
    "list",
    examples=(
        "paris-node models list",
        "paris-node models list -q",
        "paris-node models list --json",
    ),
)
@pass_options
def list_models(options: Options) -> None:
    """The imported models in this home."""
    from node.models import kept_models

    found = kept_models(options.settings().paths)
    if options.json:
        print_json({"schema": SCHEMA, "models": [_model_json(kept) for kept in found]})
        return
    if not found:
        click.echo("No model is imported yet: paris-node models import FOLDER")
        return
    rows = [
        (
            kept.name,
            kept.record.kind,
            str(kept.record.experts),
            _side(kept),
            size_text(kept.size_bytes),
        )
        for kept in found
    ]
    print_table(("NAME", "KIND", ">EXPERTS", ">LATENT", ">SIZE"), rows)


@models.command(
    "show",
    examples=(
        "paris-node models show paris",
        "paris-node models show paris -v",
        "paris-node models show paris --json | jq .files",
    ),
)
@click.argument("name")
@pass_options
def show(options: Options, name: str) -> None:
    """One imported model: where it comes from and what it needs."""
    from node.models import find_model

    kept = find_model(options.settings().paths, name)
    if options.json:
        print_json({**_model_json(kept), "files": kept.record.files})
        return
    fields = _fields(kept)
    if options.verbose:
        fields += [("files", "\n".join(f"{d[:16]}…  {n}" for n, d in kept.record.files.items()))]
    print_fields(fields)


@models.command(
    "remove",
    examples=(
        "paris-node models remove paris",
        "paris-node models remove paris -q",
        "paris-node models remove paris --json",
    ),
)
@click.argument("name")
@pass_options
def remove(options: Options, name: str) -> None:
    """Delete an imported model from this home."""
    from node.models import remove_model

    remove_model(options.settings().paths, name)
    if options.json:
        print_json({"schema": SCHEMA, "removed": name})
    elif not options.quiet:
        click.echo(f"removed   {name}")


@models.command(
    "draw",
    examples=(
        'paris-node models draw paris "a red boat at dawn" -o boat.png',
        'paris-node models draw paris "a fox" --routing full --steps 50 -n 4',
        'paris-node models draw fashion "an ankle boot" --json',
    ),
)
@click.argument("name")
@click.argument("prompt")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
    help="PNG to write; several become FILE-1, FILE-2...",
)  # fmt: skip
@click.option("-n", "n", type=click.IntRange(1, 1024), default=1, metavar="N", help="Pictures.")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, metavar="N",
    help="Same seed, same picture.",
)  # fmt: skip
@click.option(
    "--routing", type=click.Choice(["sticky", "top-1", "top-2", "full"]),
    help="Which experts are asked; top-2 for published models, sticky for exported ones.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(1, 1000), metavar="N", help="Denoising steps.")
@click.option("--guidance", type=click.FloatRange(0, 30), metavar="G", help="Weight of the prompt.")
@pass_options
def draw(options: Options, name: str, prompt: str, output: Path | None, **said: Any) -> None:  # noqa: ANN401
    """Draw PROMPT with the imported model NAME, on this machine, without a node."""
    from node.models import draw_with, find_model

    config = options.settings()
    kept = find_model(config.paths, name)
    paths = plan_pictures(output, prompt, said["n"])
    with Progress("denoise", unit="steps", options=options) as progress:
        drawn = draw_with(kept, prompt, said, config=config, on_step=progress.update)
    for path, png in zip(paths, drawn.pngs, strict=True):
        write_whole(path, png)
    if options.json:
        answer: Json = {"schema": SCHEMA, "files": [str(path) for path in paths], "model": name}
        answer |= {"seed": said["seed"], "routing": drawn.routing, "seconds": drawn.seconds}
        print_json({**answer, "experts": {str(k): share for k, share in drawn.shares.items()}})
        return
    for path in paths:
        click.echo(f"saved   {path}")
    if not options.quiet:
        shares = "  ".join(f"expert {k} ({share:.2f})" for k, share in drawn.shares.items())
        click.echo(f"drawn   {drawn.routing}   {shares}   {duration_text(drawn.seconds)}")


def _run_and_store(config: "Config", run_id: str | None) -> Any:  # noqa: ANN401
    """The run to export and the home's store; the built-in run is brought in if it is that."""
    from node.home import prepare
    from node.runs import builtin_run_id, install_builtin_run, run_meant
    from p2p.blobs import BlobStore
    from p2p.errors import StorageError

    prepare(config.paths)
    try:
        blobs = BlobStore.open(config.paths.blobs, quota_bytes=config.quota_bytes)
        chosen = run_meant(config, run_id)
        if chosen == builtin_run_id():
            install_builtin_run(blobs)
    except StorageError as error:
        raise NodeError(ErrorCode.RESOURCE, f"The store cannot be used: {error}.", "") from error
    return chosen, blobs


def _default_folder(run: Any, blobs: Any) -> str:  # noqa: ANN401
    from node.models import folder_name
    from node.runs import load_manifest
    from p2p.errors import P2PError

    try:
        return folder_name(load_manifest(run, blobs).name)
    except P2PError:
        return "model"  # the export itself says what is wrong


def _checked_cid(cid: str) -> str:
    from p2p.errors import DecodeError
    from p2p.ids import parse_blob_id

    try:
        return parse_blob_id(cid)
    except DecodeError as error:
        raise NodeError(
            ErrorCode.USAGE, f"{error}.", "see the CIDs with: paris-node experts find"
        ) from error


def _experts_text(record: "ExportRecord") -> str:
    return "\n".join(
        f"{expert.cluster}   {count_text(expert.info.samples)} samples"
        f"   {expert.info.objective}   {expert.cid}"
        for expert in record.experts
    )


def _export_json(target: Path, record: "ExportRecord") -> Json:
    experts = [
        {
            "cluster": expert.cluster,
            "cid": expert.cid,
            "owner": expert.owner,
            "samples": expert.info.samples,
            "objective": expert.info.objective,
        }
        for expert in record.experts
    ]
    return {
        "schema": SCHEMA,
        "folder": str(target),
        "run": record.run_id,
        "name": record.name,
        "experts": experts,
        "routers": list(record.routers),
        "license": record.license or None,
        "data_license": record.data_license or None,
        "files": record.files,
    }


def _model_json(kept: "KeptModel") -> Json:
    record = kept.record
    return {
        "schema": SCHEMA,
        "name": kept.name,
        "kind": record.kind,
        "title": record.name,
        "experts": record.experts,
        "latent": list(record.latent),
        "vae": record.vae,
        "text_encoder": record.text,
        "run": record.run_id or None,
        "license": record.license or None,
        "ignored": list(record.ignored),
        "bytes": kept.size_bytes,
        "folder": str(kept.folder),
    }


def _fields(kept: "KeptModel") -> list[tuple[str, str]]:
    record = kept.record
    fields = [
        ("title", record.name),
        ("kind", record.kind),
        ("experts", str(record.experts)),
        ("latents", _side(kept)),
        ("decoded by", record.vae),
        ("prompts by", record.text),
        ("license", record.license or "unknown"),
        ("size", size_text(kept.size_bytes)),
    ]
    if record.run_id:
        fields.insert(2, ("run", record.run_id))
    if record.ignored:
        fields.append(("ignored", "\n".join(record.ignored)))
    return [*fields, ("draw with it", f'paris-node models draw {kept.name} "..." -o picture.png')]


def _side(kept: "KeptModel") -> str:
    channels, height, width = kept.record.latent
    return f"{channels} x {height} x {width}"
