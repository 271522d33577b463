"""Others' offers of LoRAs: looked into without having them, and bought."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import click

from node.api import SCHEMA
from node.cli.command import VerbCommand
from node.cli.experts import checked_cid
from node.cli.offer_calls import OFFERS, checked_offer, last_event, without_kind
from node.cli.offer_text import change_text, loss_text, owner_line, percent_text, wrapped
from node.cli.options import Options, pass_options
from node.cli.output import can_ask, count_text, print_fields, print_json
from node.errors import ErrorCode, NodeError
from p2p.limits import MAX_PROBE_PAIRS

Answer = Mapping[str, Any]

DELTA_TIMEOUT_S: Final = 4000.0
"""The node gives delta mode an hour, and says nothing meanwhile."""
_MOST_DRAWS: Final = 64


@click.command(
    cls=VerbCommand,
    examples=(
        "paris-node lora verify bafkrei...",
        "paris-node lora verify bafkrei... --data ./my-pictures --pairs 4",
        "paris-node lora verify bafkrei... --json | jq .predicted",
    ),
)
@click.argument("offer_cid", metavar="OFFER")
@click.option(
    "--pairs", type=click.IntRange(1, MAX_PROBE_PAIRS), default=1, show_default=True, metavar="N",
    help="Directions to ask each layer about; with its size, N + 1 numbers that do not come back.",
)  # fmt: skip
@click.option("--base", metavar="CID", help="Refuse an offer for any other checkpoint.")
@click.option(
    "--data", metavar="DATA",
    help="Your own captioned pictures, as `lora train` takes them, instead of the owner's probe.",
)  # fmt: skip
@click.option(
    "--deltas", "draws", type=click.IntRange(1, _MOST_DRAWS), metavar="DRAWS",
    help="Also measure so many draws by rows of the LoRA, if the owner allows it.",
)  # fmt: skip
@pass_options
def verify(
    options: Options,
    offer_cid: str,
    *,
    pairs: int,
    base: str | None,
    data: str | None,
    draws: int | None,
) -> None:
    """Look into an offer without having the LoRA.

    Checks its proofs and its size, and predicts what it would do to the loss. The owner learns in
    which directions your probe would change each layer, no picture. Each answer is a number with a
    proof that it is of the very LoRA that is offered.
    """
    offer = checked_offer(offer_cid)
    request: dict[str, object] = {"pairs": pairs, "delta_draws": draws or 0}
    request["base"] = None if base is None else checked_cid(base)
    if draws and not options.quiet:
        click.echo(
            "With --deltas the activations of your probe go to the owner, layer by layer, and rows "
            "of the LoRA come back.",
            err=True,
        )
    with _probe(options, offer, data) as folder:
        request["probe"] = folder
        silence_s = {"silence_s": DELTA_TIMEOUT_S} if draws else {}
        done = last_event(options, f"{OFFERS}/{offer}/verify", request, **silence_s)
    if options.json:
        print_json({"schema": SCHEMA, **without_kind(done)})
        return
    print_fields(list(_verified(done, is_own=data is not None)))


@contextmanager
def _probe(options: Options, offer: str, data: str | None) -> Iterator[str | None]:
    """The folder of a probe of one's own pictures; None for the offer's."""
    if data is None:
        yield None
        return
    from node.own_probe import own_probe
    from node.runs import parse_run_id

    known = options.client().get(f"{OFFERS}/{offer}")
    with own_probe(options.settings(), parse_run_id(str(known.get("run"))), data) as probe:
        if not options.quiet:
            click.echo(f"probe   {probe.pictures} of {probe.found:,} pictures", err=True)
        yield str(probe.folder)


def _verified(done: Answer, *, is_own: bool) -> Iterator[tuple[str, str]]:
    whose = "your" if is_own else "the owner's"
    yield (
        "proved",
        f"weights of rank <= {done.get('rank')} for {count_text(done.get('layers'))} layers of\n"
        f"{done.get('base')}",
    )
    yield (
        "predicted",
        f"{_signed(done.get('predicted'))} on the loss of {whose} probe, which is "
        f"{loss_text(done.get('base_loss'))} without it",
    )
    yield "captured", f"{_share(done.get('captured'))} of the loss's gradient in these layers"
    yield "size", f"{_share(done.get('ratio'))} of the norm of the layers it changes"
    claimed = change_text(done.get("claimed_base"), done.get("claimed_loss"))
    yield "claimed", f"loss {claimed} on the owner's probe   *claimed*"
    if "delta_loss" in done:
        found = change_text(done.get("delta_base"), done.get("delta_loss"))
        yield (
            "deltas",
            f"loss {found} by {done.get('delta_rows')} proved rows a layer\n"
            f"{percent_text(done.get('delta_leak_percent'))} of its freedom are told by rows; "
            f"{count_text(done.get('rows_left'))} rows a layer are left",
        )
    yield (
        "told",
        f"{percent_text(done.get('leak_percent'))} of its freedom so far, to all who asked; "
        f"{done.get('scalars_left')} numbers a layer are left",
    )
    yield "buy it", f"paris-node lora buy {done.get('offer')}"


@click.command(
    cls=VerbCommand,
    examples=(
        "paris-node lora buy bafkrei...",
        "paris-node lora buy bafkrei... --base bafkrei... --yes",
        "paris-node lora buy bafkrei... --yes --json | jq -r .name",
    ),
)
@click.argument("offer_cid", metavar="OFFER")
@click.option("--base", metavar="CID", help="Refuse an offer for any other checkpoint.")
@click.option("--yes", is_flag=True, help="Sign the terms without being asked.")
@pass_options
def buy(options: Options, offer_cid: str, *, base: str | None, yes: bool) -> None:
    """Sign an offer's terms and take the LoRA.

    What is delivered must be what was committed to, number for number: if it is not, a file is
    kept that proves it to anybody (see: paris-node lora judge). Then its loss is measured here.
    """
    offer = checked_offer(offer_cid)
    request = {"base": None if base is None else checked_cid(base)}
    is_asked = not yes
    if is_asked and (options.json or not can_ask()):
        raise NodeError(
            ErrorCode.USAGE,
            "Buying signs the offer's terms, and nobody is here to be asked.",
            f"read them: paris-node lora show {offer}    then say --yes",
        )
    known = options.client().get(f"{OFFERS}/{offer}")
    if known.get("standing") == "refused":
        raise NodeError(
            ErrorCode.VERIFICATION_FAILED,
            f"The offer does not hold: {known.get('why')}.",
            "see the others: paris-node lora list",
        )
    if not options.json and (is_asked or not options.quiet):
        _print_terms(known)
    if is_asked and not click.confirm("Sign these terms and take it?", err=True):
        raise NodeError(ErrorCode.INTERRUPTED, "Nothing was signed.")
    done = last_event(options, f"{OFFERS}/{offer}/buy", request)
    if options.json:
        print_json({"schema": SCHEMA, **without_kind(done)})
        return
    click.echo(done.get("folder"))
    if options.quiet:
        return
    claimed = change_text(done.get("claimed_base"), done.get("claimed_loss"))
    measured = change_text(done.get("measured_base"), done.get("measured_loss"))
    print_fields(
        [
            ("claimed", f"loss {claimed}"),
            ("measured", f"loss {measured}   on the same pictures, here"),
            ("size", f"{_share(done.get('ratio'))} of the norm of the layers it changes"),
            ("use it", f"paris-node lora use {done.get('name')}"),
        ]
    )


def _print_terms(known: Answer) -> None:
    """What will be signed, and to whom, on stderr."""
    for label, text in (
        ("name", str(known.get("name"))),
        ("seller", owner_line(known)),
        ("claimed", f"loss {change_text(known.get('base_loss'), known.get('adapted_loss'))}"),
        ("licence", str(known.get("licence") or "not said")),
        ("terms", wrapped(str(known.get("terms")))),
    ):
        first, *rest = text.split("\n")
        click.echo(
            "\n".join([f"{label:8} {first}", *(f"{'':8} {line}" for line in rest)]), err=True
        )


def _share(part: object) -> str:
    return f"{100 * part:.3g} %" if isinstance(part, (int, float)) else "?"


def _signed(value: object) -> str:
    return f"{value:+.4f}" if isinstance(value, (int, float)) else "?"
