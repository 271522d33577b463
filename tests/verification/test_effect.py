"""Norms from signs are unbiased; predicted changes are sums of what was proved."""

import math

import numpy as np
import pytest

from tests.support.proofs import SQUARE, layer
from verification.adapter import SCALE
from verification.effect import norm_squared, predicted_change, total_norm
from verification.prover import true_values
from verification.statement import offer_signs


def estimate(draw: int, scaling: float = 1.0) -> float:
    left, right = offer_signs(draw.to_bytes(16, "big"), "to_q", SQUARE)
    return norm_squared(true_values(layer(), left, right), scaling)


def true_norm_squared() -> float:
    module = layer()
    product = (module.a.astype(float) / SCALE) @ (module.b.astype(float) / SCALE)
    return float((product**2).sum())


@pytest.mark.slow
def test_norm_estimate_is_unbiased() -> None:
    drawn = np.array([estimate(draw) for draw in range(1000)])
    deviation = float(drawn.std()) / math.sqrt(len(drawn))
    assert deviation < 0.03 * true_norm_squared()
    assert abs(float(drawn.mean()) - true_norm_squared()) < 4 * deviation


def test_one_estimate_is_about_right() -> None:
    assert 0.1 < estimate(7) / true_norm_squared() < 5


def test_scaling_counts_twice() -> None:
    assert estimate(7, scaling=8.0) == pytest.approx(64 * estimate(7))


def test_values_and_scalings_past_all_floats_are_infinite_and_raise_nothing() -> None:
    most = ((2**127 - 1,) * 4,) * 4
    assert norm_squared(most, 1e200) == math.inf
    assert total_norm([math.inf, 1.0]) == math.inf
    assert total_norm([1e308, 1e308]) == math.inf


def test_total_norm_adds_squares() -> None:
    assert total_norm([9.0, 16.0]) == 5.0


def test_predicted_change_weighs_each_answer_and_scales_once() -> None:
    change = predicted_change({"q": [10, -3], "k": [2]}, {"q": [0.5, 1.0], "k": [-4.0]}, 2.0)
    assert change == 2.0 * (5.0 - 3.0 - 8.0)


@pytest.mark.parametrize(
    "values", [{"q": [1]}, {"q": [1, 2], "v": [1]}, {"q": [1, 2], "k": [1], "v": [1]}]
)
def test_answers_to_other_modules_are_refused(values: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match="other modules"):
        predicted_change(values, {"q": [0.5, 1.0], "k": [1.0]}, 1.0)


def test_more_or_fewer_answers_than_pairs_are_refused() -> None:
    for values in ([1], [1, 2, 3]):
        with pytest.raises(ValueError, match="zip"):
            predicted_change({"q": values}, {"q": [0.5, 1.0]}, 1.0)
