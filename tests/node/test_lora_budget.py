"""How much of an adapter is given away: the figures an owner is told, and each limit's edge."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ErrorCode
from node.lora_budget import (
    AdapterLeak,
    BudgetSpentError,
    Leak,
    Limits,
    ModuleSize,
    Spend,
    adapter_leak,
    check_spend,
    leak_percent,
)

ATTENTION = ModuleSize(1152, 4, 1152)
LIMITS = Limits(scalars=32, rows=8, proofs=64)

sizes = st.builds(
    lambda rank, more, most: ModuleSize(rank + more, rank, rank + most),
    st.integers(1, 64), st.integers(0, 5000), st.integers(0, 5000),
)  # fmt: skip


@pytest.mark.parametrize(
    ("leak", "percent"),
    [
        (Leak(), 0.0),
        (Leak(scalars=32), 0.35),
        (Leak(scalars=16), 0.17),
        (Leak(rows=1), 12.52),
        (Leak(rows=4), 50.09),
        (Leak(rows=256), 61.04),
        (Leak(rows=1152), 100.0),
        (Leak(rows=10_000), 100.0),
        (Leak(scalars=32, rows=256), 61.39),
    ],
)
def test_figures_of_an_attention_layer(leak: Leak, percent: float) -> None:
    assert leak_percent(ATTENTION, leak) == pytest.approx(percent, abs=0.005)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_as_many_rows_as_the_rank_give_about_half_away(rank: int) -> None:
    assert leak_percent(ModuleSize(1152, rank, 1152), Leak(rows=rank)) == pytest.approx(50, abs=0.5)


def test_scalars_and_rows_together_never_pass_the_whole() -> None:
    assert leak_percent(ATTENTION, Leak(scalars=9200)) == 100
    assert leak_percent(ATTENTION, Leak(scalars=9200, rows=4)) == 100
    assert leak_percent(ModuleSize(4, 4, 4), Leak(scalars=17, rows=9)) == 100


@settings(max_examples=40)
@given(sizes, st.integers(0, 6000), st.integers(0, 6000))
def test_another_answer_never_makes_the_leak_smaller(
    size: ModuleSize, scalars: int, rows: int
) -> None:
    leak = Leak(scalars, rows)
    before = leak_percent(size, leak)
    assert 0 <= before <= 100
    assert leak_percent(size, replace(leak, scalars=scalars + 1)) >= before
    assert leak_percent(size, replace(leak, rows=rows + 1)) >= before


def test_adapter_is_weighted_by_freedom_and_names_its_worst_layer() -> None:
    layers = {"small": ModuleSize(8, 2, 8), "large": ModuleSize(100, 2, 100)}  # 28 and 396
    for leaks, known, worst in (
        ({"small": Leak(scalars=14)}, 14, "small"),
        ({"large": Leak(scalars=198), "small": Leak(scalars=1)}, 199, "large"),
    ):
        found = adapter_leak(layers, leaks)
        assert found.percent == pytest.approx(100 * known / 424)
        assert (found.worst, found.worst_percent) == (worst, 50.0)
    assert adapter_leak(layers, {}) == AdapterLeak(0.0, "", 0.0)


@pytest.mark.parametrize(
    ("layers", "leaks"), [({}, {}), ({"a": ATTENTION}, {"b": Leak(scalars=1)})]
)
def test_leak_of_what_is_not_there_is_an_error(
    layers: dict[str, ModuleSize], leaks: dict[str, Leak]
) -> None:
    with pytest.raises(ValueError, match="layers"):
        adapter_leak(layers, leaks)


@pytest.mark.parametrize("rank", [0, 9])
def test_size_of_an_impossible_rank_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank}"):
        ModuleSize(8, rank, 16)


@pytest.mark.parametrize(
    ("spend", "what"),
    [
        (Spend(scalars=16), "scalars"),
        (Spend(rows=6), "rows"),
        (Spend(proofs=60), "proofs"),
    ],
)
def test_spend_up_to_each_limit_is_allowed_and_one_more_is_not(spend: Spend, what: str) -> None:
    leak, limit = Leak(scalars=16, rows=2, proofs=4), getattr(LIMITS, what)
    after = check_spend("to_q", leak, spend, LIMITS)
    assert after == replace(leak, **{what: limit})
    more = replace(spend, **{what: getattr(spend, what) + 1})
    with pytest.raises(BudgetSpentError, match="to_q") as caught:
        check_spend("to_q", leak, more, LIMITS)
    error = caught.value
    assert (error.module, error.what, error.limit) == ("to_q", what, limit)
    assert error.spent == getattr(leak, what)
    assert error.code is ErrorCode.REFUSED


def test_what_is_not_asked_for_is_not_counted_against_its_limit() -> None:
    """An offer without delta mode after one with it: the rows of old do not stop its scalars."""
    limits = replace(LIMITS, rows=0)
    assert check_spend("q", Leak(rows=5), Spend(scalars=1), limits) == Leak(1, 5, 0)


@pytest.mark.parametrize("field", ["scalars", "rows", "proofs"])
def test_nothing_can_be_taken_back(field: str) -> None:
    with pytest.raises(ValueError, match="taken back"):
        Spend(**{field: -1})
