import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from training.drawing.mixture import NoExpertError, Strategy
from training.drawing.plan import (
    CONTRAST_T,
    MAX_AUTOGUIDANCE,
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_STEPS,
    Denoised,
    ExpertQuery,
    SampleOptions,
    SamplePlan,
    Sampler,
)
from training.drawing.sampler import (
    StaticRoutes,
    denoise,
    fresh_uniform,
    initial_noise,
    seed_uniform,
)
from training.errors import ConfigError
from training.routers.router import FREEZE_BELOW_T

SHAPE = (2, 3, 3)
Answer = Callable[[ExpertQuery], Tensor | None]


def a_plan(count: int = 4, seed: int = 0, **options: object) -> SamplePlan:
    captions = tuple(f"caption {i}" for i in range(count))
    seeds = tuple(range(seed, seed + count))
    return SamplePlan(captions, seeds, SHAPE, SampleOptions(**options))  # type: ignore[arg-type]


def routes_of(*rows: Sequence[float]) -> StaticRoutes:
    return StaticRoutes(tuple(range(len(rows[0]))), torch.tensor(rows, dtype=torch.float64))


def drive(
    plan: SamplePlan,
    routes: object,
    answer: Answer,
    reachable: Sequence[int] = (0, 1, 2),
    noise_experts: Sequence[int] = (),
) -> tuple[Denoised, list[tuple[ExpertQuery, ...]]]:
    dialogue = denoise(plan, routes, reachable, noise_experts)  # type: ignore[arg-type]
    asked = []
    try:
        queries = next(dialogue)
        while True:
            asked.append(queries)
            queries = dialogue.send([answer(query) for query in queries])
    except StopIteration as end:
        return end.value, asked


def toward(target: float) -> Answer:
    """Velocity of the straight path to a single point: (x_t - target) / t."""
    return lambda query: (query.x_t - target) / query.t


def decay(query: ExpertQuery) -> Tensor:
    """dx/dt = 3 x t^2, so x_0 = x_1 exp(-1)."""
    return 3 * query.x_t * query.t**2


@pytest.mark.parametrize(
    ("sampler", "order"), [(Sampler.EULER, 1), (Sampler.AB2, 2), (Sampler.HEUN, 2)]
)
def test_sampler_converges_with_its_order(sampler: Sampler, order: int) -> None:
    exact = initial_noise(range(4), SHAPE) * math.exp(-1)
    errors = []
    for steps in (40, 80):
        plan = a_plan(sampler=sampler, steps=steps)
        found, _ = drive(plan, routes_of(*[[1.0]] * 4), decay, (0,))
        errors.append(float((found.latents - exact).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_straight_paths_are_integrated_exactly_in_any_number_of_steps(sampler: Sampler) -> None:
    for steps in (1, 2, 6, 7):
        plan = a_plan(sampler=sampler, steps=steps)
        found, asked = drive(plan, routes_of(*[[1.0]] * 4), toward(0.25), (0,))
        assert torch.allclose(found.latents, torch.full_like(found.latents, 0.25), atol=1e-5)
        assert [queries[0].step for queries in asked] == list(range(steps))


def times_of(sampler: Sampler, steps: int) -> list[float]:
    _, asked = drive(
        a_plan(sampler=sampler, steps=steps), routes_of(*[[1.0]] * 4), toward(0.0), (0,)
    )
    return [queries[0].t for queries in asked]


@pytest.mark.parametrize("sampler", [Sampler.EULER, Sampler.AB2])
def test_one_evaluation_a_step_leaves_none_wasted(sampler: Sampler) -> None:
    assert times_of(sampler, 4) == [1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [1]), (2, [1, 0.5]), (4, [1, 0.5, 0.5, 0.25]), (5, [1, 2 / 3, 2 / 3, 1 / 3, 1 / 3])],
)
def test_heun_spends_the_evaluations_it_is_given_and_none_at_zero(
    steps: int, expected: list[float]
) -> None:
    assert times_of(Sampler.HEUN, steps) == pytest.approx(expected)


def test_queries_are_grouped_by_expert_and_carry_their_pictures() -> None:
    routes = routes_of([1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1])
    _, asked = drive(a_plan(steps=3, guidance=2.5), routes, toward(0.0))
    assert len(asked) == 3
    for step, queries in enumerate(asked):
        assert [(query.cluster, query.rows.tolist()) for query in queries] == [
            (0, [0, 2]),
            (2, [1, 3]),
        ]
        assert queries[1].captions == ("caption 1", "caption 3")
        assert (queries[0].step, queries[0].steps, queries[0].guidance) == (step, 3, 2.5)


