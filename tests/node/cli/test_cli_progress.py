"""Progress, and the lines of the start."""

from pathlib import Path

import pytest

from node.cli.progress import Progress
from node.errors import ErrorCode
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
from tests.support.cli_run import Run, refusal_of
from tests.support.fake_node import (
    PEER,
    RUN,
)


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
        (NodeReady(2.14, "a boat"), "Ready in 2.1 s.  Try:  "),
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

    assert event_to_json(NodeReady(2.0, "a boat")) == {
        "event": "ready",
        "seconds": 2.0,
        "example": "a boat",
    }
    assert event_to_json(ClusterReady((1,), 4, ""))["claimed"] == (1,)


def test_runs_lists_and_shows_what_is_kept(run: Run) -> None:
    missing = refusal_of(run("run", "show", RUN, "--json"))
    assert missing[0] == ErrorCode.NOT_FOUND.exit_code
    assert refusal_of(run("run", "show", "nothing", "--json"))[0] == ErrorCode.USAGE.exit_code
    assert run("run", "list").exit_code == 0
