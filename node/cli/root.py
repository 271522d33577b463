"""The top of the command line: the verbs, what each is for, and the exit codes."""

from typing import Final

import click

from node.cli.command import RootGroup, write_examples
from node.cli.options import global_options

_VERBS: Final = {
    "start": ("node.cli.start:start", "Start the node: join the run, train, publish, serve."),
    "stop": ("node.cli.start:stop", "Stop the running node gracefully."),
    "status": ("node.cli.inspect:status", "The node on one screen."),
    "id": ("node.cli.inspect:show_id", "This node's peer id and name."),
    "peers": ("node.cli.inspect:peers", "Who is connected."),
    "clusters": ("node.cli.inspect:clusters", "Who owns which cluster, and which needs a node."),
    "experts": ("node.cli.experts:experts", "Find, show and pull checkpoints by CID."),
    "lora": (
        "node.cli.lora:lora",
        "Train an adapter, use it, offer it; look into others' and buy.",
    ),
    "generate": ("node.cli.generate:generate", "Draw pictures for a prompt."),
    "router": ("node.cli.router:router", "Train routers of your own; list and show them."),
    "run": ("node.cli.runs:run", "Make a run from data; list and show runs."),
    "models": ("node.cli.models:models", "Export a run for diffusers; import published models."),
    "logs": ("node.cli.local:logs", "What the node wrote to its log."),
    "config": ("node.cli.local:config", "The settings and where each came from."),
    "version": ("node.cli.local:version", "Version of the program and of its parts."),
}

_EXAMPLES: Final = (
    "paris-node start",
    'paris-node generate "a red boat at dawn" -o boat.png',
    "paris-node status --watch",
)

_EXIT_CODES: Final = (
    ("0", "done"),
    ("1", "failed"),
    ("2", "wrong usage or setting"),
    ("3", "no node runs here (paris-node start)"),
    ("4", "not found"),
    ("5", "no peers"),
    ("6", "verification failed: hash, signature or proof"),
    ("7", "refused: policy, version, or a second node on one home"),
    ("8", "resource: disk, memory or port"),
    ("124", "timed out"),
    ("130", "interrupted, after cleaning up"),
)


class _Paris(RootGroup):
    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, _EXAMPLES)
        with formatter.section("Exit codes"):
            formatter.write_dl(_EXIT_CODES)


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from node.cli.local import own_version

        click.echo(f"paris-node {own_version()}")
        context.exit()


cli = _Paris(
    name="paris-node",
    help="Train one text-to-image model together with others, and draw with it.",
    lazy=_VERBS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
    params=[
        *global_options(),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the version and exit.",
        ),
    ],
)
