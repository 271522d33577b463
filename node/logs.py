"""The node's log file: set up once by `paris-node start`, read by `paris-node logs`.

Bounded on disk, readable by its owner only. What a peer sent may end up in a message, so control
characters are escaped: no line can forge another, no terminal can be driven from afar.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

MAX_LOG_BYTES: Final = 8 * 1024 * 1024
KEPT_LOGS: Final = 3
"""With `MAX_LOG_BYTES`: at most 32 MiB of logs in a home."""
TAIL_BLOCK_BYTES: Final = 64 * 1024
POLL_S: Final = 0.25
_LOUD_LIBRARIES: Final = ("libp2p", "multiaddr", "hypercorn", "PIL", "urllib3", "filelock")
"""They say at INFO or DEBUG what happens in every heartbeat."""


class _PlainFormatter(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:  # its base's name
        record.message = printable(record.message)
        return super().formatMessage(record)


def printable(text: str) -> str:
    """`text` with every control and invisible character escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class _PrivateFileHandler(RotatingFileHandler):
    def _open(self):  # type: ignore[no-untyped-def]  # noqa: ANN202  # its base's own type
        return open(  # closed by the handler
            self.baseFilename, self.mode, encoding=self.encoding, opener=_open_private
        )


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def configure(log_file: Path, level: str) -> None:
    """Send every logger's records of `level` ("debug"..."error") and above to the log file."""
    handler = _PrivateFileHandler(
        log_file, maxBytes=MAX_LOG_BYTES, backupCount=KEPT_LOGS, encoding="utf-8"
    )
    handler.setFormatter(_PlainFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _LOUD_LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


def tail(log_file: Path, count: int) -> tuple[list[str], int]:
    """The last `count` whole lines and the position after them, reading no more than needed.

    Raises:
        FileNotFoundError: if there is no log yet.
    """
    with log_file.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        start, data = end, b""
        while start > 0 and data.count(b"\n") <= count:
            size = min(TAIL_BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            data = file.read(size) + data
    whole, newline, rest = data.rpartition(b"\n")
    lines = whole.decode("utf-8", "replace").split("\n") if newline else []
    return (lines[-count:] if count else []), end - len(rest)


def follow(
    log_file: Path, position: int, *, sleep: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """Whole lines as they are written after `position`, for ever; survives rotation."""
    file = log_file.open("rb")
    try:
        file.seek(position)
        rest = b""
        while True:
            piece = file.read(TAIL_BLOCK_BYTES)
            if piece:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield line.decode("utf-8", "replace")
            elif _is_replaced(log_file, file.fileno()):
                file.close()
                file, rest = log_file.open("rb"), b""
            else:
                sleep(POLL_S)
    finally:
        file.close()


def _is_replaced(log_file: Path, descriptor: int) -> bool:
    try:
        now = log_file.stat()
    except FileNotFoundError:  # between the two renames of a rotation
        return False
    return not os.path.samestat(now, os.fstat(descriptor))
