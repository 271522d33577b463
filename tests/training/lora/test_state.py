"""Trainings of adapters that were interrupted, and go on."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.lora_jobs import (
    SETTINGS,
    base,
    bases,
    contents,
    few_draws,
    rows,
    stopping_after,
    trained,
)
from training.errors import LoraError
from training.experts.loaded import Expert
from training.lora.settings import LoraRows
from training.lora.train import (
    Interrupted,
    LoraEvent,
    LoraJob,
    LoraStep,
    TrainedLora,
    discard,
    train_lora,
)
from training.run import Run

__all__ = ["base", "bases", "few_draws", "rows", "trained"]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_interrupted_and_continued_equals_uninterrupted_byte_for_byte(
    base: Expert,
    run: Run,
    rows: LoraRows,
    trained: tuple[list[LoraEvent], Path],
    tmp_path: Path,
    stop_after: int,
) -> None:
    job = LoraJob(base, run, rows, SETTINGS, tmp_path / "dark", "bafkbase")
    asked = stopping_after(stop_after)
    first = list(train_lora(job, lambda: next(asked)))
    assert first[-1] == Interrupted(4 * stop_after)
    assert not job.folder.exists()
    second = list(train_lora(job))
    assert isinstance(second[0], LoraStep)
    assert second[0].samples == 4 * stop_after + 4
    assert contents(job.folder) == contents(trained[1])
    assert not job.state_folder.exists()


def test_closing_the_generator_saves(
    base: Expert, run: Run, rows: LoraRows, tmp_path: Path
) -> None:
    job = LoraJob(base, run, rows, SETTINGS, tmp_path / "dark")
    training = train_lora(job)
    for _ in range(3):
        next(training)
    training.close()  # type: ignore[attr-defined]
    assert [path.name for path in job.state_folder.iterdir()] == ["save-000000000012"]


def test_damaged_save_is_passed_over_for_the_one_before(
    base: Expert,
    run: Run,
    rows: LoraRows,
    trained: tuple[list[LoraEvent], Path],
    tmp_path: Path,
) -> None:
    job = LoraJob(base, run, rows, SETTINGS, tmp_path / "dark", "bafkbase")
    asked = stopping_after(7)
    list(train_lora(job, lambda: next(asked)))
    assert len(list(job.state_folder.iterdir())) == 2
    weights = job.state_folder / "save-000000000028" / "exp_avg.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    second = list(train_lora(job))
    assert isinstance(second[0], LoraStep)
    assert second[0].samples == 20
    assert contents(job.folder) == contents(trained[1])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"learning_rate": 2e-2}, "learning_rate = 0.01, now 0.02"),
        ({"rank": 3}, "rank = 2, now 3"),
        ({"seed": 4}, "seed = 0, now 4"),
    ],
)
def test_interrupted_training_of_other_settings_is_refused_until_discarded(
    base: Expert,
    run: Run,
    rows: LoraRows,
    tmp_path: Path,
    change: dict[str, float],
    found: str,
) -> None:
    job = LoraJob(base, run, rows, SETTINGS, tmp_path / "dark")
    asked = stopping_after(1)
    list(train_lora(job, lambda: next(asked)))
    other = replace(job, settings=replace(SETTINGS, **change))  # type: ignore[arg-type]
    with pytest.raises(LoraError, match=found):
        next(train_lora(other))
    discard(job)
    training = train_lora(other)
    first = next(training)
    training.close()  # type: ignore[attr-defined]
    assert isinstance(first, LoraStep)
    assert first.step == 1


def test_interrupted_training_on_other_pictures_is_refused(
    base: Expert, run: Run, rows: LoraRows, tmp_path: Path
) -> None:
    job = LoraJob(base, run, rows, SETTINGS, tmp_path / "dark")
    asked = stopping_after(1)
    list(train_lora(job, lambda: next(asked)))
    fewer = LoraRows(rows.latents[:-1], rows.captions[:-1])
    with pytest.raises(LoraError, match="made with data = "):
        next(train_lora(replace(job, rows=fewer)))


def test_settings_that_do_not_change_the_weights_may_change(
    base: Expert, run: Run, rows: LoraRows, tmp_path: Path
) -> None:
    job = LoraJob(base, run, rows, SETTINGS, tmp_path / "dark")
    asked = stopping_after(2)
    list(train_lora(job, lambda: next(asked)))
    freely = replace(SETTINGS, save_samples=5, licence="CC0-1.0")
    last = list(train_lora(replace(job, settings=freely)))[-1]
    assert isinstance(last, TrainedLora)
    assert last.info.licence == "CC0-1.0"
