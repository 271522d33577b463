"""Adapters: train one on a published expert; the other verbs are put together here."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from node.api import SCHEMA
from node.cli.command import VerbGroup
from node.cli.experts import checked_cid, pull_checkpoint
from node.cli.files import check_folder
from node.cli.lora_judge import judge
from node.cli.lora_market import buy, verify
from node.cli.lora_offers import offer, withdraw
from node.cli.lora_shelf import held_out_text, list_loras, lora_json, show
from node.cli.lora_use import use
from node.cli.options import Options, pass_options
from node.cli.output import (
    duration_text,
    print_fields,
    print_json,
    short_id,
    size_text,
)
from node.cli.progress import Progress
from node.errors import ErrorCode, NodeError

if TYPE_CHECKING:
    from node.config import Config
    from node.loras import Base, Shelved
    from p2p.ids import BlobId
    from training.lora.settings import LoraSettings
    from training.lora.train import LoraJob, LoraStep
    from training.sources.data import SkipReport

REPORT_EVERY_S: Final = 0.2


@click.group(
    cls=VerbGroup,
    examples=(
        "paris-node lora train ./my-pictures --expert bafkrei...",
        "paris-node lora use my-pictures-4zjq5m-r4",
        "paris-node lora verify bafkrei...",
    ),
)
def lora() -> None:
    """Train an adapter, use it, offer it; look into others' and buy."""


@lora.command(
    examples=(
        "paris-node lora train ./my-pictures --expert bafkrei...",
        "paris-node lora train ./boots --expert bafkrei... --rank 8 --samples 20000",
        "paris-node lora train ./my-pictures --expert bafkrei... -o ./my-style --json",
    )
)
@click.argument("data")
@click.option("--expert", required=True, metavar="CID", help="The checkpoint it is made for.")
@click.option(
    "--rank", type=click.IntRange(1, 64), default=4, show_default=True, metavar="R",
    help="How much it can learn; its size grows with it.",
)  # fmt: skip
@click.option(
    "--alpha", type=click.FloatRange(min=0, min_open=True), metavar="A",
    help="Its strength is A / R; A is R unless said.",
)  # fmt: skip
@click.option(
    "--samples", type=click.IntRange(min=1), default=8_000, show_default=True, metavar="N",
    help="Pictures to see in all.",
)  # fmt: skip
@click.option(
    "--batch", type=click.IntRange(min=1, max=4096), default=32, show_default=True, metavar="N",
    help="Of them in a step.",
)  # fmt: skip
@click.option(
    "--lr", "learning_rate", type=click.FloatRange(min=0, min_open=True), default=4e-3,
    show_default=True, metavar="X", help="Peak of the learning rate.",
)  # fmt: skip
@click.option(
    "--modules", "targets", type=click.Choice(["attention", "attention+ff"]),
    default="attention+ff", show_default=True, help="Which layers it changes.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(min=0, max=2**31 - 1), default=0, show_default=True, metavar="N"
)
@click.option("--licence", metavar="TEXT", help="Recorded with it: CC0-1.0, CC-BY-4.0...")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Where it is to lie, instead of the home.",
)  # fmt: skip
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1... instead of the setting.")
@click.option("--restart", is_flag=True, help="Forget an interrupted training of this name.")
@pass_options
def train(
    options: Options,
    data: str,
    *,
    expert: str,
    output: Path | None,
    device: str | None,
    restart: bool,
    **choices: Any,  # noqa: ANN401
) -> None:
    """Train a LoRA on one expert with your captioned pictures in DATA.

    DATA is what `paris-node run create` takes: a folder of pictures with metadata.jsonl or telling
    file names, parquet, webdataset... Some pictures are held out, and the expert's own loss on
    them, without the LoRA and with it, is the result. Ctrl-C saves; the same command goes on.
    """
    from node.home import prepare
    from node.loras import default_folder, make_ready, training_errors

    config = options.load(device=device).config
    prepare(config.paths)
    cid = checked_cid(expert)
    folder = output or default_folder(config.paths, data, cid, choices["rank"])
    if output is not None:
        check_folder(folder.absolute().parent)
    base = _base(options, config, cid)
    settings = _settings(config, choices)
    with training_errors():
        job, skipped = make_ready(base, data, settings, folder, config.device)
    if restart:
        from training.lora.train import discard

        discard(job)
    _tell(options, *_train(options, job, skipped))


