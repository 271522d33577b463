"""A trained router, and the two files it is kept as: `router.json` and `router.safetensors`.

The net gives p(k | x_t, t) under the p(k) it was trained with; divided by that p(k) it is a
likelihood ratio, so captions enter as for any other router.  Bytes may come from a stranger: the
weights are checked against the shape, the digest and the run before a net is built.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training.config import SCHEMA
from training.errors import CheckpointError, ConfigError
from training.files import digest_of, write_folder
from training.jsonio import canonical_json, from_json, read_json, to_json
from training.routers.calibration import Calibration
from training.routers.router import log_of, posterior
from training.routers.router_net import RouterNet, RouterShape, build_router_net
from training.run import Run
from training.tensors import pack_tensors, read_tensors

ROUTER_FILE: Final = "router.json"
ROUTER_WEIGHTS: Final = "router.safetensors"
LEARNED: Final = "learned"
SYNTHETIC: Final = "synthetic"
KINDS: Final = (LEARNED, SYNTHETIC)
"""`learned` from the run's data, `synthetic` from pictures that its experts drew."""


@dataclass(frozen=True, slots=True)
class RouterInfo:
    """`router.json`.

    Args:
        schema: 1.
        kind: one of `KINDS`.
        run: digest of the run's `run.json`.
        codec: digest of the codec that made its latents.
        clusters: the cluster of each column.
        rows: pictures of each of them in the run: p(k) unless a caption says better.
        counts: latents of each it was trained with.
        shape: of the net.
        times: how training times were drawn.
        samples: noisy latents seen.
        seed: of the training.
        experts: model digest of the experts whose pictures it saw, by cluster; none for `learned`.
        calibration: measured on latents held out; None if there were too few.
        model_digest: sha256 of the weights file.
    """

    schema: int
    kind: str
    run: str
    codec: str
    clusters: tuple[int, ...]
    rows: tuple[int, ...]
    counts: tuple[int, ...]
    shape: RouterShape
    times: str
    samples: int
    seed: int
    experts: dict[str, str]
    calibration: Calibration | None
    model_digest: str


class LearnedRouter:
    """A trained net as a router.

    Args:
        net: in evaluation mode.
        info: what it is; its calibration's temperatures are used.
    """

    def __init__(self, net: RouterNet, info: RouterInfo) -> None:
        self._net = net.eval().requires_grad_(False)
        self.info = info
        self.clusters = info.clusters
        self.freeze_below = 0.0
        self._log_trained = torch.tensor(info.counts, dtype=torch.float32).log()
        self._log_rows = torch.tensor(info.rows, dtype=torch.float32).log()
        self._tempering = None if info.calibration is None else info.calibration.tempering

    def untempered(self) -> "LearnedRouter":
        """The same net, believed as it is."""
        return LearnedRouter(self._net, replace(self.info, calibration=None))

    def weights(self) -> dict[str, Tensor]:
        """The net's weights by name."""
        return dict(self._net.state_dict())

    @torch.no_grad()
    def log_likelihood(self, x_t: Tensor, t: float) -> Tensor:
        """Log p(x_t | k) up to a constant per row: [B, C, H, W] -> [B, E].

        Raises:
            ValueError: for latents of another shape.
        """
        if tuple(x_t.shape[1:]) != self.info.shape.latent:
            raise ValueError(
                f"latents {tuple(x_t.shape[1:])}, the router expects {self.info.shape.latent}"
            )
        device = next(self._net.parameters()).device
        times = torch.full((len(x_t),), t, device=device)
        logits = self._net(x_t.float().to(device), times).cpu()
        evidence: Tensor = logits.log_softmax(dim=1) - self._log_trained
        return evidence if self._tempering is None else evidence / self._tempering.at(t)

    def probabilities(self, x_t: Tensor, t: float, prior: Tensor | None = None) -> Tensor:
        """p(k | x_t, t): see `training.routers.router.Router`."""
        log_prior = self._log_rows if prior is None else log_of(prior)
        return posterior(self.log_likelihood(x_t, t), log_prior)


