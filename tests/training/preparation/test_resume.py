"""Runs that were interrupted on their way, and go on."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import SIDE, TINY_SPEC, draw_pictures
from tests.training.preparation.kill_prepare import contents
from training.config import RunSpec
from training.errors import ConfigError, DataError
from training.preparation import encode
from training.preparation.encode import sample_pictures
from training.preparation.prepare import PrepareOptions, Progress, prepare_run
from training.sources.data import Entry, Pictures, PictureShape, Skipped, decode_entries

KEPT = PrepareOptions(keeps_spool=True)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "MAX_BATCH", 8)
    monkeypatch.setattr(encode, "MIN_BATCH", 2)


class Interrupted(Exception):
    """Somebody pressed a key."""


def interrupt(pictures: Path, out: Path, at: int, spec: RunSpec = TINY_SPEC) -> None:
    """Prepare until so many pictures are encoded."""

    def watch(progress: Progress) -> None:
        if progress.phase == "encode" and progress.done >= at:
            raise Interrupted

    with pytest.raises(Interrupted):
        prepare_run(pictures, out, spec, watch)


@pytest.fixture
def whole(pictures: Path, tmp_path: Path) -> dict[str, bytes]:
    return contents(prepare_run(pictures, tmp_path / "whole", TINY_SPEC).root)


@pytest.mark.parametrize("at", [0, 8, 24, 48])
def test_interrupted_run_goes_on_and_equals_one_that_was_not(
    pictures: Path, tmp_path: Path, whole: dict[str, bytes], at: int
) -> None:
    out = tmp_path / "out"
    interrupt(pictures, out, at)
    seen: list[Progress] = []
    prepare_run(pictures, out, TINY_SPEC, seen.append)
    assert contents(out) == whole
    assert [p.done for p in seen if p.phase == "encode"] == list(range(at, 49, 8))
    assert not [p for p in seen if p.phase == "sample"], "fitted parts are kept"


def test_damaged_batch_and_lost_codec_are_made_again(
    pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    for pattern, begins_at in (("batch-000001-*", 32), ("codec-*", 0), ("extractor-*", 0)):
        out = tmp_path / pattern[:5]
        interrupt(pictures, out, 40)
        (path,) = out.glob(f"spool/{pattern}")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        seen: list[Progress] = []
        prepare_run(pictures, out, TINY_SPEC, seen.append)
        assert next(p.done for p in seen if p.phase == "encode") == begins_at
        assert contents(out) == whole


def test_changed_source_and_other_encoding_are_refused_with_what_changed(tmp_path: Path) -> None:
    folder = draw_pictures(tmp_path / "pictures", 24)
    out = tmp_path / "out"
    interrupt(folder, out, 8)
    before = contents(out)
    with pytest.raises(DataError, match="image_size is 32, it was 16") as caught:
        prepare_run(folder, out, replace(TINY_SPEC, image_size=32))
    assert "delete the folder to start over" in str(caught.value)
    os.utime(folder / "003.png", ns=(1, 1))
    with pytest.raises(DataError, match=r"files of .*pictures have changed since"):
        prepare_run(folder, out, TINY_SPEC)
    assert contents(out) == before
    (out / "spool" / "spool.json").write_text("{")
    with pytest.raises(DataError, match=r"spool\.json: .*delete the folder to start over"):
        prepare_run(folder, out, TINY_SPEC)


def test_other_clusters_use_what_is_encoded_already(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_run(pictures, out, TINY_SPEC, options=KEPT)
    seen: list[Progress] = []
    three = replace(TINY_SPEC, clusters=3)
    prepare_run(pictures, out, three, seen.append)
    assert [p.done for p in seen if p.phase == "encode"] == [48]
    expected = prepare_run(pictures, tmp_path / "new", three)
    assert contents(out) == contents(expected.root)


def test_finished_run_whose_spool_is_kept_costs_nothing(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare_run(pictures, out, TINY_SPEC, options=KEPT)
    before = contents(out)
    seen: list[Progress] = []
    again = prepare_run(pictures, out, TINY_SPEC, seen.append, KEPT)
    assert (again, seen, contents(out)) == (first, [], before)


def test_two_processes_do_not_make_one_run(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def rival(progress: Progress) -> None:
        with pytest.raises(DataError, match="another process is making a run there"):
            prepare_run(pictures, out, TINY_SPEC)

    prepare_run(pictures, out, TINY_SPEC, rival)


def test_pictures_that_never_make_a_run_leave_nothing_to_trip_over(tmp_path: Path) -> None:
    folder = draw_pictures(tmp_path / "pictures", 8)
    for i in range(6):
        (folder / f"{i:03d}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"got 2 \(6 skipped: 6 unreadable.*at most 1 clusters"):
        prepare_run(folder, tmp_path / "out", TINY_SPEC)
    draw_pictures(folder, 8)
    prepare_run(folder, tmp_path / "out", TINY_SPEC)


def test_preset_that_does_not_fit_does_not_cost_what_is_encoded(
    pictures: Path, tmp_path: Path
) -> None:
    out, odd = tmp_path / "out", replace(TINY_SPEC, image_size=24)
    interrupt(pictures, out, 24, odd)
    with pytest.raises(ConfigError, match="divisible by 2"):
        prepare_run(pictures, out, replace(odd, preset="tiny-cpu"))
    seen: list[Progress] = []
    prepare_run(pictures, out, odd, seen.append)
    assert next(p.done for p in seen if p.phase == "encode") == 24


@pytest.mark.slow
def test_run_killed_at_any_operation_is_finished_by_the_same_call(
    pictures: Path, tmp_path: Path
) -> None:
    program = Path(__file__).with_name("kill_prepare.py")
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, str(program), str(pictures), str(tmp_path), "29"],
        capture_output=True, text=True, check=False, cwd=root, timeout=300,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spooled = json.loads(done.stdout)["spooled"]
    assert len(spooled) >= 4
    assert 0 < max(spooled) <= 6


class Drawn:
    """A source of many pictures that counts how many are alive at once."""

    name = "drawn"
    fingerprint = "0" * 64

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self.asked: list[range] = []

    def __len__(self) -> int:
        return self._entries

    def read(self, positions: range) -> Iterator[Entry | Skipped]:
        self.asked.append(positions)
        generator = torch.Generator().manual_seed(0)
        for i in positions:
            pixels = torch.randint(0, 256, (1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
            yield Entry(f"{i}", f"caption {i % 5}", pixels)


def test_only_a_sample_and_a_batch_are_ever_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SAMPLE_PICTURES", 50)
    source, held = Drawn(1000), []
    real = decode_entries

    def spy(*arguments: Any) -> Pictures:
        found = real(*arguments)
        held.append(len(found))
        return found

    monkeypatch.setattr(encode, "decode_entries", spy)
    prepare_run(source, tmp_path / "out", TINY_SPEC)
    assert {positions.step for positions in source.asked[:-1]} == {20}, "evenly spread"
    assert max(map(len, source.asked[:-1])) <= 8
    assert source.asked[-1] == range(1000), "one stream: beginning one again is slow"
    assert held == [8] * 125


def test_sample_of_a_mostly_broken_source_is_filled_in_further_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encode, "SAMPLE_PICTURES", 10)

    class Broken(Drawn):
        def read(self, positions: range) -> Iterator[Entry | Skipped]:
            for found in super().read(positions):
                assert isinstance(found, Entry)
                yield found if int(found.name) % 10 == 9 else Skipped(found.name, "broken")

    sample = sample_pictures(Broken(100), PictureShape(SIDE, 1), lambda done, total: None)
    assert 5 <= len(sample) <= 10
