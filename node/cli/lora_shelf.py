"""Adapters kept in the home, and offers that a running node knows: `lora list` and `lora show`."""

from typing import TYPE_CHECKING

import click

from node.api import SCHEMA, Json
from node.cli.command import VerbCommand
from node.cli.offer_calls import OFFERS, offers_known
from node.cli.offer_text import print_offer, print_offers
from node.cli.options import Options, pass_options
from node.cli.output import count_text, print_fields, print_json, print_table, short_id, size_text
from node.errors import ErrorCode, NodeError

if TYPE_CHECKING:
    from node.loras import Shelved


@click.command(
    "list",
    cls=VerbCommand,
    examples=("paris-node lora list", "paris-node lora list -q", "paris-node lora list --json"),
)
@pass_options
def list_loras(options: Options) -> None:
    """The LoRAs kept in this home, and the offers a running node knows.

    Of an offer it is told how far the node looked into it: claimed (its owner says so), proved
    (somebody knows such weights), measured (bought, and does what it claims), or refused.
    """
    from node.loras import Shelved, shelved

    known = offers_known(options)
    found = list(shelved(options.settings().paths))
    good = [item for item in found if isinstance(item, Shelved)]
    broken = [item for item in found if not isinstance(item, Shelved)]
    if options.json:
        print_json(
            {
                "schema": SCHEMA,
                "loras": [lora_json(item) for item in good],
                "broken": [{"path": str(path), "why": why} for path, why in broken],
                **({} if known is None else {key: known.get(key) for key in ("offers", "own")}),
            }
        )
        return
    rows = [
        (
            item.name,
            item.id,
            str(item.info.base.cluster),
            str(item.info.rank),
            f"{item.info.held_out.before:.3f} -> {item.info.held_out.after:.3f}",
            size_text(item.size_bytes),
        )
        for item in good
    ]
    if rows:
        print_table(("NAME", "ID", ">CLUSTER", ">RANK", ">LOSS", ">SIZE"), rows)
    else:
        click.echo("No LoRA is kept here yet: paris-node lora train DATA --expert CID")
    for path, why in broken:
        click.echo(f"broken  {path}: {why}", err=True)
    if known is not None:
        print_offers(options, known)


@click.command(
    cls=VerbCommand,
    examples=(
        "paris-node lora show my-pictures-4zjq5m-r4",
        "paris-node lora show ./my-style",
        "paris-node lora show bafkrei... --json | jq -r .statement",
    ),
)
@click.argument("wanted", metavar="FOLDER|NAME|ID|OFFER")
@pass_options
def show(options: Options, wanted: str) -> None:
    """One LoRA, checked in every part; or one offer: what is proved.

    An offer is what the running node knows of; without one, the LoRA bought by it, if it is here.
    """
    known = _offer_named(options, wanted)
    if known is not None:
        if options.json:
            print_json(known)
        else:
            print_offer(known)
        return
    from node.loras import find_lora

    found = find_lora(options.settings().paths, wanted)
    if options.json:
        print_json({"schema": SCHEMA, "lora": lora_json(found)})
        return
    info = found.info
    base = info.base
    print_fields(
        [
            ("name", found.name),
            ("id", info.sha256 if options.verbose else found.id),
            ("folder", str(found.folder)),
            (
                "base",
                f"expert of cluster {base.cluster}, {base.preset}, {base.objective}\n"
                f"{base.cid or 'never published'}\n"
                f"weights {short_id(base.model_digest, whole=options.verbose)}",
            ),
            ("changes", f"{len(info.modules)} layers ({info.targets})"),
            ("rank", f"{info.rank}   alpha {info.alpha:g}   {info.parameters:,} numbers"),
            (
                "trained",
                f"{count_text(info.samples)} samples of {count_text(info.rows)} pictures"
                f"   seed {info.seed}",
            ),
            ("loss", held_out_text(found)),
            ("data", short_id(info.data, whole=options.verbose)),
            ("licence", info.licence or "not said"),
            ("size", size_text(found.size_bytes)),
            ("checked", "every file against its digest, every number against its bounds"),
        ]
    )


def _offer_named(options: Options, wanted: str) -> Json | None:
    """The offer that a CID names; None if it is no CID, or a LoRA here was bought by it.

    Raises:
        NodeError: `NOT_RUNNING`, `NOT_FOUND`, or what else the node says.
    """
    from node.lora_shelf import find_on_shelf
    from p2p.errors import DecodeError
    from p2p.ids import parse_blob_id

    try:
        offer_id = parse_blob_id(wanted)
    except DecodeError:
        return None
    try:
        return options.client().get(f"{OFFERS}/{offer_id}")
    except NodeError as error:
        if error.code not in (ErrorCode.NOT_RUNNING, ErrorCode.NOT_FOUND):
            raise
        try:
            find_on_shelf(options.settings().paths, offer_id)
        except NodeError:
            raise error from None
    return None


def held_out_text(found: "Shelved") -> str:
    """What an adapter does on pictures held out."""
    held_out = found.info.held_out
    change = held_out.after / held_out.before - 1 if held_out.before else 0.0
    pictures = "1 picture" if held_out.rows == 1 else f"{held_out.rows} pictures"
    return f"{held_out.before:.4f} -> {held_out.after:.4f} ({change:+.0%}) on {pictures} held out"


def lora_json(found: "Shelved") -> Json:
    """{id, name, path, bytes, parameters, and the facts of lora.json}."""
    from training.jsonio import to_json

    return {
        "id": found.id,
        "name": found.name,
        "path": str(found.folder),
        "bytes": found.size_bytes,
        "parameters": found.info.parameters,
        **to_json(found.info),
    }
