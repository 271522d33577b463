"""A probe of one's own pictures: the run's latents, evenly chosen, and nothing left behind."""

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from node.config import Config
from node.errors import ErrorCode, NodeError
from node.own_probe import own_probe
from node.runs import load_manifest
from p2p.blobs import BlobStore
from p2p.ids import RunId
from tests.support.expert_home import ExpertHome, make_expert_home
from tests.support.people import cid
from training.lora.probe import read_probe
from training.preparation.encode import encode_source
from training.run import load_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> ExpertHome:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = make_expert_home(tmp_path_factory.mktemp("expert"))
    torch.set_num_threads(before)
    return made


@pytest.fixture
def config(template: ExpertHome, tmp_path: Path) -> Config:
    """Of a copy of the home."""
    shutil.copytree(template.home.data, tmp_path / "home")
    return Config(home=tmp_path / "home")


def shared(config: Config, run: RunId) -> Path:
    (folder,) = (config.paths.runs / run / "unpacked").iterdir()
    return folder


@pytest.mark.parametrize("most", [64, 47, 5])
def test_pictures_are_evenly_chosen_and_encoded_as_for_training(
    template: ExpertHome, config: Config, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("training.lora.probe.MAX_PROBE_ROWS", most)
    with own_probe(config, template.run, str(template.pictures)) as made:
        run = load_run(shared(config, template.run))
        probe = read_probe(made.folder, run.facts.latent)
        assert (made.pictures, made.found) == (len(probe), 48)
    step = {64: 1, 47: 2, 5: 10}[most]
    whole = encode_source(template.pictures, run)
    assert torch.equal(probe.latents, whole.latents[::step].float())
    assert probe.captions == whole.captions[::step]
    assert not list(config.paths.data.glob(".probe*"))


def test_probe_is_for_nobody_else_to_read_and_gone_even_after_a_failure(
    template: ExpertHome, config: Config
) -> None:
    modes = []
    for failure in (KeyboardInterrupt, ValueError):
        with (
            suppress(failure),
            own_probe(config, template.run, str(template.pictures)) as made,
        ):
            modes.append(made.folder.parent.stat().st_mode & 0o777)
            raise failure
        assert not made.folder.exists()
    assert modes == [0o700, 0o700]


def test_broken_pictures_are_left_out(template: ExpertHome, config: Config, tmp_path: Path) -> None:
    copy = tmp_path / "some"
    shutil.copytree(template.pictures, copy)
    (copy / "003.png").write_bytes(b"no picture")
    with own_probe(config, template.run, str(copy)) as made:
        assert (made.pictures, made.found) == (47, 48)


def test_no_usable_picture_is_a_sentence(
    template: ExpertHome, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a disc.png").write_bytes(b"no picture")
    with (
        pytest.raises(NodeError, match="no usable picture"),
        own_probe(config, template.run, str(tmp_path / "none")),
    ):
        pytest.fail("a probe of nothing")
    assert not list(config.paths.data.glob(".probe*"))


def test_run_that_is_not_whole_here_names_the_way_to_it(
    template: ExpertHome, config: Config
) -> None:
    with pytest.raises(NodeError) as caught, own_probe(config, RunId(cid("no run")), "fashion"):
        pytest.fail("a probe of no run")
    assert caught.value.code is ErrorCode.NOT_FOUND
    blobs = BlobStore.open(config.paths.blobs, floor_bytes=0)
    root = load_manifest(template.run, blobs).shared
    (config.paths.blobs / "chunks" / root).unlink()
    with pytest.raises(NodeError) as caught, own_probe(config, template.run, "fashion"):
        pytest.fail("a probe of half a run")
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert f"paris-node start --run {template.run}" in caught.value.fix


def test_disk_that_takes_no_probe_is_a_sentence(
    template: ExpertHome, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.lora.probe.write_probe", full)
    with (
        pytest.raises(NodeError, match="probe cannot be written: No space left") as caught,
        own_probe(config, template.run, str(template.pictures)),
    ):
        pytest.fail("a probe that was not written")
    assert caught.value.code is ErrorCode.RESOURCE


def test_relative_home_gives_an_absolute_folder(
    template: ExpertHome, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = replace(config, home=Path("home"))
    with own_probe(relative, template.run, str(template.pictures)) as made:
        assert made.folder.is_absolute()
        assert made.folder.is_dir()
