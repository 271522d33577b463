from dataclasses import replace
from typing import Any

import pytest

from training.experts.execution import Execution, continued

SAVED = Execution("cpu", "fp32", "fp32 because", threads=1, processes=1, micro_batch=16)
ROOMY = replace(SAVED, micro_batch=32)


def test_the_same_machine_goes_on_as_it_began() -> None:
    assert continued(SAVED, ROOMY, is_precision_set=False) == (SAVED, ())
    assert continued(None, ROOMY, is_precision_set=False) == (ROOMY, ())


def test_another_thread_count_waits_for_the_next_training() -> None:
    how, notes = continued(SAVED, replace(ROOMY, threads=4), is_precision_set=False)
    assert how == SAVED
    assert len(notes) == 1
    assert "threads = 4 takes effect in the next training: this one began with 1" in notes[0]


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"processes": 2}])
def test_other_machinery_goes_on_its_own_way_and_says_so(change: dict[str, Any]) -> None:
    wanted = replace(ROOMY, threads=3, **change)
    how, notes = continued(SAVED, wanted, is_precision_set=False)
    assert how == wanted
    assert "not bit for bit" in notes[0]


def test_chosen_precision_gives_way_to_the_saves_and_a_set_one_does_not() -> None:
    wanted = replace(ROOMY, precision="bf16", reason="bf16 as set")
    assert continued(SAVED, wanted, is_precision_set=False) == (SAVED, ())
    how, notes = continued(SAVED, wanted, is_precision_set=True)
    assert (how.precision, how.reason, how.micro_batch) == ("bf16", "bf16 as set", 16)
    assert notes == ("bf16 as set, the save was made in fp32",)


def test_less_memory_than_then_makes_smaller_parts_and_says_so() -> None:
    how, notes = continued(SAVED, replace(ROOMY, micro_batch=8), is_precision_set=False)
    assert how.micro_batch == 8
    assert "8 samples at a time fit the memory, the save was made with 16" in notes[0]
