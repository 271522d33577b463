"""A job of bench_verification: what 16-bit integers cost an adapter that was really trained.

    python scripts/verification_quantised.py quantised ARGUMENTS    prints one line of JSON

An expert of the bundled run's cluster 0 (trousers, dresses) is trained, then an adapter on boots,
which it never saw. Measured are the loss that an offer claims, on the probe kept beside the
adapter, and that of all rows held out.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from node.runs import BUILTIN_FOLDER
from training.clusters import Cluster
from training.experts.checkpoint import published_folder
from training.experts.loaded import Expert, load_expert
from training.experts.loop import train
from training.lora.files import LoraInfo, read_lora
from training.lora.losses import even_draws, mean_loss, probe_loss, probe_objective, with_weights
from training.lora.modules import weight_names
from training.lora.probe import read_probe
from training.lora.quantised import dequantise, quantise
from training.lora.settings import LoraRows, LoraSettings, split
from training.lora.train import LoraJob, TrainedLora, train_lora
from training.run import Run, load_run
from verification_meter import Figures, do_job

CAPTION = "an ankle boot"
OWN, OTHER = 0, 2
"""The expert's cluster, and the one that has the boots."""
PICTURES = 400
COARSER_BITS = (10, 8, 6, 4)
"""Beside 12: what is left of the adapter at 2^-bits."""


def quantised(folder: str, expert_samples: int, samples: int, draws: int) -> Figures:
    """Train, quantise, measure.

    Args:
        folder: for what is trained; exists.
        expert_samples: of the base.
        samples: of the adapter.
        draws: (row, time, noise) triples of the rows held out.
    """
    torch.set_num_threads(1)
    run, rows = load_run(BUILTIN_FOLDER / "shared"), _rows()
    expert = _trained_expert(run, Path(folder) / "expert", expert_samples)
    settings = LoraSettings(samples=samples)
    job = LoraJob(expert, run, rows, settings, Path(folder) / "boots")
    done = next(event for event in train_lora(job) if isinstance(event, TrainedLora))
    info, weights = read_lora(done.folder)
    integers = quantise(info.shape, weights)
    forms: dict[str, Mapping[str, Tensor] | None] = {
        "base": None,
        "float32": weights,
        "int16@2^12": dequantise(info.shape, integers),
    }
    forms |= {f"2^{bits}": _rounded(weights, bits) for bits in COARSER_BITS}
    losses = {
        name: dict(_losses(job, info, form, draws))
        | {"change_error": 0.0 if form is None else _change_error(info, weights, form)}
        for name, form in forms.items()
    }
    largest = max(int(abs(x.astype(int)).max()) for pair in integers.values() for x in pair)
    return {
        "expert_samples": expert_samples,
        "samples": samples,
        "rank": info.rank,
        "modules": len(info.modules),
        "weights": info.parameters,
        "largest": largest,
        "losses": losses,
    }


def _rows() -> LoraRows:
    """Boots, which the expert's own cluster lacks."""
    cluster = Cluster.load(BUILTIN_FOLDER / "clusters" / str(OTHER))
    captions = cluster.row_captions()
    chosen = [i for i, caption in enumerate(captions) if caption == CAPTION][:PICTURES]
    return LoraRows(cluster.stored[chosen], (CAPTION,) * len(chosen))


def _trained_expert(run: Run, state: Path, samples: int) -> Expert:
    cluster = Cluster.load(BUILTIN_FOLDER / "clusters" / str(OWN))
    config = replace(
        run.spec.train_config(OWN), budget_samples=samples, save_samples=samples, threads=1
    )
    for _ in train(cluster, run, config, state_dir=state):
        pass
    return load_expert(published_folder(state, samples), run)


def _losses(
    job: LoraJob, info: LoraInfo, weights: Mapping[str, Tensor] | None, draws: int
) -> Iterator[tuple[str, float]]:
    """The probe's loss, and that of all rows held out, with some weights on or none."""
    expert = job.base
    if weights is not None:
        expert = with_weights(expert, info.shape, weights, info.scaling)
    probe = read_probe(job.folder, info.base.latent)
    yield "probe", probe_loss(expert, job.run.text, probe.draws())
    _, held_out = split(job.rows, job.settings.seed)
    captions = [job.rows.captions[i] for i in held_out.tolist()]
    batch = even_draws(job.rows.latents[held_out], captions, draws, seed=1)
    yield "held_out", mean_loss(expert.net, job.run.text, batch, probe_objective(expert))


def _rounded(weights: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Weights to the nearest multiple of 2^-bits."""
    return {name: (weight * 2**bits).round() / 2**bits for name, weight in weights.items()}


def _change_error(
    info: LoraInfo, weights: Mapping[str, Tensor], others: Mapping[str, Tensor]
) -> float:
    """||dW' - dW|| / ||dW|| over all layers, of others to the trained weights."""
    error = size = 0.0
    for module in info.shape.modules():
        name_a, name_b = weight_names(module)
        change = weights[name_b].double() @ weights[name_a].double()
        other = others[name_b].double() @ others[name_a].double()
        error += float((other - change).square().sum())
        size += float(change.square().sum())
    return math.sqrt(error / size)


if __name__ == "__main__":
    do_job({"quantised": quantised})
