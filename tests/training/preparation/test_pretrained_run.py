"""A run of pretrained parts, from pictures to pictures, on tiny models in the hub's layout."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.hub_models import DINO_WIDTH, write_clip, write_dinov2, write_sd_vae
from tests.training.conftest import SIDE, TINY_SPEC
from training.clusters import Cluster
from training.drawing.ensemble import Ensemble
from training.drawing.plan import SampleOptions
from training.errors import CheckpointError, ConfigError, DataError, ModelMissingError
from training.exchange.export import ExpertSource, ExportSource, export_model
from training.exchange.imported import import_model
from training.exchange.open_model import open_model
from training.experts.checkpoint import read_published
from training.experts.loop import SavedCheckpoint, train
from training.parts.hub import part_digest
from training.preparation.prepare import PreparedRun, PrepareOptions, prepare_run
from training.run import RUN_FILE, Run, load_run
from training.sources.folders import load_folder

SPEC = replace(
    TINY_SPEC,
    name="pretrained",
    codec="sd-vae-ft-mse",
    extractor="dinov2-vitl14",
    text="clip-vit-l14",
    train=replace(TINY_SPEC.train, budget_samples=8, save_samples=8),
)


@pytest.fixture(scope="module")
def made(pictures: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    out = tmp_path_factory.mktemp("pretrained") / "out"
    return prepare_run(pictures, out, SPEC, options=PrepareOptions(models))


@pytest.fixture
def opened(made: PreparedRun, models: Path) -> Run:
    return load_run(made.shared, models)


@pytest.fixture
def altered(made: PreparedRun, models: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the shared folder and of the models, to be spoilt."""
    return (
        Path(shutil.copytree(made.shared, tmp_path / "shared")),
        Path(shutil.copytree(models, tmp_path / "models")),
    )


@pytest.mark.slow
def test_run_is_trained_and_drawn_from(made: PreparedRun, opened: Run, models: Path) -> None:
    experts = {}
    for info in made.clusters:
        events = train(
            Cluster.load(info.folder),
            opened,
            opened.spec.train_config(info.k),
            state_dir=made.root / "state" / str(info.k),
        )
        saved = [event for event in events if isinstance(event, SavedCheckpoint)]
        assert saved[-1].step == 2
        experts[info.k] = saved[-1].path
    for folder in experts.values():
        assert read_published(folder, opened)[0].codec == opened.codec_digest
    ensemble = Ensemble.load(made.shared, experts, models=models)
    drawn = ensemble.generate_batch(["a disc", "two bars"], options=SampleOptions(steps=2))
    assert drawn.pictures.shape == (2, 1, SIDE, SIDE)
    assert float(drawn.pictures.float().std()) > 0
    sources = {k: ExpertSource(folder) for k, folder in experts.items()}
    export_model(made.root / "export", ExportSource(made.shared, sources))
    import_model(made.root / "export", made.root / "kept")
    again, _ = open_model(made.root / "kept", models)
    options = SampleOptions(steps=2)
    assert torch.equal(again.generate_batch(["a disc", "two bars"], options=options).pictures,
                       drawn.pictures)  # fmt: skip


def test_shared_folder_holds_nothing_of_pretrained_parts(made: PreparedRun, opened: Run) -> None:
    assert sorted(path.name for path in made.shared.iterdir()) == [
        "captions.json",
        "clusters.safetensors",
        RUN_FILE,
    ]
    facts = opened.facts
    assert (facts.latent, facts.features, facts.pixels) == ((4, 2, 2), DINO_WIDTH, 3 * 224 * 224)
    assert set(facts.digests) == {"captions.json", "clusters.safetensors"}
    assert facts.models is not None
    assert sorted(facts.models) == [
        "clip-vit-l14/config.json",
        "clip-vit-l14/model.safetensors",
        "clip-vit-l14/tokenizer.json",
        "dinov2-vitl14/config.json",
        "dinov2-vitl14/model.safetensors",
        "sd-vae-ft-mse/config.json",
        "sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
    ]


def test_codecs_digest_is_its_pins(made: PreparedRun, opened: Run) -> None:
    assert opened.codec_digest == opened.codec.digest
    assert opened.codec_digest == part_digest("sd-vae-ft-mse", opened.facts.models or {})
    assert Cluster.load(made.clusters[0].folder).index.codec == opened.codec_digest


def test_pictures_are_assigned_where_they_were_clustered(pictures: Path, opened: Run) -> None:
    owners = opened.clusters.assign(load_folder(pictures, SIDE, 1).images)
    assert tuple(owners.bincount(minlength=2).tolist()) == opened.facts.rows


