import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from training.clusters import Cluster
from training.errors import CheckpointError, TensorFileError
from training.experts.checkpoint import (
    CONFIG_FILE,
    EXPERT_FILE,
    GUIDE_FILE,
    PUBLISHED_FILES,
    WEIGHTS_FILE,
    published_folder,
    read_guide,
    read_latest,
    read_published,
    saves,
)
from training.experts.loaded import load_expert
from training.experts.loop import SavedCheckpoint, train
from training.files import digest_of
from training.parts.libraries import pixart_class
from training.preparation.prepare import PreparedRun
from training.run import Run
from training.tensors import pack_tensors, read_tensors


@pytest.fixture(scope="module")
def state_dir(cluster: Cluster, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves at 16, 32 and 48 samples."""
    folder = tmp_path_factory.mktemp("saves") / "state"
    for _ in train(cluster, run, run.spec.train, state_dir=folder):
        pass
    return folder


@pytest.fixture
def state(state_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(state_dir, tmp_path / "state"))


@pytest.fixture
def published(state: Path) -> Path:
    return published_folder(state, 48)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


def test_published_folder_has_the_diffusers_layout_and_diffusers_loads_it(
    published: Path, run: Run
) -> None:
    assert sorted(p.name for p in published.iterdir()) == sorted([*PUBLISHED_FILES, GUIDE_FILE])
    theirs = pixart_class().from_pretrained(published, local_files_only=True)
    info, weights = read_published(published, run)
    assert (info.samples, info.step, info.cluster, info.run) == (48, 12, 0, run.digest)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_expert_answers_with_velocities(published: Path, run: Run) -> None:
    expert = load_expert(published, run)
    text = run.text.encode(["a disc", ""])
    x_t = torch.randn(2, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    out = expert.velocity(x_t, torch.tensor([0.2, 0.9]), text.states, text.mask)
    assert out.shape == x_t.shape
    assert not out.requires_grad
    assert bool(out.isfinite().all())
    assert float(out.abs().max()) > 0
    alone = expert.velocity(x_t[1:], torch.tensor([0.9]), text.states[1:], text.mask[1:])
    assert torch.allclose(alone[0], out[1], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: v.update(preset="tiny-cpu"), "another preset: expected fashion-tiny, got tiny"),
        (lambda v: v.update(codec="0" * 64), "another codec"),
        (lambda v: v.update(text="clip"), "another text encoder"),
        (lambda v: v.update(latent=[16, 4, 4]), "another latent shape"),
        (lambda v: v.update(run="0" * 64), "another run"),
        (lambda v: v.update(cluster=2), "cluster 2 of 2"),
        (lambda v: v.update(cluster=-1), "must not be negative"),
        (lambda v: v.update(schema=9), "schema 9"),
        (lambda v: v.update(objective="x"), "unknown objective"),
        (lambda v: v.update(schedule="vp-cosine"), "unknown objective"),
        (lambda v: v.update(latent=[0, 4, 4]), "impossible latent"),
        (lambda v: v.update(model_digest="0" * 64), "was altered"),
        (lambda v: v.pop("loss"), "missing key 'loss'"),
        (lambda v: v.update(extra=1), "unknown key 'extra'"),
        (lambda v: v.update(samples="many"), "samples: expected int"),
    ],
)
def test_checkpoint_whose_facts_differ_is_refused(
    published: Path, run: Run, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    edit(published / EXPERT_FILE, change)
    with pytest.raises(CheckpointError, match=reason):
        load_expert(published, run)


def test_guide_is_the_average_at_a_quarter_of_the_budget_in_every_later_save(
    state: Path, run: Run
) -> None:
    info, early = read_published(published_folder(state, 16), run)
    first = read_guide(published_folder(state, 16), info)
    assert first is not None  # made at 12 of 48 samples, and not moved since
    assert any(not torch.equal(first[name], early[name].half()) for name in early)
    for samples in (32, 48):
        guide = read_guide(published_folder(state, samples), info)
        assert guide is not None
        assert all(torch.equal(guide[name], first[name]) for name in first)


def test_guide_answers_as_the_expert_did_then(
    cluster: Cluster, run: Run, tmp_path: Path, published: Path
) -> None:
    config = replace(run.spec.train, save_samples=12)
    training = train(cluster, run, config, state_dir=tmp_path / "short")
    saved = next(event for event in training if isinstance(event, SavedCheckpoint))
    training.close()  # type: ignore[attr-defined]
    then, now = load_expert(saved.path, run), load_expert(published, run)
    text = run.text.encode(["a disc"])
    asked = (torch.randn(1, 16, 2, 2), torch.tensor([0.5]), text.states, text.mask)
    assert now.guide is not None
    found = now.guide.velocity(*asked)
    assert torch.allclose(found, then.velocity(*asked), atol=1e-2)  # half precision
    assert not torch.allclose(now.velocity(*asked), then.velocity(*asked), atol=1e-2)


def test_guide_that_was_altered_is_refused_and_one_that_is_not_there_is_done_without(
    published: Path, state: Path, run: Run
) -> None:
    path = published / GUIDE_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    expert = load_expert(published, run)
    text = run.text.encode(["a disc"])
    assert expert.guide is not None
    with pytest.raises(CheckpointError, match=r"guide\.safetensors: does not match"):
        expert.guide.velocity(torch.zeros(1, 16, 2, 2), torch.ones(1), text.states, text.mask)
    latest = read_latest(state, run, 0)
    assert latest is not None
    assert latest.info.samples == 32  # a save with an altered guide is passed over
    path.unlink()
    assert load_expert(published, run).guide is None


def test_checkpoint_from_before_there_were_guides_is_read(published: Path, run: Run) -> None:
    (published / GUIDE_FILE).unlink()
    edit(published / EXPERT_FILE, lambda v: v.pop("guide_digest"))
    assert load_expert(published, run).guide is None


def test_checkpoint_of_another_run_is_refused(published: Path, colour_run: Run) -> None:
    with pytest.raises(CheckpointError, match="another preset"):
        load_expert(published, colour_run)


def test_altered_configuration_is_refused(published: Path, run: Run) -> None:
    edit(published / CONFIG_FILE, lambda v: v.update(num_layers=40_000))
    with pytest.raises(CheckpointError, match=r"config\.json: not the configuration of preset"):
        load_expert(published, run)


def test_weights_that_are_not_finite_are_refused(published: Path, run: Run) -> None:
    info, weights = read_published(published, run)
    weights["proj_out.bias"][0] = float("nan")
    (published / WEIGHTS_FILE).write_bytes(pack_tensors(weights))
    with pytest.raises(TensorFileError, match=f"{WEIGHTS_FILE}: tensor proj_out.bias holds NaN"):
        read_published(published, run)
    del weights["proj_out.bias"]
    (published / WEIGHTS_FILE).write_bytes(pack_tensors(weights))
    with pytest.raises(TensorFileError, match=r"lacks tensor proj_out\.bias"):
        read_published(published, run)
    assert info.samples == 48


def test_every_missing_file_is_named(state: Path, run: Run) -> None:
    for samples, name in zip((16, 32, 48), PUBLISHED_FILES, strict=True):
        folder = published_folder(state, samples)
        (folder / name).unlink()
        with pytest.raises((CheckpointError, TensorFileError), match=name):
            read_published(folder, run)


def test_only_the_newest_saves_are_kept(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    config = replace(run.spec.train, save_samples=4, keep_saves=2)
    for _ in train(cluster, run, config, state_dir=tmp_path / "state"):
        assert len(saves(tmp_path / "state")) <= 2
    names = [p.name for p in saves(tmp_path / "state")]
    assert names == ["save-000000000048", "save-000000000044"]


@pytest.mark.parametrize(
    "name", ["state/state.json", "state/raw.safetensors", f"expert/{WEIGHTS_FILE}"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_save_is_passed_over_for_an_older_one(
    state: Path, run: Run, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    path = published_folder(state, 48).parent / name
    data = bytearray(path.read_bytes())
    match damage:
        case "flip":
            data[len(data) // 2] ^= 4
            path.write_bytes(data)
        case "cut":
            path.write_bytes(data[:-3])
        case _:
            path.unlink()
    with caplog.at_level(logging.WARNING):
        snapshot = read_latest(state, run, 0)
    assert snapshot is not None
    assert snapshot.state.samples == 32
    assert "save-000000000048 is damaged" in caplog.text


def test_saves_of_another_cluster_or_run_are_refused(
    state: Path, run: Run, colour_run: Run
) -> None:
    with pytest.raises(CheckpointError, match="was made for cluster 0"):
        read_latest(state, run, 1)
    with pytest.raises(CheckpointError, match="was made for cluster 0 of run"):
        read_latest(state, colour_run, 0)


def test_no_save_is_no_error_and_leftovers_are_swept(tmp_path: Path, run: Run) -> None:
    state = tmp_path / "state"
    (state / ".tmp-save-1-77").mkdir(parents=True)
    assert read_latest(state, run, 0) is None
    assert list(state.iterdir()) == []


def test_disk_that_is_full_leaves_earlier_saves_alone(
    state: Path, cluster: Cluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(run.spec.train, budget_samples=48, save_samples=100)
    shutil.rmtree(published_folder(state, 48).parent)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        list(train(cluster, run, config, state_dir=state))
    monkeypatch.undo()
    latest = read_latest(state, run, 0)
    assert latest is not None
    assert latest.state.samples == 32


def test_digest_in_expert_json_is_of_the_weights_file(published: Path, run: Run) -> None:
    info, _ = read_published(published, run)
    assert info.model_digest == digest_of((published / WEIGHTS_FILE).read_bytes())
    schema = info.shape.schema()
    assert set(read_tensors(published / WEIGHTS_FILE, schema)) == set(schema)


@pytest.mark.slow
def test_kill_at_any_operation_of_a_save_leaves_a_complete_checkpoint(
    prepared: PreparedRun, tmp_path: Path
) -> None:
    program = Path(__file__).with_name("kill_saves.py")
    arguments = [prepared.shared, prepared.clusters[0].folder, tmp_path]
    done = subprocess.run(
        [sys.executable, str(program), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["killed"] > 40
    assert set(result["found"]) == {16, 24}  # complete always, and at most the last interval lost
    assert result["found"] == sorted(result["found"])
    assert result["found"][-1] == 24
