"""`paris-node lora use`: which adapters every drawing here gets, whether or not a node runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from node.api import SCHEMA, Json
from node.cli.command import VerbCommand
from node.cli.options import Options, pass_options
from node.cli.output import print_json, print_table
from node.lora_shelf import SHORT_ID
from node.lora_use import MAX_LORA_SCALE

if TYPE_CHECKING:
    from node.home import Home
    from node.lora_use import InUse


@click.command(
    cls=VerbCommand,
    examples=(
        "paris-node lora use my-style-4zjq5m-r4 --scale 0.8",
        "paris-node lora use",
        "paris-node lora use --off my-style-4zjq5m-r4",
    ),
)
@click.argument("wanted", metavar="[NAME|ID|OFFER]", required=False)
@click.option(
    "--scale", type=click.FloatRange(-MAX_LORA_SCALE, MAX_LORA_SCALE), metavar="S",
    help="How strong it is; 1, as it was trained, unless said.",
)  # fmt: skip
@click.option("--off", is_flag=True, help="No longer use it; without a name: none at all.")
@pass_options
def use(options: Options, wanted: str | None, *, scale: float | None, off: bool) -> None:
    """Draw with a LoRA from now on; without a name, show those in use.

    Every drawing on this machine has them, each on the checkpoint it was made for, one for each
    expert. A peer that draws for you never gets them, nor do your drawings for peers.
    """
    from node.home import prepare
    from node.lora_use import in_use

    home = options.settings().paths
    if scale is not None and (off or wanted is None):
        raise click.UsageError("--scale goes with the LoRA that is to be used.")
    before: tuple[InUse, ...] = ()
    if off or wanted is not None:
        prepare(home)
        before = _put_away(home, wanted) if off else _put_on(home, str(wanted), scale)
    _tell(options, in_use(home), before)


def _put_on(home: "Home", wanted: str, scale: float | None) -> "tuple[InUse, ...]":
    """Use an adapter, checked in every part first; what had its place."""
    from node.lora_shelf import find_on_shelf
    from node.lora_use import use as put_to_use
    from node.loras import find_lora

    facts = find_on_shelf(home, wanted)
    find_lora(home, str(facts.folder))
    replaced = put_to_use(home, facts, 1.0 if scale is None else scale)
    return () if replaced is None else (replaced,)


def _put_away(home: "Home", wanted: str | None) -> "tuple[InUse, ...]":
    from node.lora_use import put_all_away, put_away

    if wanted is not None:
        return put_away(home, wanted)
    put_all_away(home)
    return ()


def _tell(options: Options, now: "Sequence[InUse]", before: "Sequence[InUse]") -> None:
    if options.json:
        rows = [_row(entry) for entry in now]
        print_json({"schema": SCHEMA, "in_use": rows, "put_away": [_row(each) for each in before]})
        return
    if not options.quiet:
        for each in before:
            click.echo(f"no longer used   {each.name}", err=True)
    if not now:
        click.echo("No LoRA is in use: paris-node lora use NAME")
        return
    print_table(
        ("NAME", "ID", ">CLUSTER", ">SCALE"),
        [(each.name, each.sha256[:SHORT_ID], str(each.cluster), f"{each.scale:g}") for each in now],
    )


def _row(entry: "InUse") -> Json:
    """{name, id, cluster, scale, offer}, the id whole, offer None for one's own."""
    return {
        "name": entry.name,
        "id": entry.sha256,
        "cluster": entry.cluster,
        "scale": entry.scale,
        "offer": entry.offer or None,
    }