def test_training_needs_neither_codec_nor_extractor(
    made: PreparedRun, altered: tuple[Path, Path]
) -> None:
    shared, models = altered
    shutil.rmtree(models / "sd-vae-ft-mse")
    shutil.rmtree(models / "dinov2-vitl14")
    run = load_run(shared, models)
    data = Cluster.load(made.clusters[0].folder)
    steps = list(train(data, run, run.spec.train_config(0), state_dir=models / "state"))
    assert isinstance(steps[-1], SavedCheckpoint)
    with pytest.raises(ModelMissingError, match="codec sd-vae-ft-mse is not on this machine"):
        _ = run.codec
    with pytest.raises(ModelMissingError, match="extractor dinov2-vitl14 is not on this machine"):
        _ = run.clusters


def test_parts_other_than_the_runs_are_refused(altered: tuple[Path, Path]) -> None:
    shared, models = altered
    write_sd_vae(models / "sd-vae-ft-mse", seed=1)
    write_dinov2(models / "dinov2-vitl14", seed=1)
    write_clip(models / "clip-vit-l14", seed=1)
    run = load_run(shared, models)
    for use, part in (
        (lambda: run.codec, "sd-vae-ft-mse"),
        (lambda: run.clusters, "dinov2-vitl14"),
        (lambda: run.text.encode(["a"]), "clip-vit-l14"),
    ):
        with pytest.raises(ModelMissingError, match=rf"{part}.* not the file this run was made"):
            use()


def test_run_file_must_pin_exactly_its_parts(altered: tuple[Path, Path]) -> None:
    shared, models = altered
    facts = json.loads((shared / RUN_FILE).read_bytes())
    pins = facts["models"]
    digests = facts["digests"]
    for change, reason in (
        ({"models": None}, "models must name exactly clip-vit-l14/config.json"),
        ({"models": {}}, "models must name exactly"),
        ({"models": dict(list(pins.items())[1:])}, "models must name exactly"),
        ({"models": {**pins, "minilm-l6/config.json": "0"}}, "models must name exactly"),
        ({"digests": {**digests, "codec.safetensors": "0"}}, "digests must name exactly clusters"),
        ({"pixels": 256}, "256 pixels, dinov2-vitl14 reads 150528"),
    ):
        (shared / RUN_FILE).write_text(json.dumps({**facts, **change}))
        with pytest.raises(DataError, match=reason):
            load_run(shared, models)
    (shared / RUN_FILE).write_text(json.dumps({**facts, "latent": [4, 4, 4]}))
    with pytest.raises(DataError, match=r"latents \(4, 2, 2\)"):
        _ = load_run(shared, models).codec


def test_clusters_of_another_width_than_the_extractors_are_refused(
    altered: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, models = altered
    run = load_run(shared, models)
    monkeypatch.setattr("training.parts.dinov2.Dinov2.dim", property(lambda _: 1024))
    with pytest.raises(DataError, match="centroids of 32 numbers, the extractor gives 1024"):
        _ = run.clusters


def test_run_with_a_missing_part_is_not_begun(pictures: Path, models: Path, tmp_path: Path) -> None:
    some = Path(shutil.copytree(models, tmp_path / "models"))
    for name in ("clip-vit-l14", "dinov2-vitl14", "sd-vae-ft-mse"):
        shutil.rmtree(some / name)
        with pytest.raises(ModelMissingError, match=f"{name} is not on this machine"):
            prepare_run(pictures, tmp_path / name, SPEC, options=PrepareOptions(some))
        assert not list((tmp_path / name).rglob("*.safetensors"))
        shutil.copytree(models / name, some / name)
    with pytest.raises(ConfigError, match="divisible by 8, got 20"):
        prepare_run(
            pictures, tmp_path / "size", replace(SPEC, image_size=20), options=PrepareOptions(some)
        )


def test_expert_of_another_codec_is_refused(
    made: PreparedRun, opened: Run, models: Path, tmp_path: Path
) -> None:
    data = Cluster.load(made.clusters[0].folder)
    events = list(train(data, opened, opened.spec.train_config(0), state_dir=tmp_path / "state"))
    saved = events[-1]
    assert isinstance(saved, SavedCheckpoint)
    shared = Path(shutil.copytree(made.shared, tmp_path / "shared"))
    facts = json.loads((shared / RUN_FILE).read_bytes())
    facts["models"]["sd-vae-ft-mse/config.json"] = "0" * 64
    (shared / RUN_FILE).write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="another codec"):
        read_published(saved.path, load_run(shared, models))


def test_same_pictures_and_parts_give_the_same_run(
    pictures: Path, made: PreparedRun, models: Path, tmp_path: Path
) -> None:
    again = prepare_run(pictures, tmp_path / "again", SPEC, options=PrepareOptions(models))
    for path in made.shared.iterdir():
        assert (again.shared / path.name).read_bytes() == path.read_bytes()
    latents = Cluster.load(again.clusters[0].folder).latents()
    assert torch.equal(latents, Cluster.load(made.clusters[0].folder).latents())
