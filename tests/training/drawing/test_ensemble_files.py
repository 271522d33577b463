"""Ensembles read from a run's real files: what is left out, and what the seed alone decides."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.training.drawing import draw_pictures
from tests.training.drawing.draw_pictures import COUNT, draw
from tests.training.drawing.test_ensemble import run_through
from training.clusters import Cluster
from training.config import RunSpec
from training.drawing.ensemble import Ensemble
from training.drawing.mixture import Strategy
from training.drawing.plan import RouterName, SampleOptions, SamplePlan, SampleRequest
from training.drawing.sampler import denoise
from training.errors import CheckpointError, ConfigError, DataError
from training.experts.checkpoint import ExpertInfo, published_files
from training.experts.nets import build_net
from training.files import write_folder
from training.preparation.prepare import prepare_run
from training.routers.gauss_calibration import measure_gauss, save_gauss
from training.routers.learned_router import save_router
from training.routers.router_training import (
    DEFAULT_TRAIN,
    RouterSettings,
    TrainedRouter,
    labelled,
    train_router,
)
from training.routers.summary import fit_summary, save_summary
from training.run import Run, load_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clusters of 32-pixel pictures: dark and light ones, prepared as any folder is."""
    source = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for index in range(40):
        name = "dark stripes" if index % 2 else "light stripes"
        pixels = torch.randint(0, 40, (32, 32), generator=generator, dtype=torch.uint8)
        pixels += 0 if index % 2 else 200
        Image.frombytes("L", (32, 32), pixels.numpy().tobytes()).save(
            source / f"{name}_{index:02d}.png"
        )
    out = tmp_path_factory.mktemp("run") / "prepared"
    prepare_run(source, out, RunSpec("stripes", 2))
    return out


def write_expert(folder: Path, run: Run, cluster: int) -> Path:
    """An expert that was never trained, yet answers something."""
    net: nn.Module = build_net(run.shape, seed=cluster)
    generator = torch.Generator().manual_seed(cluster)
    weight = net.get_parameter("proj_out.weight").data
    weight.normal_(0.0, 0.05, generator=generator)
    spec = run.spec
    info = ExpertInfo(
        schema=1, objective="fm", schedule="linear", cluster=cluster, run=run.digest,
        preset=spec.preset, codec=run.codec_digest, text=spec.text, latent=run.facts.latent,
        samples=32, step=1, seed=0, loss=1.0, model_digest="",
    )  # fmt: skip
    write_folder(folder, published_files(info, dict(net.state_dict())))
    return folder


@pytest.mark.slow
def test_ensemble_loads_from_files_and_draws(run_folder: Path, tmp_path: Path) -> None:
    run = load_run(run_folder / "shared")
    experts = {k: write_expert(tmp_path / str(k), run, k) for k in (0, 1)}
    summaries = {k: tmp_path / f"{k}.safetensors" for k in (0, 1)}
    for k, path in summaries.items():
        save_summary(fit_summary(Cluster.load(run_folder / "clusters" / str(k)).latents()), path)
    ensemble = Ensemble.load(run_folder / "shared", experts, summaries)
    assert ensemble.clusters == (0, 1)
    route, _, images = run_through(
        ensemble.generate(SampleRequest("dark stripes", n=2, options=SampleOptions(steps=2)))
    )
    assert len(route.experts) == 1
    assert Image.open(io.BytesIO(images.pngs[0])).size == (32, 32)
    drawn = ensemble.generate_batch(
        ["thin dark lines"], options=SampleOptions(Strategy.TOP2, steps=2)
    )
    assert drawn.pictures.shape == (1, 1, 32, 32)


@pytest.mark.slow
def test_loading_refuses_an_expert_of_another_cluster_or_none(
    run_folder: Path, tmp_path: Path
) -> None:
    run = load_run(run_folder / "shared")
    folder = write_expert(tmp_path / "expert", run, 0)
    with pytest.raises(CheckpointError, match="an expert of cluster 0, expected 1"):
        Ensemble.load(run_folder / "shared", {1: folder})
    with pytest.raises(ConfigError):
        Ensemble.load(run_folder / "shared", {})
    with pytest.raises(DataError, match="no run"):
        Ensemble.load(tmp_path, {0: folder})


