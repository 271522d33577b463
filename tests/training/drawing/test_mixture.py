import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.drawing.mixture import (
    MIN_WEIGHT,
    Choice,
    NoExpertError,
    Strategy,
    choose,
    combine,
    contrasted,
    draw,
    mix,
    shares_of,
)

TABLE = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
CLUSTERS = (0, 3, 5)
HALF = torch.tensor([0.5, 0.5], dtype=torch.float64)


def tables() -> st.SearchStrategy[list[list[float]]]:
    width = st.shared(st.integers(1, 6), key="width")
    row = width.flatmap(lambda n: st.lists(st.floats(0.0, 1e6), min_size=n, max_size=n))
    return st.lists(row, min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(tables(), st.sampled_from(list(Strategy)), st.floats(0, 1, exclude_max=True), st.data())
def test_weights_sum_to_one_over_the_reachable_only(
    rows: list[list[float]], strategy: Strategy, uniform: float, data: st.DataObject
) -> None:
    table = torch.tensor(rows, dtype=torch.float64)
    clusters = range(table.shape[1])
    reachable = data.draw(st.sets(st.sampled_from(clusters), min_size=1))
    uniforms = torch.full((len(rows),), uniform, dtype=torch.float64)
    weights = mix(table, clusters, reachable, Choice(strategy), uniforms).weights
    assert torch.allclose(weights.sum(dim=1), torch.ones(len(rows), dtype=torch.float64))
    assert all(float(weights[:, k].sum()) == 0 for k in clusters if k not in reachable)
    assert bool(((weights == 0) | (weights >= MIN_WEIGHT)).all())


@pytest.mark.parametrize("tiny", [5e-324, 2.3e-313, 1e-301])
def test_a_row_of_next_to_nothing_goes_to_the_reachable(tiny: float) -> None:
    table = torch.tensor([[tiny, 0.0]], dtype=torch.float64)
    uniforms = torch.zeros(1, dtype=torch.float64)
    for strategy in Strategy:
        weights = mix(table, range(2), {0}, Choice(strategy), uniforms).weights
        assert weights.tolist() == [[1.0, 0.0]]


def test_posterior_weighted_experts_are_the_velocity_of_all_the_data() -> None:
    """Two clusters of point masses: E[eps - x0 | x_t] over all equals sum_k p_k v_k to 1e-10."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)  # cluster, point, dims
    x_t, t = torch.randn(7, 4, generator=generator, dtype=torch.float64), 0.6

    def posterior_velocity(data: Tensor) -> tuple[Tensor, Tensor]:
        distance = (x_t[:, None] - (1 - t) * data[None]).square().sum(2)
        likelihood = torch.exp(-distance / (2 * t * t))
        mean = likelihood @ data / likelihood.sum(1, keepdim=True)
        return (x_t - (1 - t) * mean) / t - mean, likelihood.sum(1)

    each = [posterior_velocity(points[k]) for k in range(3)]
    table = torch.stack([mass for _, mass in each], dim=1)
    ones = torch.zeros(7, dtype=torch.float64)
    weights = table / table.sum(1, keepdim=True)
    whole, _ = posterior_velocity(points.flatten(0, 1))
    velocities = torch.stack([velocity for velocity, _ in each])
    assert float((combine(weights, velocities) - whole).abs().max()) < 1e-10
    kept = mix(table, (0, 1, 2), (0, 1, 2), Choice(Strategy.ALL), ones).weights
    assert torch.allclose(kept, weights, atol=2 * MIN_WEIGHT)


def test_each_strategy_keeps_what_its_name_says() -> None:
    def weights(choice: Choice) -> list[float]:
        return [round(w, 6) for w in choose(TABLE[:1], choice, HALF[:1])[0].tolist()]

    assert weights(Choice(Strategy.TOP1)) == [1, 0, 0]
    assert weights(Choice(Strategy.TOP2)) == [0.666667, 0.333333, 0]
    assert weights(Choice(Strategy.ALL)) == [0.6, 0.3, 0.1]
    assert weights(Choice(Strategy.STICKY)) == [1, 0, 0]
    assert weights(Choice(Strategy.RANDOM)) == [1, 0, 0]
    assert weights(Choice(Strategy.TOPK, top_k=1)) == [1, 0, 0]
    assert weights(Choice(Strategy.TOPK, top_k=2)) == [0.666667, 0.333333, 0]
    assert weights(Choice(Strategy.TOPK, top_k=7)) == [0.6, 0.3, 0.1]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.0, [0.6, 0.3, 0.1]),
        (0.1, [0.6, 0.3, 0.1]),
        (0.11, [2 / 3, 1 / 3, 0]),
        (0.3, [2 / 3, 1 / 3, 0]),
        (0.31, [1, 0, 0]),
        (0.6, [1, 0, 0]),
        (0.61, [1, 0, 0]),
        (1.0, [1, 0, 0]),
    ],
)
def test_threshold_keeps_what_reaches_it_and_always_the_likeliest(
    threshold: float, expected: list[float]
) -> None:
    weights = choose(TABLE[:1], Choice(Strategy.THRESHOLD, threshold=threshold), HALF[:1])
    assert weights[0].tolist() == pytest.approx(expected)


def test_threshold_looks_at_probabilities_renormalised_over_the_reachable() -> None:
    mixture = mix(TABLE[:1], CLUSTERS, {3, 5}, Choice(Strategy.THRESHOLD, threshold=0.2), HALF[:1])
    assert mixture.weights[0].tolist() == pytest.approx([0, 0.75, 0.25])


@pytest.mark.parametrize(
    "wrong",
    [
        {"focus": -0.1},
        {"focus": 1.1},
        {"top_k": 0},
        {"threshold": -0.1},
        {"threshold": 1.1},
        {"threshold": float("nan")},
    ],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Choice(Strategy.STICKY, **wrong)  # type: ignore[arg-type]


def test_sticky_draws_clusters_in_their_shares() -> None:
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    columns = draw(TABLE[:1].expand(1000, 3), uniforms)
    assert torch.bincount(columns).tolist() == [600, 300, 100]


@pytest.mark.parametrize(("focus", "kept"), [(0.0, 3), (0.16, 3), (0.17, 2), (0.5, 2), (1.0, 1)])
def test_focus_leaves_out_experts_far_below_the_best(focus: float, kept: int) -> None:
    uniforms = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    assert len(set(draw(TABLE[:1].expand(100, 3), uniforms, focus).tolist())) == kept


def test_focus_looks_at_the_best_expert_that_is_reachable() -> None:
    table = torch.tensor([[0.9, 0.08, 0.02]], dtype=torch.float64)
    mixture = mix(table, CLUSTERS, {3, 5}, Choice(Strategy.STICKY, focus=0.4), HALF[:1])
    assert mixture.weights.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_draw_never_picks_an_impossible_column(uniform: float) -> None:
    table = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    columns = draw(table, torch.full((2,), uniform, dtype=torch.float64))
    assert bool((table[torch.arange(2), columns] > 0).all())


def test_weights_below_the_least_are_skipped_and_just_above_kept() -> None:
    table = torch.tensor([[1.0, 0.9 * MIN_WEIGHT], [1.0, 1.1 * MIN_WEIGHT]], dtype=torch.float64)
    weights = mix(table, (0, 1), (0, 1), Choice(Strategy.ALL), HALF).weights
    assert float(weights[0, 1]) == 0
    assert float(weights[1, 1]) > 0


def test_missing_expert_is_reported_with_its_share_and_renormalised_away() -> None:
    mixture = mix(TABLE, CLUSTERS, {0, 5}, Choice(Strategy.ALL), HALF)
    assert mixture.dropped == pytest.approx({3: 0.25})
    assert mixture.weights[0].tolist() == pytest.approx([6 / 7, 0, 1 / 7])
    assert list(mixture.shares()) == [0, 5]
    assert sum(mixture.shares().values()) == pytest.approx(1)


def test_picture_of_missing_experts_only_is_drawn_by_the_others() -> None:
    table = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    mixture = mix(table, CLUSTERS, {3, 5}, Choice(Strategy.ALL), HALF[:1])
    assert mixture.weights[0].tolist() == [0, 0.5, 0.5]
    assert mixture.dropped == {0: 1.0}


def test_no_reachable_expert_is_an_error_that_names_the_clusters() -> None:
    with pytest.raises(NoExpertError, match=r"\[0, 3, 5\]"):
        mix(TABLE, CLUSTERS, {4}, Choice(Strategy.STICKY), HALF)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1])
def test_probabilities_that_are_none_are_refused(bad: float) -> None:
    table = TABLE.clone()
    table[0, 0] = bad
    with pytest.raises(ValueError, match="finite"):
        mix(table, CLUSTERS, CLUSTERS, Choice(Strategy.ALL), HALF)


@pytest.mark.parametrize("clusters", [(0, 3), (0, 0, 1)])
def test_columns_must_be_distinct_clusters(clusters: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="distinct clusters"):
        mix(TABLE, clusters, clusters, Choice(Strategy.ALL), HALF)


def test_contrast_pushes_each_row_away_from_its_likeliest_other_column() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    found = contrasted(weights, torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.4, 0.5]]), 0.3)
    expected = torch.tensor([[0.0, 1.3, -0.3], [1.3, 0.0, -0.3]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, dtype=torch.float64))


def test_contrast_without_another_expert_changes_nothing() -> None:
    weights = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert torch.equal(contrasted(weights, torch.tensor([[0.0, 1.0]]), 0.3), weights)


def test_shares_count_what_is_pushed_away_from_as_work() -> None:
    found = shares_of(torch.tensor([[1.5, -0.5]], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25]], dtype=torch.float64))
