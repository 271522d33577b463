"""The messages of one order: every picture once under its own number, however it was drawn."""

from collections.abc import Iterator
from typing import cast

import pytest

from node.workers.expert import Easel, carry_out, draw
from node.workers.link import ParentLink
from training.drawing.mixture import Strategy
from training.drawing.plan import (
    Images,
    Route,
    RouterName,
    SampleEvent,
    Sampler,
    SampleRequest,
    Step,
)
from training.errors import RouterMissingError

ORDER = {
    "kind": "draw",
    "prompt": "a bag",
    "n": 3,
    "seed": 5,
    "strategy": "topk",
    "top_k": 3,
    "threshold": 0.2,
    "router": "gauss",
    "sampler": "heun",
    "steps": 4,
    "guidance": 2.0,
    "autoguidance": 0.5,
}


class InChunks(Easel):
    """An ensemble that tells two chunks; keeps the request."""

    request: SampleRequest

    def ensemble(self, order: object) -> "InChunks":
        return self

    def generate(self, request: SampleRequest) -> Iterator[SampleEvent]:
        self.request = request
        yield Route({1: 0.75, 2: 0.25}, {0: 0.5}, {2: 1.0}, (1,), (2,))
        yield Step(0, 8)
        yield Images((b"a", b"b"), {1: 1.0})
        yield Images((b"c",), {2: 1.0}, first=2)


def test_an_order_becomes_the_request_it_says() -> None:
    easel = InChunks()
    list(draw(ORDER, easel))
    options = easel.request.options
    assert (options.strategy, options.top_k, options.threshold) == (Strategy.TOPK, 3, 0.2)
    assert (options.router, options.sampler) == (RouterName.GAUSS, Sampler.HEUN)
    assert (easel.request.n, easel.request.seed, options.steps) == (3, 5, 4)
    assert (options.guidance, options.autoguidance) == (2.0, 0.5)


def test_pictures_of_all_chunks_are_numbered_on_and_carry_their_own_shares() -> None:
    route, step, *images = draw(ORDER, InChunks())
    assert route == {
        "kind": "route",
        "shares": {"1": 0.75, "2": 0.25},
        "missing": {"0": 0.5},
        "starters": {"2": 1.0},
        "unaided": [1],
        "unguided": [2],
    }
    assert step == {"kind": "progress", "step": 0, "steps": 8}
    told = [(image["index"], image["png"], image["shares"]) for image in images]
    assert told == [(0, b"a", {"1": 1.0}), (1, b"b", {"1": 1.0}), (2, b"c", {"2": 1.0})]


@pytest.mark.parametrize("field", ["strategy", "sampler", "router"])
def test_a_word_that_is_not_known_is_a_value_error(field: str) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        list(draw({**ORDER, field: "nonsense"}, InChunks()))


class NoRouter(InChunks):
    """Lacks the router it is asked for."""

    def generate(self, request: SampleRequest) -> Iterator[SampleEvent]:
        raise RouterMissingError(str(request.options.router), ("caption",))


class Heard:
    """A line to a node that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[dict[str, object]] = []

    def send(self, message: dict[str, object]) -> None:
        self.messages.append(message)

    def poll(self) -> None:
        return None


@pytest.mark.parametrize(
    ("router", "fix"),
    [("learned", "train one here: paris-node router train --kind learned"), ("gauss", "")],
)
def test_router_that_is_not_here_is_not_found_and_can_be_trained(router: str, fix: str) -> None:
    heard = Heard()
    carry_out(cast("ParentLink", heard), {**ORDER, "router": router}, NoRouter())
    (failed,) = heard.messages
    assert (failed["kind"], failed["code"], failed["fix"]) == ("failed", "not_found", fix)
    assert f"no {router} router of this run is here" in str(failed["error"])
