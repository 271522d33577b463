"""What needs no running node."""

import json
from pathlib import Path

import pytest

from node.errors import ErrorCode
from node.home import Home, prepare
from tests.support.cli_run import Run, answer_of


def test_version_names_the_program_and_its_parts(run: Run) -> None:
    assert run("--version").stdout.startswith("paris-node 0.")
    answer = answer_of(run("version", "--json"))
    assert set(answer["parts"]) >= {"python", "torch", "hivemind", "libp2p"}
    assert "python" in run("version").stdout


def test_config_show_tells_values_and_origins(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARIS_NODE_THREADS", "4")
    answer = answer_of(run("config", "show", "--origin", "--json"))
    assert answer["settings"]["threads"] == 4
    assert answer["settings"]["home"] == str(home)
    assert answer["origins"]["threads"] == "environment PARIS_NODE_THREADS"
    assert answer["origins"]["home"] == "flag --home"
    text = run("config", "show", "--origin").stdout
    assert "environment PARIS_NODE_THREADS" in text
    assert "default" not in run("config", "show").stdout


def test_config_file_stands_under_the_environment(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "extra.toml").write_text("threads = 3\ncapacity = 3\n")
    monkeypatch.setenv("PARIS_NODE_THREADS", "4")
    answer = answer_of(run("config", "show", "--config", "extra.toml", "--json"))
    assert (answer["settings"]["threads"], answer["settings"]["capacity"]) == (4, 3)


def test_logs_are_the_last_lines(run: Run, home: Path) -> None:
    assert run("logs").exit_code == ErrorCode.NOT_FOUND.exit_code
    prepare(Home.at(home))
    (home / "node.log").write_text("".join(f"line {n}\n" for n in range(100)))
    assert run("logs", "-n", "2").stdout == "line 98\nline 99\n"
    assert json.loads(run("logs", "-n", "1", "--json").stdout) == {"schema": 1, "line": "line 99"}