def router_files(router: LearnedRouter) -> dict[str, bytes]:
    """The two files of a router; the same router gives the same bytes."""
    weights = pack_tensors(router.weights())
    facts = {**to_json(router.info), "model_digest": digest_of(weights)}
    return {ROUTER_FILE: canonical_json(facts), ROUTER_WEIGHTS: weights}


def save_router(router: LearnedRouter, folder: Path) -> None:
    """Write a router's folder whole, in place of one that is there.

    Raises:
        OSError: the disk refused; an older router is untouched then.
    """
    replace_folder(folder, router_files(router))


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder whole, in place of one that is there.

    Raises:
        OSError: the disk refused; what was there is untouched then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.parent / f"{folder.name}.new"
    if fresh.exists():
        shutil.rmtree(fresh)
    write_folder(fresh, files)
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)


def read_router_info(folder: Path) -> RouterInfo:
    """`router.json` alone, checked in itself.

    Raises:
        CheckpointError: if it cannot be read or says what cannot be.
    """
    try:
        info = from_json(RouterInfo, read_json(folder / ROUTER_FILE), ROUTER_FILE)
        problem = _problem(info)
        if info.calibration is not None:
            _ = info.calibration.tempering  # raises if a temperature is impossible
    except ConfigError as error:
        raise CheckpointError(f"router: {error}") from error
    if problem:
        raise CheckpointError(f"router: {ROUTER_FILE}: {problem}")
    return info


def load_router(folder: Path, run: Run | None = None, device: str = "cpu") -> LearnedRouter:
    """Read a router's folder, checked in every part.

    Args:
        folder: holds `router.json` and `router.safetensors`.
        run: refuse a router of another run or codec.
        device: where to answer.

    Raises:
        CheckpointError: a file is missing or altered, or the router is of another run.
        TensorFileError: the weights file is malformed, of another shape, or holds NaN.
    """
    info = read_router_info(folder)
    if run is not None:
        _check_same_run(info, run)
    weights = read_tensors(folder / ROUTER_WEIGHTS, info.shape.schema())
    if digest_of(pack_tensors(weights)) != info.model_digest:
        raise CheckpointError(f"{ROUTER_WEIGHTS}: does not match {ROUTER_FILE}: it was altered")
    net = build_router_net(info.shape, seed=0)
    net.load_state_dict(weights)
    return LearnedRouter(net.to(device), info)


def _problem(info: RouterInfo) -> str:
    """Why this router cannot be used; empty if it can."""
    columns = len(info.clusters)
    if info.schema != SCHEMA:
        return f"schema {info.schema}, this program reads {SCHEMA}"
    if info.kind not in KINDS:
        return f"kind {info.kind!r:.40}, expected one of {', '.join(KINDS)}"
    if not columns or info.shape.clusters != columns or len(set(info.clusters)) != columns:
        return f"{columns} clusters for a net of {info.shape.clusters} distinct ones"
    if not len(info.rows) == len(info.counts) == columns:
        return f"{len(info.rows)} and {len(info.counts)} counts for {columns} clusters"
    if min(info.clusters) < 0 or min((*info.rows, *info.counts)) < 1:
        return "a cluster below 0, or a count below 1"
    return ""


def _check_same_run(info: RouterInfo, run: Run) -> None:
    facts = (
        ("run", info.run, run.digest),
        ("codec", info.codec, run.codec_digest),
        ("latent shape", list(info.shape.latent), list(run.facts.latent)),
    )
    for name, got, expected in facts:
        if got != expected:
            raise CheckpointError(f"router of another {name}: expected {expected}, got {got}")
    if max(info.clusters) >= run.spec.clusters:
        raise CheckpointError(
            f"router of cluster {max(info.clusters)} of a run of {run.spec.clusters}"
        )
