"""Offers in text: as tables, and one in all that is known of it.

An answer is read leniently: the node may be a newer version.
"""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from node.cli.options import Options
from node.cli.output import count_text, duration_text, print_fields, print_table

Answer = Mapping[str, Any]

_NAME_CHARS: Final = 16
"""Of a name in a table of 80 columns: offers' and owners' may have 64."""
_ID_TAIL: Final = 8
"""Of a nameless owner's peer id."""
_TEXT_WIDTH: Final = 66
"""Beside the labels, in 80 columns."""


def print_offers(options: Options, known: Answer) -> None:
    """Others' offers and one's own, as tables."""
    offers, own = known.get("offers") or [], known.get("own") or []
    click.echo()
    if offers:
        click.secho("Offers heard of", bold=True)
        print_table(
            ("NAME", "STANDING", "OWNER", ">CLUSTER", ">LOSS", ">ENDS IN"),
            [_offer_cells(options, row) for row in offers],
            under=True,
        )
    else:
        click.echo("No offer was heard of yet.")
    if own:
        click.echo()
        click.secho("Own offers", bold=True)
        print_table(
            ("NAME", ">CLUSTER", ">TOLD", ">MOST OF A LAYER", ">PROOFS", ">ENDS IN"),
            [_own_cells(options, row) for row in own],
            under=True,
        )


def _offer_cells(options: Options, row: Answer) -> tuple[str, ...]:
    measured = row.get("measured_loss")
    after = row.get("adapted_loss") if measured is None else measured
    under = [str(row.get("offer"))]
    if row.get("standing") == "refused":
        under += wrapped(str(row.get("why"))).split("\n")
    return (
        _clipped(options, row.get("name")),
        str(row.get("standing")),
        _clipped(options, row.get("owner_name")) if row.get("owner_name") else _tail(options, row),
        str(row.get("cluster")) if row.get("name") else "-",
        f"{_short_loss(row.get('base_loss'))} -> {_short_loss(after)}",
        _ends_in(row),
        "\n    ".join(under),
    )


def _own_cells(options: Options, row: Answer) -> tuple[str, ...]:
    return (
        _clipped(options, row.get("name")),
        str(row.get("cluster")),
        percent_text(row.get("told_percent")),
        percent_text(row.get("worst_percent")),
        f"{row.get('proofs_made')} of {row.get('proofs_limit')}",
        "withdrawn" if row.get("withdrawn") else _ends_in(row),
        str(row.get("offer")),
    )


def print_offer(answer: Answer) -> None:
    """One offer, all that is known of it."""
    leaks, probe = answer.get("leaks") or {}, answer.get("probe") or {}
    fields = [
        ("offer", str(answer.get("offer"))),
        ("name", str(answer.get("name") or "-")),
        ("owner", "this node" if answer.get("own") else owner_line(answer)),
        ("standing", wrapped(str(answer.get("statement")))),
    ]
    if leaks:  # else there is no record to tell of
        fields += [
            (
                "loss",
                f"{change_text(answer.get('base_loss'), answer.get('adapted_loss'))} on "
                f"{probe.get('rows')} pictures of its own   *claimed*",
            ),
            *_measured(answer),
            ("base", f"expert of cluster {answer.get('cluster')}\n{answer.get('base')}"),
            (
                "changes",
                f"{count_text(answer.get('layers'))} layers ({answer.get('targets')})   rank "
                f"{answer.get('rank')}   alpha {answer.get('alpha')}",
            ),
            ("circuits", "\n".join(map(_shape_text, answer.get("shapes") or [])) or "-"),
            ("tells", wrapped(_leaks_text(leaks))),
            *_own_fields(answer),
            ("probe", f"{probe.get('cid')}\nseed {probe.get('seed')}"),
            ("terms", wrapped(str(answer.get("terms")))),
            ("licence", str(answer.get("licence") or "not said")),
            ("ends in", "withdrawn" if answer.get("withdrawn") else _ends_in(answer)),
        ]
        if not answer.get("own"):
            fields.append(("look", f"paris-node lora verify {answer.get('offer')}"))
    print_fields(fields)


def _measured(answer: Answer) -> Iterator[tuple[str, str]]:
    if "measured_loss" in answer:
        found = change_text(answer.get("measured_base"), answer.get("measured_loss"))
        yield "", f"{found} on the same   *measured here*"
        yield "lies in", str(answer.get("folder"))


def _own_fields(answer: Answer) -> Iterator[tuple[str, str]]:
    if not answer.get("own"):
        return
    worst = answer.get("worst_layer")
    told = f"{percent_text(answer.get('told_percent'))} of its freedom"
    yield (
        "told",
        told + (f"; {percent_text(answer.get('worst_percent'))} of {worst}" if worst else ""),
    )
    yield "proofs", f"{answer.get('proofs_made')} of {answer.get('proofs_limit')}"
    if not answer.get("withdrawn"):
        yield "to", "\n".join(answer.get("buyers") or ["whoever signs the terms"])


def _leaks_text(leaks: Answer) -> str:
    rows = leaks.get("delta_rows")
    return (
        f"up to {leaks.get('scalars')} numbers a layer in {leaks.get('proofs')} proofs, "
        + (f"{count_text(rows)} rows in delta mode" if rows else "no deltas")
        + f": {percent_text(leaks.get('percent'))} of its freedom"
    )


def _shape_text(shape: Answer) -> str:
    return (
        f"{count_text(shape.get('layers'))} of {shape.get('inputs')} x {shape.get('rank')} x "
        f"{shape.get('outputs')}   k {shape.get('k')}   {str(shape.get('circuit'))[:16]}"
    )


def owner_line(answer: Answer) -> str:
    """Whose an offer is: pet name if it has one, and the whole peer id."""
    named = f"{answer['owner_name']}   " if answer.get("owner_name") else ""
    return f"{named}{answer.get('owner')}"


def _clipped(options: Options, name: object) -> str:
    text = str(name or "?")
    if options.verbose or len(text) <= _NAME_CHARS:
        return text
    return f"{text[: _NAME_CHARS - 1]}…"


def _tail(options: Options, row: Answer) -> str:
    owner = str(row.get("owner"))
    return owner if options.verbose else f"…{owner[-_ID_TAIL:]}"


def _ends_in(row: Answer) -> str:
    return duration_text(row.get("expires_in_s"))


def wrapped(text: str) -> str:
    """A text as a field's value, in lines."""
    return "\n".join(textwrap.wrap(text, _TEXT_WIDTH, break_long_words=False)) or "-"


def _short_loss(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "?"


def loss_text(value: object) -> str:
    """A loss, to four places."""
    return f"{value:.4f}" if isinstance(value, (int, float)) else "?"


def change_text(before: object, after: object) -> str:
    """1.3180 -> 0.7160 (-46%)."""
    text = f"{loss_text(before)} -> {loss_text(after)}"
    if isinstance(before, (int, float)) and isinstance(after, (int, float)) and before:
        text += f" ({after / before - 1:+.0%})"
    return text


def percent_text(percent: object) -> str:
    """3.43 %: what is given in per cent."""
    return f"{percent:.3g} %" if isinstance(percent, (int, float)) else "?"
