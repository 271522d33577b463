"""Draw: ask the running node, show its progress, leave pictures and receipts."""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from node.api import SCHEMA, Json
from node.cli.command import VerbCommand
from node.cli.files import plan_pictures, write_whole
from node.cli.lora_wishes import idle_lines, lora_lines, wished_loras
from node.cli.options import Options, pass_options
from node.cli.output import duration_text, print_json, short_id
from node.cli.progress import Progress
from node.errors import ErrorCode, NodeError
from p2p.limits import MAX_AUTOGUIDANCE, MAX_CLUSTERS
from p2p.routing import ROUTERS, SAMPLERS, STRATEGIES

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@click.command(
    cls=VerbCommand,
    examples=(
        'paris-node generate "a red boat at dawn" -o boat.png',
        'paris-node generate "a bag" -n 4 --seed 7 --strategy top2 --explain',
        'paris-node generate "a bag" --lora my-style:0.8',
    ),
)
@click.argument("prompt")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="PNG to write; several become FILE-1, FILE-2...",
)
@click.option("-n", "n", type=click.IntRange(1, 1024), default=1, metavar="N", help="Pictures.")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="Same seed, same picture."
)
@click.option(
    "--strategy",
    "--routing",
    type=click.Choice(STRATEGIES),
    help="Which experts are asked.  [default: sticky]",
)
@click.option(
    "--top-k",
    type=click.IntRange(1, MAX_CLUSTERS),
    metavar="K",
    help="Ask the K likeliest experts (implies --strategy topk).",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Ask experts at least this likely (implies --strategy threshold).",
)
@click.option(
    "--router",
    type=click.Choice(ROUTERS),
    help="What tells which experts fit.  [default: gauss if it is here; sticky: caption]",
)
@click.option(
    "--sampler",
    type=click.Choice(SAMPLERS),
    default="ab2",
    show_default=True,
    help="How a step is made.",
)
@click.option("--steps", type=click.IntRange(1, 100), metavar="N", help="Evaluations a picture.")
@click.option("--guidance", type=click.FloatRange(0, 30), metavar="G", help="Weight of the prompt.")
@click.option(
    "--autoguidance",
    type=click.FloatRange(0, MAX_AUTOGUIDANCE),
    metavar="W",
    help="Push experts away from their earlier selves: try 0.5 to 2; up to 1.7 x the time.  "
    "[default: 0]",
)
@click.option(
    "--where",
    type=click.Choice(["auto", "local", "peer"]),
    default="auto",
    show_default=True,
    help="Who draws; a peer sees the prompt.",
)
@click.option("--peer", metavar="ID", help="The peer that draws (implies --where peer).")
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="ID[:SCALE]",
    help="Draw with a LoRA kept here, instead of those in use; one for each expert.",
)
@click.option("--no-lora", is_flag=True, help="Draw without those in use (see: lora use).")
@click.option("--explain", is_flag=True, help="Say which experts drew, and with what weight.")
@pass_options
def generate(
    options: Options,
    *,
    output: Path | None,
    explain: bool,
    loras: tuple[str, ...],
    no_lora: bool,
    **request: Any,  # noqa: ANN401
) -> None:
    """Draw pictures for PROMPT with the experts of the run."""
    if request["peer"] is not None and request["where"] == "auto":
        request["where"] = "peer"
    request["loras"] = wished_loras(loras, no_lora=no_lora, where=request["where"])
    paths = plan_pictures(output, request["prompt"], request["n"])
    client = options.client()
    me = client.get("/api/v1/status").get("peer_id") if explain else None
    album = _Album(paths, options=options, explains_to=me)
    with client.stream("/api/v1/generate", request) as events:
        done = album.collect(events)
    if options.json:
        print_json(album.to_json(done))
        return
    for path in album.saved:
        receipt = _receipt_path(path)
        is_kept = receipt in album.receipts
        click.echo(f"saved   {path}" + (f"   receipt {receipt}" if is_kept else ""))
    if explain:
        click.echo(f"drew    {_experts_text(done, album.me)}   by {done.get('strategy')}")
    if not options.quiet:
        for line in idle_lines(done):
            click.echo(line, err=True)
        seconds = duration_text(done.get("seconds"))
        click.echo(f"drawn   {done.get('where')}   seed {done.get('seed')}   {seconds}")


