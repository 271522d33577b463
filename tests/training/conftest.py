"""A tiny real run: 48 drawn pictures, two clusters, the real codec, net and text encoder."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from tests.support.hub_models import write_models
from tests.support.no_network import network_forbidden
from training.clusters import Cluster
from training.config import RunSpec, TrainConfig
from training.preparation.prepare import PreparedRun, prepare_run
from training.run import Run

SIDE = 16
TINY_TRAIN = TrainConfig(
    batch=4, learning_rate=1e-3, warmup_steps=4, budget_samples=48, save_samples=16
)
TINY_SPEC = RunSpec("tiny", clusters=2, image_size=SIDE, seed=1, train=TINY_TRAIN)


def draw_pictures(folder: Path, count: int = 48) -> Path:
    """Discs and bars of many sizes and greys, half each, with `metadata.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        image = Image.new("L", (SIDE, SIDE), 255)
        pen = ImageDraw.Draw(image)
        grey = 10 + 3 * (i // 2)
        if i % 2:
            pen.ellipse((4, 4, 9 + i % 5, 9 + i % 3), fill=grey)
        else:
            pen.rectangle((0, i % 3, SIDE, 3 + i % 4), fill=grey)
            pen.rectangle((0, 12, SIDE, 15), fill=grey // 2)
        image.save(folder / f"{i:03d}.png")
        text = "a disc" if i % 2 else "two bars"
        lines.append(json.dumps({"file_name": f"{i:03d}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This package never reaches out; the one program that does is told that it may not."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with network_forbidden():
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for models, with tiny ones."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def prepared(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    made = prepare_run(pictures, tmp_path_factory.mktemp("run") / "out", TINY_SPEC)
    made.load().text.encode([""])  # the encoder's import is nobody's test time
    made.load().shape.parameters()
    return made


@pytest.fixture(scope="session")
def run(prepared: PreparedRun) -> Run:
    return prepared.load()


@pytest.fixture(scope="session")
def cluster(prepared: PreparedRun) -> Cluster:
    return Cluster.load(prepared.clusters[0].folder)


@pytest.fixture(scope="session")
def colour_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Another run on the same pictures: another codec, another preset."""
    spec = replace(TINY_SPEC, name="colour", image_size=32, image_channels=3, preset="tiny-cpu")
    return prepare_run(pictures, tmp_path_factory.mktemp("colour") / "out", spec).load()
