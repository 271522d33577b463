"""What an export holds, what it refuses, and that diffusers alone can use it."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.support.exports import export_source, without_text, write_expert, write_router
from training.drawing.ensemble import Ensemble
from training.drawing.mixture import Strategy
from training.drawing.plan import RouterName, SampleOptions
from training.errors import CheckpointError, ExportError
from training.exchange.export import ExpertSource, ExportSource, export_model
from training.exchange.imported import import_model
from training.exchange.open_model import open_model
from training.exchange.paris_layout import NetConfig
from training.exchange.paris_net import router_shapes
from training.experts.checkpoint import PUBLISHED_FILES
from training.experts.loaded import load_expert
from training.files import digest_of
from training.preparation.prepare import PreparedRun
from training.tensors import read_header

SCRIPT = Path(__file__).parents[2] / "support" / "plain_diffusers.py"


@pytest.fixture(scope="module")
def source(prepared: PreparedRun, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    return without_text(export_source(prepared, tmp_path_factory.mktemp("source")))


def test_export_is_the_published_layout(source: ExportSource, tmp_path: Path) -> None:
    export_model(tmp_path / "out", source)
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert names >= {
        "README.md", "config.json", "model_index.json", "pipeline.py", "export.json",
        *(f"expert_{k}/{name}" for k in range(2) for name in PUBLISHED_FILES),
        "router/config.json", "router/summary_0.safetensors", "router/summary_1.safetensors",
        "vae/config.json", "vae/codec.safetensors", "scheduler/scheduler_config.json",
    }  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_experts"] == 2
    assert config["router_architecture"] == "gauss"
    assert config["text_encoder_name"] == "minilm-l6"
    for k, expert in source.experts.items():
        for name in PUBLISHED_FILES:
            copied = tmp_path / "out" / f"expert_{k}" / name
            assert copied.read_bytes() == (expert.folder / name).read_bytes()


def test_export_names_the_digest_of_every_file(source: ExportSource, tmp_path: Path) -> None:
    record = export_model(tmp_path / "out", source)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    found = {str(p.relative_to(tmp_path / "out")): digest_of(p.read_bytes()) for p in files}
    written = found.pop("export.json")
    assert record.files == found
    assert len(written) == 64
    assert json.loads((tmp_path / "out" / "export.json").read_text())["run_id"] == "bafkreirun"


def test_same_experts_give_the_same_bytes(source: ExportSource, tmp_path: Path) -> None:
    assert export_model(tmp_path / "a", source) == export_model(tmp_path / "b", source)


def test_export_without_all_summaries_says_that_it_routes_by_caption(
    source: ExportSource, tmp_path: Path
) -> None:
    some = replace(source, summaries={0: source.summaries[0]})
    assert export_model(tmp_path / "out", some).routers == ("caption",)
    assert "is the only one" in (tmp_path / "out" / "README.md").read_text()
    assert not list((tmp_path / "out" / "router").glob("summary*"))


def test_trained_router_goes_out_as_published_and_comes_back_to_draw(
    source: ExportSource, prepared: PreparedRun, tmp_path: Path
) -> None:
    run = prepared.load()
    place = write_router(tmp_path / "router", run)
    record = export_model(tmp_path / "out", replace(source, router=place))
    assert record.routers == ("learned", "gauss", "caption")
    config = json.loads((tmp_path / "out" / "router" / "config.json").read_text())
    net = NetConfig(**config)
    shapes = router_shapes(net, run.facts.latent, 2)
    header = read_header(tmp_path / "out" / "router" / "pytorch_model.safetensors")
    assert {name: spec.shape for name, spec in header.items()} == shapes
    import_model(tmp_path / "out", tmp_path / "kept")
    ensemble, _ = open_model(tmp_path / "kept")
    options = SampleOptions(strategy=Strategy.TOP2, router=RouterName.LEARNED)
    folders = {k: expert.folder for k, expert in source.experts.items()}
    own = Ensemble.load(source.shared, folders, routers={"learned": place})
    drawn = ensemble.generate_batch(["a disc"] * 2, options=options).pictures
    expected = own.generate_batch(["a disc"] * 2, options=options).pictures
    assert torch.equal(drawn, expected)


def test_folder_in_use_is_refused_and_untouched(source: ExportSource, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(ExportError, match="give a folder that is new or empty"):
        export_model(tmp_path / "out", source)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match="new or empty"):
        export_model(tmp_path / "link", source)


def test_empty_folder_is_filled(source: ExportSource, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_model(tmp_path / "out", source)
    assert (tmp_path / "out" / "README.md").exists()


def test_missing_cluster_is_named(source: ExportSource, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no expert of cluster 1: a model has all 2 of its run"):
        export_model(tmp_path / "out", replace(source, experts={0: source.experts[0]}))
    more = {**source.experts, 2: source.experts[0]}
    with pytest.raises(ExportError, match="the run has no cluster 2"):
        export_model(tmp_path / "out", replace(source, experts=more))
    assert list(tmp_path.iterdir()) == []


def test_expert_of_another_cluster_is_refused(source: ExportSource, tmp_path: Path) -> None:
    twice = {0: source.experts[0], 1: source.experts[0]}
    with pytest.raises(CheckpointError, match="an expert of cluster 0, expected 1"):
        export_model(tmp_path / "out", replace(source, experts=twice))


def test_altered_expert_is_refused_and_nothing_is_left(
    source: ExportSource, prepared: PreparedRun, tmp_path: Path
) -> None:
    bad = write_expert(tmp_path / "bad", prepared.load(), 1)
    weights = bad / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    altered = replace(source, experts={**source.experts, 1: ExpertSource(bad)})
    with pytest.raises(CheckpointError, match="it was altered"):
        export_model(tmp_path / "out", altered)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_full_disk_leaves_nothing(
    source: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, left = os.write, [2_000_000]

    def refuse(descriptor: int, data: bytes) -> int:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(descriptor, data)

    monkeypatch.setattr("training.files.os.write", refuse)
    with pytest.raises(OSError, match="No space left"):
        export_model(tmp_path / "out", source)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_plain_diffusers_draws_and_answers_as_this_program_does(
    prepared: PreparedRun, tmp_path: Path
) -> None:
    """Velocities to 1e-5, pictures to one grey level, in a process that lacks this package."""
    source = export_source(prepared, tmp_path / "mixed", objectives=("fm", "ddpm-eps"))
    export_model(tmp_path / "asked", without_text(source))
    same = export_source(prepared, tmp_path / "same")
    export_model(tmp_path / "drawn", same)
    run = prepared.load()
    text = run.text.encode(["a disc", "two bars, one of them dark"])
    x = torch.randn(2, *run.facts.latent, generator=torch.Generator().manual_seed(3))
    times = torch.tensor([0.03, 0.4, 0.8])
    save_file(
        {"x": x, "times": times, "states": text.states, "mask": text.mask},
        tmp_path / "questions.safetensors",
    )
    answers = tmp_path / "answers.safetensors"
    folders = [str(tmp_path / "asked"), str(tmp_path / "drawn")]
    command = [sys.executable, "-I", str(SCRIPT), *folders]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    finished = subprocess.run(
        [*command, str(tmp_path / "questions.safetensors"), str(answers)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "will be ignored" not in finished.stderr
    found = load_file(answers)
    for k, expert in source.experts.items():
        ours = load_expert(expert.folder, run)
        for index, t in enumerate(times.tolist()):
            expected = ours.velocity(x, torch.full((2,), t), text.states, text.mask)
            answer = found[f"expert_{k}-{index}"]
            torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)
            assert expected.std() > 0.1
    torch.testing.assert_close(found["sigmas"], torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    with Image.open(tmp_path / "answers.png") as picture:
        assert picture.size == (16, 16)
    checkpoints = {k: expert.folder for k, expert in same.experts.items()}
    ensemble = Ensemble.load(prepared.shared, checkpoints, same.summaries)
    for strategy, routing in ((Strategy.STICKY, "sticky"), (Strategy.TOP2, "top-2")):
        options = SampleOptions(strategy=strategy)
        expected = ensemble.generate_batch(["A disc."] * 4, seed=3, options=options).pictures
        assert expected.float().std() > 20
        assert (found[routing].float() - expected.float()).abs().max() <= 1
