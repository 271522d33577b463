import math

import pytest
import torch
from torch import Tensor

from training.experts.ema import Ema, decay_at
from training.flow import interpolate, velocity_from_epsilon, velocity_target, vp_interpolate

SIGMA = 0.7
MEAN = 0.3


def analytic_epsilon(x_s: Tensor, s: Tensor) -> Tensor:
    """E[eps | x_s] on the VP path for data ~ N(MEAN, SIGMA^2)."""
    angle = s[:, None, None, None] * (math.pi / 2)
    c, d = angle.cos(), angle.sin()
    return d * (x_s - c * MEAN) / (c.square() * SIGMA**2 + d.square())


def analytic_velocity(x_t: Tensor, t: Tensor) -> Tensor:
    """E[eps - x0 | x_t] on the straight path for the same data."""
    u = t[:, None, None, None]
    surprise = (x_t - (1 - u) * MEAN) / ((1 - u).square() * SIGMA**2 + u.square())
    return u * surprise - (MEAN + (1 - u) * SIGMA**2 * surprise)


def test_noise_prediction_converts_to_the_exact_velocity() -> None:
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(64, 2, 3, 3, generator=generator, dtype=torch.float64)
    t = torch.linspace(0, 0.99, 64, dtype=torch.float64)
    got = velocity_from_epsilon(analytic_epsilon, x_t, t)
    assert float((got - analytic_velocity(x_t, t)).abs().max()) < 1e-10


def test_velocity_is_the_derivative_of_the_path() -> None:
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 5, 1, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    step = (interpolate(data, noise, t + 1e-6) - interpolate(data, noise, t - 1e-6)) / 2e-6
    assert torch.allclose(step, velocity_target(data, noise), atol=1e-8)


def test_both_paths_run_from_data_to_noise() -> None:
    data, noise = torch.ones(2, 1, 1, 1), torch.full((2, 1, 1, 1), -3.0)
    ends = torch.tensor([0.0, 1.0])
    for path in (interpolate, vp_interpolate):
        assert torch.allclose(path(data, noise, ends).flatten(), torch.tensor([1.0, -3.0]))


def test_velocity_stays_finite_where_the_data_part_vanishes() -> None:
    out = velocity_from_epsilon(lambda x, s: x * 0.5, torch.ones(1, 1, 1, 1), torch.ones(1))
    assert bool(out.isfinite().all())


def test_shapes_that_differ_are_refused() -> None:
    data, noise, t = torch.zeros(2, 1, 1, 1), torch.zeros(3, 1, 1, 1), torch.zeros(2)
    for call in (interpolate, vp_interpolate):
        with pytest.raises(ValueError, match="shapes differ"):
            call(data, noise, t)
    with pytest.raises(ValueError, match="shapes differ"):
        interpolate(data, data, torch.zeros(3))
    with pytest.raises(ValueError, match="differ"):
        velocity_target(data, noise)


def test_average_forgets_fast_when_young_and_never_more_than_its_limit() -> None:
    assert decay_at(0, 0.998) == 0.1
    assert decay_at(10**6, 0.998) == 0.998


def test_average_follows_its_definition() -> None:
    weight = torch.tensor([1.0])
    ema = Ema([weight], 0.5)
    expected = 1.0
    for count, value in enumerate([2.0, 4.0, -1.0] * 10):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
        ema.update([torch.tensor([value])], count)
    assert float(ema.values[0]) == pytest.approx(expected, rel=1e-5)
    assert float(weight) == 1.0
