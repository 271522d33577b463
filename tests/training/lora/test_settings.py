"""What an adapter can be trained with, and on."""

import pytest

from tests.support.lora_jobs import rows
from training.errors import ConfigError, DataError
from training.lora.settings import LoraRows, LoraSettings, split

__all__ = ["rows"]


def test_rows_are_split_without_overlap_by_the_seed(rows: LoraRows) -> None:
    trained, held_out = split(rows, 3)
    assert sorted([*trained.tolist(), *held_out.tolist()]) == list(range(48))
    assert split(rows, 3)[1].tolist() == held_out.tolist()
    assert split(rows, 4)[1].tolist() != held_out.tolist()
    two = LoraRows(rows.latents[:2], rows.captions[:2])
    assert [len(part) for part in split(two, 0)] == [1, 1]


def test_latents_with_nan_are_refused_by_the_picture_s_number(rows: LoraRows) -> None:
    broken = rows.latents.clone()
    broken[3, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="picture 3 is not finite"):
        LoraRows(broken, rows.captions)


def test_fingerprint_follows_latents_and_captions(rows: LoraRows) -> None:
    same = LoraRows(rows.latents.clone(), tuple(rows.captions))
    assert same.fingerprint == rows.fingerprint
    renamed = LoraRows(rows.latents, ("other", *rows.captions[1:]))
    changed = LoraRows(rows.latents + 0.1, rows.captions)
    assert len({rows.fingerprint, renamed.fingerprint, changed.fingerprint}) == 3


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"rank": 0}, "1..64, got 0"),
        ({"rank": 65}, "1..64, got 65"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 65.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"targets": "everything"}, "known: attention, attention"),
        ({"samples": 0}, "samples"),
        ({"batch": 0}, "batch"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"caption_drop": 1.5}, "caption_drop"),
        ({"licence": "x" * 201}, "200 characters"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: dict[str, object], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        LoraSettings(**change)  # type: ignore[arg-type]


def test_strength_is_one_unless_alpha_is_given() -> None:
    assert LoraSettings(rank=8).strength == 1
    assert LoraSettings(rank=8, alpha=4).strength == 0.5
