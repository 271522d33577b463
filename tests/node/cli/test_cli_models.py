"""`paris-node models`: a run goes out as a folder, folders come in, both draw."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from node.errors import ErrorCode
from node.home import Home, prepare
from node.keeping import PULLED, keep, keep_checkpoint, keep_folder
from node.runs import import_run
from node.state import open_state
from p2p.blobs import BlobStore, blobs_of
from p2p.codec import BLOB_KEY, seal
from p2p.file_sets import FileSet
from p2p.ids import BlobId, ClusterId
from p2p.records import CheckpointManifest, ClaimPolicy
from tests.support.cli_run import Run, answer_of, refusal_of
from tests.support.exports import export_source, without_text
from tests.support.paris_folder import change_json, write_paris
from tests.support.people import alice
from tests.training.conftest import TINY_SPEC, draw_pictures
from training.drawing.ensemble import Ensemble
from training.drawing.pictures import encode_png
from training.drawing.plan import SampleOptions
from training.exchange.export import ExportSource, export_model
from training.preparation.prepare import PreparedRun, prepare_run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    folder = tmp_path_factory.mktemp("tiny")
    return prepare_run(draw_pictures(folder / "pictures"), folder / "run", TINY_SPEC)


@pytest.fixture(scope="module")
def source(prepared: PreparedRun, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    return export_source(prepared, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def folder(source: ExportSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "tiny"
    export_model(target, without_text(source))
    return target


class Kept:
    """A home that holds a run, and what was put into it."""

    def __init__(self, home: Path, prepared: PreparedRun) -> None:
        self.home = Home.at(home)
        prepare(self.home)
        self.blobs = BlobStore.open(self.home.blobs, floor_bytes=0)
        self.run = import_run(prepared, self.blobs, ClaimPolicy()).run
        self.identity = alice

    def bind(self) -> None:
        with open_state(self.home.database) as state:
            state.bind_run(self.run)

    def checkpoint(
        self, cluster: int, folder: Path, samples: int, *, pulled: bool = False
    ) -> BlobId:
        entries = self.blobs.add_files({path.name: path for path in folder.iterdir()})
        number = ClusterId(cluster)
        manifest = CheckpointManifest(
            run=self.run, cluster=number, epoch=1, step=12, samples=samples, loss=0.5, parent=None,
            files=entries, created_at=1.0,
        )  # fmt: skip
        envelope = seal(manifest, self.identity, key=BLOB_KEY, expires_at=None)
        if not pulled:
            return keep_checkpoint(self.blobs, envelope, number, samples, entries)
        cid = self.blobs.put(envelope)
        keep(self.blobs, cid, PULLED, tuple(blob for blob, _ in blobs_of(entries)))
        return cid

    def summary(self, cluster: int, file: Path) -> None:
        entries = self.blobs.add_files({"summary.safetensors": file})
        keep_folder(self.blobs, FileSet(entries), f"summary/{cluster}")


@pytest.fixture
def kept(home: Path, prepared: PreparedRun) -> Kept:
    return Kept(home, prepared)


def fill(kept: Kept, source: ExportSource) -> list[BlobId]:
    kept.bind()
    for cluster, file in source.summaries.items():
        kept.summary(cluster, file)
    return [kept.checkpoint(k, expert.folder, 48) for k, expert in source.experts.items()]


def test_export_writes_the_best_experts_of_the_homes_run(
    run: Run, kept: Kept, source: ExportSource, tmp_path: Path
) -> None:
    cids = fill(kept, source)
    answer = answer_of(run("models", "export", "--no-text-encoder", "--license", "mit", "--json"))
    assert answer["folder"] == "tiny"  # named after the run, in the folder one is in
    assert answer["run"] == kept.run
    assert [expert["cid"] for expert in answer["experts"]] == cids
    assert {expert["owner"] for expert in answer["experts"]} == {kept.identity.peer}
    assert answer["routers"] == ["gauss", "caption"]
    assert answer["license"] == "mit"
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert all(cid in card for cid in (*cids, kept.run))
    assert not list(kept.home.data.glob("export-*"))


def test_export_takes_named_checkpoints_and_the_furthest_of_the_others(
    run: Run, kept: Kept, source: ExportSource
) -> None:
    kept.bind()
    zero, one = (source.experts[k].folder for k in (0, 1))
    behind = kept.checkpoint(0, zero, 16, pulled=True)
    ahead = kept.checkpoint(0, zero, 48)
    kept.checkpoint(1, one, 16)
    furthest = kept.checkpoint(1, one, 32)
    arguments = ("models", "export", "--no-text-encoder", "--json")
    answer = answer_of(run(*arguments, "--out", "a"))
    assert [expert["cid"] for expert in answer["experts"]] == [ahead, furthest]
    answer = answer_of(run(*arguments, behind, "--out", "b"))
    assert [expert["cid"] for expert in answer["experts"]] == [behind, furthest]
    exit_code, error = refusal_of(run(*arguments, behind, ahead, "--out", "c"))
    assert exit_code == ErrorCode.USAGE.exit_code
    assert "Two of the checkpoints are of cluster 0" in error["message"]


def test_export_without_an_expert_says_which_and_how_to_get_it(
    run: Run, kept: Kept, source: ExportSource, tmp_path: Path
) -> None:
    kept.bind()
    kept.checkpoint(0, source.experts[0].folder, 48)
    exit_code, error = refusal_of(run("models", "export", "--json"))
    assert exit_code == ErrorCode.NOT_FOUND.exit_code
    assert "No expert of cluster 1 is in this home" in error["message"]
    assert "experts pull" in error["fix"]
    assert not (tmp_path / "tiny").exists()
    stranger = "bafkreiaxsxlbnotmqp2mwykfhwbhvfmmh5c6pezlyapfmpxb6ghxjstd3e"
    exit_code, error = refusal_of(run("models", "export", stranger, "--json"))
    assert exit_code == ErrorCode.NOT_FOUND.exit_code
    assert "not a whole checkpoint" in error["message"]
    assert refusal_of(run("models", "export", "nonsense", "--json"))[0] == 2


def test_export_into_a_used_folder_is_refused(
    run: Run, kept: Kept, source: ExportSource, tmp_path: Path
) -> None:
    fill(kept, source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    exit_code, error = refusal_of(run("models", "export", "--out", "out", "--json"))
    assert exit_code == ErrorCode.FAILED.exit_code
    assert "new or empty" in error["message"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_exported_folder_comes_back_and_draws_the_runs_own_pictures(
    run: Run, folder: Path, source: ExportSource, tmp_path: Path
) -> None:
    assert answer_of(run("models", "import", str(folder), "--json"))["name"] == "tiny"
    (listed,) = answer_of(run("models", "list", "--json"))["models"]
    assert (listed["kind"], listed["experts"], listed["run"]) == ("export", 2, "bafkreirun")
    shown = answer_of(run("models", "show", "tiny", "--json"))
    assert "expert_1/expert.json" in shown["files"]
    for k, expert in source.experts.items():  # the same weights, bit for bit
        name = "diffusion_pytorch_model.safetensors"
        copied = Path(shown["folder"]) / f"expert_{k}" / name
        assert copied.read_bytes() == (expert.folder / name).read_bytes()
    assert not (Path(shown["folder"]) / "pipeline.py").exists()  # code is not brought in
    answer = answer_of(run("models", "draw", "tiny", "a disc", "-o", "d.png", "-n", "2", "--json"))
    assert answer["files"] == ["d-1.png", "d-2.png"]
    assert answer["routing"] == "sticky"
    ensemble = Ensemble.load(
        source.shared, {k: e.folder for k, e in source.experts.items()}, source.summaries
    )
    drawn = ensemble.generate_batch(["a disc"] * 2, options=SampleOptions()).pictures
    for name, picture in zip(answer["files"], drawn, strict=True):
        assert (tmp_path / name).read_bytes() == encode_png(picture)


def test_altered_export_is_refused_and_nothing_is_kept(run: Run, folder: Path, home: Path) -> None:
    bad = Path(shutil.copytree(folder, home.parent / "bad"))
    change_json(bad / "scheduler" / "scheduler_config.json", shift=3.0)
    exit_code, error = refusal_of(run("models", "import", "bad", "--json"))
    assert exit_code == ErrorCode.VERIFICATION_FAILED.exit_code
    assert "scheduler/scheduler_config.json does not match export.json" in error["message"]
    assert answer_of(run("models", "list", "--json"))["models"] == []
    assert list((home / "imported").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../b", ".hidden", "expert_0/../x", "a\nb"]
)
def test_file_names_that_lead_elsewhere_are_refused(
    run: Run, folder: Path, home: Path, name: str
) -> None:
    bad = Path(shutil.copytree(folder, home.parent / "bad"))
    record = json.loads((bad / "export.json").read_text())
    record["files"][name] = "0" * 64
    (bad / "export.json").write_text(json.dumps(record))
    exit_code, error = refusal_of(run("models", "import", "bad", "--json"))
    assert exit_code == ErrorCode.VERIFICATION_FAILED.exit_code
    assert "is not allowed" in error["message"]


def test_mismatches_of_a_published_folder_are_listed_one_a_line(run: Run, home: Path) -> None:
    paris = write_paris(home.parent / "paris").folder
    shutil.rmtree(paris / "expert_1")
    (paris / "router" / "pytorch_model.safetensors").rename(paris / "router" / "pytorch_model.bin")
    result = run("models", "import", "paris")
    assert result.exit_code == ErrorCode.VERIFICATION_FAILED.exit_code
    assert "expert_1 is missing: config.json says 3 experts" in result.stderr
    change_json(paris / "config.json", num_experts=1)
    change_json(paris / "model_index.json", num_experts=1)
    shutil.rmtree(paris / "expert_2")
    result = run("models", "import", "paris")
    assert "(pytorch_model.bin is a pickle: opening one runs its code)" in result.stderr


def test_model_names_are_checked_and_not_taken_twice(run: Run, folder: Path) -> None:
    for bad in ("../x", "a/b", "", ".x", "x" * 65):
        exit_code, error = refusal_of(run("models", "import", str(folder), "--name", bad, "--json"))
        assert exit_code == ErrorCode.USAGE.exit_code
        assert "cannot be a model's name" in error["message"]
    assert run("models", "import", str(folder), "--name", "one", "-q").stdout == "one\n"
    exit_code, error = refusal_of(run("models", "import", str(folder), "--name", "one", "--json"))
    assert exit_code == ErrorCode.REFUSED.exit_code
    assert run("models", "remove", "one").exit_code == 0
    for verb in ("show", "remove"):
        exit_code, error = refusal_of(run("models", verb, "one", "--json"))
        assert exit_code == ErrorCode.NOT_FOUND.exit_code
        assert "models list" in error["fix"]


def test_published_model_without_its_parts_says_what_is_missing(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_paris(home.parent / "paris", clusters=2, text=768)
    kept = answer_of(run("models", "import", "paris", "--json"))
    assert (kept["kind"], kept["vae"]) == ("published", "stabilityai/sd-vae-ft-mse")
    exit_code, error = refusal_of(run("models", "draw", "paris", "a cat", "--json"))
    assert exit_code == ErrorCode.NOT_FOUND.exit_code
    assert "codec sd-vae-ft-mse is not on this machine" in error["message"]


@pytest.mark.slow
def test_published_model_draws_what_its_reference_nets_draw(
    run: Run, home: Path, tmp_path: Path
) -> None:
    """Top-1 and all, one Euler-like step: the velocities are the reference nets'."""
    from tests.support.paris_parts import write_parts

    paris = write_paris(tmp_path / "paris", clusters=2, text=768)
    write_parts(paris.folder)
    run("models", "import", "paris")
    answer = answer_of(
        run("models", "draw", "paris", "a cat", "-o", "cat.png", "--steps", "1", "--seed", "3",
            "--guidance", "1", "--routing", "full", "--json")
    )  # fmt: skip
    with Image.open(tmp_path / "cat.png") as picture:
        assert picture.size == (64, 64)
        drawn = torch.tensor(np.asarray(picture), dtype=torch.float32).permute(2, 0, 1)
    expected = reference_picture(paris, "a cat", seed=3)
    assert expected.std() > 3
    assert (drawn - expected).abs().max() <= 1
    assert sum(answer["experts"].values()) == pytest.approx(1)
    refused = run("models", "draw", "paris", "a cat", "--routing", "sticky", "--json")
    assert refusal_of(refused)[0] == ErrorCode.USAGE.exit_code


def reference_picture(paris: Any, prompt: str, seed: int) -> torch.Tensor:
    """One step from noise to data, by the reference nets and plain transformers and diffusers."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(paris.folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(paris.folder / "text_encoder").eval()
    vae = AutoencoderKL.from_pretrained(paris.folder / "vae").eval()
    ids = tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    time = torch.tensor([1000.0])
    with torch.no_grad():
        text = encoder(ids).last_hidden_state
        weights = paris.router(x, time).softmax(dim=1)[0]
        velocity = sum(w * e(x, time, text) for w, e in zip(weights, paris.experts, strict=True))
        decoded: torch.Tensor = vae.decode((x - velocity) / 0.18215).sample
    return ((decoded[0] / 2 + 0.5).clamp(0, 1) * 255).round()


def test_help_shows_three_examples_of_every_verb(run: Run) -> None:
    for verb in ("export", "import", "list", "show", "remove", "draw"):
        text = run("models", verb, "--help").stdout
        assert text.count(f"paris-node models {verb}") >= 3
