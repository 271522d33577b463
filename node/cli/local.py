"""What needs no running node: logs, config, version."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Final

import click

from node.api import SCHEMA
from node.cli.command import VerbCommand, VerbGroup
from node.cli.options import Options, pass_options, until_interrupted
from node.cli.output import print_fields, print_json, print_table
from node.config import SETTINGS, Config
from node.errors import ErrorCode, NodeError

_PARTS: Final = ("torch", "diffusers", "hivemind", "libp2p", "trio")


def own_version() -> str:
    """The version of this program."""
    return version_of("paris-node")


@click.command(
    cls=VerbCommand,
    examples=("paris-node version", "paris-node version --json", "paris-node --version"),
)
@pass_options
def version(options: Options) -> None:
    """Version of the program and of the parts it runs on."""
    import platform

    parts: dict[str, str | None] = {"python": platform.python_version()}
    for part in _PARTS:
        try:
            parts[part] = version_of(part)
        except PackageNotFoundError:
            parts[part] = None
    if options.json:
        print_json({"schema": SCHEMA, "version": own_version(), "parts": parts})
        return
    click.echo(f"paris-node {own_version()}")
    if not options.quiet:
        print_fields([(name, found or "not installed") for name, found in parts.items()])


@click.command(
    cls=VerbCommand,
    examples=("paris-node logs", "paris-node logs -n 200", "paris-node logs -f"),
)
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on as the node writes.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, 100_000),
    default=50,
    show_default=True,
    metavar="N",
    help="Lines from the end.",
)
@pass_options
def logs(options: Options, follows: bool, lines: int) -> None:
    """What the node wrote to its log; works whether or not it runs."""
    from node.logs import follow, tail

    log_file = options.settings().paths.log_file
    try:
        last, position = tail(log_file, lines)
    except OSError as error:
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"There is no log at {log_file} ({error.strerror}).",
            "the node writes one when it starts: paris-node start",
        ) from error

    def show(line: str) -> None:
        if options.json:
            print_json({"schema": SCHEMA, "line": line})
        else:
            click.echo(line)

    for line in last:
        show(line)
    if not follows:
        return
    with until_interrupted():
        for line in follow(log_file, position):
            show(line)


@click.group(
    cls=VerbGroup,
    examples=(
        "paris-node config show",
        "paris-node config show --origin",
        "paris-node config show --json | jq .settings",
    ),
)
def config() -> None:
    """The settings and where each came from."""


@config.command(
    "show",
    examples=(
        "paris-node config show",
        "paris-node config show --origin",
        "PARIS_NODE_THREADS=4 paris-node config show --origin",
    ),
)
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@pass_options
def show_config(options: Options, origin: bool) -> None:
    """Every setting as the next start would use it."""
    loaded = options.load()
    values = {key: _plain(getattr(loaded.config, key)) for key in ("home", *SETTINGS)}
    if options.json:
        answer: dict[str, object] = {"schema": SCHEMA, "settings": values}
        if origin:
            answer["origins"] = dict(loaded.origins)
        print_json(answer)
        return
    rows = [(key, _text(loaded.config, key), loaded.origins[key]) for key in values]
    if origin:
        print_table(("SETTING", "VALUE", "FROM"), rows)
    else:
        print_fields([(key, text) for key, text, _ in rows])


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, (int, str)) or value is None else str(value)


def _text(config: Config, key: str) -> str:
    value = getattr(config, key)
    if isinstance(value, bool):
        return "true" if value else "false"
    if key == "run" and value is None:
        return "built-in"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return str(value) or "(derived from the key)"
