"""One's own offers of LoRAs: made, after saying what they tell the world, and withdrawn."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from node.api import SCHEMA
from node.cli.command import VerbCommand
from node.cli.offer_calls import OFFERS, checked_offer, last_event, without_kind
from node.cli.offer_text import change_text, loss_text
from node.cli.options import Options, pass_options
from node.cli.output import can_ask, count_text, print_fields, print_json
from node.errors import ErrorCode, NodeError
from p2p.limits import (
    MAX_DELTA_ROWS,
    MAX_OFFER_LIFETIME_S,
    MAX_SCALARS_PER_MODULE,
    OFFER_PROOF_SCALARS,
)

if TYPE_CHECKING:
    from node.home import Home
    from node.offer_preview import Preview

_LEAST_DAYS: Final = 0.01


@click.command(
    cls=VerbCommand,
    examples=(
        'paris-node lora offer boots-r4 --terms "Draw with it; do not pass it on."',
        'paris-node lora offer boots-r4 --terms "Paid 3 May." --to 12D3KooW... --yes',
        "paris-node lora offer boots-r4 --terms CC-BY-4.0 --json | jq -r .offer",
    ),
)
@click.argument("name", metavar="NAME|ID")
@click.option("--terms", required=True, metavar="TEXT", help="What a buyer signs, on one line.")
@click.option(
    "--days", type=click.FloatRange(_LEAST_DAYS, MAX_OFFER_LIFETIME_S / 86_400), default=30.0,
    show_default=True, metavar="N", help="How long it stands.",
)  # fmt: skip
@click.option(
    "--scalars", type=click.IntRange(OFFER_PROOF_SCALARS, MAX_SCALARS_PER_MODULE),
    default=MAX_SCALARS_PER_MODULE, show_default=True, metavar="N",
    help="Numbers of each layer that may be told in all, whoever asks.",
)  # fmt: skip
@click.option(
    "--allow-deltas", "delta_rows", type=click.IntRange(0, MAX_DELTA_ROWS), default=0,
    metavar="ROWS", help="Also answer for so many rows of activations: tells far more.",
)  # fmt: skip
@click.option("--to", "buyers", multiple=True, metavar="PEER", help="Deliver to these peers alone.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@pass_options
def offer(options: Options, name: str, *, yes: bool, **wish: Any) -> None:  # noqa: ANN401
    """Offer a LoRA of this home, with a proof that you know it.

    Whoever signs the terms gets it, unless --to names who may. Needs a running node, which measures
    it, makes a proof for each layer, advertises it, and answers for it while it runs. What is told
    of a LoRA can never be taken back.
    """
    options.client()
    if not yes and not options.json and can_ask():
        _ask(options.settings().paths, name, wish)
    request = {"lora": name, **wish, "buyers": list(wish["buyers"])}
    done = last_event(options, OFFERS, request)
    if options.json:
        print_json({"schema": SCHEMA, **without_kind(done)})
        return
    click.echo(done.get("offer"))
    if options.quiet:
        return
    print_fields(
        [
            ("base", f"expert of cluster {done.get('cluster')}, {done.get('base')}"),
            ("proved", f"{count_text(done.get('layers'))} layers"),
            (
                "claimed",
                f"loss {change_text(done.get('base_loss'), done.get('adapted_loss'))} as it is "
                f"delivered; {loss_text(done.get('float_loss'))} as it was trained",
            ),
            ("see it", f"paris-node lora show {done.get('offer')}"),
            ("stop it", f"paris-node lora withdraw {done.get('offer')}"),
        ]
    )


def _ask(home: "Home", name: str, wish: Mapping[str, Any]) -> None:
    """Say what the world will learn, and ask.

    Raises:
        NodeError: `INTERRUPTED` if the answer is no.
    """
    from node.offer_preview import preview

    scalars, rows = wish["scalars"], wish["delta_rows"]
    told = preview(home, name, now=OFFER_PROOF_SCALARS, scalars=scalars, rows=rows)
    for line in _what_is_told(told, wish):
        click.echo(line, err=True)
    if not click.confirm("Offer it?", err=True):
        raise NodeError(ErrorCode.INTERRUPTED, "Nothing was offered, nothing was told.")


def _what_is_told(told: "Preview", wish: Mapping[str, Any]) -> Iterator[str]:
    scalars, rows = wish["scalars"], wish["delta_rows"]
    yield f"Offering {told.name} tells everybody, for good:"
    yield (
        f"  now     {OFFER_PROOF_SCALARS} numbers of each of its {told.layers} layers: "
        f"{told.now:.2g} % of its freedom"
    )
    yield (
        f"  later   up to {scalars} numbers a layer in all, whoever asks: {told.later:.2g} % of "
        "its freedom"
    )
    if rows:
        yield (
            f"          and, as you allow deltas, {rows:,} rows a layer: {told.with_rows:.3g} % in "
            "all"
        )
    yield "  with it its name, terms and loss, and the pictures held out from its training,"
    yield "          encoded, with their captions: others measure on them"
    if wish["buyers"]:
        yield "Delivery is automatic: these peers get the LoRA itself once they sign the terms:"
        yield from (f"  {peer}" for peer in wish["buyers"])
    else:
        yield "Delivery is automatic: whoever signs the terms gets the LoRA itself, at once."
    yield "No payment is built in: be paid first, and name who paid with --to."


@click.command(
    cls=VerbCommand,
    examples=(
        "paris-node lora withdraw bafkrei...",
        "paris-node lora withdraw bafkrei... -q",
        "paris-node lora withdraw bafkrei... --json",
    ),
)
@click.argument("offer_cid", metavar="OFFER")
@pass_options
def withdraw(options: Options, offer_cid: str) -> None:
    """Stop an offer of this node for good.

    It is no longer advertised, answered for or delivered. What it told stays told.
    """
    answer = options.client().post(f"{OFFERS}/{checked_offer(offer_cid)}/withdraw")
    if options.json:
        print_json(answer)
    elif not options.quiet:
        click.echo(f"withdrawn   {answer.get('offer')}")
        click.echo("What it told stays told, and who has the LoRA keeps it.")
