"""Small bases and pictures to train adapters on, and one trained adapter, as fixtures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.clusters import Cluster
from training.config import OBJECTIVES
from training.experts.checkpoint import published_folder
from training.experts.loaded import Expert, load_expert
from training.experts.loop import train
from training.lora import trainer as lora_trainer
from training.lora.settings import LoraRows, LoraSettings
from training.lora.train import (
    LoraEvent,
    LoraJob,
    train_lora,
)
from training.run import Run
from training.sources.folders import load_folder

SETTINGS = LoraSettings(
    rank=2, samples=48, batch=4, save_samples=16, learning_rate=1e-2, caption_drop=0.2
)


@pytest.fixture(scope="module", autouse=True)
def few_draws() -> Iterator[None]:
    """The measure is the same with fewer draws, and quicker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora_trainer, "MEASURED_DRAWS", 48)
        yield


@pytest.fixture(scope="module")
def bases(
    cluster: Cluster, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Expert]:
    """An expert of each objective, trained for a few steps: none of its layers is zero."""
    found = {}
    for objective in OBJECTIVES:
        state = tmp_path_factory.mktemp(objective)
        config = replace(run.spec.train, objective=objective)
        for _ in train(cluster, run, config, state_dir=state):
            pass
        found[objective] = load_expert(published_folder(state, config.budget_samples), run)
    return found


@pytest.fixture(scope="module")
def base(bases: dict[str, Expert]) -> Expert:
    return bases["fm"]


@pytest.fixture(scope="module")
def rows(pictures: Path, run: Run) -> LoraRows:
    """The tiny run's pictures, upside down in brightness: nothing the base has seen."""
    loaded = load_folder(pictures, run.spec.image_size, run.spec.image_channels)
    return LoraRows(run.codec.encode(255 - loaded.images).half(), loaded.captions)


@pytest.fixture(scope="module")
def trained(
    base: Expert, run: Run, rows: LoraRows, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[LoraEvent], Path]:
    """An uninterrupted training: its events and its folder."""
    folder = tmp_path_factory.mktemp("lora") / "dark"
    return list(train_lora(LoraJob(base, run, rows, SETTINGS, folder, "bafkbase"))), folder


@pytest.fixture(scope="module")
def learned(
    base: Expert, run: Run, rows: LoraRows, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of an adapter that has learned: it lowers the loss on rows it never saw."""
    folder = tmp_path_factory.mktemp("learned") / "dark"
    longer = replace(SETTINGS, samples=320, batch=8, learning_rate=5e-3)
    list(train_lora(LoraJob(base, run, rows, longer, folder, "bafkbase")))
    return folder


def velocities(expert: Expert, run: Run) -> Tensor:
    text = run.text.encode(["a disc", "two bars", ""])
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, *run.facts.latent, generator=generator)
    return expert.velocity(x, torch.tensor([0.2, 0.5, 0.8]), text.states, text.mask)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stopping_after(steps: int) -> Iterator[bool]:
    yield from [*[False] * (steps - 1), True]
