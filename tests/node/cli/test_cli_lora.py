"""`paris-node lora`: on a home with a real expert, in this process and in one of its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from node.cli import cli
from node.cli.lora import train
from node.errors import ErrorCode
from node.home import HomeLock
from node.runs import load_manifest
from p2p.blobs import BlobStore
from tests.support.cli_run import Run, answer_of, refusal_of
from tests.support.expert_home import ExpertHome, make_expert_home
from tests.support.fake_node import CID, FakeNode, served
from training.experts.loaded import load_expert
from training.lora.files import LORA_FILES, read_lora
from training.lora.layers import TARGETS
from training.lora.settings import LoraSettings
from training.lora.train import with_lora

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
ENDLESS = ("--samples", "800000", "--batch", "4")
FEW = ("--samples", "64", "--batch", "8", "--rank", "2")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> ExpertHome:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = make_expert_home(tmp_path_factory.mktemp("expert"))
    torch.set_num_threads(before)
    return made


@pytest.fixture
def home(template: ExpertHome, tmp_path: Path) -> Path:
    """A copy of the home, for one test."""
    shutil.copytree(template.home.data, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def trained(template: ExpertHome, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A home with an adapter in it, and what the command said."""
    home = tmp_path_factory.mktemp("trained") / "home"
    shutil.copytree(template.home.data, home)
    arguments = ["--home", str(home), "lora", "train", str(template.pictures), *FEW]
    said = CliRunner().invoke(
        cli, [*arguments, "--expert", template.cid, "--licence", "CC0-1.0"], catch_exceptions=False
    )
    return home, said


@pytest.fixture
def shelf(home: Path, trained: tuple[Path, Result]) -> Path:
    """The test's home, with that adapter in it."""
    shutil.copytree(trained[0] / "loras", home / "loras")
    return home


def lora_of(home: Path) -> Path:
    (folder,) = (path for path in (home / "loras").iterdir() if not path.name.startswith("."))
    return folder


def test_trained_adapter_lies_in_the_home_and_its_base_takes_it(
    template: ExpertHome, trained: tuple[Path, Result]
) -> None:
    home, said = trained
    assert said.exit_code == 0, said.output
    folder = lora_of(home)
    assert folder.name == f"pictures-{template.cid[-6:]}-r2"
    assert sorted(path.name for path in folder.iterdir()) == sorted(LORA_FILES)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    lines = said.stdout.splitlines()
    assert lines[0] == str(folder)
    assert any(line.startswith("loss") and "on 6 pictures held out" in line for line in lines)
    assert lines[-1].endswith(f"paris-node lora show {folder.name}")
    info, _ = read_lora(folder)
    assert (info.base.cid, info.samples, info.licence) == (template.cid, 64, "CC0-1.0")
    with_lora(load_expert(home / "runs" / template.run / "experts" / "0" / template.cid), folder)


def test_json_is_one_object_with_the_facts(
    run: Run, home: Path, template: ExpertHome, tmp_path: Path
) -> None:
    command = ("lora", "train", str(template.pictures), "--expert", template.cid, *FEW)
    answer = answer_of(run(*command, "-o", "mine", "--json"))
    assert answer["lora"]["path"] == "mine"
    assert answer["lora"]["base"]["cid"] == template.cid
    assert answer["lora"]["held_out"]["rows"] == 6
    assert answer["lora"]["bytes"] == sum(p.stat().st_size for p in Path("mine").iterdir())
    assert answer["seconds"] > 0
    assert not (home / "loras").exists()


def test_training_goes_on_beside_a_running_node(run: Run, home: Path, template: ExpertHome) -> None:
    with HomeLock(template.home.at(home)):
        said = run("lora", "train", str(template.pictures), "--expert", template.cid, *FEW)
    assert said.exit_code == 0, said.output


def test_checkpoint_that_is_not_here_names_the_command_that_fetches_it(
    run: Run, template: ExpertHome
) -> None:
    result = run("lora", "train", str(template.pictures), "--expert", CID, "--json")
    code, error = refusal_of(result)
    assert code == ErrorCode.NOT_FOUND.exit_code
    assert CID in error["message"]
    assert error["fix"].endswith(f"paris-node experts pull {CID}")


def test_checkpoint_that_is_not_here_is_pulled_first_if_a_node_runs(
    run: Run, home: Path, template: ExpertHome
) -> None:
    """The fake node says that it pulled, and brings nothing: the answer is still not a crash."""
    fake = FakeNode()
    with served(fake, home, pid=os.getpid()):
        result = run("lora", "train", str(template.pictures), "--expert", CID, "--json")
    assert refusal_of(result)[0] == ErrorCode.NOT_FOUND.exit_code


