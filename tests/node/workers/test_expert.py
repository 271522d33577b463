"""The messages of one order: every picture once under its own number, however it was drawn."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from node.errors import ErrorCode
from node.lora_use import MAX_LORA_SCALE
from node.workers.expert import Easel, carry_out, draw
from node.workers.link import ParentLink
from training.drawing.ensemble import Ensemble
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
from training.errors import (
    CheckpointError,
    ConfigError,
    LoraError,
    RouterMissingError,
    TensorFileError,
    TrainingError,
    WrongBaseError,
)
from training.lora.modules import MAX_SCALE

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


class Breaks(InChunks):
    """Fails as it is told to."""

    def __init__(self, error: TrainingError) -> None:
        super().__init__()
        self.error = error

    def ensemble(self, order: object) -> "InChunks":
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "fix"),
    [
        (LoraError("altered"), ErrorCode.VERIFICATION_FAILED, "--no-lora"),
        (WrongBaseError("made for another"), ErrorCode.REFUSED, "--no-lora"),
        (CheckpointError("altered"), ErrorCode.VERIFICATION_FAILED, "logs"),
        (TensorFileError(Path("x"), "NaN"), ErrorCode.VERIFICATION_FAILED, "logs"),
        (ConfigError("cannot be"), ErrorCode.FAILED, ""),
    ],
)
def test_failure_says_what_kind_it_is(error: TrainingError, code: ErrorCode, fix: str) -> None:
    heard = Heard()
    carry_out(cast("ParentLink", heard), ORDER, Breaks(error))
    (failed,) = heard.messages
    assert ErrorCode.of_label(str(failed["code"])) is code
    assert str(error) in str(failed["error"])
    assert fix in str(failed["fix"])


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What ensembles were loaded from."""
    found: list[tuple[Any, ...]] = []

    def load(*parts: Any, models: Path) -> object:
        found.append(parts)
        return object()

    monkeypatch.setattr(Ensemble, "load", load)
    return found


def order_of(**changes: Any) -> dict[str, Any]:
    parts = {"shared": "s", "models": "m", "experts": {"1": "e"}, "summaries": {}, "routers": {}}
    return {**ORDER, **parts, "loras": {}, **changes}


def test_ensemble_is_loaded_with_the_adapters_of_the_order(
    loads: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    Easel().ensemble(order_of(loras={"1": [str(tmp_path), 0.5]}))
    Easel().ensemble(order_of())
    assert [parts[4] for parts in loads] == [{1: (tmp_path, 0.5)}, {}]


def test_ensemble_is_kept_until_an_adapter_or_its_scale_changes(
    loads: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    for name in ("dark", "light"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"1")
    dark, light = str(tmp_path / "dark"), str(tmp_path / "light")
    easel, kept = Easel(), None
    for count, loras in enumerate(
        ({}, {"1": [dark, 1.0]}, {"1": [dark, 0.5]}, {"1": [light, 0.5]}, {"2": [light, 0.5]}, {}),
        start=1,
    ):
        found = easel.ensemble(order_of(loras=loras))
        assert found is not kept
        assert len(loads) == count
        kept = easel.ensemble(order_of(loras=loras))
        assert kept is found
        assert len(loads) == count


def test_adapter_altered_in_its_place_is_read_and_checked_anew(
    loads: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"1")
    easel, order = Easel(), order_of(loras={"1": [str(tmp_path), 1.0]})
    easel.ensemble(order)
    with weights.open("r+b") as file:  # the folder's own time stays as it was
        file.write(b"2")
    os.utime(weights, ns=(0, 1))
    easel.ensemble(order)
    weights.unlink()
    tmp_path.rmdir()
    easel.ensemble(order)  # and so it is when it has gone: the load says so
    assert len(loads) == 3


def test_scale_goes_as_far_as_an_adapter_allows() -> None:
    assert MAX_LORA_SCALE == MAX_SCALE
