"""How our commands look and fail: examples under each help, global options anywhere, exit codes."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from node.cli.options import Options, global_options
from node.cli.output import print_failure, wants_color
from node.errors import ErrorCode, NodeError


class VerbCommand(click.Command):
    """A command that takes the global options too, and shows examples under its help."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        own = {name for parameter in self.params for name in parameter.opts}
        for option in global_options():
            if not own.intersection(option.opts):
                option.hidden = True  # listed once, in the top help
                self.params.append(option)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then one line on the global ones."""
        super().format_options(context, formatter)
        formatter.write_paragraph()
        formatter.write(
            "Everywhere: --json  -q  -v  --home DIR  --config FILE  --timeout SECONDS\n"
        )

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, unwrapped, to be pasted."""
        write_examples(formatter, self.examples)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """A section of commands to paste."""
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"  {example}\n")


class VerbGroup(click.Group):
    """A group whose commands live in modules that are imported when they are used.

    Args:
        lazy: command name -> ("module:attribute", one line of help).
    """

    command_class = VerbCommand

    def __init__(
        self,
        *args: Any,  # noqa: ANN401
        lazy: dict[str, tuple[str, str]] | None = None,
        examples: Sequence[str] = (),
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy or {}
        self.examples = tuple(examples)
        if not any("--json" in parameter.opts for parameter in self.params):
            for option in global_options():
                option.hidden = True
                self.params.append(option)

    def list_commands(self, context: click.Context) -> list[str]:
        """The verbs, in the order that tells a story."""
        return [*self._lazy, *(name for name in self.commands if name not in self._lazy)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The verb, imported now."""
        if name not in self._lazy:
            return super().get_command(context, name)
        module, _, attribute = self._lazy[name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101  # our own table
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, but an unknown verb says which ones are near.

        Raises:
            click.UsageError: if there is no such verb.
        """
        name = args[0]
        if self.get_command(context, name) is None and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.list_commands(context), n=2, cutoff=0.5)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise click.UsageError(f"There is no command {name!r}.{hint}", context)
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs and what each is for, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.summary(context, name)) for name in self.list_commands(context)]
            )

    def summary(self, context: click.Context, name: str) -> str:
        """One line on a verb."""
        if name in self._lazy:
            return self._lazy[name][1]
        command = self.get_command(context, name)
        return command.get_short_help_str(70) if command else ""

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples."""
        write_examples(formatter, self.examples)


class RootGroup(VerbGroup):
    """The program: every failure becomes a sentence, a way out, and an exit code."""

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        **extra: Any,  # noqa: ANN401
    ) -> NoReturn:
        """Run and exit."""
        arguments = list(sys.argv[1:] if args is None else args)
        options = Options(json=_asks_for_json(arguments))
        name = prog_name or "paris-node"
        sys.exit(run_guarded(lambda: self._run(name, arguments, options, extra), options))

    def _run(
        self, name: str, arguments: list[str], options: Options, extra: dict[str, Any]
    ) -> None:
        extra.pop("standalone_mode", None)
        context = self.make_context(name, arguments, obj=options, color=wants_color(), **extra)
        with context:
            self.invoke(context)


def run_guarded(action: Callable[[], None], options: Options) -> int:
    """Run one invocation; print its failure if it has one.

    Returns:
        The exit code.
    """
    try:
        action()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as asked:
        asked.show()
        return asked.exit_code
    except BrokenPipeError:  # `paris-node logs | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ErrorCode.FAILED.exit_code
    except (NodeError, click.ClickException, click.Abort, KeyboardInterrupt) as error:
        return print_failure(_as_node_error(error), as_json=options.json)
    return 0


def _as_node_error(error: BaseException) -> NodeError:
    if isinstance(error, NodeError):
        return error
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "paris-node"
        return NodeError(ErrorCode.USAGE, error.format_message(), f"see: {path} --help")
    if isinstance(error, click.ClickException):
        return NodeError(ErrorCode.FAILED, error.format_message())
    return NodeError(ErrorCode.INTERRUPTED, "Interrupted.")


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether failures are to be JSON, known even if the arguments cannot be parsed."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in own