def test_a_picture_does_not_depend_on_its_batch() -> None:
    row = [0.4, 0.3, 0.3]
    together, _ = drive(a_plan(6), routes_of(*[row] * 6), by_cluster)
    alone = SamplePlan(("caption 4",), (4,), SHAPE)
    single, _ = drive(alone, routes_of(row), by_cluster)
    assert torch.equal(together.latents[4], single.latents[0])


def by_cluster(query: ExpertQuery) -> Tensor:
    return (query.x_t - query.cluster) / query.t


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    rows = routes_of(*[[0.5, 0.3, 0.2]] * 4)
    first, again = (drive(a_plan(seed=7), rows, by_cluster)[0].latents for _ in range(2))
    other = drive(a_plan(seed=90), rows, decay)[0].latents
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_neighbouring_seeds_show_clusters_in_their_shares() -> None:
    uniforms = sorted(seed_uniform(seed) for seed in range(1000, 1008))
    assert all(0 <= uniform < 1 for uniform in uniforms)
    assert max(b - a for a, b in pairwise(uniforms)) < 0.24
    assert seed_uniform(0) == 0
    assert seed_uniform(MAX_SEED) < 1


def test_sticky_keeps_one_expert_per_picture() -> None:
    found, asked = drive(a_plan(focus=0), routes_of(*[[0.5, 0.3, 0.2]] * 4), by_cluster)
    assert all(len(set(found.latents[i].round().flatten().tolist())) == 1 for i in range(4))
    first = [(query.cluster, query.rows.tolist()) for query in asked[0]]
    assert all([(q.cluster, q.rows.tolist()) for q in queries] == first for queries in asked)


def test_late_expert_only_renormalises() -> None:
    """ALL: the other experts' answers stand; nothing is asked twice in that evaluation."""
    calls: list[int] = []

    def answer(query: ExpertQuery) -> Tensor | None:
        calls.append(query.cluster)
        return None if query.cluster == 1 else torch.full_like(query.x_t, float(query.cluster))

    plan = a_plan(steps=2, strategy=Strategy.ALL)
    found, asked = drive(plan, routes_of(*[[0.5, 0.3, 0.2]] * 4), answer)
    assert [len(queries) for queries in asked] == [3, 2]
    assert calls == [0, 1, 2, 0, 2]
    assert found.lost == (1,)
    expected = initial_noise(plan.seeds, SHAPE) - 2 * 0.2 / 0.7
    assert torch.allclose(found.latents, expected, atol=1e-5)
    assert found.shares == pytest.approx({0: 5 / 7, 2: 2 / 7})


def test_dead_sticky_expert_hands_its_pictures_over_and_leaves_the_others() -> None:
    routes = routes_of([1, 0, 0], [0.0, 1, 0], [0.0, 0.6, 0.4], [0, 0, 1])

    def answer(query: ExpertQuery) -> Tensor | None:
        return None if query.cluster == 1 and query.t < 0.7 else by_cluster(query)

    found, asked = drive(a_plan(steps=4), routes, answer)
    assert found.lost == (1,)
    retry = asked[3]
    assert {row for query in retry for row in query.rows.tolist()} <= {1, 2}
    assert all(query.cluster != 1 for queries in asked[3:] for query in queries)
    assert found.latents[3].allclose(torch.tensor(2.0))
    assert bool(found.latents.isfinite().all())
    assert sum(found.shares.values()) == pytest.approx(1)


def test_handed_over_picture_forgets_the_slope_of_its_dead_expert() -> None:
    routes = routes_of(*[[0.9, 0.1]] * 4)

    def answer(query: ExpertQuery) -> Tensor | None:
        if query.cluster == 0:
            return torch.full_like(query.x_t, 1e6) if query.t == 1 else None
        return torch.zeros_like(query.x_t)

    plan = SamplePlan(("a",), (0,), SHAPE, SampleOptions(steps=4))
    found, _ = drive(plan, StaticRoutes((0, 1), routes.table[:1]), answer, (0, 1))
    expected = initial_noise((0,), SHAPE) - 1e6 / 4
    assert torch.allclose(found.latents, expected)


def test_heun_does_not_average_slopes_of_two_experts() -> None:
    def answer(query: ExpertQuery) -> Tensor | None:
        if query.cluster == 0:
            return torch.full_like(query.x_t, 2.0) if query.t == 1 else None
        return torch.zeros_like(query.x_t)

    options = SampleOptions(steps=4, sampler=Sampler.HEUN)
    plan = SamplePlan(("a",), (0,), SHAPE, options)
    found, _ = drive(plan, routes_of([0.9, 0.1]), answer, (0, 1))
    assert torch.allclose(found.latents, initial_noise((0,), SHAPE) - 2.0 / 2)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda query: torch.full_like(query.x_t, math.nan),
        lambda query: torch.full_like(query.x_t, math.inf),
        lambda query: query.x_t[:, :1],
        lambda query: query.x_t[0],
    ],
)
def test_unusable_answer_counts_as_none(wrong: Answer) -> None:
    def answer(query: ExpertQuery) -> Tensor | None:
        return wrong(query) if query.cluster == 0 else by_cluster(query)

    found, _ = drive(a_plan(), routes_of(*[[0.8, 0.2]] * 4), answer, (0, 1))
    assert found.lost == (0,)
    assert bool(found.latents.isfinite().all())


