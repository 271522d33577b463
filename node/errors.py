"""Errors a person sees: what went wrong, why, what to do; and the exit code each one means."""

from enum import Enum
from typing import Final


class ErrorCode(Enum):
    """Stable names of failures, as `--json` prints them, each with its exit code."""

    FAILED = ("failed", 1)
    USAGE = ("usage", 2)
    NOT_RUNNING = ("not_running", 3)
    NOT_FOUND = ("not_found", 4)
    NO_PEERS = ("no_peers", 5)
    VERIFICATION_FAILED = ("verification_failed", 6)
    REFUSED = ("refused", 7)
    RESOURCE = ("resource", 8)
    TIMEOUT = ("timeout", 124)
    INTERRUPTED = ("interrupted", 130)

    def __init__(self, label: str, exit_code: int) -> None:
        self.label = label
        self.exit_code = exit_code

    @classmethod
    def of_label(cls, label: str) -> "ErrorCode":
        """The code named `label`; `FAILED` for a name from a newer version."""
        return _BY_LABEL.get(label, cls.FAILED)


_BY_LABEL: Final = {code.label: code for code in ErrorCode}


class NodeError(Exception):
    """A failure with a sentence for a person and a way out.

    Args:
        code: what kind it is.
        message: what happened and why, one sentence, no traceback.
        fix: the command or change that helps; empty if there is none.
    """

    def __init__(self, code: ErrorCode, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix

    def to_json(self) -> dict[str, object]:
        """The `error` object of every JSON answer."""
        return {"code": self.code.label, "message": self.message, "fix": self.fix}
