"""`paris-node lora judge`: is a seller guilty? Anybody can tell from the file, with no node."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.api import SCHEMA, Json
from node.cli.command import VerbCommand
from node.cli.offer_text import wrapped
from node.cli.options import Options, pass_options
from node.cli.output import print_fields, print_json
from node.errors import ErrorCode

if TYPE_CHECKING:
    from node.judging import Verdict


@click.command(
    cls=VerbCommand,
    examples=(
        "paris-node lora judge bafkrei....fraud",
        "paris-node lora judge bafkrei....fraud -q",
        "paris-node lora judge bafkrei....fraud --json | jq -r .verdict",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@pass_options
def judge(options: Options, file: Path) -> None:
    """Tell from FILE whether a seller sent what it offered.

    A buyer's node writes such a file when a delivery is not what was committed to. Needs no node,
    and seconds to minutes.

    Exit code 0: guilty, the seller signed and sent something else than it committed to. 1: not
    guilty. 6: the file does not prove what it must.
    """
    from node.judging import judge as judged

    verdict = judged(file, options.settings().paths.circuits, now=time.time())
    if options.json:
        print_json(_json(verdict))
    else:
        _print(options, verdict)
    if not verdict.is_guilty:
        raise click.exceptions.Exit(ErrorCode.FAILED.exit_code)


def _print(options: Options, verdict: "Verdict") -> None:
    case = verdict.case
    if verdict.is_guilty:
        click.echo(
            f"guilty: {case.seller} signed and sent what its offer {case.offer_id} does not "
            "commit to"
        )
    else:
        click.echo(f"not guilty: {case.seller} sent what its offer {case.offer_id} commits to")
    if options.quiet:
        return
    fields = [("why", wrapped(verdict.reason))] if verdict.is_guilty else []
    fields += [
        ("offer", f"{case.offer.name}, for checkpoint\n{case.offer.base}"),
        ("buyer", f"{case.buyer}, as the seller named it"),
        ("sent", _time_text(case.delivery.delivered_at)),
    ]
    print_fields(fields)


def _json(verdict: "Verdict") -> Json:
    case = verdict.case
    return {
        "schema": SCHEMA,
        "verdict": "guilty" if verdict.is_guilty else "not guilty",
        "reason": verdict.reason,
        "seller": case.seller,
        "buyer": case.buyer,
        "offer": case.offer_id,
        "name": case.offer.name,
        "base": case.offer.base,
        "delivered_at": case.delivery.delivered_at,
    }


def _time_text(seconds: float) -> str:
    """When, by the seller's clock."""
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC, by its clock", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):  # it may write what it likes
        return "at no time that could be"
