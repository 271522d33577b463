import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.clusters import Cluster
from training.config import TrainConfig
from training.errors import CheckpointError, DataError, DivergedError
from training.experts import gradients as gradients_module
from training.experts.checkpoint import published_folder, read_published, saves
from training.experts.loaded import load_expert
from training.experts.loop import SavedCheckpoint, StepReport, train
from training.experts.losses import BUCKETS, CURVE_FILE, read_curve
from training.experts.nets import predict
from training.experts.trainer import REWARM_STEPS, rate_at
from training.parts.text import TextStates
from training.preparation.prepare import PreparedRun
from training.run import Run

Event = StepReport | SavedCheckpoint


def contents(save: Path) -> dict[str, bytes]:
    return {p.relative_to(save).as_posix(): p.read_bytes() for p in save.rglob("*") if p.is_file()}


def newest(state: Path) -> dict[str, bytes]:
    """The newest save and what is written beside the saves."""
    return {**contents(saves(state)[0]), CURVE_FILE: (state / CURVE_FILE).read_bytes()}


def interrupted(
    cluster: Cluster, run: Run, config: TrainConfig, state: Path, start_from: Path | None = None
) -> list[Event]:
    """Train to the budget, but stop and begin again after every third step."""
    events: list[Event] = []
    while not steps(events) or steps(events)[-1].samples < config.budget_samples:
        asked = iter([False, False, True])
        events += train(
            cluster,
            run,
            config,
            state_dir=state,
            start_from=start_from,
            should_stop=lambda asked=asked: next(asked),  # type: ignore[misc]
        )
    return events


def steps(events: list[Event]) -> list[StepReport]:
    return [event for event in events if isinstance(event, StepReport)]


@pytest.fixture(scope="module")
def whole(
    cluster: Cluster, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Event], Path]:
    """An uninterrupted training: its events and its saves."""
    state = tmp_path_factory.mktemp("whole") / "state"
    return list(train(cluster, run, run.spec.train, state_dir=state)), state


def test_training_reports_every_step_and_saves_at_its_marks(
    whole: tuple[list[Event], Path],
) -> None:
    events, state = whole
    assert [report.samples for report in steps(events)] == list(range(4, 49, 4))
    assert [report.step for report in steps(events)] == list(range(1, 13))
    saved = [event for event in events if isinstance(event, SavedCheckpoint)]
    assert [(event.samples, event.step) for event in saved] == [(16, 4), (32, 8), (48, 12)]
    assert [event.path for event in saved] == [published_folder(state, n) for n in (16, 32, 48)]
    assert all(report.samples_per_s > 0 for report in steps(events))


@pytest.mark.parametrize("stop_after", [1, 4, 7, 11])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    cluster: Cluster, run: Run, whole: tuple[list[Event], Path], tmp_path: Path, stop_after: int
) -> None:
    asked = iter([*[False] * (stop_after - 1), True])
    first = list(
        train(
            cluster, run, run.spec.train, state_dir=tmp_path / "s", should_stop=lambda: next(asked)
        )
    )
    assert len(steps(first)) == stop_after
    assert isinstance(first[-1], SavedCheckpoint)
    assert first[-1].samples == 4 * stop_after
    torch.manual_seed(stop_after)  # nothing may come from torch's global randomness
    second = list(train(cluster, run, run.spec.train, state_dir=tmp_path / "s"))
    losses = [report.loss for report in steps(first + second)]
    assert losses == [report.loss for report in steps(whole[0])]
    assert newest(tmp_path / "s") == newest(whole[1])


