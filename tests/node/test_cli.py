"""The command line against a fake node behind the real server, in this process."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from node.cli import cli
from node.cli.progress import Progress
from node.errors import ErrorCode, NodeError
from node.events import (
    ClusterReady,
    IdentityReady,
    NetworkReady,
    NodeReady,
    Notice,
    ServingReady,
    StartEvent,
    StorageReady,
)
from node.home import ApiFile, Home, prepare, write_api_file
from tests.support.fake_node import (
    CID,
    MISSING_CID,
    OTHER_PEER,
    PEER,
    PNG,
    RUN,
    FakeNode,
    served,
)

Run = Callable[..., Result]


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


def _answer(result: Result) -> Any:
    assert result.stdout.count("\n") == 1, result.output
    return json.loads(result.stdout)


def _refusal(result: Result) -> tuple[int, dict[str, str]]:
    answer = _answer(result)
    assert set(answer) == {"schema", "error"}
    return result.exit_code, answer["error"]


# --- asking a running node -----------------------------------------------------------------------
def test_status_in_json_has_the_promised_shape(run: Run, node: FakeNode) -> None:
    result = run("status", "--json")
    assert result.exit_code == 0
    answer = _answer(result)
    assert answer.items() >= {"schema": 1, "peer_id": PEER, "name": "brave-otter-41"}.items()
    assert answer.keys() >= {"run", "listening", "peers", "claims", "training", "storage"}
    assert set(answer["claims"][0]) == {"cluster", "epoch", "expires_in_s"}
    assert set(answer["training"]) == {"cluster", "step", "samples", "loss", "samples_per_s"}
    assert set(answer["storage"]) == {"bytes", "quota"}


def test_status_for_people_fits_a_terminal_and_tells_all(run: Run, node: FakeNode) -> None:
    result = run("status")
    for part in ("brave-otter-41", "2 peers (2 direct", "cluster 3", "step 1,200", "31 MB of 21 GB",
                 "lease 3 min 31 s", "up 1 h 2 min", "212 samples/s"):  # fmt: skip
        assert part in result.stdout, result.stdout
    addresses: list[str] = []
    rest: list[str] = []
    for line in result.stdout.splitlines():
        (addresses if "/ip4/" in line else rest).append(line)  # an address is to be copied whole
    assert PEER in addresses[0]
    assert max(map(len, rest)) <= 80


def test_status_of_an_idle_node_says_so(run: Run, node: FakeNode) -> None:
    node.training = None
    assert "not training" in run("status").stdout
    assert _answer(run("status", "--json"))["training"] is None


def test_status_of_a_newer_or_barer_node_is_still_printed(run: Run, node: FakeNode) -> None:
    node.status = lambda: {"schema": 2, "peer_id": PEER, "network": 7}  # type: ignore[method-assign]
    result = run("status")
    assert result.exit_code == 0
    assert "unnamed" in result.stdout


def test_status_watch_prints_until_its_time_is_up(run: Run, node: FakeNode) -> None:
    result = run("status", "--watch", "--every", "0.2", "--json", "--timeout", "0.5")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) in (2, 3)
    assert all(json.loads(line)["peer_id"] == PEER for line in lines)


def test_id_comes_from_the_running_node(run: Run, node: FakeNode) -> None:
    assert run("id").stdout.splitlines() == [PEER, "brave-otter-41"]
    assert _answer(run("id", "--json"))["peer_id"] == PEER


def test_id_comes_from_the_key_when_nothing_runs(run: Run, home: Path) -> None:
    from p2p.identity import load_or_create

    assert run("id", "--json").exit_code == ErrorCode.NOT_FOUND.exit_code
    prepare(Home.at(home))
    identity, _ = load_or_create(home / "identity.key")
    assert run("id").stdout.splitlines()[0] == identity.peer
    (home / "identity.key").chmod(0o644)
    assert _refusal(run("id", "--json"))[0] == ErrorCode.REFUSED.exit_code


def test_peers_and_clusters_are_told(run: Run, node: FakeNode) -> None:
    peers = run("peers")
    assert "calm-heron-07" in peers.stdout
    assert "24 ms" in peers.stdout
    assert "direct, dialled" in peers.stdout
    clusters = run("clusters")
    assert "brave-otter-41 (this node)" in clusters.stdout
    assert "60%" in clusters.stdout
    assert "most needs a node: 5" in clusters.stdout
    assert _answer(run("clusters", "--json"))["next"] == 5
    assert len(_answer(run("--json", "peers"))["peers"]) == 2


def test_no_peers_is_no_failure(run: Run, node: FakeNode) -> None:
    node.peers = lambda: {"schema": 1, "peers": []}  # type: ignore[method-assign]
    result = run("peers")
    assert result.exit_code == 0
    assert "No peers yet" in result.stdout


def test_experts_find_has_the_promised_shape_and_whole_cids(run: Run, node: FakeNode) -> None:
    answer = _answer(run("experts", "find", "--json"))
    assert set(answer) == {"schema", "run", "clusters", "coverage", "experts"}
    assert set(answer["experts"][0]) == {
        "cluster", "owner", "epoch", "step", "samples", "cid", "bytes", "replicas", "seen_s"
    }  # fmt: skip
    text = run("experts", "find").stdout
    assert CID in text
    assert max(map(len, text.splitlines())) <= 80
    assert not _answer(run("experts", "find", "--cluster", "5", "--json"))["experts"]
    assert "for this cluster" in run("experts", "find", "--cluster", "5").stdout


def test_experts_show_and_pull(run: Run, node: FakeNode) -> None:
    assert OTHER_PEER in run("experts", "show", CID).stdout
    assert "pulled 13 MB in 1.5 s" in run("experts", "pull", CID).stdout
    answer = _answer(run("experts", "pull", CID, "--json"))
    assert answer == {"schema": 1, "cid": CID, "path": "/x", "bytes": 12_582_912, "seconds": 1.5}


@pytest.mark.parametrize("verb", ["show", "pull"])
def test_experts_refuse_what_is_no_cid_and_report_what_is_missing(
    run: Run, node: FakeNode, verb: str
) -> None:
    assert _refusal(run("experts", verb, "../etc", "--json"))[0] == ErrorCode.USAGE.exit_code
    code, error = _refusal(run("experts", verb, MISSING_CID, "--json"))
    assert (code, error["code"]) == (4, "not_found")


def test_stop_asks_and_waits_for_the_end(run: Run, node: FakeNode) -> None:
    result = run("stop")
    assert result.exit_code == 0
    assert node.is_stopped
    assert "Stopped in" in result.stdout
    assert run("stop").exit_code == ErrorCode.NOT_RUNNING.exit_code


def test_stop_of_a_node_that_does_not_end_times_out_with_a_way_out(
    run: Run, node: FakeNode
) -> None:
    node.on_stop = lambda: None
    code, error = _refusal(run("stop", "--timeout", "0.2", "--json"))
    assert code == 124
    assert error["fix"] == f"kill {os.getpid()}"


# --- drawing -------------------------------------------------------------------------------------
def test_generate_writes_the_picture_and_its_receipt(
    run: Run, node: FakeNode, tmp_path: Path
) -> None:
    result = run("generate", "a red boat", "-o", "boat.png", "--seed", "9", "--json")
    assert result.exit_code == 0, result.output
    answer = _answer(result)
    assert answer == {
        "schema": 1,
        "files": ["boat.png"],
        "receipts": ["boat.png.json"],
        "seed": 9,
        "strategy": "sticky",
        "sampler": "ab2",
        "where": "local",
        "experts": [{"cluster": 3, "cid": CID, "peer": OTHER_PEER, "weight": 0.75}],
        "seconds": 4.125,
    }
    assert (tmp_path / "boat.png").read_bytes() == PNG
    assert json.loads((tmp_path / "boat.png.json").read_text())["prompt"] == "a red boat"


def test_generate_asks_for_what_was_said(run: Run, node: FakeNode) -> None:
    result = run(
        "generate", "a bag", "-n", "2", "--routing", "top2", "--sampler", "euler", "--steps", "20",
        "--guidance", "3", "--peer", OTHER_PEER,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert node.requests == [
        {"prompt": "a bag", "n": 2, "seed": None, "strategy": "top2", "sampler": "euler",
         "steps": 20, "guidance": 3.0, "where": "peer", "peer": OTHER_PEER}
    ]  # fmt: skip


def test_several_pictures_are_numbered(run: Run, node: FakeNode, tmp_path: Path) -> None:
    answer = _answer(run("generate", "x", "-n", "3", "-o", "b.png", "--json"))
    assert answer["files"] == ["b-1.png", "b-2.png", "b-3.png"]
    assert all((tmp_path / name).read_bytes() == PNG for name in answer["files"])


def test_unnamed_picture_is_named_after_its_prompt_and_overwrites_nothing(
    run: Run, node: FakeNode, tmp_path: Path
) -> None:
    for _ in range(2):
        assert run("generate", "A red boat, ../at dawn!").exit_code == 0
    assert run("generate", "ボート").exit_code == 0
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["a-red-boat-at-dawn.png", "a-red-boat-at-dawn~2.png", "picture.png"]


def test_named_picture_is_replaced_whole(run: Run, node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "boat.png").write_bytes(b"old")
    assert run("generate", "x", "-o", "boat.png").exit_code == 0
    assert (tmp_path / "boat.png").read_bytes() == PNG
    assert not list(tmp_path.glob(".*"))


def test_explain_names_experts_and_weights(run: Run, node: FakeNode) -> None:
    result = run("generate", "x", "-o", "b.png", "--explain")
    assert "route   expert 3 (0.75, 12D3KooWPj…t9HyQ6X"[:34] in result.stderr
    assert "route" not in run("generate", "x", "-o", "b.png").stderr


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("none/boat.png", ErrorCode.RESOURCE),
        ("file/boat.png", ErrorCode.RESOURCE),
        ("boat.jpg", ErrorCode.USAGE),
        ("boat", ErrorCode.USAGE),
        ("folder.png", ErrorCode.USAGE),
        ("", ErrorCode.USAGE),
    ],
)
def test_unwritable_output_is_found_before_the_node_is_asked(
    run: Run, node: FakeNode, tmp_path: Path, output: str, code: ErrorCode
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    result = run("generate", "x", "-o", output, "--json")
    assert result.exit_code == code.exit_code
    assert not node.requests


def test_failure_midway_leaves_no_half_file(run: Run, node: FakeNode, tmp_path: Path) -> None:
    node.late_error = NodeError(ErrorCode.NO_PEERS, "The peer left.", "try again")
    code, error = _refusal(run("generate", "x", "-o", "b.png", "--json"))
    assert (code, error) == (
        5,
        {"code": "no_peers", "message": "The peer left.", "fix": "try again"},
    )
    assert not list(tmp_path.glob("*.png*"))
    assert not list(tmp_path.glob(".*"))


def test_what_is_no_picture_is_not_written(run: Run, node: FakeNode, tmp_path: Path) -> None:
    node.png = b"<svg>"
    assert run("generate", "x", "-o", "b.png").exit_code == ErrorCode.VERIFICATION_FAILED.exit_code
    assert not list(tmp_path.glob("*.png"))


def test_deadline_of_generate_is_124(run: Run, node: FakeNode) -> None:
    node.is_endless = True
    assert _refusal(run("generate", "x", "-o", "b.png", "--timeout", "0.1", "--json"))[0] == 124


# --- when things are wrong -----------------------------------------------------------------------
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
    code, error = _refusal(run(*arguments, "--json"))
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
    code, error = _refusal(run("--json", *arguments))
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
    assert _answer(run(*arguments, home_option=False))["peer_id"] == PEER


def test_options_after_a_group_reach_its_verb(run: Run, node: FakeNode, home: Path) -> None:
    result = run("experts", "--json", "--home", str(home), "find", home_option=False)
    assert _answer(result)["coverage"] == 0.125


def test_home_may_come_from_the_environment(
    run: Run, node: FakeNode, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARIS_NODE_HOME", str(home))
    assert _answer(run("status", "--json", home_option=False))["peer_id"] == PEER


# --- without a node -------------------------------------------------------------------------------
def test_version_names_the_program_and_its_parts(run: Run) -> None:
    assert run("--version").stdout.startswith("paris-node 0.")
    answer = _answer(run("version", "--json"))
    assert set(answer["parts"]) >= {"python", "torch", "hivemind", "libp2p"}
    assert "python" in run("version").stdout


def test_config_show_tells_values_and_origins(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARIS_NODE_THREADS", "4")
    answer = _answer(run("config", "show", "--origin", "--json"))
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
    answer = _answer(run("config", "show", "--config", "extra.toml", "--json"))
    assert (answer["settings"]["threads"], answer["settings"]["capacity"]) == (4, 3)


def test_logs_are_the_last_lines(run: Run, home: Path) -> None:
    assert run("logs").exit_code == ErrorCode.NOT_FOUND.exit_code
    prepare(Home.at(home))
    (home / "node.log").write_text("".join(f"line {n}\n" for n in range(100)))
    assert run("logs", "-n", "2").stdout == "line 98\nline 99\n"
    assert json.loads(run("logs", "-n", "1", "--json").stdout) == {"schema": 1, "line": "line 99"}


# --- progress and the lines of the start ----------------------------------------------------------
def test_progress_away_from_a_terminal_is_a_line_per_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from node.cli.options import Options

    now = [0.0]
    with Progress("pull", unit="bytes", options=Options(), clock=lambda: now[0]) as progress:
        for second in range(26):
            now[0] = float(second)
            progress.update(second * 10**6, 100 * 10**6, 2)
        progress.update(1, 100 * 10**6)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "pull  10 MB of 100 MB  1.0 MB/s  1 min 30 s left  2 sources",
        "pull  20 MB of 100 MB  1.0 MB/s  1 min 20 s left  2 sources",
    ]


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from node.cli.options import Options

    now = [0.0]
    options = Options(quiet=True)
    with Progress("pull", unit="steps", options=options, clock=lambda: now[0]) as progress:
        now[0] = 60.0
        progress.update(1, 2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            StorageReady(412 * 10**9, 10**9, 50 * 10**9),
            "[1/4] storage   412 GB free, 1.0 GB used, limit 50 GB",
        ),
        (
            NetworkReady(9, 7, 2, "NAT: private, relay OK", ()),
            "[2/4] network   9 peers (7 direct, 2 relayed)   NAT: private, relay OK",
        ),
        (NetworkReady(0, 0, 0, "", ()), "[2/4] network   0 peers"),
        (ClusterReady((3,), 8, "5 is next"), "[3/4] cluster   claimed 3 of 8 (5 is next)"),
        (ClusterReady((), 8, "all owned"), "[3/4] cluster   none of 8 (all owned)"),
        (ServingReady("http://127.0.0.1:4180"), "[4/4] serving   http://127.0.0.1:4180"),
        (NodeReady(2.14), "Ready in 2.1 s.  Try:  "),
        (Notice("0 peers, retrying in 4 s"), "      0 peers, retrying in 4 s"),
    ],
)
def test_start_is_told_in_the_designs_lines(tmp_path: Path, event: StartEvent, line: str) -> None:
    from node.cli.start import start_lines
    from node.config import Config

    (told,) = start_lines(event, Config(home=tmp_path))
    assert told.startswith(line)


def test_new_identity_is_told_with_the_place_of_its_key(tmp_path: Path) -> None:
    from node.cli.start import start_lines
    from node.config import Config

    config = Config(home=tmp_path)
    old = start_lines(IdentityReady(PEER, "otter", False), config)
    new = start_lines(IdentityReady(PEER, "otter", True), config)
    assert len(old) == 1
    assert str(tmp_path / "identity.key") in new[1]


def test_every_start_event_has_its_json(tmp_path: Path) -> None:
    from node.events import event_to_json

    assert event_to_json(NodeReady(2.0)) == {"event": "ready", "seconds": 2.0}
    assert event_to_json(ClusterReady((1,), 4, ""))["claimed"] == (1,)


def test_runs_lists_and_shows_what_is_kept(run: Run) -> None:
    missing = _refusal(run("run", "show", RUN, "--json"))
    assert missing[0] == ErrorCode.NOT_FOUND.exit_code
    assert _refusal(run("run", "show", "nothing", "--json"))[0] == ErrorCode.USAGE.exit_code
    assert run("run", "list").exit_code == 0
