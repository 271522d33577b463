"""Runs: make one from data, list and show those kept here."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from node.api import SCHEMA, Json
from node.cli.command import VerbGroup
from node.cli.files import check_folder, write_whole
from node.cli.options import Options, pass_options
from node.cli.output import (
    count_text,
    duration_text,
    print_fields,
    print_json,
    print_table,
    size_text,
)
from node.errors import ErrorCode, NodeError

if TYPE_CHECKING:
    from node.cli.progress import Progress
    from node.config import Config
    from node.runs import CreatedRun
    from p2p.blobs import BlobStore
    from p2p.records import RunManifest
    from training.preparation.prepare import Progress as Prepared


@click.group(
    cls=VerbGroup,
    examples=(
        "paris-node run create ./pictures --clusters 8 --name boats",
        "paris-node run list",
        "paris-node run show bafkrei...",
    ),
)
def run() -> None:
    """Make a run from data; list and show runs."""


@run.command(
    examples=(
        "paris-node run create fashion",
        "paris-node run create ./pictures --clusters 8 --name boats",
        "paris-node run create boats.parquet --caption-column alt --json | jq -r .run",
    )
)
@click.argument("data")
@click.option(
    "--clusters", type=click.IntRange(1, 1024), default=4, show_default=True, metavar="K",
    help="Parts of the data, one expert each.",
)  # fmt: skip
@click.option("--name", metavar="NAME", help="What people call it; the data's name by default.")
@click.option("--split", metavar="NAME", help="Of data that has several: train, test...")
@click.option("--image-column", metavar="NAME", help="Of a table, if the name is an unusual one.")
@click.option("--caption-column", metavar="NAME", help="The same; in metadata.jsonl, the key.")
@click.option("--image-size", type=click.IntRange(16, 1024), metavar="N", help="Pixels a side.")
@click.option(
    "--colour/--grey", "is_colour", default=None,
    help="Unless said: grey if no picture of a sample has colour.",
)  # fmt: skip
@click.option("--codec", metavar="NAME", help="Pictures to latents: patch-pca, sd-vae-ft-mse.")
@click.option(
    "--extractor", metavar="NAME",
    help="What clusters go by: pixel-pca, efficientnet-lite0, dinov2-vitl14.",
)  # fmt: skip
@click.option("--text", metavar="NAME", help="Encodes captions: minilm-l6, clip-vit-l14.")
@click.option("--preset", metavar="NAME", help="The expert's size: fashion-tiny, tiny-cpu, S/2...")
@click.option(
    "--objectives", metavar="A[,B...]",
    help="What experts learn: fm or ddpm-eps; one for all, or one a cluster.",
)  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Samples a step.")
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Budget of one expert.")
@click.option(
    "--save-every", type=click.IntRange(min=1), metavar="N",
    help="Samples between two checkpoints.",
)  # fmt: skip
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), metavar="R")
@click.option("--seed", type=click.IntRange(min=0, max=2**31 - 1), default=0, metavar="N")
@click.option(
    "--lease", type=click.FloatRange(min=1, max=600), metavar="SECONDS",
    help="How long a claim lives unrenewed; 300 unless said, less for a trial.",
)  # fmt: skip
@click.option(
    "--dask", metavar="ADDRESS",
    help="Cluster on the workers of this Dask scheduler, which must see the home's files.",
)  # fmt: skip
@click.option("--fresh", is_flag=True, help="Forget what an interrupted command encoded.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Also write the answer there, as JSON.",
)  # fmt: skip
@pass_options
def create(options: Options, data: str, out: Path | None, **choices: Any) -> None:  # noqa: ANN401
    """Make a run from DATA, captioned pictures; the same command again goes on if interrupted.

    DATA is a folder of pictures (captions in metadata.jsonl, or told by the files' names), .parquet
    files, a data set saved by Hugging Face datasets, webdataset .tar files, a folder of
    Fashion-MNIST's files, or "fashion", the bundled set.

    Prints the run's id, which others join with `paris-node start --run ID`.
    """
    from node.home import HomeLock, prepare

    config = options.settings()
    if out is not None:
        check_folder(out.parent)
    prepare(config.paths)
    with HomeLock(config.paths):  # a running node's garbage collection would take what we store
        created = _create(config, data, choices, options)
    answer = _created_json(created)
    if out is not None:
        write_whole(out, json.dumps(answer, indent=2).encode() + b"\n")
    if options.json:
        print_json(answer)
        return
    click.echo(created.run)
    if not options.quiet:
        _print_created(created, choices)


def _print_created(created: "CreatedRun", choices: dict[str, Any]) -> None:
    sizes = ", ".join(f"{size:,}" for size in created.cluster_sizes)
    kind = "colour" if created.image_channels == 3 else "grey"
    seen = "" if choices["is_colour"] is not None else ", as a sample of them is"
    print_fields(
        [
            ("name", created.manifest.name),
            ("pictures", f"{created.image_size}x{created.image_size} pixels, {kind}{seen}"),
            ("clusters", f"{created.manifest.clusters}, of {sizes} pictures"),
            ("apart", _apart(created)),
            ("size", size_text(created.size_bytes)),
            ("skipped", "\n".join(map(str, created.skipped.groups[:5])) or "nothing"),
            ("start it", f"paris-node start --run {created.run}"),
        ]
    )


def _apart(created: "CreatedRun") -> str:
    """What the clusters are like, in words."""
    report = created.report
    parts = [
        f"the largest holds {report.largest_share:.0%}, the smallest {report.smallest_share:.0%}"
    ]
    if report.silhouette is not None:
        parts.append(f"silhouette {report.silhouette:.2f} (1 far apart, 0 touching)")
    if report.nmi is not None:
        parts.append(f"agree with the captions by {report.nmi:.2f} (mutual information, 1 is all)")
    return "\n".join(parts)


def _create(config: "Config", data: str, choices: dict[str, Any], options: Options) -> "CreatedRun":
    from node.founding import RunOptions, SourceChoice, create_run
    from p2p.errors import DecodeError, StorageError
    from p2p.records import ClaimPolicy

    try:
        policy = _policy(choices["lease"]) if choices["lease"] else ClaimPolicy()
        same = ("clusters", "name", "preset", "codec", "extractor", "text", "image_size",
                "is_colour", "batch", "learning_rate", "seed", "fresh", "dask")  # fmt: skip
        chosen = RunOptions(
            **{name: choices[name] for name in same},
            objectives=tuple((choices["objectives"] or "").replace(",", " ").split()),
            budget_samples=choices["samples"],
            save_samples=choices["save_every"],
            claim_policy=policy,
            models=config.models_folder,
            device=config.device,
            source=SourceChoice(
                choices["split"], choices["image_column"], choices["caption_column"]
            ),
        )
        with _Phases(options) as phases:
            return create_run(data, open_store(config), config.paths.data, chosen, phases.update)
    except DecodeError as error:
        raise NodeError(ErrorCode.USAGE, f"{error}.", "paris-node run create --help") from error
    except StorageError as error:
        raise NodeError(
            ErrorCode.RESOURCE,
            f"The run cannot be stored: {error}.",
            "free some disk space, then repeat the command: it goes on from here",
        ) from error


def _policy(lease_s: float) -> Any:  # noqa: ANN401
    from p2p.records import ClaimPolicy

    usual = ClaimPolicy()
    scale = lease_s / usual.lease_s
    return ClaimPolicy(
        lease_s=lease_s,
        renew_s=usual.renew_s * scale,
        settle_s=min(usual.settle_s, usual.renew_s * scale / 4),
        patience_renewals=round(usual.patience_renewals / scale),
    )


def open_store(config: "Config") -> "BlobStore":
    """The home's blob store."""
    from p2p.blobs import BlobStore

    return BlobStore.open(config.paths.blobs, quota_bytes=config.quota_bytes)


def _created_json(created: "CreatedRun") -> Json:
    return {
        **_run_json(created.run, created.manifest),
        "cluster_sizes": list(created.cluster_sizes),
        "bytes": created.size_bytes,
        "silhouette": created.report.silhouette,
        "caption_nmi": created.report.nmi,
        "image_size": created.image_size,
        "image_channels": created.image_channels,
        "skipped": [
            {"reason": group.reason, "count": group.count, "examples": list(group.examples)}
            for group in created.skipped.groups
        ],
    }


def _run_json(run_id: str, manifest: "RunManifest") -> Json:
    return {
        "schema": SCHEMA,
        "run": run_id,
        "name": manifest.name,
        "clusters": manifest.clusters,
        "preset": manifest.preset,
        "budget_samples": manifest.budget_samples,
        "save_samples": manifest.save_samples,
        "lease_s": manifest.claim_policy.lease_s,
    }


class _Phases:
    """The phases of making a run, a bar of pictures for each."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._phase = ""
        self._bar: Progress | None = None

    def __enter__(self) -> "_Phases":
        return self

    def __exit__(self, *failure: Any) -> None:  # noqa: ANN401
        if self._bar is not None:
            self._bar.__exit__(*failure)

    def update(self, progress: "Prepared") -> None:
        """Show how far it is; a new phase begins a new bar."""
        from node.cli.progress import Progress

        if self._bar is None or progress.phase != self._phase:
            self.__exit__(None, None, None)
            self._phase = progress.phase
            unit: Literal["steps", "pictures"] = "pictures"
            if self._phase in ("fit", "cluster"):
                unit = "steps"
            self._bar = Progress(self._phase, unit=unit, options=self._options)
        self._bar.update(progress.done, progress.total)


@run.command(
    "list",
    examples=("paris-node run list", "paris-node run list -v", "paris-node run list --json"),
)
@pass_options
def list_runs(options: Options) -> None:
    """The runs kept in this home; the built-in one is always there."""
    found = known_runs_of(options)
    if options.json:
        print_json({"schema": SCHEMA, "runs": [_run_json(*item) for item in found]})
        return
    rows = [
        (manifest.name, str(manifest.clusters), manifest.preset,
         count_text(manifest.budget_samples), run_id)
        for run_id, manifest in found
    ]  # fmt: skip
    print_table(("NAME", ">CLUSTERS", "PRESET", ">SAMPLES EACH"), rows, under=True)


@run.command(
    examples=(
        "paris-node run show",
        "paris-node run show bafkrei...",
        "paris-node run show --json | jq .clusters",
    )
)
@click.argument("run_id", metavar="[RUN]", required=False)
@pass_options
def show(options: Options, run_id: str | None) -> None:
    """One run; without RUN the one of this home."""
    from node.runs import run_meant

    wanted = run_meant(options.settings(), run_id)
    manifest = dict(known_runs_of(options)).get(wanted)
    if manifest is None:
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"The run {wanted} is not kept in this home.",
            "see those that are: paris-node run list",
        )
    if options.json:
        print_json(_run_json(wanted, manifest))
        return
    policy = manifest.claim_policy
    print_fields(
        [
            ("run", wanted),
            ("name", manifest.name),
            ("clusters", str(manifest.clusters)),
            ("preset", manifest.preset),
            (
                "budget",
                f"{count_text(manifest.budget_samples)} samples an expert"
                f"   a checkpoint every {count_text(manifest.save_samples)}",
            ),
            (
                "claims",
                f"lease {duration_text(policy.lease_s)}   renewed every"
                f" {duration_text(policy.renew_s)}",
            ),
        ]
    )


def known_runs_of(options: Options) -> list[tuple[str, "RunManifest"]]:
    """The runs kept in this home, the built-in one first."""
    from node.home import prepare
    from node.runs import known_runs

    config = options.settings()
    prepare(config.paths)
    found = dict(_shipped())
    found |= {str(run_id): manifest for run_id, manifest in known_runs(open_store(config))}
    return list(found.items())


def _shipped() -> list[tuple[str, "RunManifest"]]:
    """The built-in run, if this package has one."""
    from node.runs import BUILTIN_FOLDER, MANIFEST_FILE
    from p2p.codec import unpack
    from p2p.ids import blob_id
    from p2p.limits import CHUNK_SIZE
    from p2p.records import RunManifest

    path = BUILTIN_FOLDER / MANIFEST_FILE
    if not path.exists():
        return []
    packed = path.read_bytes()
    return [(blob_id(packed), unpack(RunManifest, packed, max_size=CHUNK_SIZE))]
