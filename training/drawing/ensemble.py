"""The experts at hand as one model: captions in, pictures out, with an account of who drew what.

Puts together the sampler, the router, the text encoder and the codec.  Experts that are not here
are simply absent: weights are renormalised, and the `Route` event says what was missing.
"""

import logging
import math
from collections.abc import Container, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor

from training.drawing.answers import RememberedTexts, VelocityNet, answer_query
from training.drawing.mixture import Strategy, mix
from training.drawing.pictures import encode_png
from training.drawing.plan import (
    MAX_PICTURES,
    Denoised,
    ExpertQuery,
    Images,
    Route,
    RouterName,
    SampleEvent,
    SampleOptions,
    SamplePlan,
    SampleRequest,
    Step,
)
from training.drawing.sampler import Routes, StaticRoutes, denoise, seed_uniform, starting_shares
from training.errors import (
    CheckpointError,
    ConfigError,
    RouterMissingError,
    TensorFileError,
    TrainingError,
)
from training.experts.loaded import Expert, load_expert
from training.lora.train import with_loras
from training.parts.codecs import Codec
from training.parts.text import TextEncoder
from training.routers.captions import CaptionPrior
from training.routers.gauss_calibration import load_tempering
from training.routers.learned_router import load_router
from training.routers.router import GaussRouter, Router, RouterRoutes, Tempering
from training.routers.summary import load_summary
from training.run import Run, load_run

logger = logging.getLogger(__name__)

CHUNK: Final = 100
"""Pictures denoised together at most: more gains nothing on a CPU and costs memory."""
CHUNK_NUMBERS: Final = 25_600
"""Numbers of the latents denoised together at most: 100 of the bundled run, 6 of 4 x 32 x 32."""


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Pictures of a batch: uint8 [B, C, S, S], and the experts' shares."""

    pictures: Tensor
    shares: Mapping[int, float]


