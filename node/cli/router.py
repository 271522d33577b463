"""Routers of one's own: train one from data or from the experts' pictures, list and show them."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from node.api import SCHEMA, Json
from node.cli.command import VerbGroup
from node.cli.options import Options, pass_options
from node.cli.output import count_text, print_fields, print_json, print_table
from node.cli.progress import Progress
from node.errors import ErrorCode, NodeError
from node.routers import KINDS, RouterPlace, trained_routers

if TYPE_CHECKING:
    from p2p.blobs import BlobStore
    from training.routers.calibration import Bucket
    from training.routers.gauss_calibration import GaussInfo
    from training.routers.learned_router import RouterInfo

    Info = RouterInfo | GaussInfo


@click.group(
    cls=VerbGroup,
    examples=(
        "paris-node router train",
        "paris-node router train --kind synthetic --pictures 4000",
        "paris-node router show learned",
    ),
)
def router() -> None:
    """Train routers of your own; list and show them.

    A router tells which expert a picture in the making belongs to. Without one the experts'
    published summaries tell ("gauss"). A trained one stays in this home: draw with it by
    `generate --router learned`.
    """


@router.command(
    examples=(
        "paris-node router train",
        "paris-node router train --data ./more-pictures --samples 128000",
        "paris-node router train --kind gauss",
    )
)
@click.option(
    "--kind", type=click.Choice(KINDS), default=KINDS[0], show_default=True,
    help="Learn from the run's data in this home, or from pictures that its experts draw; or "
    "measure how sure gauss may be.",
)  # fmt: skip
@click.option(
    "--samples", type=click.IntRange(128, 10**9), default=64_000, show_default=True, metavar="N",
    help="Noisy latents to train on.",
)  # fmt: skip
@click.option(
    "--pictures", type=click.IntRange(100, 10**6), default=8_000, show_default=True, metavar="N",
    help="How many the experts draw (synthetic).",
)  # fmt: skip
@click.option(
    "--data", multiple=True, metavar="DATA",
    help="Pictures to train on beside the run's own (learned); may be given again.",
)  # fmt: skip
@click.option("--preset", metavar="NAME", help="The size: tiny/1, tiny/2, S/2, B/2.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, metavar="N")
@click.option("--run", "run_id", metavar="RUN", help="The run; by default the one of this home.")
@pass_options
def train(options: Options, run_id: str | None, **choices: Any) -> None:  # noqa: ANN401
    """Train a router and measure how sure it may be.

    Needs no running node. Ctrl-C stops it; the same command goes on from there.
    """
    from node.router_job import RouterOrder, Watcher, train_here

    place, blobs = _place(options, run_id)
    config = options.settings()
    order = RouterOrder(**choices, threads=config.threads, device=config.device)
    with _guarded(), _Phases(options) as phases, _Interrupt() as interrupt:
        info = train_here(place, blobs, order, Watcher(phases.update, interrupt.is_set))
    folder = place.router(order.kind)
    if options.json:
        print_json({"schema": SCHEMA, **_as_json(info, folder)})
        return
    _print_router(info, folder, options)


@router.command(
    "list",
    examples=(
        "paris-node router list",
        "paris-node router list -v",
        "paris-node router list --json",
    ),
)
@click.option("--run", "run_id", metavar="RUN", help="The run; by default the one of this home.")
@pass_options
def list_routers(options: Options, run_id: str | None) -> None:
    """The trained routers of a run in this home."""
    place, _ = _place(options, run_id)
    folders = trained_routers(place.folder)
    with _guarded():
        found = [(_info(folder), folder) for folder in folders.values()]
    if options.json:
        print_json({"schema": SCHEMA, "routers": [_as_json(*item) for item in found]})
        return
    if not found:
        click.echo("No router is trained here; gauss needs no training. paris-node router train")
        return
    rows = [
        (
            info.kind,
            ",".join(map(str, info.clusters)),
            count_text(getattr(info, "samples", None)),
            _share(None if info.calibration is None else info.calibration.error_before),
            _share(None if info.calibration is None else info.calibration.error_after),
            str(folder),
        )
        for info, folder in found
    ]
    print_table(("KIND", "CLUSTERS", ">SAMPLES", ">ECE", ">TEMPERED"), rows, under=True)


@router.command(
    examples=(
        "paris-node router show",
        "paris-node router show synthetic",
        "paris-node router show --json | jq '.calibration[] | .accuracy'",
    )
)
@click.argument("kind", type=click.Choice(KINDS), default=KINDS[0])
@click.option("--run", "run_id", metavar="RUN", help="The run; by default the one of this home.")
@pass_options
def show(options: Options, kind: str, run_id: str | None) -> None:
    """One router: how often it is right at each time, and how sure it is."""
    place, _ = _place(options, run_id)
    folder = trained_routers(place.folder).get(kind)
    if folder is None:
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"No {kind} router of run {place.run} is trained in this home.",
            f"train one: paris-node router train --kind {kind}",
        )
    with _guarded():
        info = _info(folder)
    if options.json:
        print_json({"schema": SCHEMA, **_as_json(info, folder)})
        return
    _print_router(info, folder, options)


def _print_router(info: "Info", folder: Path, options: Options) -> None:
    fields = [("router", f"{info.kind}, of clusters {', '.join(map(str, info.clusters))}")]
    if info.kind == "gauss":
        fields.append(("fitted to", f"{count_text(sum(info.counts))} latents"))
    else:
        fields += _trained_fields(info)
    fields.append(("folder", str(folder)))
    print_fields(fields)
    if info.calibration is None:
        click.echo("Too few pictures were held out to say how sure it may be.")
        return
    if options.quiet:
        return
    click.echo("")
    print_table(
        (">t", ">RIGHT", ">SURE", ">ECE", ">TEMPERATURE", ">SURE", ">ECE", "SAYS"),
        [_row(bucket) for bucket in info.calibration.buckets],
    )
    click.echo("t: 0 is a picture, 1 is noise; held out pictures; the second pair is tempered.")


def _row(bucket: "Bucket") -> tuple[str, ...]:
    return (
        f"{bucket.low:.1f}-{bucket.high:.1f}",
        _share(bucket.accuracy),
        _share(bucket.before.confidence),
        _share(bucket.before.error),
        f"{bucket.temperature:.2f}",
        _share(bucket.after.confidence),
        _share(bucket.after.error),
        "over-confident" if bucket.is_overconfident else "",
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _trained_fields(info: Any) -> list[tuple[str, str]]:  # noqa: ANN401  a RouterInfo
    return [
        ("net", f"{count_text(info.shape.parameters())} parameters"),
        (
            "trained",
            f"{count_text(info.samples)} noisy latents of {count_text(sum(info.counts))} pictures"
            f"   seed {info.seed}",
        ),
    ]


def _as_json(info: "Info", folder: Path) -> Json:
    from dataclasses import asdict

    calibration = info.calibration
    buckets = () if calibration is None else calibration.buckets
    shape = getattr(info, "shape", None)
    return {
        "kind": info.kind,
        "clusters": list(info.clusters),
        "pictures": sum(info.counts),
        "samples": getattr(info, "samples", None),
        "parameters": shape and shape.parameters(),
        "seed": getattr(info, "seed", None),
        "source": getattr(info, "source", None),
        "folder": str(folder),
        "error_before": None if calibration is None else calibration.error_before,
        "error_after": None if calibration is None else calibration.error_after,
        "calibration": [
            {**asdict(bucket), "is_overconfident": bucket.is_overconfident} for bucket in buckets
        ],
    }


def _info(folder: Path) -> "Info":
    from training.routers.gauss_calibration import read_gauss_info
    from training.routers.learned_router import read_router_info

    return read_gauss_info(folder) if folder.name == "gauss" else read_router_info(folder)


def _place(options: Options, run_id: str | None) -> tuple[RouterPlace, "BlobStore"]:
    """The run meant, in this home.

    Raises:
        NodeError: if this home does not know it.
    """
    from node.cli.runs import known_runs_of, open_store
    from node.runs import run_meant

    config = options.settings()
    wanted = run_meant(config, run_id)
    manifest = dict(known_runs_of(options)).get(wanted)
    if manifest is None:
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"The run {wanted} is not kept in this home.",
            "see those that are: paris-node run list",
        )
    place = RouterPlace(config.paths, wanted, manifest, config.models_folder)
    return place, open_store(config)


@contextmanager
def _guarded() -> Iterator[None]:
    """What the training package finds wrong, as a person reads it.

    Raises:
        NodeError: `VERIFICATION_FAILED` for an altered file, else `FAILED` or `RESOURCE`.
    """
    from training.errors import (
        CheckpointError,
        ModelMissingError,
        TensorFileError,
        TrainingError,
    )

    try:
        yield
    except (CheckpointError, TensorFileError) as error:
        raise NodeError(
            ErrorCode.VERIFICATION_FAILED, f"{error}.", "train it anew: paris-node router train"
        ) from error
    except ModelMissingError as error:
        raise NodeError(
            ErrorCode.NOT_FOUND, f"{error}.", "paris-node router train --help"
        ) from error
    except TrainingError as error:
        raise NodeError(ErrorCode.FAILED, f"{error}.", "paris-node router train --help") from error
    except OSError as error:
        raise NodeError(
            ErrorCode.RESOURCE, f"The router cannot be stored: {error.strerror}.",
            "free some disk space",
        ) from error  # fmt: skip


class _Phases:
    """Drawing, then training: a bar each."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._phase = ""
        self._bars = ExitStack()
        self._progress: Progress | None = None

    def __enter__(self) -> "_Phases":
        return self

    def __exit__(self, *failure: object) -> None:
        self._bars.close()

    def update(self, phase: str, done: int, total: int) -> None:
        """Say how far a phase is."""
        if self._progress is None or phase != self._phase:
            self._bars.close()
            self._phase = phase
            self._progress = Progress(phase, unit="steps", options=self._options)
            self._bars.enter_context(self._progress)
        self._progress.update(done, total)


class _Interrupt:
    """Ctrl-C as a question that is asked between steps: a save is never cut in two."""

    def __init__(self) -> None:
        self._is_set = False
        self._previous: Any = None

    def __enter__(self) -> "_Interrupt":
        self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *failure: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        """Whether a person asked to stop."""
        return self._is_set
