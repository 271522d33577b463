"""The command line in this process, on a home of its own, with a fake node or none."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from node.cli import cli
from tests.support.cli_run import Run
from tests.support.fake_node import (
    FakeNode,
    served,
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `paris-node ARGS` on the test's home, in the test's folder."""
    for name in os.environ:
        if name.startswith("PARIS_NODE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, home_option: bool = True) -> Result:
        head = ("--home", str(home)) if home_option else ()
        return CliRunner().invoke(cli, [*head, *arguments], catch_exceptions=False)

    return invoke


@pytest.fixture
def node(home: Path) -> Iterator[FakeNode]:
    fake = FakeNode()
    with served(fake, home, pid=os.getpid()):
        yield fake