def _settings(config: "Config", choices: dict[str, Any]) -> "LoraSettings":
    from node.loras import training_errors
    from training.lora.settings import LoraSettings

    choices["licence"] = choices["licence"] or ""
    with training_errors():
        return LoraSettings(**choices, threads=config.threads)


def _base(options: Options, config: "Config", cid: "BlobId") -> "Base":
    """The checkpoint, pulled first if it is elsewhere and a node runs here."""
    from node.home import read_api_file
    from node.loras import find_base, has_checkpoint
    from p2p.blobs import BlobStore

    blobs = BlobStore.open(config.paths.blobs, quota_bytes=config.quota_bytes)
    if not has_checkpoint(blobs, cid) and read_api_file(config.paths) is not None:
        pull_checkpoint(options, cid)
    return replace(find_base(config.paths, blobs, cid), models=config.models_folder)


def _train(options: Options, job: "LoraJob", skipped: "SkipReport") -> "tuple[Shelved, float]":
    """Train with a bar; the adapter and the seconds it took.

    Raises:
        NodeError: `INTERRUPTED` once a first Ctrl-C was obeyed.
    """
    from node.loras import train_job, training_errors

    began = told = time.monotonic()
    with Progress("train", unit="steps", options=options) as progress, _first_signal() as stop:
        if not options.quiet:
            progress.note(_opening(job, skipped))

        def tell(step: "LoraStep") -> None:
            nonlocal told
            is_last = step.samples >= job.settings.samples
            if is_last or time.monotonic() - told >= REPORT_EVERY_S:
                told = time.monotonic()
                detail = f"loss {step.loss:.3f}  {step.samples_per_s:.0f} samples/s"
                progress.update(
                    min(step.samples, job.settings.samples), job.settings.samples, detail
                )

        with training_errors():
            done = train_job(job, stop.is_set, tell)
    if isinstance(done, int):
        raise NodeError(
            ErrorCode.INTERRUPTED,
            f"Stopped and saved at {done:,} of {job.settings.samples:,} samples.",
            "the same command goes on from there",
        )
    return done, time.monotonic() - began


def _opening(job: "LoraJob", skipped: "SkipReport") -> str:
    """What is trained on what, and which files were left out."""
    base = f"expert of cluster {job.base.info.cluster}, {short_id(job.cid)}"
    lines = [f"base    {base}   {len(job.rows):,} pictures"]
    lines += [f"skipped {group}" for group in skipped.groups]
    return "\n".join(lines)


@contextmanager
def _first_signal() -> Iterator[Event]:
    """An event set by the first Ctrl-C or SIGTERM; a second one ends the work where it is."""
    stop = Event()

    def obey(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, obey) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(options: Options, done: "Shelved", seconds: float) -> None:
    if options.json:
        print_json({"schema": SCHEMA, "lora": lora_json(done), "seconds": round(seconds, 1)})
        return
    click.echo(done.folder)
    if options.quiet:
        return
    held_out = done.info.held_out
    print_fields(
        [
            ("id", done.id),
            ("loss", held_out_text(done)),
            ("size", size_text(done.size_bytes)),
            ("took", duration_text(seconds)),
            ("see it", f"paris-node lora show {done.name}"),
        ]
    )
    if held_out.after >= held_out.before:
        click.echo(
            "It is no better than the expert alone on pictures held out: try more pictures, more"
            " --samples, or another --lr.",
            err=True,
        )


for command in (list_loras, show, offer, withdraw, verify, buy, judge, use):
    lora.add_command(command)
