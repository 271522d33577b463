"""A run whose experts learn different things: two predict noise, two velocities."""

import math
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.conftest import TINY_SPEC
from training.clusters import Cluster
from training.drawing.ensemble import Ensemble
from training.drawing.mixture import Strategy, combine
from training.drawing.plan import SampleOptions
from training.errors import CheckpointError
from training.experts.checkpoint import read_published
from training.experts.loop import SavedCheckpoint, StepReport, train
from training.flow import velocity_from_epsilon
from training.preparation.prepare import PreparedRun, prepare_run

OBJECTIVES = ("fm", "ddpm-eps", "fm", "ddpm-eps")
SHORT = replace(TINY_SPEC.train, budget_samples=8, save_samples=8)


@pytest.fixture(scope="module")
def mixed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    spec = replace(TINY_SPEC, clusters=4, train=SHORT, objectives=OBJECTIVES)
    return prepare_run(pictures, tmp_path_factory.mktemp("mixed") / "out", spec)


@pytest.fixture(scope="module")
def experts(mixed: PreparedRun, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Every cluster's expert, trained to the run's own settings for it."""
    folder = tmp_path_factory.mktemp("experts")
    run, made = mixed.load(), {}
    for info in mixed.clusters:
        config = run.spec.train_config(info.k)
        events = train(Cluster.load(info.folder), run, config, state_dir=folder / str(info.k))
        made[info.k] = [e.path for e in events if isinstance(e, SavedCheckpoint)][-1]
    return made


@pytest.mark.slow
def test_experts_are_published_with_what_they_predict(
    mixed: PreparedRun, experts: dict[int, Path]
) -> None:
    found = [read_published(experts[k], mixed.load())[0] for k in range(4)]
    assert tuple(info.objective for info in found) == OBJECTIVES
    assert [info.schedule for info in found] == ["linear", "vp-cosine", "linear", "vp-cosine"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [Strategy.STICKY, Strategy.TOP2, Strategy.ALL])
def test_experts_of_both_kinds_draw_together(
    mixed: PreparedRun, experts: dict[int, Path], strategy: Strategy
) -> None:
    ensemble = Ensemble.load(mixed.shared, experts)
    options = SampleOptions(strategy, steps=4, guidance=2.0)
    drawn = ensemble.generate_batch(["a disc", "two bars"], seed=3, options=options)
    assert drawn.pictures.shape == (2, 1, 16, 16)
    assert sum(drawn.shares.values()) == pytest.approx(1)


@pytest.mark.slow
def test_another_owner_goes_on_from_a_noise_expert_as_one(
    mixed: PreparedRun, experts: dict[int, Path], tmp_path: Path
) -> None:
    run, cluster = mixed.load(), Cluster.load(mixed.clusters[1].folder)
    longer = replace(run.spec.train_config(1), budget_samples=24)
    states = [tmp_path / "whole", tmp_path / "cut"]
    for state, stops in zip(states, ([], [False, True]), strict=True):
        for asked in [iter(stops)] * bool(stops) + [iter(())]:
            answers = chain(asked, repeat(False))
            for event in train(
                cluster,
                run,
                longer,
                state_dir=state,
                start_from=experts[1],
                should_stop=lambda answers=answers: next(answers),  # type: ignore[misc]
            ):
                if isinstance(event, StepReport):
                    assert event.samples > 8
    saves = [(state / "save-000000000024").rglob("*.safetensors") for state in states]
    whole, cut = ({path.name: path.read_bytes() for path in found} for found in saves)
    assert len(whole) == 5
    assert whole == cut
    with pytest.raises(CheckpointError, match=r"cluster 1 \(ddpm-eps\), expected cluster 1 \(fm\)"):
        next(
            train(
                cluster,
                run,
                replace(longer, objective="fm"),
                state_dir=tmp_path / "other",
                start_from=experts[1],
            )
        )


# --- the identities behind it, in float64 ---------------------------------------------------------


class GaussianMixture:
    """Data of one cluster: a mixture of isotropic Gaussians, and its exact answers."""

    def __init__(self, weights: Tensor, means: Tensor, sigmas: Tensor) -> None:
        self.weights, self.means, self.sigmas = weights, means, sigmas  # [M], [M, D], [M]

    def posterior(self, x: Tensor, a: float, b: float) -> tuple[Tensor, Tensor, Tensor]:
        """For x = a x0 + b eps: its density [B], E[x0 | x] and E[eps | x] [B, D]."""
        variance = (a * self.sigmas) ** 2 + b**2  # [M]
        away = x[:, None] - a * self.means  # [B, M, D]
        log = -0.5 * away.square().sum(2) / variance - 0.5 * x.shape[1] * variance.log()
        joint = self.weights * log.exp()
        shares = (joint / joint.sum(1, keepdim=True))[:, :, None]
        surprise = away / variance[:, None]
        data = self.means + a * (self.sigmas**2)[:, None] * surprise
        return joint.sum(1), (shares * data).sum(1), (shares * b * surprise).sum(1)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        _, data, noise = self.posterior(x, 1 - t, t)
        return noise - data

    def epsilon(self, x_s: Tensor, s: Tensor) -> Tensor:
        """What a perfect noise predictor answers on the variance-preserving path."""
        angle = float(s[0]) * math.pi / 2
        noise = self.posterior(x_s.flatten(1), math.cos(angle), math.sin(angle))[2]
        return noise.view_as(x_s)


def clusters_of_data(generator: torch.Generator) -> list[GaussianMixture]:
    """Four clusters whose weights sum to 1 together."""
    weights = torch.rand(4, 3, generator=generator, dtype=torch.float64) + 0.1
    weights /= weights.sum()
    return [
        GaussianMixture(
            weights[k],
            torch.randn(3, 8, generator=generator, dtype=torch.float64) / 2,
            0.5 + torch.rand(3, generator=generator, dtype=torch.float64),
        )
        for k in range(4)
    ]


@pytest.mark.parametrize("t", [0.02, 0.3, 0.6, 0.85, 0.99])
def test_mixed_experts_of_a_mixture_give_the_velocity_of_all_the_data(t: float) -> None:
    """sum_k p_k v_k = v, with every other v_k converted from a predicted noise: to 1e-10."""
    generator = torch.Generator().manual_seed(5)
    parts = clusters_of_data(generator)
    whole = GaussianMixture(
        torch.cat([part.weights for part in parts]),
        torch.cat([part.means for part in parts]),
        torch.cat([part.sigmas for part in parts]),
    )
    picks = torch.randint(12, (32,), generator=generator)
    data = whole.means[picks] + whole.sigmas[picks, None] * torch.randn(
        32, 8, generator=generator, dtype=torch.float64
    )
    x_t = (1 - t) * data + t * torch.randn(32, 8, generator=generator, dtype=torch.float64)
    times = torch.full((32,), t, dtype=torch.float64)
    velocities = []
    for k, part in enumerate(parts):
        if OBJECTIVES[k] == "fm":
            velocities.append(part.velocity(x_t, t))
            continue
        image = x_t.view(32, 2, 2, 2)
        converted = velocity_from_epsilon(part.epsilon, image, times).flatten(1)
        assert float((converted - part.velocity(x_t, t)).abs().max()) < 1e-10
        velocities.append(converted)
    density = torch.stack([part.posterior(x_t, 1 - t, t)[0] for part in parts], dim=1)
    weights = density / density.sum(1, keepdim=True)
    got = combine(weights, torch.stack(velocities))
    assert float((got - whole.velocity(x_t, t)).abs().max()) < 1e-10
    assert float(weights.amax(1).min()) < 0.99  # some states belong to no cluster alone
