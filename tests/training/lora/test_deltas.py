"""Measuring an adapter through its deltas alone."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.lora_jobs import base, bases, few_draws, learned, rows, velocities
from training.errors import ProbeError
from training.experts.batches import Batch
from training.experts.loaded import Expert
from training.lora.arrays import Arrays
from training.lora.deltas import Remote, probe_loss_with
from training.lora.files import LoraInfo, read_lora
from training.lora.losses import probe_loss, with_weights
from training.lora.probe import read_probe
from training.lora.quantised import dequantise, quantise
from training.run import Run

__all__ = ["base", "bases", "few_draws", "learned", "rows"]

pytestmark = pytest.mark.slow


class Owner:
    """Answers for an adapter, and keeps what it was asked."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.asked: list[tuple[str, NDArray[np.int16]]] = []

    def __call__(self, module: str, x: NDArray[np.int16]) -> NDArray[np.int64]:
        self.asked.append((module, x))
        a, b = (part.astype(np.int64) for part in self.arrays[module])
        found: NDArray[np.int64] = (x.astype(np.int64) @ a) @ b
        return found


@pytest.fixture(scope="module")
def info(learned: Path) -> LoraInfo:
    return read_lora(learned)[0]


@pytest.fixture
def owner(learned: Path) -> Owner:
    found, weights = read_lora(learned)
    return Owner(quantise(found.shape, weights))


@pytest.fixture(scope="module")
def draws(learned: Path, run: Run) -> Batch:
    return read_probe(learned, run.facts.latent).draws(6)


def test_loss_is_that_of_the_adapter_in_hand_up_to_rounding(
    base: Expert, run: Run, info: LoraInfo, owner: Owner, draws: Batch
) -> None:
    sold = dequantise(info.shape, owner.arrays)
    without = probe_loss(base, run.text, draws)
    in_hand = probe_loss(with_weights(base, info.shape, sold, info.scaling), run.text, draws)
    remote, _ = probe_loss_with(base, run.text, draws, Remote(info.modules, info.scaling, owner))
    assert abs(remote - in_hand) < 0.005 * abs(in_hand - without)


def test_questions_are_small_integers_no_row_twice_and_counted(
    base: Expert, run: Run, info: LoraInfo, owner: Owner, draws: Batch
) -> None:
    remote = Remote(info.modules, info.scaling, owner)
    _, rows = probe_loss_with(base, run.text, draws, remote)
    assert [module for module, _ in owner.asked] == [layer.name for layer in info.modules]
    for _, x in owner.asked:
        assert x.dtype == np.int16
        assert np.abs(x).max() == 2047
        assert len(np.unique(x, axis=0)) == len(x)
    tokens = len(draws) * 4  # a 2 x 2 latent, one token a pixel
    assert rows == max(len(x) for _, x in owner.asked) == tokens


def test_base_answers_as_before_afterwards_even_if_the_owner_fails(
    base: Expert, run: Run, info: LoraInfo, draws: Batch
) -> None:
    before = velocities(base, run)

    def fails(module: str, x: NDArray[np.int16]) -> NDArray[np.int64]:
        raise ProbeError("gone")

    with pytest.raises(ProbeError, match="gone"):
        probe_loss_with(base, run.text, draws, Remote(info.modules, info.scaling, fails))
    assert (velocities(base, run) == before).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: answer[:-1],
        lambda answer: answer[:, :-1],
        lambda answer: answer.astype(np.float64),
        lambda answer: answer[0],
    ],
)
def test_answer_of_another_shape_or_type_is_refused_by_the_layer_s_name(
    base: Expert, run: Run, info: LoraInfo, owner: Owner, draws: Batch, spoil: object
) -> None:
    def spoils(module: str, x: NDArray[np.int16]) -> NDArray[np.int64]:
        return spoil(owner(module, x))  # type: ignore[operator, no-any-return]

    with pytest.raises(ProbeError, match=f"layer {info.modules[0].name}: deltas"):
        probe_loss_with(base, run.text, draws, Remote(info.modules, info.scaling, spoils))


def test_answers_out_of_all_proportion_are_an_error_at_the_next_layer(
    base: Expert, run: Run, info: LoraInfo, owner: Owner, draws: Batch
) -> None:
    def huge(module: str, x: NDArray[np.int16]) -> NDArray[np.int64]:
        return np.full_like(owner(module, x), 2**62)

    with pytest.raises(ProbeError, match="out of all proportion"):
        probe_loss_with(base, run.text, draws, Remote(info.modules, 1e30, huge))
    assert len(owner.asked) < len(info.modules)
