"""True statements a node does not take: nothing at all, far too much, worse than signed."""

import math

import pytest

from tests.support.proofs import SQUARE, layer, offered
from verification.adapter import QuantisedModule
from verification.circuit import circuit_of
from verification.effect import norm_squared
from verification.errors import PolicyError
from verification.policy import Policy, check_not_zero

COMMITMENT = bytes(circuit_of(SQUARE).commitment_size)


def squares(scaling: float = 1.0) -> dict[str, float]:
    statement = offered(layer(), COMMITMENT)
    return {"to_q": norm_squared(statement.values, scaling)}


def test_zero_adapter_is_refused_and_the_smallest_other_is_not() -> None:
    zero = QuantisedModule("to_q", layer().a, 0 * layer().b)
    with pytest.raises(PolicyError, match="to_q: the adapter is zero"):
        check_not_zero(offered(zero, COMMITMENT))
    a, b = 0 * layer().a, 0 * layer().b
    a[5, 2] = b[2, 7] = 1
    assert check_not_zero(offered(QuantisedModule("to_q", a, b), COMMITMENT)) == 2.0**-48


def test_adapter_scaled_eight_times_is_refused_where_the_adapter_is_not() -> None:
    policy = Policy(most_ratio=0.5)
    base = {"to_q": 10 * math.sqrt(squares()["to_q"])}
    assert policy.check_size(squares(), base) == pytest.approx(0.1)
    with pytest.raises(
        PolicyError, match=r"by 0\.8 of their norm; this node takes 0\.0001 to 0\.5"
    ):
        policy.check_size(squares(8.0), base)


def test_band_holds_at_both_ends() -> None:
    policy = Policy(least_ratio=0.25, most_ratio=4.0)
    for square in (0.0625, 16.0):
        policy.check_size({"q": square}, {"q": 1.0})
    for square in (0.06, 16.1):
        with pytest.raises(PolicyError, match="of their norm"):
            policy.check_size({"q": square}, {"q": 1.0})


def test_size_is_of_all_layers_together() -> None:
    assert Policy().check_size({"q": 9.0, "k": 16.0}, {"q": 6.0, "k": 8.0, "v": 1e9}) == 0.5


@pytest.mark.parametrize("square", [math.nan, math.inf])
def test_size_that_is_no_number_is_refused(square: float) -> None:
    for base in (1.0, 0.0, math.inf):
        with pytest.raises(PolicyError):
            Policy().check_size({"q": square}, {"q": base})


def test_rank_limit_holds_on_both_sides() -> None:
    Policy(max_rank=8).check_rank(8)
    with pytest.raises(PolicyError, match="rank 9; this node takes at most 8"):
        Policy(max_rank=8).check_rank(9)


def test_loss_may_miss_the_claim_by_the_tolerance_and_no_more() -> None:
    policy = Policy(loss_tolerance=0.5)
    policy.check_claim(2.0, 3.0)
    policy.check_claim(2.0, 0.1)
    with pytest.raises(PolicyError, match=r"3\.0100 with the adapter; 2\.0000 was claimed"):
        policy.check_claim(2.0, 3.01)


@pytest.mark.parametrize(("claimed", "measured"), [(1.0, math.nan), (math.nan, 1.0)])
def test_loss_that_is_no_number_is_refused(claimed: float, measured: float) -> None:
    with pytest.raises(PolicyError):
        Policy().check_claim(claimed, measured)
