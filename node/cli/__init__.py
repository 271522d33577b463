"""The command line: turns arguments into calls and answers into text or JSON. No logic of a node.

Every verb's module is imported when the verb is used, and whatever is heavy (torch, libp2p,
hivemind, rich) inside the function that needs it, so that `--help` answers at once.
"""

from node.cli.root import cli


def main() -> None:
    """The `paris-node` program."""
    cli.main(prog_name="paris-node")


__all__ = ["cli", "main"]
