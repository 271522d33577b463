"""A tiny run whose experts, untrained but not zero, are exported."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from training.clusters import Cluster
from training.exchange.export import ExpertSource, ExportSource
from training.experts.checkpoint import SCHEDULES, ExpertInfo, published_files
from training.experts.nets import build_net
from training.files import write_folder
from training.preparation.prepare import PreparedRun
from training.routers.learned_router import LearnedRouter, RouterInfo, save_router
from training.routers.router_net import RouterShape, build_router_net
from training.routers.summary import fit_summary, save_summary
from training.run import Run


def random_weights(run: Run, seed: int) -> dict[str, Tensor]:
    """Weights whose predictions depend on everything they are given."""
    net = build_net(run.shape, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return dict(net.state_dict())


def expert_info(run: Run, cluster: int, objective: str = "fm") -> ExpertInfo:
    return ExpertInfo(
        schema=1, objective=objective, schedule=SCHEDULES[objective], cluster=cluster,
        run=run.digest, preset=run.spec.preset, codec=run.codec_digest, text=run.spec.text,
        latent=run.facts.latent, samples=48, step=12, seed=1, loss=0.5, model_digest="",
    )  # fmt: skip


def write_expert(folder: Path, run: Run, cluster: int, objective: str = "fm") -> Path:
    info = expert_info(run, cluster, objective)
    write_folder(folder, published_files(info, random_weights(run, seed=cluster)))
    return folder


def export_source(
    prepared: PreparedRun, folder: Path, objectives: tuple[str, ...] = ("fm", "fm")
) -> ExportSource:
    """Every cluster's expert and summary, written below `folder`."""
    run = prepared.load()
    folder.mkdir(exist_ok=True)
    experts, summaries = {}, {}
    for cluster, objective in enumerate(objectives):
        place = write_expert(folder / f"checkpoint-{cluster}", run, cluster, objective)
        experts[cluster] = ExpertSource(place, cid=f"bafkrei{cluster}", owner=f"12D3Koo{cluster}")
        latents = Cluster.load(prepared.clusters[cluster].folder).latents()
        summaries[cluster] = folder / f"summary-{cluster}.safetensors"
        save_summary(fit_summary(latents), summaries[cluster])
    return ExportSource(prepared.shared, experts, summaries, run_id="bafkreirun")


def without_text(source: ExportSource) -> ExportSource:
    """The same without 91 MB of text encoder."""
    return replace(source, has_text=False)


def write_router(folder: Path, run: Run) -> Path:
    """A trained router's folder: an untrained net whose answers depend on what it is given."""
    shape = RouterShape(2, 8, 1, 1, run.facts.latent, 2)
    net = build_router_net(shape, seed=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    info = RouterInfo(
        schema=1, kind="learned", run=run.digest, codec=run.codec_digest, clusters=(0, 1),
        rows=run.facts.rows, counts=(30, 10), shape=shape, times="uniform", samples=640, seed=0,
        experts={}, calibration=None, model_digest="",
    )  # fmt: skip
    save_router(LearnedRouter(net, info), folder)
    return folder
