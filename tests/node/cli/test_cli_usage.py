"""When things are wrong: exit codes, sentences, ways out; and the help."""

import os
from pathlib import Path

import pytest

from node.errors import ErrorCode
from node.home import ApiFile, Home, prepare, write_api_file
from tests.support.cli_run import Run, answer_of, refusal_of
from tests.support.fake_node import (
    PEER,
    FakeNode,
)


@pytest.mark.parametrize(
    "arguments",
    [("status",), ("stop",), ("peers",), ("clusters",), ("experts", "find"), ("generate", "x")],
)
def test_node_that_does_not_run_is_exit_code_3_with_the_way_to_start_it(
    run: Run, arguments: tuple[str, ...]
) -> None:
    result = run(*arguments)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.startswith("error: No node runs on ")
    assert "fix:   start it with: paris-node start" in result.stderr
    code, error = refusal_of(run(*arguments, "--json"))
    assert (code, error["code"]) == (3, "not_running")


@pytest.mark.parametrize("raw", [b"", b"\x00\x01", b"{}"])
def test_garbage_in_place_of_the_address_is_a_sentence(run: Run, home: Path, raw: bytes) -> None:
    prepare(Home.at(home))
    (home / "api.json").write_bytes(raw)
    result = run("status")
    assert result.exit_code == 1
    assert "fix:   rm " in result.stderr


def test_address_of_a_port_nobody_serves_is_not_running(run: Run, home: Path) -> None:
    prepare(Home.at(home))
    write_api_file(Home.at(home), ApiFile("http://127.0.0.1:1", "t", os.getpid()))
    assert run("status").exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("statu",), "Did you mean status"),
        (("experts", "fnd"), "Did you mean find"),
        (("xyzzy",), "no command 'xyzzy'."),
        (("status", "--jsn"), "--json"),
        (("generate",), "PROMPT"),
        (("generate", "x", "-n", "0"), "0"),
        (("generate", "x", "--steps", "0"), "0"),
        (("generate", "x", "--strategy", "best"), "sticky"),
        (("status", "--timeout", "0"), "timeout"),
        (("logs", "-n", "-1"), "-1"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_was_meant(
    run: Run, arguments: tuple[str, ...], found: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert found in result.stderr
    assert "--help" in result.stderr
    code, error = refusal_of(run("--json", *arguments))
    assert (code, error["code"]) == (2, "usage")


def test_json_after_the_end_of_options_is_an_argument(run: Run) -> None:
    assert run("xyzzy", "--", "--json").stdout == ""


def test_bad_setting_is_exit_code_2_whichever_command_reads_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARIS_NODE_THREADS", "many")
    result = run("status")
    assert result.exit_code == 2
    assert "PARIS_NODE_THREADS" in result.stderr


def test_no_arguments_is_the_help(run: Run) -> None:
    result = run(home_option=False)
    assert result.exit_code == 2
    assert "Commands:" in result.output
    assert "error:" not in result.output


_VERBS = (
    "start", "stop", "status", "id", "peers", "clusters", "experts", "experts find", "experts show",
    "experts pull", "generate", "run", "run create", "run list", "run show", "logs", "config",
    "config show", "version",
)  # fmt: skip


@pytest.mark.parametrize("verb", _VERBS)
def test_help_ends_with_three_examples_and_fits_80_columns(run: Run, verb: str) -> None:
    result = run(*verb.split(), "--help")
    assert result.exit_code == 0
    *_, examples = result.stdout.partition("Examples:\n")
    lines = examples.strip().splitlines()
    assert len(lines) == 3
    assert all("paris-node " in line for line in lines)
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_top_help_lists_every_verb_and_exit_code(run: Run) -> None:
    text = run("--help").stdout
    assert all(f"\n  {verb} " in text for verb in _VERBS if " " not in verb)
    assert all(f"\n  {code.exit_code} " in text for code in ErrorCode)


def test_summaries_in_the_top_help_are_those_of_the_commands(run: Run) -> None:
    text = run("--help").stdout
    for verb in ("status", "peers", "experts", "config"):
        summary = next(line for line in text.splitlines() if line.startswith(f"  {verb} "))
        assert summary.split(maxsplit=1)[1][:12] in run(verb, "--help").stdout


@pytest.mark.parametrize("place", ["before", "after"])
def test_home_may_stand_before_or_after_the_verb(
    run: Run, node: FakeNode, home: Path, place: str
) -> None:
    option = ("--home", str(home), "--json")
    arguments = (*option, "status") if place == "before" else ("status", *option)
    assert answer_of(run(*arguments, home_option=False))["peer_id"] == PEER


def test_options_after_a_group_reach_its_verb(run: Run, node: FakeNode, home: Path) -> None:
    result = run("experts", "--json", "--home", str(home), "find", home_option=False)
    assert answer_of(result)["coverage"] == 0.125


def test_home_may_come_from_the_environment(
    run: Run, node: FakeNode, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARIS_NODE_HOME", str(home))
    assert answer_of(run("status", "--json", home_option=False))["peer_id"] == PEER
