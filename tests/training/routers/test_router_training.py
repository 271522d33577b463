from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.clusters import Cluster
from training.config import TrainConfig
from training.errors import CheckpointError, ConfigError, DataError
from training.preparation.prepare import PreparedRun
from training.routers.calibration import LabelledLatents
from training.routers.learned_router import router_files
from training.routers.router_training import (
    RouterSettings,
    RouterStep,
    TrainedRouter,
    labelled,
    train_router,
)
from training.run import Run

TRAIN = TrainConfig(
    batch=16, learning_rate=3e-3, warmup_steps=2, budget_samples=160, save_samples=64,
    times="uniform", ema_decay=0.9,
)  # fmt: skip
SETTINGS = RouterSettings(held_out=0.25, train=TRAIN)


def separate(run: Run, count: int = 120) -> LabelledLatents:
    """Two clusters that lie apart."""
    generator = torch.Generator().manual_seed(0)
    clusters = torch.arange(count) % 2
    noise = torch.randn(count, *run.facts.latent, generator=generator)
    return LabelledLatents(0.3 * noise + (2.0 * clusters - 1)[:, None, None, None], clusters)


def finished(rows: LabelledLatents, run: Run, settings: RouterSettings) -> TrainedRouter:
    *steps, end = train_router(rows, run, settings)
    assert isinstance(end, TrainedRouter)
    assert all(isinstance(step, RouterStep) for step in steps)
    return end


@pytest.mark.slow
def test_router_learns_to_tell_clusters_apart_and_knows_how_sure_it_may_be(run: Run) -> None:
    train = replace(TRAIN, batch=32, budget_samples=1600)
    router = finished(separate(run), run, replace(SETTINGS, train=train)).router
    x_t = separate(run, 40).latents * 0.5 + 0.5 * torch.randn(40, *run.facts.latent)
    right = router.probabilities(x_t, 0.5).argmax(1) == torch.arange(40) % 2
    assert float(right.float().mean()) > 0.9
    calibration = router.info.calibration
    assert calibration is not None
    assert calibration.buckets[0].accuracy > 0.9
    assert calibration.error_after < 0.2


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes_and_another_seed_others(run: Run) -> None:
    rows = separate(run)
    first = router_files(finished(rows, run, SETTINGS).router)
    assert router_files(finished(rows, run, SETTINGS).router) == first
    other = replace(SETTINGS, train=replace(TRAIN, seed=1))
    assert router_files(finished(rows, run, other).router) != first


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 5])
def test_stopped_training_goes_on_to_the_same_router_bit_for_bit(
    run: Run, tmp_path: Path, steps: int
) -> None:
    rows, count = separate(run), iter(range(1, 100))
    stopped = list(
        train_router(
            rows, run, SETTINGS, state_dir=tmp_path, should_stop=lambda: next(count) >= steps
        )
    )
    assert len(stopped) == steps
    *later, end = train_router(rows, run, SETTINGS, state_dir=tmp_path)
    assert isinstance(end, TrainedRouter)
    assert isinstance(later[0], RouterStep)
    assert later[0].step == steps + 1
    assert router_files(end.router) == router_files(finished(rows, run, SETTINGS).router)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_save_of_other_data_or_settings_is_not_gone_on_from(run: Run, tmp_path: Path) -> None:
    rows = separate(run)
    list(train_router(rows, run, SETTINGS, state_dir=tmp_path, should_stop=lambda: True))
    with pytest.raises(CheckpointError, match="another run, setting or data"):
        list(train_router(separate(run, 100), run, SETTINGS, state_dir=tmp_path))
    other = replace(SETTINGS, train=replace(TRAIN, seed=1))
    with pytest.raises(CheckpointError, match="another run, setting or data"):
        list(train_router(rows, run, other, state_dir=tmp_path))
    more_threads = replace(SETTINGS, train=replace(TRAIN, save_samples=32))
    assert list(train_router(rows, run, more_threads, state_dir=tmp_path))


def test_router_of_some_clusters_knows_those_alone(prepared: PreparedRun, run: Run) -> None:
    clusters = [Cluster.load(info.folder) for info in prepared.clusters]
    router = finished(labelled(clusters), run, replace(SETTINGS, held_out=0.5)).router
    assert router.clusters == (0, 1)
    assert router.info.rows == run.facts.rows
    assert sum(router.info.counts) == len(labelled(clusters)) // 2


def test_too_few_held_out_leave_the_router_uncalibrated(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    router = finished(separate(run, 40), run, SETTINGS).router
    assert router.info.calibration is None
    assert "10 latents held out: too few" in caplog.text


def nan(latents: Tensor) -> Tensor:
    return latents * float("nan")


@pytest.mark.parametrize("case", ["shape", "one cluster", "stranger", "few", "nan"])
def test_latents_that_cannot_train_a_router_are_refused(run: Run, case: str) -> None:
    rows = separate(run)
    bad = {
        "shape": LabelledLatents(rows.latents[:, :3], rows.clusters),
        "one cluster": LabelledLatents(rows.latents, rows.clusters * 0),
        "stranger": LabelledLatents(rows.latents, rows.clusters * 5),
        "few": rows.select(torch.arange(4)),
        "nan": LabelledLatents(nan(rows.latents), rows.clusters),
    }[case]
    with pytest.raises(DataError):
        next(train_router(bad, run, SETTINGS))


def test_clusters_of_other_codecs_do_not_go_together(cluster: Cluster) -> None:
    other = replace(cluster, index=replace(cluster.index, codec="0" * 64))
    with pytest.raises(DataError, match="one and the same codec"):
        labelled([cluster, other])


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ConfigError, match="learned, synthetic"):
        RouterSettings(kind="guessed")
    with pytest.raises(ConfigError, match="held_out"):
        RouterSettings(held_out=0.6)
