"""What `bench_training` compares: runs of the same pictures, and the nets trained on them.

Every arm of one seed sees the same number of samples in all, whatever it is split into.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from training.clusters import Cluster
from training.config import RunSpec, TrainConfig
from training.experts.loop import SavedCheckpoint, train
from training.experts.losses import CURVE_FILE
from training.preparation.prepare import prepare_run
from training.run import load_run
from training.sources.bundled import FASHION_CAPTIONS, PixelSource, read_idx_images, read_idx_labels
from training.sources.data import Pictures

ONE_CAPTION = "clothing"
"""The same for every picture: the run is unconditional, and p(k | caption) = n_k / N."""


@dataclass(frozen=True)
class Split:
    """Pictures with their classes, as the judge knows them."""

    images: torch.Tensor
    labels: torch.Tensor

    def captions(self) -> list[str]:
        """The class of each picture in words."""
        return [FASHION_CAPTIONS[label] for label in self.labels.tolist()]


def read_split(folder: Path, name: str) -> Split:
    """`train` (60,000) or `t10k` (10,000) of the gzipped IDX files in `folder`."""
    return Split(
        read_idx_images(folder / f"{name}-images-idx3-ubyte.gz"),
        read_idx_labels(folder / f"{name}-labels-idx1-ubyte.gz"),
    )


def make_run(split: Split, folder: Path, clusters: int, train: TrainConfig, text: bool) -> Path:
    """Prepare a run of `clusters` clusters; one caption for all unless `text`."""
    captions = tuple(split.captions()) if text else (ONE_CAPTION,) * len(split.labels)
    source = PixelSource("fashion-60k", Pictures(split.images, captions))
    prepare_run(source, folder, RunSpec("bench", clusters, train=train))
    return folder


@dataclass(frozen=True)
class Arm:
    """One net to train.

    Args:
        name: of the folder it is kept in.
        run: a prepared run.
        cluster: of that run; 0 of a run of one cluster is all the data.
        samples: to train on.
        batch: samples a step.
        learning_rate: peak.
        seed: of the training.
    """

    name: str
    run: Path
    cluster: int
    samples: int
    batch: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Trained:
    """A trained arm: its checkpoint, where its loss curve lies, and what it cost."""

    arm: Arm
    checkpoint: Path
    curve: Path
    loss: float
    cpu_s: float


def train_arm(arm: Arm, root: Path) -> Trained:
    """Train an arm by `training.experts.loop`, as a node would."""
    run = load_run(arm.run / "shared")
    cluster = Cluster.load(arm.run / "clusters" / str(arm.cluster))
    config = replace(
        run.spec.train_config(arm.cluster),
        batch=arm.batch,
        learning_rate=arm.learning_rate,
        budget_samples=arm.samples,
        save_samples=arm.samples,
        seed=arm.seed,
    )
    state = root / arm.name
    began, saved = time.process_time(), None
    for event in train(cluster, run, config, state_dir=state):
        if isinstance(event, SavedCheckpoint):
            saved = event
    if saved is None:
        raise RuntimeError(f"{arm.name}: no checkpoint")
    spent = time.process_time() - began
    return Trained(arm, saved.path, state / CURVE_FILE, saved.loss, spent)


def split_evenly(samples: int, parts: int, batch: int) -> int:
    """Samples of each of `parts` arms: whole batches."""
    return samples // parts // batch * batch