class _Album:
    """The pictures of one request, written as they come.

    Attributes:
        me: this node's id, if it is to be explained who draws.
        saved: pictures on disk, in order.
        receipts: their receipts, for those that have one.
    """

    def __init__(self, paths: list[Path], *, options: Options, explains_to: object) -> None:
        self._paths = paths
        self._options = options
        self.me = explains_to
        self.saved: list[Path] = []
        self.receipts: list[Path] = []

    def collect(self, events: Iterator[Json]) -> Mapping[str, Any]:
        """Handle every event.

        Returns:
            The last one.

        Raises:
            NodeError: if the node ends without one, or sends what is no picture.
        """
        done: Json | None = None
        with Progress("denoise", unit="steps", options=self._options) as progress:
            for event in events:
                match event.get("event"):
                    case "route" if self.me is not None and not self._options.json:
                        for line in _route_lines(event, self.me):
                            progress.note(line)
                    case "progress":
                        progress.update(event.get("step"), event.get("steps"))
                    case "image":
                        self._save(event)
                    case "done":
                        done = event
        if done is None or len(self.saved) != len(self._paths):
            raise NodeError(
                ErrorCode.FAILED,
                f"The node ended after {len(self.saved)} of {len(self._paths)} pictures.",
                "see why: paris-node logs",
            )
        return done

    def to_json(self, done: Mapping[str, Any]) -> Json:
        """The answer of --json: {schema, files, seed, strategy, sampler, where, experts, seconds}.

        Each expert is {cluster, cid, peer, weight}; `receipts` and `loras` come on top.
        """
        answer: Json = {"schema": SCHEMA, "files": [str(path) for path in self.saved]}
        answer["receipts"] = [str(path) for path in self.receipts]
        for key in ("seed", "strategy", "sampler", "where", "seconds"):
            answer[key] = done.get(key)
        answer["experts"] = [
            {key: expert.get(key) for key in ("cluster", "cid", "peer", "weight")}
            for expert in done.get("experts") or []
        ]
        answer["loras"] = done.get("loras") or []
        return answer

    def _save(self, event: Mapping[str, Any]) -> None:
        path = self._paths[_index(event, len(self._paths))]
        write_whole(path, _png(event))
        self.saved.append(path)
        if event.get("receipt"):
            receipt = _receipt_path(path)
            write_whole(receipt, json.dumps(event["receipt"], indent=2).encode() + b"\n")
            self.receipts.append(receipt)


def _receipt_path(picture: Path) -> Path:
    return picture.with_name(f"{picture.name}.json")


def _index(event: Mapping[str, Any], count: int) -> int:
    index = event.get("index")
    if type(index) is not int or not 0 <= index < count:
        raise _no_picture(f"picture number {index!r:.20} of {count}")
    return index


def _png(event: Mapping[str, Any]) -> bytes:
    try:
        data = base64.b64decode(event["png_base64"], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise _no_picture("no base64") from error
    if not data.startswith(_PNG_SIGNATURE):
        raise _no_picture("no PNG")
    return data


def _no_picture(what: str) -> NodeError:
    return NodeError(
        ErrorCode.VERIFICATION_FAILED,
        f"What came is not the picture asked for: {what}.",
        "try again, or elsewhere: --where local",
    )


def _route_lines(event: Mapping[str, Any], me: object) -> Iterator[str]:
    """Who will draw, what is missing, and who stands in near pure noise."""
    dropped = event.get("dropped") or {}
    missing = [
        f"expert {cluster} offline" + _lost_share(dropped.get(str(cluster)))
        for cluster in event.get("missing") or []
    ]
    yield f"route   {_experts_text(event, me)}"
    yield from lora_lines(event)
    if missing:
        yield f"        renormalised: {', '.join(missing)}"
    if starters := event.get("starters"):
        named = "  ".join(f"expert {cluster} ({share:.2f})" for cluster, share in starters.items())
        yield f"        near noise   {named}"
    for cluster in event.get("unaided") or []:
        yield f"        expert {cluster} predicts noise and no other can start for it"
    if unguided := event.get("unguided"):
        yield f"        no earlier self   {', '.join(f'expert {cluster}' for cluster in unguided)}"


def _lost_share(share: object) -> str:
    return f" (-{share:.2f})" if isinstance(share, (int, float)) else ""


def _experts_text(event: Mapping[str, Any], me: object) -> str:
    parts = []
    for expert in event.get("experts") or []:
        weight, peer = expert.get("weight"), expert.get("peer")
        if weight == 0:
            continue
        share = f"{weight:.2f}" if isinstance(weight, (int, float)) else "?"
        where = "local" if peer in (None, me) else short_id(peer)
        parts.append(f"expert {expert.get('cluster')} ({share}, {where})")
    return "  ".join(parts)
