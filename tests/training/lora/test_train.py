"""Training an adapter, and putting it on and off its base."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.lora_jobs import (
    SETTINGS,
    base,
    bases,
    contents,
    few_draws,
    rows,
    trained,
    velocities,
)
from training.clusters import Cluster
from training.config import OBJECTIVES
from training.drawing.ensemble import Ensemble
from training.errors import ConfigError, DataError, DivergedError, LoraError
from training.experts import gradients
from training.experts.checkpoint import published_folder
from training.experts.loaded import Expert, load_expert
from training.experts.loop import train
from training.experts.nets import build_net, predict
from training.lora import trainer as lora_trainer
from training.lora.files import LORA_FILES, read_lora
from training.lora.modules import adapted, set_enabled
from training.lora.settings import LoraRows
from training.lora.train import (
    LoraEvent,
    LoraJob,
    LoraStep,
    TrainedLora,
    merge_lora,
    train_lora,
    with_lora,
)
from training.preparation.prepare import PreparedRun
from training.run import Run

__all__ = ["base", "bases", "few_draws", "rows", "trained"]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_adapter_of_either_objective_learns_and_comes_off_without_a_trace(
    bases: dict[str, Expert], run: Run, rows: LoraRows, tmp_path: Path, objective: str
) -> None:
    base = bases[objective]
    before = velocities(base, run)
    longer = replace(SETTINGS, samples=160, batch=8, learning_rate=3e-2)
    last = list(train_lora(LoraJob(base, run, rows, longer, tmp_path / "dark")))[-1]
    assert isinstance(last, TrainedLora)
    assert last.info.base.objective == objective
    assert last.info.held_out.after < 0.995 * last.info.held_out.before
    on = with_lora(base, tmp_path / "dark")
    assert not torch.allclose(velocities(on, run), before, atol=1e-3)
    set_enabled(on.net, last.info.shape, is_on=False)
    assert torch.equal(velocities(on, run), before)
    merged = velocities(merge_lora(base, tmp_path / "dark"), run)
    set_enabled(on.net, last.info.shape, is_on=True)
    assert torch.allclose(velocities(on, run), merged, atol=1e-5, rtol=1e-5)


def test_training_reports_steps_and_leaves_exactly_an_adapter_s_files(
    trained: tuple[list[LoraEvent], Path],
) -> None:
    events, folder = trained
    reports = [event for event in events if isinstance(event, LoraStep)]
    assert [report.samples for report in reports] == list(range(4, 49, 4))
    assert isinstance(events[-1], TrainedLora)
    assert events[-1].folder == folder
    assert sorted(contents(folder)) == sorted(LORA_FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["dark"]


def test_facts_of_an_adapter_name_its_base_data_and_measure(
    base: Expert, rows: LoraRows, trained: tuple[list[LoraEvent], Path]
) -> None:
    info, _ = read_lora(trained[1])
    assert (info.base.model_digest, info.base.cid) == (base.info.model_digest, "bafkbase")
    assert (info.base.objective, info.base.cluster) == (base.objective, base.info.cluster)
    assert (info.rank, info.alpha, info.samples, info.seed) == (2, 2.0, 48, 0)
    assert (info.rows, info.held_out.rows) == (42, 6)
    assert info.data == rows.fingerprint


def test_measured_loss_before_is_the_base_s_own(
    base: Expert, run: Run, rows: LoraRows, trained: tuple[list[LoraEvent], Path]
) -> None:
    fresh = lora_trainer.LoraTrainer(base, run, rows, SETTINGS)
    info, _ = read_lora(trained[1])
    assert fresh.measure(is_on=True) == fresh.measure(is_on=False) == info.held_out.before


def test_same_seed_gives_the_same_folder_byte_for_byte(
    base: Expert,
    run: Run,
    rows: LoraRows,
    trained: tuple[list[LoraEvent], Path],
    tmp_path: Path,
) -> None:
    torch.manual_seed(9)  # nothing may come from torch's global randomness
    list(train_lora(LoraJob(base, run, rows, SETTINGS, tmp_path / "again", "bafkbase")))
    assert contents(tmp_path / "again") == contents(trained[1])
    other = replace(SETTINGS, seed=1)
    list(train_lora(LoraJob(base, run, rows, other, tmp_path / "other", "bafkbase")))
    assert contents(tmp_path / "other") != contents(trained[1])


def test_off_is_the_base_bit_for_bit_and_on_differs(
    base: Expert, run: Run, trained: tuple[list[LoraEvent], Path]
) -> None:
    before = velocities(base, run)
    on = with_lora(base, trained[1])
    assert not torch.allclose(velocities(on, run), before, atol=1e-3)
    assert torch.equal(velocities(base, run), before)  # never touched: this is "unloaded"
    info, _ = read_lora(trained[1])
    set_enabled(on.net, info.shape, is_on=False)
    assert torch.equal(velocities(on, run), before)
    assert torch.equal(velocities(with_lora(base, trained[1], scale=0), run), before)


def test_training_leaves_the_base_as_it_was(
    base: Expert, run: Run, rows: LoraRows, tmp_path: Path
) -> None:
    weights = {name: tensor.clone() for name, tensor in base.net.state_dict().items()}
    list(train_lora(LoraJob(base, run, rows, replace(SETTINGS, samples=8), tmp_path / "dark")))
    after = base.net.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert not base.net.training


def test_adapter_shares_the_base_s_weights_in_memory(
    base: Expert, trained: tuple[list[LoraEvent], Path]
) -> None:
    on = with_lora(base, trained[1])
    mine = {tensor.data_ptr() for tensor in base.net.parameters()}
    theirs = {tensor.data_ptr() for tensor in on.net.parameters()}
    assert mine <= theirs


@pytest.mark.parametrize("scale", [1.0, 0.5, -1.0])
def test_merged_weights_answer_as_unmerged_ones(
    base: Expert, run: Run, trained: tuple[list[LoraEvent], Path], scale: float
) -> None:
    unmerged = velocities(with_lora(base, trained[1], scale), run)
    merged = merge_lora(base, trained[1], scale)
    assert list(merged.net.state_dict()) == list(base.net.state_dict())
    assert torch.allclose(velocities(merged, run), unmerged, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(unmerged, velocities(base, run), atol=1e-3)


def test_alpha_over_rank_is_the_strength(
    base: Expert, run: Run, trained: tuple[list[LoraEvent], Path]
) -> None:
    info, weights = read_lora(trained[1])
    twice = adapted(base.net, info.shape, weights, 2.0).eval()
    assert torch.equal(
        velocities(replace(base, net=twice), run), velocities(with_lora(base, trained[1], 2), run)
    )


def test_peft_itself_loads_the_folder_and_gives_the_same_velocities(
    base: Expert, run: Run, trained: tuple[list[LoraEvent], Path]
) -> None:
    from peft import PeftModel

    net = build_net(base.info.shape, seed=0)
    net.load_state_dict(base.net.state_dict())
    theirs = PeftModel.from_pretrained(net, str(trained[1])).eval()
    ours = velocities(with_lora(base, trained[1]), run)
    assert torch.equal(velocities(replace(base, net=theirs), run), ours)


def test_loss_that_is_not_finite_is_an_error_that_leaves_nothing(
    base: Expert,
    run: Run,
    rows: LoraRows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = LoraJob(base, run, rows, SETTINGS, tmp_path / "dark")
    training = train_lora(job)
    for _ in range(6):
        next(training)
    assert job.state_folder.exists()
    monkeypatch.setattr(gradients, "predict", lambda *asked: predict(*asked) * float("nan"))
    with pytest.raises(DivergedError, match=r"lower learning rate than 0\.01"):
        next(training)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_outgrow_an_adapter_are_an_error_that_leaves_nothing(
    base: Expert, run: Run, rows: LoraRows, tmp_path: Path
) -> None:
    wild = replace(SETTINGS, learning_rate=10.0)
    with pytest.raises(DivergedError, match="lower learning rate"):
        list(train_lora(LoraJob(base, run, rows, wild, tmp_path / "dark")))
    assert list(tmp_path.iterdir()) == []


def test_folder_in_use_is_refused_before_a_step(
    base: Expert, run: Run, rows: LoraRows, trained: tuple[list[LoraEvent], Path]
) -> None:
    before = contents(trained[1])
    with pytest.raises(DataError, match="exists already"):
        next(train_lora(LoraJob(base, run, rows, SETTINGS, trained[1])))
    assert contents(trained[1]) == before


def test_expert_of_another_run_is_refused(
    base: Expert, colour_run: Run, rows: LoraRows, tmp_path: Path
) -> None:
    with pytest.raises(LoraError, match="belongs to run"):
        next(train_lora(LoraJob(base, colour_run, rows, SETTINGS, tmp_path / "x")))


def test_latents_of_another_shape_are_refused(base: Expert, run: Run, tmp_path: Path) -> None:
    wide = LoraRows(torch.zeros(4, 16, 4, 4).half(), ("a",) * 4)
    with pytest.raises(DataError, match=r"latents of \[16, 4, 4\], the base takes \[16, 2, 2\]"):
        next(train_lora(LoraJob(base, run, wide, SETTINGS, tmp_path / "x")))


@pytest.mark.parametrize("scale", [17.0, -17.0, float("nan")])
def test_scale_out_of_range_is_refused(
    base: Expert, trained: tuple[list[LoraEvent], Path], scale: float
) -> None:
    with pytest.raises(ConfigError, match="scale"):
        with_lora(base, trained[1], scale)
    with pytest.raises(ConfigError, match="scale"):
        merge_lora(base, trained[1], scale)


def test_adapter_for_another_checkpoint_is_refused_naming_both(
    base: Expert, trained: tuple[list[LoraEvent], Path]
) -> None:
    other = replace(base, info=replace(base.info, model_digest="f" * 64))
    with pytest.raises(LoraError, match=f"bafkbase .*{base.info.model_digest[:12]}.*ffffffffffff"):
        with_lora(other, trained[1])
    with pytest.raises(LoraError, match="bafkbase"):
        merge_lora(other, trained[1])


def test_adapter_for_another_preset_is_refused_by_its_name(
    base: Expert, colour_run: Run, trained: tuple[list[LoraEvent], Path]
) -> None:
    other = replace(base, info=replace(base.info, preset=colour_run.spec.preset))
    with pytest.raises(LoraError, match="preset fashion-tiny, not tiny-cpu"):
        with_lora(other, trained[1])


def test_two_pictures_are_enough_and_one_is_not(
    base: Expert, run: Run, rows: LoraRows, tmp_path: Path
) -> None:
    two = LoraRows(rows.latents[:2], rows.captions[:2])
    last = list(
        train_lora(LoraJob(base, run, two, replace(SETTINGS, samples=8), tmp_path / "two"))
    )[-1]
    assert isinstance(last, TrainedLora)
    assert (last.info.rows, last.info.held_out.rows) == (1, 1)
    for count in (0, 1):
        with pytest.raises(DataError, match=f"at least 2 pictures .* got {count}"):
            LoraRows(rows.latents[:count], rows.captions[:count])


def test_ensemble_draws_with_an_adapter_on_one_expert(
    cluster: Cluster,
    prepared: PreparedRun,
    run: Run,
    rows: LoraRows,
    tmp_path: Path,
) -> None:
    for _ in train(cluster, run, run.spec.train, state_dir=tmp_path / "state"):
        pass
    folder = published_folder(tmp_path / "state", run.spec.train.budget_samples)
    list(train_lora(LoraJob(load_expert(folder, run), run, rows, SETTINGS, tmp_path / "dark")))
    experts = {0: folder}
    plain = Ensemble.load(prepared.shared, experts).generate_batch(["a disc"], seed=3)
    adapter = {0: (tmp_path / "dark", 1.0)}
    dark = Ensemble.load(prepared.shared, experts, loras=adapter).generate_batch(["a disc"], seed=3)
    assert not torch.equal(dark.pictures, plain.pictures)
    with pytest.raises(LoraError, match="cluster 1, which is not here"):
        Ensemble.load(prepared.shared, experts, loras={1: (tmp_path / "dark", 1.0)})