@pytest.mark.parametrize(
    "change",
    [
        {"objective": "ddpm-eps"},
        {"clip_norm": 0.05},
        {"times": "uniform", "caption_drop": 0.5},
        {"precision": "bf16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_resume_is_exact_whatever_is_trained(
    cluster: Cluster, run: Run, tmp_path: Path, change: dict[str, Any]
) -> None:
    config = replace(run.spec.train, budget_samples=28, **change)
    whole = list(train(cluster, run, config, state_dir=tmp_path / "whole"))
    cut = interrupted(cluster, run, config, tmp_path / "cut")
    assert [r.loss for r in steps(cut)] == [r.loss for r in steps(whole)]
    assert newest(tmp_path / "cut") == newest(tmp_path / "whole")


def test_resume_with_small_parts_is_exact_after_the_first_lack_of_memory(
    cluster: Cluster, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def cramped(net: nn.Module, x: Tensor, time: Tensor, text: TextStates) -> Tensor:
        asked.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return predict(net, x, time, text)

    monkeypatch.setattr(gradients_module, "predict", cramped)
    config = replace(run.spec.train, budget_samples=28)
    whole = list(train(cluster, run, config, state_dir=tmp_path / "whole"))
    assert steps(whole)[0].execution.micro_batch == 2
    asked.clear()
    interrupted(cluster, run, config, tmp_path / "cut")
    assert asked.count(4) == 1  # found once, and remembered by the saves
    assert newest(tmp_path / "cut") == newest(tmp_path / "whole")


def test_other_thread_count_is_put_off_and_resume_stays_exact(
    cluster: Cluster,
    run: Run,
    whole: tuple[list[Event], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = iter([*[False] * 4, True])
    list(train(cluster, run, run.spec.train, state_dir=tmp_path, should_stop=lambda: next(asked)))
    more = replace(run.spec.train, threads=2)
    rest = list(train(cluster, run, more, state_dir=tmp_path))
    assert torch.get_num_threads() == 1
    assert {r.execution.threads for r in steps(rest)} == {1}
    assert "threads = 2 takes effect in the next training" in caplog.text
    assert [r.loss for r in steps(rest)] == [r.loss for r in steps(whole[0])][5:]


def test_save_made_before_clipping_and_executions_were_kept_still_resumes(
    cluster: Cluster, run: Run, tmp_path: Path
) -> None:
    config = replace(run.spec.train, clip_norm=0.0, budget_samples=32)
    whole = list(train(cluster, run, config, state_dir=tmp_path / "whole"))
    state = Path(shutil.copytree(tmp_path / "whole", tmp_path / "state"))
    shutil.rmtree(saves(state)[0])
    path = saves(state)[0] / "state" / "state.json"
    facts = json.loads(path.read_bytes())
    for name in ("execution", "bucket_sums", "bucket_weights"):
        del facts[name]
    for name in ("clip_norm", "precision"):
        del facts["config"][name]
    path.write_text(json.dumps(facts))
    rest = list(train(cluster, run, config, state_dir=state))
    assert [r.loss for r in steps(rest)] == [r.loss for r in steps(whole)][4:]


def test_loss_by_time_and_the_curve_are_reported_and_written(
    whole: tuple[list[Event], Path],
) -> None:
    events, state = whole
    last = steps(events)[-1]
    assert len(last.buckets) == BUCKETS
    seen = [mean for mean in last.buckets if mean is not None]
    assert len(seen) > 3
    saved = events[-1]
    assert isinstance(saved, SavedCheckpoint)
    assert saved.buckets == last.buckets
    lines = read_curve(state / CURVE_FILE)
    assert [line["samples"] for line in lines] == [r.samples for r in steps(events)]
    assert [line["batch_loss"] for line in lines] == [r.loss for r in steps(events)]
    assert lines[-1]["loss"] == saved.loss
    assert all(float(str(line["grad_norm"])) > 0 for line in lines)


def test_precision_and_its_reason_are_logged_once_and_reported(
    cluster: Cluster, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        events = list(train(cluster, run, run.spec.train, state_dir=tmp_path))
    how = steps(events)[0].execution
    assert how.reason.startswith(f"{how.precision} because")
    assert caplog.text.count(how.reason) == 1
    assert (how.threads, how.processes, how.micro_batch) == (1, 1, 4)


def test_closing_the_generator_saves(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    training = train(cluster, run, run.spec.train, state_dir=tmp_path)
    for _ in range(3):
        next(training)
    assert isinstance(training, Iterator)
    training.close()  # type: ignore[attr-defined]
    assert [p.name for p in saves(tmp_path)] == ["save-000000000012"]


def test_reached_budget_gives_the_checkpoint_and_no_step(
    cluster: Cluster, run: Run, whole: tuple[list[Event], Path]
) -> None:
    before = newest(whole[1])
    again = list(train(cluster, run, run.spec.train, state_dir=whole[1]))
    assert again == [whole[0][-1]]
    assert newest(whole[1]) == before


def test_takeover_continues_from_a_published_checkpoint(
    cluster: Cluster, run: Run, whole: tuple[list[Event], Path], tmp_path: Path
) -> None:
    parent = published_folder(whole[1], 32)
    asked = iter([True])
    first = list(
        train(
            cluster,
            run,
            run.spec.train,
            state_dir=tmp_path,
            start_from=parent,
            should_stop=lambda: next(asked),
        )
    )
    assert [(r.step, r.samples) for r in steps(first)] == [(9, 36)]
    expected = rate_at(run.spec.train, 32, 0, is_fresh=False)
    assert steps(first)[0].lr == expected
    assert expected < steps(whole[0])[8].lr  # ramps up again, from the same place on the cosine
    rest = list(train(cluster, run, run.spec.train, state_dir=tmp_path, start_from=parent))
    assert [r.samples for r in steps(rest)] == [40, 44, 48]
    info, _ = read_published(published_folder(tmp_path, 48), run)
    assert (info.samples, info.step) == (48, 12)


def test_takeover_begins_at_the_published_weights(
    cluster: Cluster, run: Run, whole: tuple[list[Event], Path], tmp_path: Path
) -> None:
    parent = published_folder(whole[1], 48)
    events = list(train(cluster, run, run.spec.train, state_dir=tmp_path, start_from=parent))
    assert [type(event) for event in events] == [SavedCheckpoint]
    _, theirs = read_published(parent, run)
    _, ours = read_published(published_folder(tmp_path, 48), run)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_interrupted_takeover_also_resumes_bit_for_bit(
    cluster: Cluster, run: Run, whole: tuple[list[Event], Path], tmp_path: Path
) -> None:
    parent = published_folder(whole[1], 16)
    for name, stops in (("whole", 0), ("cut", 3)):
        for _ in range(stops):
            asked = iter([False, True])
            list(
                train(
                    cluster,
                    run,
                    run.spec.train,
                    state_dir=tmp_path / name,
                    start_from=parent,
                    should_stop=lambda asked=asked: next(asked),  # type: ignore[misc]
                )
            )
        list(train(cluster, run, run.spec.train, state_dir=tmp_path / name, start_from=parent))
    assert newest(tmp_path / "whole") == newest(tmp_path / "cut")


def test_own_save_wins_over_an_older_published_one_and_loses_to_a_newer(
    cluster: Cluster, run: Run, whole: tuple[list[Event], Path], tmp_path: Path
) -> None:
    asked = iter([*[False] * 5, True])
    list(train(cluster, run, run.spec.train, state_dir=tmp_path, should_stop=lambda: next(asked)))
    older = train(
        cluster, run, run.spec.train, state_dir=tmp_path, start_from=published_folder(whole[1], 16)
    )
    resumed = next(older)
    assert (resumed.samples, resumed.loss) == (28, steps(whole[0])[6].loss)
    older.close()  # type: ignore[attr-defined]
    newer = train(
        cluster, run, run.spec.train, state_dir=tmp_path, start_from=published_folder(whole[1], 32)
    )
    first = next(newer)
    newer.close()  # type: ignore[attr-defined]
    assert first.samples == 36


def test_start_from_another_cluster_objective_or_run_is_refused(
    prepared: PreparedRun, run: Run, whole: tuple[list[Event], Path], tmp_path: Path
) -> None:
    parent = published_folder(whole[1], 48)
    other = Cluster.load(prepared.clusters[1].folder)
    with pytest.raises(CheckpointError, match="expected cluster 1"):
        next(train(other, run, run.spec.train, state_dir=tmp_path / "a", start_from=parent))
    config = replace(run.spec.train, objective="ddpm-eps")
    same = Cluster.load(prepared.clusters[0].folder)
    with pytest.raises(CheckpointError, match="ddpm-eps"):
        next(train(same, run, config, state_dir=tmp_path / "b", start_from=parent))


def test_cluster_of_another_codec_is_refused(
    cluster: Cluster, colour_run: Run, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="another codec"):
        next(train(cluster, colour_run, colour_run.spec.train, state_dir=tmp_path))


@pytest.mark.parametrize(
    "change", [{"batch": 8}, {"learning_rate": 2e-3}, {"seed": 1}, {"budget_samples": 96}]
)
def test_save_of_other_settings_is_refused_by_the_settings_name(
    cluster: Cluster,
    run: Run,
    whole: tuple[list[Event], Path],
    change: dict[str, float],
) -> None:
    config = replace(run.spec.train, **change)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=f"trained with {next(iter(change))} = "):
        next(train(cluster, run, config, state_dir=whole[1]))


def test_settings_that_do_not_change_the_result_may_change(
    cluster: Cluster, run: Run, whole: tuple[list[Event], Path]
) -> None:
    config = replace(run.spec.train, save_samples=7, keep_saves=9)
    assert len(list(train(cluster, run, config, state_dir=whole[1]))) == 1


def test_loss_that_is_not_finite_stops_before_the_weights_change(
    cluster: Cluster, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = train(cluster, run, run.spec.train, state_dir=tmp_path)
    for _ in range(5):  # four steps and the save at 16
        next(training)
    monkeypatch.setattr(
        gradients_module, "velocity_target", lambda data, noise: noise * float("inf")
    )
    with pytest.raises(DivergedError, match="at step 4 the loss is inf"):
        next(training)
    assert [p.name for p in saves(tmp_path)] == ["save-000000000016"]


def test_noise_prediction_trains_and_answers_with_velocities(
    cluster: Cluster, run: Run, tmp_path: Path
) -> None:
    config = replace(run.spec.train, objective="ddpm-eps", budget_samples=16)
    events = list(train(cluster, run, config, state_dir=tmp_path))
    last = events[-1]
    assert isinstance(last, SavedCheckpoint)
    expert = load_expert(last.path, run)
    assert (expert.objective, expert.info.schedule) == ("ddpm-eps", "vp-cosine")
    text = run.text.encode(["a disc"])
    out = expert.velocity(torch.ones(1, 16, 2, 2), torch.tensor([0.5]), text.states, text.mask)
    assert bool(out.isfinite().all())


def test_schedule_warms_up_falls_as_a_cosine_and_ends_at_its_fraction() -> None:
    config = TrainConfig(budget_samples=3200, warmup_steps=10, learning_rate=1.0)
    assert rate_at(config, 0, 0, is_fresh=True) == pytest.approx(0.1)
    assert rate_at(config, 1600, 50, is_fresh=True) == pytest.approx(0.51)
    assert rate_at(config, 3200, 100, is_fresh=True) == pytest.approx(0.02)
    assert rate_at(config, 9999, 300, is_fresh=True) == pytest.approx(0.02)
    long = replace(config, warmup_steps=1000)
    assert rate_at(long, 1600, REWARM_STEPS - 1, is_fresh=False) == pytest.approx(0.51)
    assert rate_at(long, 1600, REWARM_STEPS - 2, is_fresh=False) < 0.5


@pytest.mark.slow
def test_loss_falls_far_below_the_untrained_one(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    config = replace(run.spec.train, budget_samples=1200, save_samples=1200)
    events = list(train(cluster, run, config, state_dir=tmp_path))
    last = events[-1]
    assert isinstance(last, SavedCheckpoint)
    assert last.loss < 0.6 * steps(events)[0].loss


PROGRAM = """
import sys
from pathlib import Path
from training.clusters import Cluster
from training.experts.loop import train
from training.run import load_run
run, cluster = load_run(Path(sys.argv[1])), Cluster.load(Path(sys.argv[2]))
for event in train(cluster, run, run.spec.train, state_dir=Path(sys.argv[3])):
    print(event.samples, flush=True)
"""


@pytest.mark.slow
def test_killed_trainer_loses_at_most_one_interval_and_ends_the_same(
    prepared: PreparedRun,
    cluster: Cluster,
    run: Run,
    whole: tuple[list[Event], Path],
    tmp_path: Path,
) -> None:
    arguments = [prepared.shared, prepared.clusters[0].folder, tmp_path]
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 24:
            child.send_signal(signal.SIGKILL)
            break
    child.wait(timeout=30)
    child.stdout.close()
    rest = list(train(cluster, run, run.spec.train, state_dir=tmp_path))
    assert rest[0].samples >= 20  # the save at 16 was there
    assert newest(tmp_path) == newest(whole[1])