def test_cid_of_something_else_is_refused(run: Run, template: ExpertHome) -> None:
    result = run("lora", "train", str(template.pictures), "--expert", template.run, "--json")
    code, error = refusal_of(result)
    assert code == ErrorCode.VERIFICATION_FAILED.exit_code
    assert "not a checkpoint" in error["message"]
    result = run("lora", "train", str(template.pictures), "--expert", "nonsense", "--json")
    assert refusal_of(result)[0] == ErrorCode.USAGE.exit_code


def test_checkpoint_with_a_missing_chunk_is_not_here(
    run: Run, home: Path, template: ExpertHome
) -> None:
    for path in (home / "blobs" / "chunks").iterdir():
        if path.stat().st_size == 2**20:  # a whole chunk of the weights
            path.unlink()
    result = run("lora", "train", str(template.pictures), "--expert", template.cid, "--json")
    assert refusal_of(result)[0] == ErrorCode.NOT_FOUND.exit_code


def test_run_that_is_not_whole_names_the_way_to_it(
    run: Run, home: Path, template: ExpertHome
) -> None:
    blobs = BlobStore.open(home / "blobs", floor_bytes=0)
    root = load_manifest(template.run, blobs).shared
    (home / "blobs" / "chunks" / root).unlink()
    result = run("lora", "train", str(template.pictures), "--expert", template.cid, "--json")
    code, error = refusal_of(result)
    assert code == ErrorCode.NOT_FOUND.exit_code
    assert f"paris-node start --run {template.run}" in error["fix"]


