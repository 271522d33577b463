"""What a person is told before an offer is made: how much of the adapter it gives away."""

from pathlib import Path
from typing import Any

import pytest

from node.errors import ErrorCode, NodeError
from node.offer_preview import preview
from tests.support.shelf import id_of, put_on_shelf, shelf_home
from training.config import preset
from training.lora.layers import adaptable_layers

TINY = {"preset": "tiny-cpu"}


def test_preview_counts_the_numbers_and_rows_that_may_be_told(tmp_path: Path) -> None:
    home = shelf_home(tmp_path)
    put_on_shelf(home, "boots", targets="attention", base=TINY)
    told = preview(home, "boots", now=16, scalars=32, rows=0)
    width = preset("tiny-cpu").width
    freedom = 4 * (2 * width - 4)
    assert (told.name, told.layers) == ("boots", len(adaptable_layers("tiny-cpu", "attention")))
    assert told.now == pytest.approx(100 * 16 / freedom)
    assert told.later == told.with_rows == pytest.approx(100 * 32 / freedom)
    rows = preview(home, id_of("boots")[:12], now=16, scalars=16, rows=4)
    assert rows.later == rows.now
    assert rows.with_rows == pytest.approx(100 * (16 + 4 * width) / freedom)


@pytest.mark.parametrize(
    "broken",
    [
        {"rank": 0},
        {"rank": 10_000},
        {"rank": "many"},
        {"rank": None},
        {"targets": "all"},
        {"targets": None},
        {"base": {"preset": "none"}},
        {"base": {"preset": None}},
    ],
)
def test_adapter_that_says_what_cannot_be_is_broken(tmp_path: Path, broken: dict[str, Any]) -> None:
    home = shelf_home(tmp_path)
    said: dict[str, Any] = {"targets": "attention", "base": TINY}
    put_on_shelf(home, "boots", **said | broken)
    with pytest.raises(NodeError, match="cannot be read") as caught:
        preview(home, "boots", now=16, scalars=32, rows=0)
    assert caught.value.code is ErrorCode.VERIFICATION_FAILED


def test_adapter_that_is_not_here_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NodeError) as caught:
        preview(shelf_home(tmp_path), "boots", now=16, scalars=32, rows=0)
    assert caught.value.code is ErrorCode.NOT_FOUND
