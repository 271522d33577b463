import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from training.clusters import Cluster
from training.config import TrainConfig
from training.errors import ConfigError
from training.experts.checkpoint import published_folder, read_latest
from training.experts.distributed import Job, process_count
from training.experts.loaded import load_expert
from training.experts.loop import StepReport, train
from training.experts.losses import CURVE_FILE
from training.experts.team import Alone, _pieces
from training.preparation.prepare import PreparedRun
from training.run import Run

PROGRAM = Path(__file__).with_name("crew_program.py")


def crew(
    prepared: PreparedRun, state: Path, *, processes: int = 2, stop_after: int = 0, kill: str = "no"
) -> tuple[int, list[dict[str, Any]]]:
    """Run the program; its exit status and what it said."""
    facts = [prepared.shared, prepared.clusters[0].folder, state, processes, stop_after, kill]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, facts)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def losses(said: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in said if "loss" in line]


def saved(state: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(state)): path.read_bytes()
        for path in state.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def pair(
    prepared: PreparedRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], Path]:
    """A whole training by two processes."""
    state = tmp_path_factory.mktemp("pair") / "state"
    status, said = crew(prepared, state)
    assert status == 0
    return said, state


@pytest.mark.slow
def test_two_processes_train_as_one_does_up_to_rounding(
    cluster: Cluster, run: Run, pair: tuple[list[dict[str, Any]], Path], tmp_path: Path
) -> None:
    said, state = pair
    alone = [
        event
        for event in train(cluster, run, run.spec.train, state_dir=tmp_path)
        if isinstance(event, StepReport)
    ]
    assert {line["processes"] for line in said if "loss" in line} == {2}
    assert losses(said) == pytest.approx([event.loss for event in alone], rel=2e-5)
    text = run.text.encode(["a disc", ""])
    x_t = torch.randn(2, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        load_expert(published_folder(folder, 48), run).velocity(
            x_t, torch.tensor([0.3, 0.7]), text.states, text.mask
        )
        for folder in (state, tmp_path)
    )
    assert torch.allclose(ours, theirs, atol=1e-3)
    assert said[-1] == {"met": False}  # the group is left when the training is over
    assert (state / CURVE_FILE).exists()


@pytest.fixture(scope="module")
def stopped(
    prepared: PreparedRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], Path]:
    """A training by two processes that was asked to stop after five steps."""
    state = tmp_path_factory.mktemp("stopped") / "state"
    status, said = crew(prepared, state, stop_after=5)
    assert status == 0
    return said, state


@pytest.mark.slow
def test_two_processes_that_stop_and_begin_again_end_bit_for_bit_the_same(
    prepared: PreparedRun,
    pair: tuple[list[dict[str, Any]], Path],
    stopped: tuple[list[dict[str, Any]], Path],
    tmp_path: Path,
) -> None:
    first, state = stopped[0], Path(shutil.copytree(stopped[1], tmp_path / "state"))
    assert len(losses(first)) == 5
    status, second = crew(prepared, state)
    assert status == 0
    assert losses(first + second) == losses(pair[0])
    newest = "save-000000000048"
    assert {k: v for k, v in saved(state).items() if newest in k or k == CURVE_FILE} == {
        k: v for k, v in saved(pair[1]).items() if newest in k or k == CURVE_FILE
    }


@pytest.mark.slow
def test_death_of_a_follower_ends_the_leader_with_the_reason_and_costs_one_interval(
    prepared: PreparedRun, run: Run, stopped: tuple[list[dict[str, Any]], Path], tmp_path: Path
) -> None:
    state = Path(shutil.copytree(stopped[1], tmp_path / "state"))
    status, said = crew(prepared, state, kill="follower")
    assert status == 3
    assert "a process of this training is gone" in said[-1]["failed"]
    assert len(losses(said)) <= 3
    latest = read_latest(state, run, 0)
    assert latest is not None
    assert latest.state.samples == 20


@pytest.mark.slow
def test_followers_leave_when_the_leader_is_killed(prepared: PreparedRun, tmp_path: Path) -> None:
    status, said = crew(prepared, tmp_path, kill="leader")
    assert status == -9
    follower = next(line["follower"] for line in said if "follower" in line)
    deadline = time.monotonic() + 60
    while _is_alive(follower) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(follower)


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("gpus", "device", "visible", "processes"),
    [
        ("auto", "cpu", 0, 1),
        ("4", "cpu", 8, 1),
        ("auto", "mps", 0, 1),
        ("auto", "cuda:1", 8, 1),
        ("auto", "cuda", 1, 1),
        ("auto", "cuda", 8, 8),
        ("3", "cuda", 8, 3),
        ("auto", "cuda", 64, 32),
    ],
)
def test_one_process_a_gpu_and_one_where_there_is_none(
    gpus: str, device: str, visible: int, processes: int
) -> None:
    assert process_count(gpus, device, visible, batch=32) == processes


def test_more_gpus_than_there_are_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match="gpus = 4, but this machine shows 2"):
        process_count("4", "cuda", 2, batch=32)


@pytest.mark.parametrize("processes", [0, 33])
def test_processes_without_a_row_of_the_batch_are_refused(processes: int) -> None:
    with pytest.raises(ConfigError, match=r"1\.\.32"):
        Job("", "", "", "", "", TrainConfig(batch=32), processes)


def test_alone_there_is_nobody_to_ask() -> None:
    team = Alone()
    assert team.rows(7) == (0, 7)
    assert team.is_any(flag=True)
    assert not team.is_any(flag=False)
    assert team.least([3, -2]) == (3, -2)
    assert torch.equal(team.whole(torch.ones(3), 3), torch.ones(3))


def test_gradients_are_summed_in_pieces_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.experts.team.SUM_BYTES", 64)
    tensors = [torch.zeros(n) for n in (4, 4, 8, 100, 1)]
    assert [[t.numel() for t in piece] for piece in _pieces(tensors)] == [[4, 4, 8], [100], [1]]