@pytest.mark.slow
def test_an_expert_that_was_altered_is_left_out_and_the_others_draw(
    run_folder: Path, tmp_path: Path
) -> None:
    run = load_run(run_folder / "shared")
    experts = {k: write_expert(tmp_path / str(k), run, k) for k in (0, 1)}
    weights = experts[1] / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    ensemble = Ensemble.load(run_folder / "shared", experts)
    assert ensemble.clusters == (0,)
    route, _, images = run_through(
        ensemble.generate(SampleRequest("dark stripes", n=2, options=SampleOptions(steps=2)))
    )
    assert set(route.experts) == {0}
    assert len(images.pngs) == 2


@pytest.fixture(scope="module")
def drawn_folders(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    run, folder = load_run(run_folder / "shared"), tmp_path_factory.mktemp("experts")
    return {k: write_expert(folder / str(k), run, k) for k in (0, 1)}


def denoised(ensemble: Ensemble, plan: SamplePlan) -> Tensor:
    dialogue = denoise(plan, ensemble.routes(plan), ensemble.clusters)
    queries = next(dialogue)
    try:
        while True:
            queries = dialogue.send([ensemble.answer(query) for query in queries])
    except StopIteration as end:
        return cast("Tensor", end.value.latents)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [Strategy.STICKY, Strategy.TOP2])
def test_a_picture_of_the_real_net_does_not_depend_on_its_batch(
    run_folder: Path, drawn_folders: dict[int, Path], strategy: Strategy
) -> None:
    """Up to the order in which a matrix product of another size adds: 1e-4 of a unit variance."""
    ensemble = Ensemble.load(run_folder / "shared", drawn_folders)
    captions = ("dark stripes", "light stripes", "thin lines", "dark stripes", "light stripes")
    options = SampleOptions(strategy, steps=6)
    shape = load_run(run_folder / "shared").facts.latent
    together = denoised(ensemble, SamplePlan(captions, (3, 4, 5, 6, 7), shape, options))
    alone = denoised(ensemble, SamplePlan(captions[2:3], (5,), shape, options))
    assert float(alone.std()) > 0.1
    assert float((together[2] - alone[0]).abs().max()) < 1e-4


@pytest.mark.slow
def test_the_seed_alone_makes_the_picture_in_any_process(
    run_folder: Path, drawn_folders: dict[int, Path]
) -> None:
    """Bit by bit with as many threads; with others sums differ, so up to one grey level."""
    shared, experts = run_folder / "shared", [drawn_folders[0], drawn_folders[1]]
    here = draw(shared, experts)  # with one thread: see conftest.py
    answer = subprocess.run(
        [sys.executable, draw_pictures.__file__, shared, *experts, "2", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    drawn = [bytes.fromhex(line) for line in answer.stdout.split()]
    by_two, by_one = drawn[:COUNT], drawn[COUNT:]
    assert len(set(here)) == COUNT
    assert by_one == here
    for one, other in zip(here, by_two, strict=True):
        assert bool((pixels_of(one) - pixels_of(other)).abs().le(1).all())


def pixels_of(png: bytes) -> Tensor:
    with Image.open(io.BytesIO(png)) as image:
        return torch.tensor(list(image.tobytes()), dtype=torch.int32)


@pytest.mark.slow
def test_trained_routers_and_measured_temperatures_are_used_and_bad_ones_left_out(
    run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = load_run(run_folder / "shared")
    experts = {k: write_expert(tmp_path / str(k), run, k) for k in (0, 1)}
    clusters = [Cluster.load(run_folder / "clusters" / str(k)) for k in (0, 1)]
    train = replace(DEFAULT_TRAIN, batch=8, budget_samples=16)
    *_, end = train_router(labelled(clusters), run, RouterSettings(train=train))
    assert isinstance(end, TrainedRouter)
    save_router(end.router, tmp_path / "learned")
    save_gauss(measure_gauss(labelled(clusters * 8), run, "data"), tmp_path / "gauss")
    summaries = {k: tmp_path / f"{k}.safetensors" for k in (0, 1)}
    for k, path in summaries.items():
        save_summary(fit_summary(clusters[k].latents()), path)
    folders = {name: tmp_path / name for name in ("learned", "gauss", "synthetic")}
    ensemble = Ensemble.load(run_folder / "shared", experts, summaries, folders)
    assert "synthetic router left out" in caplog.text
    assert ensemble._routers[RouterName.GAUSS].freeze_below == 0
    for name in (RouterName.LEARNED, RouterName.GAUSS):
        options = SampleOptions(Strategy.TOP2, steps=2, router=name)
        assert len(ensemble.generate_batch(["thin dark lines"], options=options).pictures) == 1
    with pytest.raises(ConfigError, match="no synthetic router"):
        ensemble.generate_batch(["x"], options=SampleOptions(router=RouterName.SYNTHETIC))
