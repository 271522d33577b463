"""What holds for every command: --json, -q, -v, --home, --config, --timeout, before or after it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.config import Config, LoadedConfig, load
from node.errors import ErrorCode

if TYPE_CHECKING:
    from node.client import NodeClient


@dataclass(slots=True)
class Options:
    """The global options of one invocation, filled in while click parses."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    home: Path | None = None
    config: Path | None = None
    timeout: float | None = None

    def load(self, **flags: object) -> LoadedConfig:
        """The settings, with this command's own flags on top.

        Raises:
            NodeError: `USAGE` for a bad setting, wherever it stands.
        """
        return load({"home": self.home, **flags}, environ=os.environ, config_file=self.config)

    def settings(self) -> Config:
        """The settings of a command that has no flags for them."""
        return self.load().config

    def client(self, *, has_deadline: bool = True) -> "NodeClient":
        """The running node; without a deadline --timeout is the caller's to keep.

        Raises:
            NodeError: `NOT_RUNNING` if there is none.
        """
        from node.client import (
            NodeClient,
        )  # http.client takes 60 ms, which --help need not wait for

        timeout_s = self.timeout if has_deadline else None
        return NodeClient.of_home(self.settings().paths, timeout_s=timeout_s)


def options_of(context: click.Context) -> Options:
    """The invocation's global options."""
    return context.find_root().ensure_object(Options)


def global_options() -> list[click.Option]:
    """Fresh parameters; each writes into the invocation's one `Options`."""
    return [
        _option("--json", is_flag=True, help="Print one JSON object (a line each when streaming)."),
        _option("-q", "--quiet", is_flag=True, help="Print results and errors only."),
        _option("-v", "--verbose", is_flag=True, help="Print full ids and more detail."),
        _option("--home", type=_Folder(), metavar="DIR", help="Folder of the node's files."),
        _option(
            "--config", type=_File(), metavar="FILE", help="A config file on top of the home's."
        ),
        _option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            envvar="PARIS_NODE_TIMEOUT",
            help="Give up after so long (exit code 124).",
        ),
    ]


class _Folder(click.Path):
    def __init__(self) -> None:
        super().__init__(path_type=Path)


class _File(click.Path):
    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False)


def _option(*names: str, **settings: Any) -> click.Option:  # noqa: ANN401  # click's own keywords
    return click.Option(list(names), callback=_remember, expose_value=False, **settings)


def _remember(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value is not None and value is not False and parameter.name is not None:
        setattr(options_of(context), parameter.name, value)


pass_options: Callable[[Callable[..., None]], Callable[..., None]] = click.make_pass_decorator(
    Options, ensure=True
)
"""Gives a command the `Options` as its first argument."""


@contextmanager
def until_interrupted() -> Iterator[None]:
    """For what goes on until Ctrl-C: that is its end, not an error to be told."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Exit(ErrorCode.INTERRUPTED.exit_code) from None