class Ensemble:
    """Experts, router, text encoder and codec of one run."""

    def __init__(
        self,
        codec: Codec,
        encoder: TextEncoder,
        prior: CaptionPrior,
        experts: Mapping[int, VelocityNet],
        routers: Mapping[RouterName, Router] | None = None,
        guides: Mapping[int, VelocityNet] | None = None,
    ) -> None:
        """Join the parts.

        Args:
            codec: of the run.
            encoder: of the run.
            prior: p(k | caption).
            experts: by cluster; as few as one.
            routers: p(k | x_t, t) by name; without one every strategy routes by the caption alone.
            guides: earlier selves of experts, by cluster.

        Raises:
            ConfigError: if there is no expert, or one of a cluster that the run does not have.
        """
        named = dict(routers or {})
        strangers = set(experts).union(*(router.clusters for router in named.values()))
        if not experts or not strangers <= set(prior.clusters):
            raise ConfigError(
                f"experts of clusters {sorted(experts)} and routers of "
                f"{sorted(strangers)}, the run has {prior.clusters}"
            )
        self._codec = codec
        self._texts = RememberedTexts(encoder)
        self._prior = prior
        self._experts = dict(experts)
        self._routers = named
        self._guides = dict(guides or {})
        self._noise_experts = frozenset(
            cluster for cluster, expert in experts.items() if expert.objective != "fm"
        )

    @classmethod
    def load(
        cls,
        shared: Path,
        experts: Mapping[int, Path],
        summaries: Mapping[int, Path] | None = None,
        routers: Mapping[str, Path] | None = None,
        loras: Mapping[int, tuple[Path, float]] | None = None,
        models: Path | None = None,
    ) -> "Ensemble":
        """Read a run and the experts at hand, each checked in every part.

        Args:
            shared: the run's shared folder.
            experts: cluster -> folder of a published checkpoint.
            summaries: cluster -> file written by `save_summary`; without any, `top1`, `top2` and
                `all` route by the caption alone.
            routers: kind -> folder of a "learned" or "synthetic" router, or of what was measured
                of "gauss"; one that cannot be used is left out, and logged.
            loras: cluster -> folder of an adapter to put on its expert, and its scale.
            models: the user's folder of pretrained parts (`training.parts.hub`).

        Raises:
            CheckpointError: not one expert is whole and of this run, or one that an adapter is for
                is not; otherwise those that are not are left out, and logged.
            ConfigError: no expert, one of a cluster that the run does not have, or an adapter's
                scale out of range.
            DataError: no run, or an altered one.
            LoraError: an adapter is altered, or its expert is another one or not here.
            ModelMissingError: a pretrained part of the run is not to be had, or is another.
            TensorFileError: malformed weights or summary; names the file.
        """
        run = load_run(shared, models)
        counts = run.caption_counts
        rows = [dict(zip(counts.captions, row, strict=True)) for row in counts.counts]
        size = math.prod(run.facts.latent)
        wanted = loras or {}
        loaded = with_loras(_load_experts(experts, run, wanted), wanted)
        fitted = {k: load_summary(path, size) for k, path in (summaries or {}).items()}
        named = _load_routers(routers or {}, run)
        if fitted:
            named[RouterName.GAUSS] = GaussRouter(fitted, _load_tempering(routers or {}, run))
        return cls(
            run.codec,
            run.text,
            CaptionPrior(dict(enumerate(rows)), run.text, run.caption_summary),
            loaded,
            named,
            {k: expert.guide for k, expert in loaded.items() if expert.guide is not None},
        )

    @property
    def clusters(self) -> tuple[int, ...]:
        """The clusters whose experts are here."""
        return tuple(sorted(self._experts))

    def generate(self, request: SampleRequest) -> Iterator[SampleEvent]:
        """Draw one caption: a `Route`, then by chunks a `Step` around each evaluation and `Images`.

        Closing the iterator stops the work at the next evaluation.

        Raises:
            ConfigError: if a seed is out of range.
            RouterMissingError: if the router asked for is not at hand.
        """
        seeds = tuple(range(request.seed, request.seed + request.n))
        whole = self._plan((request.prompt,) * request.n, seeds, request.options)
        yield self.route(whole)
        parts = list(_chunks(whole))
        steps = whole.options.steps
        for number, plan in enumerate(parts):
            drawing = self._denoise(plan)
            denoised = yield from _counted(drawing, number * steps, len(parts) * steps)
            pngs = tuple(encode_png(picture) for picture in self._decode(denoised.latents))
            yield Images(pngs, denoised.shares, first=plan.seeds[0] - request.seed)

    def generate_batch(
        self,
        captions: Sequence[str],
        seed: int = 0,
        options: SampleOptions | None = None,
    ) -> Drawn:
        """Draw one picture per caption, picture i with seed + i, `CHUNK` at a time.

        Raises:
            ConfigError: for no caption, more than `MAX_PICTURES`, or a seed out of range.
        """
        if not 1 <= len(captions) <= MAX_PICTURES:
            raise ConfigError(f"{len(captions)} captions, expected 1 to {MAX_PICTURES}")
        seeds = tuple(range(seed, seed + len(captions)))
        whole = self._plan(tuple(captions), seeds, options or SampleOptions())
        pictures, shares = [], dict.fromkeys(self.clusters, 0.0)
        for plan in _chunks(whole):
            denoised = _exhaust(self._denoise(plan))
            pictures.append(self._decode(denoised.latents))
            for cluster, share in denoised.shares.items():
                shares[cluster] += share * len(plan.seeds) / len(captions)
        return Drawn(torch.cat(pictures), {k: share for k, share in shares.items() if share})

    def route(self, plan: SamplePlan) -> Route:
        """Who would draw `plan`, judged by the captions alone."""
        clusters, options = self._prior.clusters, plan.options
        table = self._prior.probabilities(plan.captions)
        uniforms = torch.tensor([seed_uniform(seed) for seed in plan.seeds]).double()
        whole = mix(table, clusters, self.clusters, options.choice_at(1.0), uniforms)
        shares = whole.shares()
        unguided = set(self.clusters) - self._guides.keys() if options.autoguidance else set()
        route = Route(shares, whole.dropped, unguided=tuple(sorted(unguided)))
        asked = self._noise_experts & shares.keys()
        if not asked:
            return route
        if self._noise_experts.issuperset(self.clusters):
            return replace(route, unaided=tuple(sorted(asked)))
        routes = StaticRoutes(clusters, table)
        starters = starting_shares(plan, routes, self.clusters, self._noise_experts)
        return replace(route, starters=starters)

    def answer(self, query: ExpertQuery) -> Tensor:
        """Velocities [b, C, H, W] of the local expert that `query` names, guidance applied."""
        guide = self._guides.get(query.cluster)
        return answer_query(self._experts[query.cluster], self._texts, query, guide)

    def _plan(
        self, captions: tuple[str, ...], seeds: tuple[int, ...], options: SampleOptions
    ) -> SamplePlan:
        return SamplePlan(captions, seeds, self._codec.latent, options)

    def routes(self, plan: SamplePlan) -> Routes:
        """What the sampler asks for probabilities: p(k | caption), and x_t if there is a router.

        Raises:
            RouterMissingError: if the router asked for is not at hand.
        """
        table = self._prior.probabilities(plan.captions)
        router = self._router(plan.options)
        if router is None or plan.options.strategy in (Strategy.STICKY, Strategy.RANDOM):
            return StaticRoutes(self._prior.clusters, table)
        return RouterRoutes.join(router, self._prior.clusters, table)

    def _router(self, options: SampleOptions) -> Router | None:
        """The router asked for, or the best there is; None to go by the caption."""
        name = options.router
        if name is None:
            return self._routers.get(RouterName.GAUSS)
        if name is RouterName.CAPTION:
            return None
        if name not in self._routers:
            known = [RouterName.CAPTION, *self._routers]
            raise RouterMissingError(name, known)
        return self._routers[name]

    def _denoise(self, plan: SamplePlan) -> Generator[Step, None, Denoised]:
        dialogue = denoise(plan, self.routes(plan), self.clusters, self._noise_experts)
        steps = plan.options.steps
        try:
            queries = next(dialogue)
            while True:
                yield Step(queries[0].step, steps)
                queries = dialogue.send([self.answer(query) for query in queries])
        except StopIteration as end:
            yield Step(steps, steps)
            return cast("Denoised", end.value)

    def _decode(self, latents: Tensor) -> Tensor:
        """[B, C, H, W] -> uint8 [B, C, S, S]."""
        return (self._codec.decode(latents) * 255).round().to(torch.uint8)