def test_altered_expert_is_refused(run: Run, home: Path, template: ExpertHome) -> None:
    assert run("lora", "train", "nowhere", "--expert", template.cid).exit_code == 1
    (weights,) = home.rglob("experts/*/*/diffusion_pytorch_model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(data)
    result = run("lora", "train", str(template.pictures), "--expert", template.cid, "--json")
    code, error = refusal_of(result)
    assert code == ErrorCode.VERIFICATION_FAILED.exit_code
    assert "altered" in error["message"]


@pytest.mark.parametrize(("count", "found"), [(0, "no "), (1, "at least 2 pictures")])
def test_no_picture_and_one_picture_are_sentences(
    run: Run, template: ExpertHome, tmp_path: Path, count: int, found: str
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for index in range(count):
        shutil.copy(template.pictures / f"{index:03d}.png", few / f"a disc {index}.png")
    (few / "broken disc.png").write_bytes(b"no picture")
    result = run("lora", "train", str(few), "--expert", template.cid, "--json")
    code, error = refusal_of(result)
    assert code == ErrorCode.FAILED.exit_code
    assert found in error["message"]


def test_skipped_files_are_told(run: Run, template: ExpertHome, tmp_path: Path) -> None:
    copy = tmp_path / "some"
    shutil.copytree(template.pictures, copy)
    (copy / "003.png").write_bytes(b"no picture")
    said = run("lora", "train", str(copy), "--expert", template.cid, *FEW)
    assert said.exit_code == 0
    assert "47 pictures" in said.stderr
    assert "003.png" in said.stderr


def test_name_in_use_is_refused(run: Run, shelf: Path, template: ExpertHome) -> None:
    before = {path.name: path.read_bytes() for path in lora_of(shelf).iterdir()}
    command = ("lora", "train", str(template.pictures), "--expert", template.cid, *FEW)
    code, error = refusal_of(run(*command, "--restart", "--json"))
    assert code == ErrorCode.FAILED.exit_code
    assert "exists already" in error["message"]
    assert {path.name: path.read_bytes() for path in lora_of(shelf).iterdir()} == before


def test_divergence_names_the_option_and_leaves_nothing(
    run: Run, home: Path, template: ExpertHome
) -> None:
    command = ("lora", "train", str(template.pictures), "--expert", template.cid, *FEW)
    code, error = refusal_of(run(*command, "--lr", "100", "--json"))
    assert code == ErrorCode.FAILED.exit_code
    assert "--lr" in error["fix"]
    assert list((home / "loras").iterdir()) == []


@pytest.mark.parametrize(
    "wrong", [("--rank", "65"), ("--rank", "0"), ("--alpha", "1000"), ("--modules", "all")]
)
def test_settings_that_cannot_be_meant_are_usage(
    run: Run, template: ExpertHome, wrong: tuple[str, str]
) -> None:
    command = ("lora", "train", str(template.pictures), "--expert", template.cid)
    assert refusal_of(run(*command, *wrong, "--json"))[0] == ErrorCode.USAGE.exit_code


def test_defaults_are_those_of_the_training() -> None:
    shown = {parameter.name: parameter.default for parameter in train.params}
    usual = LoraSettings()
    for name in ("rank", "samples", "batch", "learning_rate", "targets", "seed"):
        assert shown[name] == getattr(usual, name)
    modules = next(parameter for parameter in train.params if parameter.name == "targets")
    assert isinstance(modules.type, click.Choice)
    assert list(modules.type.choices) == list(TARGETS)


def test_list_names_what_is_here_and_what_is_broken(run: Run, shelf: Path) -> None:
    folder = lora_of(shelf)
    info, _ = read_lora(folder)
    said = run("lora", "list")
    assert folder.name in said.stdout
    assert info.sha256[:12] in said.stdout
    assert max(len(line) for line in said.stdout.splitlines()) <= 80
    shutil.copytree(folder, shelf / "loras" / "worse")
    (shelf / "loras" / "worse" / "adapter_config.json").write_text("{}")
    answer = answer_of(run("lora", "list", "--json"))
    assert [item["name"] for item in answer["loras"]] == [folder.name]
    assert answer["broken"][0]["path"].endswith("worse")
    assert "worse" in run("lora", "list").stderr


def test_list_of_an_empty_shelf_says_how_to_fill_it(run: Run) -> None:
    said = run("lora", "list")
    assert said.exit_code == 0
    assert "paris-node lora train" in said.stdout
    assert answer_of(run("lora", "list", "--json")) == {"schema": 1, "loras": [], "broken": []}


def test_show_finds_by_folder_name_and_id(run: Run, shelf: Path, template: ExpertHome) -> None:
    folder = lora_of(shelf)
    info, _ = read_lora(folder)
    for wanted in (str(folder), folder.name, info.sha256[:12], info.sha256):
        answer = answer_of(run("lora", "show", wanted, "--json"))
        assert answer["lora"]["sha256"] == info.sha256
    text = run("lora", "show", folder.name).stdout
    assert template.cid in text
    assert "CC0-1.0" in text


def test_show_of_an_altered_adapter_fails_verification(run: Run, shelf: Path) -> None:
    weights = lora_of(shelf) / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    code, error = refusal_of(run("lora", "show", lora_of(shelf).name, "--json"))
    assert code == ErrorCode.VERIFICATION_FAILED.exit_code
    assert "altered" in error["message"]


@pytest.mark.parametrize("wanted", ["nothing", "../home", ""])
def test_show_of_nothing_is_not_found(run: Run, shelf: Path, wanted: str) -> None:
    assert refusal_of(run("lora", "show", wanted, "--json"))[0] == ErrorCode.NOT_FOUND.exit_code


def _start(home: Path, template: ExpertHome, *extra: str) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PARIS_NODE_")}
    command = ("lora", "train", str(template.pictures), "--expert", template.cid, *extra)
    return subprocess.Popen(
        [sys.executable, "-m", "node", "--home", str(home), *command],
        env={**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _stop(process: subprocess.Popen[str], number: signal.Signals) -> int:
    """Signal a training that has begun; how many samples it says it saved."""
    with process:
        assert process.stderr is not None
        assert "48 pictures" in process.stderr.readline()
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert "the same command goes on" in stderr
    said = re.search(r"Stopped and saved at ([\d,]+) of 800,000 samples", stderr)
    assert said is not None, stderr
    return int(said[1].replace(",", ""))


def test_signal_saves_and_the_same_command_goes_on(home: Path, template: ExpertHome) -> None:
    first = _stop(_start(home, template, *ENDLESS), signal.SIGINT)
    second = _stop(_start(home, template, *ENDLESS), signal.SIGTERM)
    assert second > first > 0
    (state,) = (home / "loras").iterdir()
    assert state.name.endswith(".training")
    refused = CliRunner().invoke(
        cli,
        ["--home", str(home), "lora", "train", str(template.pictures), "--expert", template.cid,
         "--rank", "4", "--json"],
    )  # fmt: skip
    code, error = refusal_of(refused)
    assert code == ErrorCode.REFUSED.exit_code
    assert "samples = 800000" in error["message"]
    assert "--restart" in error["fix"]
