"""Checkpoints by CID: find, show, pull."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from node.api import SCHEMA
from node.cli.command import VerbGroup
from node.cli.options import Options, pass_options
from node.cli.output import (
    count_text,
    duration_text,
    owner_text,
    print_fields,
    print_json,
    print_table,
    size_text,
)
from node.cli.progress import Progress
from node.errors import ErrorCode, NodeError

if TYPE_CHECKING:
    from p2p.ids import BlobId

Answer = Mapping[str, Any]


@click.group(
    cls=VerbGroup,
    examples=(
        "paris-node experts find",
        "paris-node experts find --cluster 3 --json",
        "paris-node experts pull bafkrei...",
    ),
)
def experts() -> None:
    """Find, show and pull checkpoints by CID."""


@experts.command(
    examples=(
        "paris-node experts find",
        "paris-node experts find --cluster 3",
        "paris-node experts find --json | jq -r '.experts[].cid'",
    )
)
@click.option("--cluster", type=click.IntRange(min=0, max=1023), metavar="K", help="Only this one.")
@pass_options
def find(options: Options, cluster: int | None) -> None:
    """Ask the DHT which experts can be had now."""
    query = "" if cluster is None else f"?cluster={cluster}"
    answer: Answer = options.client().get(f"/api/v1/experts{query}")
    if options.json:
        print_json(answer)
        return
    rows = [
        (
            str(expert.get("cluster")),
            owner_text(expert, whole=options.verbose),
            count_text(expert.get("epoch")),
            count_text(expert.get("step")),
            count_text(expert.get("samples")),
            size_text(expert.get("bytes")),
            count_text(expert.get("replicas")),
            f"{duration_text(expert.get('seen_s'))} ago",
            str(expert.get("cid")),
        )
        for expert in answer.get("experts") or []
    ]
    if not rows:
        click.echo(
            "No expert is published yet" + ("." if cluster is None else " for this cluster.")
        )
        return
    headers = (">CLUSTER", "OWNER", ">EPOCH", ">STEP", ">SAMPLES", ">SIZE", ">COPIES", ">SEEN")
    print_table(headers, rows, under=True)
    coverage = answer.get("coverage")
    if isinstance(coverage, (int, float)):
        click.echo(f"coverage {coverage:.0%} of {count_text(answer.get('clusters'))} clusters")


@experts.command(
    examples=(
        "paris-node experts show bafkrei...",
        "paris-node experts show bafkrei... -v",
        "paris-node experts show bafkrei... --json | jq .files",
    )
)
@click.argument("cid")
@pass_options
def show(options: Options, cid: str) -> None:
    """One checkpoint: where it comes from, its files, who has it."""
    answer: Answer = options.client().get(f"/api/v1/experts/{checked_cid(cid)}")
    if options.json:
        print_json(answer)
        return
    loss = answer.get("loss")
    files = [
        f"{entry.get('name', '?')}   {size_text(entry.get('bytes'))}"
        if isinstance(entry, Mapping)
        else str(entry)
        for entry in answer.get("files") or []
    ]
    print_fields(
        [
            ("cid", str(answer.get("cid"))),
            ("run", str(answer.get("run"))),
            ("cluster", str(answer.get("cluster"))),
            ("owner", f"{answer.get('owner')}   epoch {answer.get('epoch')}"),
            (
                "trained",
                f"{count_text(answer.get('step'))} steps"
                f"   {count_text(answer.get('samples'))} samples"
                + (f"   loss {loss:.4f}" if isinstance(loss, (int, float)) else ""),
            ),
            ("parent", str(answer.get("parent") or "none: the first of its cluster")),
            ("size", size_text(answer.get("bytes"))),
            ("files", "\n".join(files) or "-"),
            ("here", "yes" if answer.get("local") else "no: paris-node experts pull CID"),
            ("providers", "\n".join(map(str, answer.get("providers") or ["nobody"]))),
        ]
    )


@experts.command(
    examples=(
        "paris-node experts pull bafkrei...",
        "paris-node experts pull bafkrei... --timeout 60",
        "paris-node experts pull bafkrei... --json | jq -r .path",
    )
)
@click.argument("cid")
@pass_options
def pull(options: Options, cid: str) -> None:
    """Fetch a checkpoint from everyone who has it, each chunk verified."""
    done = pull_checkpoint(options, checked_cid(cid))
    if options.json:
        print_json({"schema": SCHEMA, **{k: v for k, v in done.items() if k != "event"}})
        return
    click.echo(
        f"pulled {size_text(done.get('bytes'))} in {duration_text(done.get('seconds'))}"
        f"   {done.get('path')}"
    )


def pull_checkpoint(options: Options, cid: str) -> Answer:
    """Have the running node fetch a checkpoint, with a bar; its last word on it.

    Raises:
        NodeError: `NOT_RUNNING`, or that it can't be had, with the reason.
    """
    done: Answer | None = None
    with (
        options.client().stream(f"/api/v1/experts/{cid}/pull") as events,
        Progress("pull", unit="bytes", options=options) as progress,
    ):
        for event in events:
            if event.get("event") == "progress":
                progress.update(event.get("bytes"), event.get("total"), event.get("sources"))
            elif event.get("event") == "done":
                done = event
    if done is None:
        raise NodeError(
            ErrorCode.FAILED, "The node ended the pull without a word.", "paris-node logs"
        )
    return done


def checked_cid(cid: str) -> "BlobId":
    """A checkpoint's CID as a person typed it.

    Raises:
        NodeError: `USAGE` if it is none.
    """
    from p2p.errors import DecodeError
    from p2p.ids import parse_blob_id

    try:
        return parse_blob_id(cid)
    except DecodeError as error:
        raise NodeError(
            ErrorCode.USAGE, f"{error}.", "see the CIDs with: paris-node experts find"
        ) from error