def _load_routers(folders: Mapping[str, Path], run: Run) -> dict[RouterName, Router]:
    """The trained routers that can be used; who asks for another is told that it is not here."""
    loaded: dict[RouterName, Router] = {}
    for kind, folder in folders.items():
        if kind == RouterName.GAUSS:
            continue  # its densities are the summaries'
        try:
            loaded[RouterName(kind)] = load_router(folder, run)
        except (CheckpointError, TensorFileError) as error:
            logger.warning("%s router left out: %s", kind, error)
    return loaded


def _load_tempering(folders: Mapping[str, Path], run: Run) -> Tempering | None:
    """The temperatures measured for the gauss router, if there are any."""
    if RouterName.GAUSS not in folders:
        return None
    try:
        return load_tempering(folders[RouterName.GAUSS], run)
    except CheckpointError as error:
        logger.warning("gauss stays as sure as it is: %s", error)
        return None


def _load_experts(
    folders: Mapping[int, Path], run: Run, needed: Container[int]
) -> dict[int, Expert]:
    """The experts that can be used: one bad file spoils no picture, unless it was asked for."""
    loaded: dict[int, Expert] = {}
    problems: list[TrainingError] = []
    for cluster, folder in folders.items():
        try:
            loaded[cluster] = _load_expert(folder, run, cluster)
        except (CheckpointError, TensorFileError) as error:
            if cluster in needed:
                raise
            logger.warning("expert of cluster %d left out: %s", cluster, error)
            problems.append(error)
    if problems and not loaded:
        raise problems[0]
    return loaded


def _load_expert(folder: Path, run: Run, cluster: int) -> Expert:
    expert = load_expert(folder, run)
    if expert.info.cluster != cluster:
        raise CheckpointError(
            f"{folder.name}: an expert of cluster {expert.info.cluster}, expected {cluster}"
        )
    return expert


def _chunks(plan: SamplePlan) -> Iterator[SamplePlan]:
    """The plan in parts that are denoised together; their size depends on nothing but the run."""
    size = max(1, min(CHUNK, CHUNK_NUMBERS // math.prod(plan.shape)))
    for start in range(0, len(plan.seeds), size):
        part = slice(start, start + size)
        yield replace(plan, captions=plan.captions[part], seeds=plan.seeds[part])


def _counted(
    drawing: Generator[Step, None, Denoised], before: int, total: int
) -> Generator[Step, None, Denoised]:
    """The same, its steps counted on from `before`, of `total`."""
    try:
        while True:
            yield Step(before + next(drawing).step, total)
    except StopIteration as end:
        return cast("Denoised", end.value)
    finally:
        drawing.close()


def _exhaust(drawing: Generator[Step, None, Denoised]) -> Denoised:
    while True:
        try:
            next(drawing)
        except StopIteration as end:
            return cast("Denoised", end.value)
