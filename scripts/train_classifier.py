#!/usr/bin/env python
"""Train the judge of the demo's pictures on the labelled 60,000-picture Fashion-MNIST split.

Usage: scripts/train_classifier.py [--data FOLDER] [--out FILE] [--epochs N]

The folder holds the four idx files, gzipped, as Debian's `dataset-fashion-mnist` installs them.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from training.drawing.classifier import PictureClassifier, pack_classifier
from training.drawing.evaluate import as_judged, judge
from training.sources.bundled import read_idx_images, read_idx_labels

HERE = Path(__file__).parent
BATCH = 128
PEAK_LEARNING_RATE = 4e-3
SHIFT = 2  # pixels: decoded pictures sit a little off, and the judge must not mind


def read_split(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Pictures [N, 1, 32, 32] uint8, dark on white, and labels [N] of `train` or `t10k`."""
    pictures = read_idx_images(folder / f"{name}-images-idx3-ubyte.gz")
    return pictures, read_idx_labels(folder / f"{name}-labels-idx1-ubyte.gz")


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the batch and shift all of it by up to `SHIFT` pixels: [N, 1, 28, 28]."""
    mirrored = torch.rand(len(pictures), generator=generator) < 0.5
    pictures = torch.where(mirrored[:, None, None, None], pictures.flip(-1), pictures)
    down, right = torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator).tolist()
    padded = functional.pad(pictures, (SHIFT,) * 4)
    return padded[..., down : down + 28, right : right + 28]


def accuracy(net: PictureClassifier, pictures: Tensor, labels: Tensor) -> float:
    """Share of `pictures` that the net names right."""
    return float((judge(net, pictures)[0] == labels).double().mean())


def train(folder: Path, epochs: int) -> PictureClassifier:
    """Train from a fixed seed; prints a line per epoch."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    pictures, labels = read_split(folder, "train")
    test_pictures, test_labels = read_split(folder, "t10k")
    net = PictureClassifier()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = epochs * (len(labels) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, steps)
    started = time.monotonic()
    for epoch in range(epochs):
        net.train()
        for rows in torch.split(torch.randperm(len(labels), generator=generator), BATCH):
            if len(rows) < BATCH:
                continue
            batch = augment(as_judged(pictures[rows]), generator)
            loss = functional.cross_entropy(net(batch), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        score = accuracy(net, test_pictures, test_labels)
        print(f"epoch {epoch + 1}/{epochs}  test {score:.4f}  {time.monotonic() - started:.0f} s")
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument(
        "--out", type=Path, default=HERE / "data" / "classifier" / "classifier.safetensors"
    )
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    net = train(arguments.data, arguments.epochs)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(pack_classifier(net))
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