def test_no_expert_left_is_an_error() -> None:
    with pytest.raises(NoExpertError):
        drive(a_plan(), routes_of(*[[0.5, 0.5]] * 4), lambda _: None, (0, 1))
    with pytest.raises(NoExpertError):
        drive(a_plan(), routes_of(*[[0.5, 0.5]] * 4), by_cluster, ())


def test_answers_must_match_the_queries() -> None:
    dialogue = denoise(a_plan(), routes_of(*[[1.0]] * 4), (0,))
    next(dialogue)
    with pytest.raises(ValueError, match="argument"):
        dialogue.send([])


def test_fresh_uniforms_are_spread_and_independent_of_the_pictures_own() -> None:
    own = torch.tensor([seed_uniform(seed) for seed in range(4000)])
    for stream in (0, 1, 2):
        fresh = torch.tensor([fresh_uniform(seed, stream) for seed in range(4000)])
        assert 0 <= float(fresh.min()) < 0.01
        assert 0.99 < float(fresh.max()) < 1
        table = torch.histogramdd(torch.stack([own, fresh], 1).double(), bins=[4, 4]).hist
        assert float((table - 250).abs().max()) < 5 * 250**0.5
    assert 0 <= fresh_uniform(MAX_SEED, MAX_STEPS + 1) < 1


class CountingRoutes:
    """Routes that follow x_t, and remember when they were asked."""

    clusters = (0, 1)
    is_static = False
    freeze_below = FREEZE_BELOW_T

    def __init__(self) -> None:
        self.asked_at: list[float] = []

    def probabilities(self, x_t: Tensor, t: float) -> Tensor:
        self.asked_at.append(t)
        return torch.tensor([[0.7, 0.3]]).expand(len(x_t), 2)


@pytest.mark.parametrize("strategy", [Strategy.TOP1, Strategy.TOP2, Strategy.ALL])
def test_routing_follows_the_picture_until_the_decision_is_frozen(strategy: Strategy) -> None:
    routes = CountingRoutes()
    drive(a_plan(steps=10, strategy=strategy), routes, by_cluster, (0, 1))
    assert routes.asked_at == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    assert min(routes.asked_at) >= FREEZE_BELOW_T


def test_sticky_asks_the_router_once() -> None:
    routes = CountingRoutes()
    drive(a_plan(), routes, by_cluster, (0, 1))
    assert routes.asked_at == [1.0]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"steps": MAX_STEPS + 1},
        {"guidance": -0.1},
        {"focus": -0.1},
        {"focus": 1.1},
        {"top_k": 0},
        {"threshold": 1.1},
        {"guidance": MAX_GUIDANCE + 0.1},
        {"guidance": math.nan},
        {"autoguidance": -0.1},
        {"autoguidance": MAX_AUTOGUIDANCE + 0.1},
        {"autoguidance": math.nan},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        SampleOptions(**options)  # type: ignore[arg-type]


def test_options_at_their_limits_are_allowed() -> None:
    assert SampleOptions(steps=1, guidance=0).steps == 1
    assert SampleOptions(steps=MAX_STEPS, guidance=MAX_GUIDANCE).guidance == MAX_GUIDANCE


@pytest.mark.parametrize(
    ("captions", "seeds"),
    [((), ()), (("a",), (1, 2)), (("a",), (-1,)), (("a",), (MAX_SEED + 1,))],
)
def test_plans_that_cannot_be_drawn_are_refused(
    captions: tuple[str, ...], seeds: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError):
        SamplePlan(captions, seeds, SHAPE)


class Drifting:
    """p(k | x_t, t) that tells nothing at t = 1 and is sure of cluster 2, then 1, below."""

    clusters = (0, 1, 2)
    is_static = False
    freeze_below = FREEZE_BELOW_T

    def probabilities(self, x_t: Tensor, t: float) -> Tensor:
        row = [0.5, 0.3, 0.2] if t == 1 else [0.05, 0.35, 0.6]
        return torch.tensor([row], dtype=torch.float64).expand(len(x_t), -1)


