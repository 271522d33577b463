import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.logs import KEPT_LOGS, TAIL_BLOCK_BYTES, configure, follow, printable, tail


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield tmp_path / "node.log"
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


def test_records_of_the_level_and_above_are_kept_private_and_dated(log_file: Path) -> None:
    configure(log_file, "info")
    logging.getLogger("node.test").info("peer %s joined", "otter")
    logging.getLogger("node.test").debug("not this")
    logging.getLogger("libp2p.loud").info("nor this")
    (line,) = log_file.read_text().splitlines()
    assert line.endswith("Z INFO    node.test: peer otter joined")
    assert stat.S_IMODE(log_file.stat().st_mode) == 0o600


def test_what_a_peer_sent_cannot_forge_a_line_or_drive_a_terminal(log_file: Path) -> None:
    configure(log_file, "info")
    logging.getLogger("node.test").info("name %s", "a\n2026-01-01 ERROR forged\x1b[2J\u202e\x00")
    (line,) = log_file.read_text().splitlines()
    assert r"a\n2026-01-01 ERROR forged\x1b[2J\u202e\x00" in line


def test_traceback_keeps_its_lines(log_file: Path) -> None:
    configure(log_file, "info")
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("node.test").exception("it failed")
    assert "\nValueError: why" in log_file.read_text()


def test_logs_are_bounded_on_disk(log_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.logs.MAX_LOG_BYTES", 1000)
    configure(log_file, "info")
    for number in range(200):
        logging.getLogger("node.test").info("line %d", number)
    logs = sorted(log_file.parent.iterdir())
    assert len(logs) == KEPT_LOGS + 1
    assert all(log.stat().st_size <= 1000 for log in logs)
    assert all(stat.S_IMODE(log.stat().st_mode) == 0o600 for log in logs)


@pytest.mark.parametrize("text", ["", "plain", "naïve ボート"])
def test_printable_text_is_untouched(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("content", "count", "lines"),
    [
        ("", 5, []),
        ("a\n", 5, ["a"]),
        ("a\nb\nc\n", 2, ["b", "c"]),
        ("a\nb\nhalf", 5, ["a", "b"]),
        ("half", 5, []),
        ("a\n", 0, []),
        ("\n\n", 5, ["", ""]),
        ("x" * (2 * TAIL_BLOCK_BYTES) + "\nb\n", 1, ["b"]),
        ("x" * TAIL_BLOCK_BYTES + "\nb\n", 2, ["x" * TAIL_BLOCK_BYTES, "b"]),
    ],
)
def test_tail_is_the_last_whole_lines(
    tmp_path: Path, content: str, count: int, lines: list[str]
) -> None:
    path = tmp_path / "log"
    path.write_text(content)
    found, position = tail(path, count)
    assert found == lines
    assert position == len(content) - len(content.rpartition("\n")[2])


def test_following_begins_where_the_tail_ended_and_survives_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("a\nha")
    _, position = tail(path, 1)

    def write_more(_: float) -> None:
        if path.read_text().endswith("ha"):
            path.write_text("a\nhalf\n")
        else:
            path.rename(tmp_path / "log.1")
            path.write_text("new\n")

    lines = follow(path, position, sleep=write_more)
    assert [next(lines), next(lines)] == ["half", "new"]
    lines.close()  # type: ignore[attr-defined]  # a generator
