"""Reading what the command line printed."""

import json
from collections.abc import Callable
from typing import Any

from click.testing import Result

Run = Callable[..., Result]


def answer_of(result: Result) -> Any:
    assert result.stdout.count("\n") == 1, result.output
    return json.loads(result.stdout)


def refusal_of(result: Result) -> tuple[int, dict[str, str]]:
    answer = answer_of(result)
    assert set(answer) == {"schema", "error"}
    return result.exit_code, answer["error"]