def test_relay_opens_with_the_drawn_expert_and_goes_on_with_the_two_likeliest() -> None:
    plan = a_plan(count=8, strategy=Strategy.RELAY, steps=10, focus=0.0)
    _, asked = drive(plan, Drifting(), toward(0.0))
    opening = {query.cluster: len(query.rows) for query in asked[0]}
    sticky = a_plan(count=8, strategy=Strategy.STICKY, steps=10, focus=0.0)
    _, drawn = drive(sticky, Drifting(), toward(0.0))
    assert opening == {query.cluster: len(query.rows) for query in drawn[0]}
    assert len(opening) == 3  # the smallest cluster opens pictures as well
    for queries in asked[1:]:
        assert {query.cluster for query in queries} == {1, 2}


def test_contrast_keeps_its_expert_and_asks_the_likeliest_other_one_midway() -> None:
    plan = a_plan(count=8, strategy=Strategy.CONTRAST, steps=10, focus=0.0)
    _, asked = drive(plan, Drifting(), toward(0.0))
    own = {int(row): query.cluster for query in asked[0] for row in query.rows}
    low, high = CONTRAST_T
    for queries in asked:
        pairs = {(int(row), query.cluster) for query in queries for row in query.rows}
        rivals = {(row, 1 if cluster == 2 else 2) for row, cluster in own.items()}
        is_pushed = low <= queries[0].t <= high
        assert pairs == set(own.items()) | (rivals if is_pushed else set())


def test_contrast_moves_away_from_what_the_other_expert_would_draw() -> None:
    targets = {0: 0.0, 1: 0.0, 2: 4.0}

    def answer(query: ExpertQuery) -> Tensor:
        return (query.x_t - targets[query.cluster]) / query.t

    routes = routes_of([1.0, 0.001, 0.4])
    plain = a_plan(count=1, strategy=Strategy.STICKY, steps=40)
    pushed = a_plan(count=1, strategy=Strategy.CONTRAST, steps=40)
    assert float(drive(plain, routes, answer)[0].latents.mean()) == pytest.approx(0.0, abs=1e-5)
    assert _asked_last(pushed, routes, answer) < _asked_last(plain, routes, answer) - 0.1


def _asked_last(plan: SamplePlan, routes: StaticRoutes, answer: Answer) -> float:
    """Mean of the latents at the last evaluation within the push."""
    _, asked = drive(plan, routes, answer)
    return float([queries[0].x_t.mean() for queries in asked if queries[0].t >= CONTRAST_T[0]][-1])


def test_contrast_draws_alone_when_the_other_expert_is_lost() -> None:
    def answer(query: ExpertQuery) -> Tensor | None:
        return None if query.cluster == 2 else toward(1.0)(query)

    plan = a_plan(count=1, strategy=Strategy.CONTRAST, steps=10)
    found, _ = drive(plan, routes_of([0.6, 0.001, 0.4]), answer, reachable=(0, 2))
    torch.testing.assert_close(found.latents, torch.ones(1, *SHAPE))
    assert found.lost == (2,)


def test_contrast_asks_the_likeliest_other_expert_that_can_be_asked() -> None:
    plan = a_plan(count=1, strategy=Strategy.CONTRAST, steps=10)
    _, asked = drive(plan, routes_of([0.6, 0.1, 0.3]), toward(1.0), reachable=(0, 1))
    assert {query.cluster for queries in asked for query in queries} == {0, 1}


def test_picture_is_not_drawn_by_what_it_is_pushed_away_from_alone() -> None:
    def answer(query: ExpertQuery) -> Tensor | None:
        is_lost = query.cluster == 0 and query.t <= CONTRAST_T[1]
        return None if is_lost else toward(1.0)(query)

    plan = a_plan(count=1, strategy=Strategy.CONTRAST, steps=10)
    found, asked = drive(plan, routes_of([0.6, 0.001, 0.4]), answer)
    assert found.lost == (0,)
    lost_at = next(i for i, queries in enumerate(asked) if queries[0].t <= CONTRAST_T[1])
    again = asked[lost_at + 1]
    assert (again[0].t, [query.cluster for query in again]) == (asked[lost_at][0].t, [1, 2])


def test_contrast_hands_over_when_its_own_expert_is_lost() -> None:
    def answer(query: ExpertQuery) -> Tensor | None:
        return None if query.cluster == 0 else toward(1.0)(query)

    plan = a_plan(count=1, strategy=Strategy.CONTRAST, steps=10)
    found, _ = drive(plan, routes_of([0.6, 0.001, 0.4]), answer, reachable=(0, 2))
    torch.testing.assert_close(found.latents, torch.ones(1, *SHAPE))
    assert found.shares.keys() == {2}
