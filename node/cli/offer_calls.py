"""How commands ask the running node about offers."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

from node.cli.experts import checked_cid
from node.cli.options import Options
from node.cli.progress import Progress
from node.errors import ErrorCode, NodeError

Answer = Mapping[str, Any]

OFFERS: Final = "/api/v1/offers"
STEP_TIMEOUT_S: Final = 1200.0
"""Between two events: the node gives a measurement on a slow machine 600 s, and may have to wait
for one before it."""


def last_event(
    options: Options, path: str, request: Mapping[str, object], *, silence_s: float = STEP_TIMEOUT_S
) -> Answer:
    """Have the node do something about an offer, a bar for each phase; its last word on it.

    Raises:
        NodeError: `NOT_RUNNING`, or whatever the node says.
    """
    done: Answer = {}
    phase: object = None
    with (
        options.client().stream(path, request, silence_s=silence_s) as events,
        ExitStack() as shown,
    ):
        for event in events:
            if event.get("event") == "done":
                done = event
            elif event.get("event") == "progress":
                if event.get("phase") != phase:
                    phase = event.get("phase")
                    shown.close()
                    bar = shown.enter_context(Progress(str(phase), unit="steps", options=options))
                bar.update(event.get("done"), event.get("total"))
    return done


def offers_known(options: Options) -> Answer | None:
    """What the running node knows of offers; None if no node runs."""
    from node.home import read_api_file

    if read_api_file(options.settings().paths) is None:
        return None
    try:
        return options.client().get(OFFERS)
    except NodeError as error:
        if error.code is not ErrorCode.NOT_RUNNING:  # it died, and left its address behind
            raise
        return None


def checked_offer(text: str) -> str:
    """An offer's CID as a person typed it.

    Raises:
        NodeError: `USAGE` if it is none.
    """
    try:
        return checked_cid(text)
    except NodeError as error:
        raise NodeError(
            error.code, error.message, "see the offers: paris-node lora list"
        ) from error


def without_kind(event: Answer) -> dict[str, object]:
    """What `--json` prints of a last event."""
    return {key: value for key, value in event.items() if key != "event"}
