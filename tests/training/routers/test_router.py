import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.errors import ConfigError, TensorFileError
from training.routers.router import FREEZE_BELOW_T, MAX_TIMES, GaussRouter, RouterRoutes, Tempering
from training.routers.summary import (
    COMPONENTS,
    MIN_ROWS_PER_COMPONENT,
    RANK,
    GaussSummary,
    fit_summary,
    load_summary,
    pack_summary,
    save_summary,
)

SHAPE = (4, 3, 3)
SIZE = math.prod(SHAPE)


def latents(cluster: int, count: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(cluster)
    spread = torch.rand(SHAPE, generator=generator)
    return torch.randn(count, *SHAPE, generator=generator) * spread + 1.5 * cluster


@pytest.fixture(scope="module")
def summaries() -> dict[int, GaussSummary]:
    return {0: fit_summary(latents(0)), 2: fit_summary(latents(2)), 5: fit_summary(latents(5, 40))}


def dense_log_likelihood(summary: GaussSummary, x_t: Tensor, t: float) -> Tensor:
    """The definition, with full covariance matrices in float64."""
    parts = []
    for m in range(len(summary.weights)):
        directions = summary.eigenvectors[m].double()
        tail, values = summary.tails[m].double(), summary.eigenvalues[m].double()
        inside = directions.T @ directions
        covariance = directions.T @ torch.diag(values) @ directions
        covariance = covariance + tail * (torch.eye(SIZE) - inside)
        covariance = (1 - t) ** 2 * covariance + t**2 * torch.eye(SIZE)
        offset = x_t.flatten(1).double() - (1 - t) * summary.means[m].double()
        quadratic = (offset @ torch.linalg.inv(covariance) * offset).sum(dim=1)
        volume = torch.logdet(2 * math.pi * covariance)
        parts.append(summary.weights[m].double().log() - 0.5 * (quadratic + volume))
    return torch.stack(parts).logsumexp(0)


@pytest.mark.parametrize("t", [1.0, 0.7, 0.3])
def test_low_rank_likelihood_equals_the_dense_one(
    summaries: dict[int, GaussSummary], t: float
) -> None:
    x_t = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(9))
    router = GaussRouter(summaries)
    got = router.log_likelihood(x_t, t)
    for column, cluster in enumerate(router.clusters):
        want = dense_log_likelihood(summaries[cluster], x_t, t)
        assert torch.allclose(got[:, column].double(), want, rtol=1e-5, atol=1e-3)


def test_pure_noise_tells_nothing_but_the_sizes(summaries: dict[int, GaussSummary]) -> None:
    found = GaussRouter(summaries).probabilities(torch.randn(3, *SHAPE), 1.0)
    sizes = torch.tensor([200.0, 200.0, 40.0])
    assert torch.allclose(found, (sizes / sizes.sum()).expand(3, 3), atol=1e-4)


def test_noisy_latents_find_their_cluster(summaries: dict[int, GaussSummary]) -> None:
    router, generator = GaussRouter(summaries), torch.Generator().manual_seed(3)
    for column, cluster in enumerate(router.clusters):
        clean = latents(cluster, 30)
        x_t = 0.5 * clean + 0.5 * torch.randn(clean.shape, generator=generator)
        assert float((router.probabilities(x_t, 0.5).argmax(1) == column).float().mean()) > 0.9


def test_the_caption_is_the_prior(summaries: dict[int, GaussSummary]) -> None:
    x_t = torch.randn(2, *SHAPE)
    prior = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    found = GaussRouter(summaries).probabilities(x_t, 1.0, prior)
    assert torch.allclose(found, prior, atol=1e-4)


def test_routes_pick_the_prior_of_clusters_with_a_summary(
    summaries: dict[int, GaussSummary],
) -> None:
    table = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    routes = RouterRoutes.join(GaussRouter(summaries), (0, 1, 2, 5), table)
    assert routes.clusters == (0, 2, 5)
    assert torch.allclose(
        routes.probabilities(torch.randn(1, *SHAPE), 1.0),
        torch.tensor([[0.1, 0.3, 0.4]]) / 0.8,
        atol=1e-4,
    )


