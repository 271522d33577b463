import io
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.training.routers.test_captions import WordEncoder
from training.drawing.ensemble import CHUNK, Ensemble
from training.drawing.mixture import Strategy
from training.drawing.plan import (
    AUTOGUIDANCE_T,
    MAX_PICTURES,
    Images,
    Route,
    RouterName,
    SampleEvent,
    SampleOptions,
    Sampler,
    SampleRequest,
    Step,
)
from training.errors import ConfigError
from training.parts.codecs import Codec
from training.routers.captions import CaptionPrior
from training.routers.router import GaussRouter
from training.routers.summary import fit_summary

LATENT = (1, 4, 4)
COUNTS = {0: {"dark": 8, "both": 2}, 1: {"light": 8, "both": 2}}
SHADE = {0: 0.25, 1: 0.75}


class GreyCodec:
    """Latents are the pixels, once each."""

    latent = LATENT
    digest = "grey"

    def encode(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(0, 1)


class OneShade:
    """The exact velocity of a cluster that has one grey picture; counts its batches."""

    def __init__(self, shade: float, objective: str = "fm") -> None:
        self.shade = shade
        self.objective = objective
        self.batches: list[int] = []

    def velocity(self, x_t: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        assert len(x_t) == len(t) == len(states) == len(mask)
        self.batches.append(len(x_t))
        return (x_t - self.shade) / t[:, None, None, None]


def an_ensemble(clusters: Iterable[int] = (0, 1), *, has_router: bool = False) -> Ensemble:
    encoder = WordEncoder()
    summaries = {k: fit_summary(torch.full((60, 16), shade)) for k, shade in SHADE.items()}
    return Ensemble(
        cast("Codec", GreyCodec()),
        encoder,
        CaptionPrior(COUNTS, encoder),
        {k: OneShade(SHADE[k]) for k in clusters},
        {RouterName.GAUSS: GaussRouter(summaries)} if has_router else None,
    )


def run_through(events: Iterable[SampleEvent]) -> tuple[Route, list[Step], Images]:
    first, *steps, last = events
    assert isinstance(first, Route)
    assert isinstance(last, Images)
    return first, [step for step in steps if isinstance(step, Step)], last


def shade_of(png: bytes) -> float:
    pixels = Image.open(io.BytesIO(png)).tobytes()
    assert len(set(pixels)) == 1
    return pixels[0] / 255


def test_generation_tells_its_route_its_steps_and_ends_with_pictures() -> None:
    request = SampleRequest("dark", n=2, seed=5, options=SampleOptions(steps=3))
    route, steps, images = run_through(an_ensemble().generate(request))
    assert route == Route(experts={0: 1.0}, missing={})
    assert steps == [Step(0, 3), Step(1, 3), Step(2, 3), Step(3, 3)]
    assert [shade_of(png) for png in images.pngs] == pytest.approx([0.25, 0.25], abs=0.01)
    assert images.shares == {0: 1.0}


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize("has_router", [True, False])
def test_every_way_of_drawing_ends_at_a_finite_picture(
    strategy: Strategy, sampler: Sampler, *, has_router: bool
) -> None:
    options = SampleOptions(strategy, sampler, steps=5)
    drawn = an_ensemble(has_router=has_router).generate_batch(["both"] * 6, 3, options)
    assert drawn.pictures.shape == (6, *LATENT)
    assert drawn.pictures.dtype == torch.uint8
    assert sum(drawn.shares.values()) == pytest.approx(1)


def test_sticky_shows_both_halves_of_an_ambiguous_caption() -> None:
    drawn = an_ensemble().generate_batch(["both"] * 8)
    assert sorted(set(drawn.pictures.flatten().tolist())) == [round(0.25 * 255), round(0.75 * 255)]
    assert drawn.shares == pytest.approx({0: 0.5, 1: 0.5}, abs=0.2)


@pytest.mark.parametrize("strategy", [Strategy.TOP1, Strategy.TOP2, Strategy.ALL])
def test_gauss_routes_settle_on_one_cluster_of_an_ambiguous_caption(strategy: Strategy) -> None:
    """Without them `all` would draw the mean of the two, which no cluster has."""
    options = SampleOptions(strategy, steps=20)
    drawn = an_ensemble(has_router=True).generate_batch(["both"] * 8, options=options)
    means = drawn.pictures.flatten(1).double().mean(1) / 255
    assert all(min(abs(m - 0.25), abs(m - 0.75)) < 0.05 for m in means.tolist())
    blurred = an_ensemble().generate_batch(["both"], options=SampleOptions(Strategy.ALL))
    assert float(blurred.pictures.double().mean()) / 255 == pytest.approx(0.5, abs=0.01)


def test_missing_expert_is_named_and_the_others_draw() -> None:
    route, _, images = run_through(an_ensemble([1]).generate(SampleRequest("both", n=4)))
    assert route == Route(experts={1: 1.0}, missing={0: 0.5})
    assert [shade_of(png) for png in images.pngs] == pytest.approx([0.75] * 4, abs=0.01)


@pytest.mark.parametrize(("rare", "is_asked"), [(5, False), (20, True)])
def test_an_expert_below_the_least_weight_is_not_even_asked(rare: int, *, is_asked: bool) -> None:
    """Not one forward: 5 of 10,000 pictures is below `MIN_WEIGHT`, 20 is above."""
    encoder, experts = WordEncoder(), {k: OneShade(SHADE[k]) for k in SHADE}
    counts = {0: {"both": 10_000 - rare}, 1: {"both": rare}}
    ensemble = Ensemble(cast("Codec", GreyCodec()), encoder, CaptionPrior(counts, encoder), experts)
    ensemble.generate_batch(["both"] * 3, options=SampleOptions(Strategy.ALL, steps=4))
    assert experts[0].batches == [6] * 4
    assert experts[1].batches == ([6] * 4 if is_asked else [])


def test_captions_are_encoded_once_a_drawing_not_once_an_evaluation() -> None:
    encoder = WordEncoder()
    experts = {k: OneShade(SHADE[k]) for k in SHADE}
    ensemble = Ensemble(cast("Codec", GreyCodec()), encoder, CaptionPrior(COUNTS, encoder), experts)
    ensemble.generate_batch(["dark", "light", "dark"], options=SampleOptions(steps=9))
    assert sorted(encoder.asked) == ["", "", "", "dark", "dark", "light"]


def test_many_pictures_come_in_chunks_with_one_count_of_steps() -> None:
    request = SampleRequest("both", n=CHUNK + 3, seed=7, options=SampleOptions(steps=2))
    events = list(an_ensemble().generate(request))
    images = [event for event in events if isinstance(event, Images)]
    assert [(part.first, len(part.pngs)) for part in images] == [(0, CHUNK), (CHUNK, 3)]
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.step for step in steps] == [0, 1, 2, 2, 3, 4]
    assert {step.steps for step in steps} == {4}
    assert isinstance(events[4], Images)  # the first chunk's pictures do not wait for the second's
    alone = an_ensemble().generate(SampleRequest("both", n=1, seed=7 + CHUNK + 2))
    assert run_through(alone)[2].pngs[0] == images[1].pngs[2]


def test_pictures_of_large_latents_are_denoised_a_few_at_a_time() -> None:
    class LargeCodec(GreyCodec):
        latent = (1, 80, 80)

    expert, encoder = OneShade(0.5), WordEncoder()
    ensemble = Ensemble(
        cast("Codec", LargeCodec()), encoder, CaptionPrior(COUNTS, encoder), {0: expert}
    )
    ensemble.generate_batch(["dark"] * 9, options=SampleOptions(steps=1, guidance=1))
    assert expert.batches == [4, 4, 1]


def mixed(objectives: dict[int, str]) -> Ensemble:
    encoder = WordEncoder()
    experts = {k: OneShade(SHADE[k], objective) for k, objective in objectives.items()}
    return Ensemble(cast("Codec", GreyCodec()), encoder, CaptionPrior(COUNTS, encoder), experts)


def test_route_tells_who_starts_for_experts_that_predict_noise() -> None:
    ensemble = mixed({0: "ddpm-eps", 1: "fm"})
    route, _, images = run_through(ensemble.generate(SampleRequest("dark", n=2)))
    assert route == Route(experts={0: 1.0}, missing={}, starters={1: 1.0})
    assert images.shares == pytest.approx({0: 0.8, 1: 0.2})
    assert [shade_of(png) for png in images.pngs] == pytest.approx([0.25, 0.25], abs=0.01)
    assert run_through(ensemble.generate(SampleRequest("light")))[0] == Route({1: 1.0}, {})


def test_route_tells_which_noise_experts_have_nobody_to_start_for_them() -> None:
    route, _, images = run_through(mixed({0: "ddpm-eps"}).generate(SampleRequest("both")))
    assert route == Route(experts={0: 1.0}, missing={1: 0.5}, unaided=(0,))
    assert images.shares == {0: 1.0}


def test_guides_draw_only_when_asked_and_between_their_times() -> None:
    encoder, guide = WordEncoder(), OneShade(0.1)
    parts = (cast("Codec", GreyCodec()), encoder, CaptionPrior(COUNTS, encoder))
    ensemble = Ensemble(
        *parts, {k: OneShade(shade) for k, shade in SHADE.items()}, guides={0: guide}
    )
    plain = SampleOptions(steps=10, sampler=Sampler.EULER)
    ensemble.generate_batch(["dark"], options=plain)
    assert guide.batches == []
    options = replace(plain, autoguidance=1.0)
    ensemble.generate_batch(["dark"], options=options)
    low, high = AUTOGUIDANCE_T
    assert guide.batches == [1] * sum(low <= 1 - step / 10 <= high for step in range(10))
    assert len(guide.batches) == 7
    route = next(iter(ensemble.generate(SampleRequest("dark", options=options))))
    assert route == Route({0: 1.0}, {}, unguided=(1,))
    assert next(iter(ensemble.generate(SampleRequest("dark", options=plain)))) == Route(
        {0: 1.0}, {}
    )


def test_router_asked_for_must_be_at_hand_and_caption_always_is() -> None:
    ensemble = an_ensemble(has_router=True)
    by_caption = SampleOptions(Strategy.ALL, router=RouterName.CAPTION)
    blurred = ensemble.generate_batch(["both"], options=by_caption)
    assert float(blurred.pictures.double().mean()) / 255 == pytest.approx(0.5, abs=0.01)
    named = SampleOptions(Strategy.ALL, router=RouterName.GAUSS)
    assert torch.equal(
        ensemble.generate_batch(["both"], options=named).pictures,
        ensemble.generate_batch(["both"], options=SampleOptions(Strategy.ALL)).pictures,
    )
    absent = SampleOptions(Strategy.ALL, router=RouterName.LEARNED)
    with pytest.raises(ConfigError, match="no learned router of this run is here; there is capt"):
        ensemble.generate_batch(["both"], options=absent)


def test_a_batch_is_drawn_in_chunks_with_consecutive_seeds() -> None:
    ensemble = an_ensemble()
    count = CHUNK + 3
    whole = ensemble.generate_batch(["both"] * count, seed=10, options=SampleOptions(steps=2))
    tail = ensemble.generate_batch(["both"] * 3, seed=10 + CHUNK, options=SampleOptions(steps=2))
    assert len(whole.pictures) == count
    assert torch.equal(whole.pictures[CHUNK:], tail.pictures)


def test_pictures_are_the_same_whether_streamed_or_batched() -> None:
    ensemble = an_ensemble()
    _, _, images = run_through(ensemble.generate(SampleRequest("both", n=3, seed=4)))
    batch = ensemble.generate_batch(["both"] * 3, seed=4)
    shades = (batch.pictures[:, 0, 0, 0].double() / 255).tolist()
    assert [shade_of(png) for png in images.pngs] == pytest.approx(shades)


def test_closing_the_stream_stops_asking() -> None:
    expert = OneShade(0.5)
    encoder = WordEncoder()
    ensemble = Ensemble(
        cast("Codec", GreyCodec()), encoder, CaptionPrior(COUNTS, encoder), {0: expert}
    )
    events = ensemble.generate(SampleRequest("dark"))
    for _ in range(3):
        next(events)
    events.close()  # type: ignore[attr-defined]
    assert len(expert.batches) == 1


@pytest.mark.parametrize("n", [0, MAX_PICTURES + 1])
def test_number_of_pictures_is_bounded(n: int) -> None:
    with pytest.raises(ConfigError, match="got"):
        SampleRequest("dark", n=n)
    with pytest.raises(ConfigError, match="captions"):
        an_ensemble().generate_batch(["dark"] * n)
    assert SampleRequest("dark", n=MAX_PICTURES).n == MAX_PICTURES


def test_ensemble_needs_an_expert_of_the_run() -> None:
    with pytest.raises(ConfigError, match="experts of clusters"):
        an_ensemble([])
    encoder = WordEncoder()
    with pytest.raises(ConfigError, match=r"experts of clusters \[9\]"):
        Ensemble(
            cast("Codec", GreyCodec()), encoder, CaptionPrior(COUNTS, encoder), {9: OneShade(0)}
        )
