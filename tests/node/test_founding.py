"""Runs made from a founder's pictures: chosen, interrupted, finished, given up."""

import os
import time
from pathlib import Path

import pytest

from node import founding
from node.errors import ErrorCode, NodeError
from node.founding import FOLDER, KEPT, KEPT_DAYS, RunOptions, SourceChoice, create_run
from node.runs import CreatedRun
from p2p.blobs import BlobStore
from tests.training.conftest import draw_pictures
from training.preparation import encode
from training.preparation.prepare import Progress
from training.sources.detect import open_source

TINY = RunOptions(clusters=2, preset="fashion-tiny", image_size=16, name="tiny")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw_pictures(tmp_path / "pictures", 24)


def create(
    data: Path, source: Path, options: RunOptions = TINY, seen: list[Progress] | None = None
) -> CreatedRun:
    data.mkdir(exist_ok=True)
    blobs = BlobStore.open(data / "blobs", floor_bytes=0)
    return create_run(str(source), blobs, data, options, (seen or []).append if seen else None)


class Interrupted(Exception):
    """Somebody pressed a key."""


def interrupt(data: Path, source: Path) -> None:
    def watch(progress: Progress) -> None:
        if progress.phase == "encode" and progress.done >= 16:
            raise Interrupted

    data.mkdir(exist_ok=True)
    blobs = BlobStore.open(data / "blobs", floor_bytes=0)
    with pytest.raises(Interrupted):
        create_run(str(source), blobs, data, TINY, watch)


def test_same_command_goes_on_and_makes_the_same_run(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "MIN_BATCH", 8)
    monkeypatch.setattr(encode, "MAX_BATCH", 8)
    home = tmp_path / "home"
    interrupt(home, pictures)
    assert len(list(home.glob(f"{FOLDER}/*/spool/batch-*"))) == 2
    seen: list[Progress] = [Progress("sample", 0, 0)]
    finished = create(home, pictures, seen=seen)
    assert next(p.done for p in seen if p.phase == "encode") == 16
    assert list((home / FOLDER).iterdir()) == []
    assert finished == create(tmp_path / "other", pictures)


def test_other_encoding_is_refused_and_fresh_starts_over(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "MIN_BATCH", 8)
    monkeypatch.setattr(encode, "MAX_BATCH", 8)
    home = tmp_path / "home"
    interrupt(home, pictures)
    wanted = RunOptions(clusters=2, preset="fashion-tiny", image_size=24)
    with pytest.raises(NodeError, match="image_size is 24, it was 16") as caught:
        create(home, pictures, wanted)
    assert "--fresh" in caught.value.fix
    fresh = RunOptions(clusters=2, preset="fashion-tiny", image_size=24, fresh=True)
    assert create(home, pictures, fresh).image_size == 24


def test_unfinished_runs_of_other_sources_are_kept_for_a_while(
    pictures: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    now = time.time()
    ages = {"new": 0.0, "newer": 1.0, "third": 2.0, "old": KEPT_DAYS + 1}
    for name, days in ages.items():
        spool = home / FOLDER / name / "spool"
        spool.mkdir(parents=True)
        for path in (spool, spool.parent):
            os.utime(path, (now - days * 86_400,) * 2)
    create(home, pictures)
    assert sorted(path.name for path in (home / FOLDER).iterdir()) == ["new", "newer"]
    assert KEPT == 2
    os.utime(home / FOLDER / "new", (now - 99 * 86_400,) * 2)
    os.utime(home / FOLDER / "new" / "spool", (now - 99 * 86_400,) * 2)
    create(home, pictures)
    assert [path.name for path in (home / FOLDER).iterdir()] == ["newer"]


def test_what_a_founder_chooses_is_in_the_run(pictures: Path) -> None:
    source = open_source(pictures)
    chosen = RunOptions(
        clusters=2, name="n", preset="S/2", codec="c", extractor="e", text="t", image_size=128,
        is_colour=True, objectives=("fm", "ddpm-eps"), batch=7, budget_samples=8, save_samples=9,
        learning_rate=0.5, seed=3,
    )  # fmt: skip
    spec = founding._spec(source, chosen)
    assert (spec.name, spec.preset, spec.codec, spec.extractor, spec.text) == (
        "n", "S/2", "c", "e", "t",
    )  # fmt: skip
    assert (spec.image_size, spec.image_channels, spec.seed) == (128, 3, 3)
    train = spec.train_config(1)
    assert (train.batch, train.budget_samples, train.save_samples) == (7, 8, 9)
    assert (train.learning_rate, train.seed, train.objective) == (0.5, 3, "ddpm-eps")
    assert spec.train_config(0).objective == "fm"
    usual = founding._spec(source, RunOptions(objectives=("ddpm-eps",)))
    assert (usual.image_channels, usual.objectives) == (1, ())
    assert usual.train_config(3).objective == "ddpm-eps"


def test_errors_carry_their_exit_code_and_a_way_out(pictures: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    cases = [
        (RunOptions(objectives=("fm", "fm", "fm")), ErrorCode.USAGE, "3 objectives for 4"),
        (RunOptions(objectives=("gan",)), ErrorCode.USAGE, "unknown objective 'gan'"),
        (RunOptions(codec="jpeg"), ErrorCode.USAGE, "unknown codec 'jpeg'"),
        (RunOptions(dask="nowhere"), ErrorCode.USAGE, "expected tcp://host:port"),
        (RunOptions(clusters=13), ErrorCode.FAILED, "at most 12 clusters"),
        (
            RunOptions(source=SourceChoice(caption_column="alt")),
            ErrorCode.FAILED,
            "no 'alt'; there is: text",
        ),
    ]
    for options, code, message in cases:
        with pytest.raises(NodeError, match=message) as caught:
            create(home, pictures, options)
        assert caught.value.code is code
        assert caught.value.fix
    assert list((home / FOLDER).glob("*/spool")) == []