def test_adding_an_expert_leaves_the_ratios_of_the_others(
    summaries: dict[int, GaussSummary],
) -> None:
    x_t = torch.randn(4, *SHAPE)
    few = GaussRouter({k: summaries[k] for k in (0, 5)}).probabilities(x_t, 0.8)
    all_ = GaussRouter(summaries).probabilities(x_t, 0.8)[:, [0, 2]]
    assert torch.allclose(all_ / all_.sum(1, keepdim=True), few, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("t", [1.0, 0.7, 0.1])
def test_added_summary_leaves_the_likelihoods_of_the_others_bit_for_bit(
    summaries: dict[int, GaussSummary], batch: int, t: float
) -> None:
    x_t = torch.randn(batch, *SHAPE)
    before = GaussRouter({k: summaries[k] for k in (0, 5)}).log_likelihood(x_t, t)
    after = GaussRouter(summaries).log_likelihood(x_t, t)
    assert torch.equal(after[:, [0, 2]], before)


def test_removed_expert_leaves_probabilities_that_sum_to_one(
    summaries: dict[int, GaussSummary],
) -> None:
    x_t = torch.randn(5, *SHAPE)
    everyone = GaussRouter(summaries).probabilities(x_t, 0.8)
    without = GaussRouter({k: summaries[k] for k in (0, 2)}).probabilities(x_t, 0.8)
    assert torch.allclose(without.sum(dim=1), torch.ones(5))
    kept = everyone[:, :2] / everyone[:, :2].sum(dim=1, keepdim=True)
    assert torch.allclose(without, kept, atol=1e-5)


def test_improved_summary_changes_its_own_column_alone(
    summaries: dict[int, GaussSummary],
) -> None:
    x_t = torch.randn(5, *SHAPE)
    better = {**summaries, 2: fit_summary(latents(2, 500))}
    before = GaussRouter(summaries).log_likelihood(x_t, 0.5)
    after = GaussRouter(better).log_likelihood(x_t, 0.5)
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_answers_do_not_depend_on_what_was_asked_before(
    summaries: dict[int, GaussSummary],
) -> None:
    x_t, router = torch.randn(3, *SHAPE), GaussRouter(summaries)
    times = [(i + 1) / (2 * MAX_TIMES) for i in range(2 * MAX_TIMES)]
    first = [router.log_likelihood(x_t, t) for t in times]
    again = [router.log_likelihood(x_t, t) for t in reversed(times)]
    for one, other in zip(first, reversed(again), strict=True):
        assert torch.equal(one, other)
    assert all(len(density._at) <= MAX_TIMES for density in router._densities)


def test_temperature_takes_away_from_the_evidence_not_from_the_prior(
    summaries: dict[int, GaussSummary],
) -> None:
    x_t = torch.randn(3, *SHAPE)
    plain = GaussRouter(summaries)
    tempered = GaussRouter(summaries, Tempering((4.0,)))
    assert torch.allclose(
        tempered.log_likelihood(x_t, 0.4), plain.log_likelihood(x_t, 0.4) / 4, rtol=1e-6
    )
    prior = torch.tensor([[0.2, 0.5, 0.3]]).expand(3, 3)
    assert torch.allclose(tempered.probabilities(x_t, 1.0, prior), prior, atol=1e-6)


def test_late_decisions_are_kept_unless_temperatures_make_later_ones_better(
    summaries: dict[int, GaussSummary],
) -> None:
    table = torch.full((1, 3), 1 / 3)
    for tempering, expected in ((None, FREEZE_BELOW_T), (Tempering((2.0,)), 0.0)):
        router = GaussRouter(summaries, tempering)
        assert RouterRoutes.join(router, (0, 2, 5), table).freeze_below == expected


def test_temperatures_are_interpolated_between_the_middles_of_their_buckets() -> None:
    tempering = Tempering((16.0, 4.0, 1.0, 1.0))
    assert [tempering.at(t) for t in (0.0, 0.125, 0.375, 0.875, 1.0)] == pytest.approx(
        [16, 16, 4, 1, 1]
    )
    assert tempering.at(0.25) == pytest.approx(8)


@pytest.mark.parametrize("bad", [(), (0.0,), (1.0, 1e6), (float("nan"),), (1.0,) * 101])
def test_impossible_temperatures_are_refused(bad: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="tempering"):
        Tempering(bad)


def test_router_needs_summaries_of_one_latent_size(summaries: dict[int, GaussSummary]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        GaussRouter({})
    other = fit_summary(torch.randn(20, 5))
    with pytest.raises(ValueError, match="different latent sizes"):
        GaussRouter({**summaries, 1: other})
    with pytest.raises(ValueError, match="expected 36"):
        GaussRouter(summaries).log_likelihood(torch.randn(1, 5), 0.5)


def test_fit_is_deterministic_in_the_seed() -> None:
    rows = latents(1)
    assert pack_summary(fit_summary(rows, 3)) == pack_summary(fit_summary(rows, 3))
    assert pack_summary(fit_summary(rows, 3)) != pack_summary(fit_summary(rows, 4))


@pytest.mark.parametrize(
    ("count", "groups"),
    [
        (1, 1),
        (2 * MIN_ROWS_PER_COMPONENT - 1, 1),
        (2 * MIN_ROWS_PER_COMPONENT, 2),
        (MIN_ROWS_PER_COMPONENT * (COMPONENTS + 4), COMPONENTS),
    ],
)
def test_components_follow_the_number_of_pictures(count: int, groups: int) -> None:
    summary = fit_summary(latents(0, count))
    assert len(summary.weights) == groups
    assert summary.count == count
    assert bool((summary.eigenvalues > 0).all())


def test_constant_latents_give_a_finite_density() -> None:
    router = GaussRouter({0: fit_summary(torch.ones(60, *SHAPE))})
    assert bool(router.log_likelihood(torch.randn(2, *SHAPE), 0.05).isfinite().all())


@pytest.mark.parametrize("rows", [torch.empty(0, 4), torch.tensor([[1.0, float("nan")]])])
def test_latents_that_are_none_are_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_summary(rows)


def test_saved_summary_reads_back_the_same_and_small(
    summaries: dict[int, GaussSummary], tmp_path: Path
) -> None:
    path = tmp_path / "summary.safetensors"
    save_summary(summaries[0], path)
    assert pack_summary(load_summary(path, SIZE)) == path.read_bytes()
    full = fit_summary(torch.randn(MIN_ROWS_PER_COMPONENT * COMPONENTS, 256))
    assert full.eigenvectors.shape[:2] == (COMPONENTS, RANK)
    assert len(pack_summary(full)) < 2**20


TAMPERED: dict[str, Callable[[GaussSummary], GaussSummary]] = {
    "no count": lambda s: replace(s, count=0),
    "huge count": lambda s: replace(s, count=10**9 + 1),
    "weights above one": lambda s: replace(s, weights=s.weights * 1.1),
    "negative tail": lambda s: replace(s, tails=-s.tails),
    "zero variance": lambda s: replace(s, eigenvalues=s.eigenvalues * 0),
    "variance that overflows": lambda s: replace(s, eigenvalues=s.eigenvalues + 1e12),
    "mean that overflows": lambda s: replace(s, means=s.means + 1e9),
    "skewed directions": lambda s: replace(s, eigenvectors=s.eigenvectors * 1.1),
    "not a number": lambda s: replace(s, means=s.means * float("nan")),
    "other dimensions": lambda s: replace(s, means=s.means[:, 1:]),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_summary_from_outside_with_impossible_values_is_refused(
    summaries: dict[int, GaussSummary], tmp_path: Path, case: str
) -> None:
    path = tmp_path / "summary.safetensors"
    path.write_bytes(pack_summary(TAMPERED[case](summaries[0])))
    with pytest.raises(TensorFileError, match=r"summary\.safetensors"):
        load_summary(path, SIZE)


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"\0" * (2**20 + 2**19)])
def test_file_that_is_no_summary_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "summary.safetensors"
    path.write_bytes(data)
    with pytest.raises(TensorFileError):
        load_summary(path, SIZE)
    with pytest.raises(TensorFileError, match="cannot be read"):
        load_summary(tmp_path / "absent", SIZE)


def test_too_many_components_or_directions_are_refused(tmp_path: Path) -> None:
    many = COMPONENTS + 1
    wide = GaussSummary(
        9,
        torch.full((many,), 1 / many),
        torch.zeros(many, SIZE),
        torch.eye(SIZE)[:2].expand(many, 2, SIZE).contiguous(),
        torch.ones(many, 2),
        torch.ones(many),
    )
    path = tmp_path / "summary.safetensors"
    save_summary(wide, path)
    with pytest.raises(TensorFileError, match="17 components"):
        load_summary(path, SIZE)
