"""What is printed: results on stdout, all else on stderr; JSON, or text aligned for 80 columns."""

import json
import os
import sys
from collections.abc import Mapping, Sequence

import click

from node.api import SCHEMA
from node.errors import NodeError


def wants_color() -> bool | None:
    """False if NO_COLOR is set (no-color.org); None lets click see whether it is a terminal."""
    return False if os.environ.get("NO_COLOR") else None


def print_json(value: Mapping[str, object]) -> None:
    """One object on one line of stdout."""
    click.echo(json.dumps(value))


def print_failure(error: NodeError, *, as_json: bool) -> int:
    """Say what went wrong and what to do.

    Returns:
        The exit code it means.
    """
    if as_json:
        print_json({"schema": SCHEMA, "error": error.to_json()})
    else:
        label = click.style("error:", fg="red", bold=True)
        click.echo(f"{label} {error.message}", err=True, color=wants_color())
        if error.fix:
            label = click.style("fix:", fg="green", bold=True)
            click.echo(f"{label}   {error.fix}", err=True, color=wants_color())
    return error.code.exit_code


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """`label   value` lines, the values aligned; a value of several lines stays aligned."""
    width = max((len(label) for label, _ in fields), default=0)
    for label, value in fields:
        first, *rest = value.split("\n")
        click.echo(f"{click.style(label.ljust(width), dim=True)}   {first}")
        for line in rest:
            click.echo(" " * (width + 3) + line)


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, under: bool = False
) -> None:
    """Columns two blanks apart; a header that starts with ">" is aligned to the right.

    Args:
        headers: one a column.
        rows: cells; with `under`, one more cell than headers, printed on a line of its own.
        under: each row has such a last cell: an id to be copied whole.
    """
    names = [header.removeprefix(">") for header in headers]
    widths = [
        max([len(name), *(len(row[column]) for row in rows)]) for column, name in enumerate(names)
    ]

    def line(cells: Sequence[str]) -> str:
        placed = (
            cell.rjust(width) if header.startswith(">") else cell.ljust(width)
            for header, cell, width in zip(headers, cells, widths, strict=True)
        )
        return "  ".join(placed).rstrip()

    click.secho(line(names), bold=True)
    for row in rows:
        click.echo(line(row[: len(headers)]))
        if under:
            click.secho(f"    {row[-1]}", dim=True)


def is_interactive() -> bool:
    """Whether progress can be drawn in place."""
    return sys.stderr.isatty()


def can_ask() -> bool:
    """Whether somebody is there to read a question and to answer it."""
    return sys.stdin.isatty() and is_interactive()


def short_id(text: object, *, whole: bool = False) -> str:
    """A peer id or CID, abbreviated for a person: `12D3KooWGR…DMZSnA`."""
    if not isinstance(text, str):
        return "-"
    return text if whole or len(text) <= 20 else f"{text[:10]}…{text[-6:]}"


def owner_text(row: Mapping[str, object], *, whole: bool = False) -> str:
    """The owner in a row of an answer: by pet name if it has one, else by a short id."""
    name = row.get("owner_name")
    return str(name) if name and not whole else short_id(row.get("owner"), whole=whole)


def size_text(size: object) -> str:
    """Bytes for a person: 31 MB."""
    if not isinstance(size, (int, float)):
        return "-"
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            scaled = size / scale
            return f"{scaled:.1f} {unit}" if scaled < 10 else f"{scaled:.0f} {unit}"
    return f"{size:.0f} B"


def duration_text(seconds: object) -> str:
    """Seconds for a person: 4.2 s, 3 min 31 s, 2 h 5 min, 3 d 4 h."""
    if not isinstance(seconds, (int, float)):
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for big, big_s, small, small_s in (
        ("d", 86_400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= big_s:
            rest = whole % big_s // small_s
            return f"{whole // big_s} {big}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def count_text(number: object) -> str:
    """A whole number with thousands apart; "-" for none."""
    return f"{number:,}" if isinstance(number, int) else "-"
