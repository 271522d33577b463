"""Draw latents from noise by asking experts for velocities: a generator without I/O.

`denoise` yields the queries of one evaluation and is sent the answers, so a local expert and one on
another machine look alike.  None instead of an answer means that the expert did not answer: it is
not asked again, the weights are renormalised over the others, and only the pictures it leaves
without a velocity are asked again.

Convention: x_t = (1-t) x_0 + t eps and v = eps - x_0; t runs from 1 (noise) to 0 (data) on a
uniform grid, so N evaluations make N steps and none is wasted.  Ports, codecs and text encoders are
unknown here.
"""

from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor

from training.drawing.mixture import Mixture, Strategy, combine, contrasted, mix, shares_of
from training.drawing.plan import Denoised, ExpertQuery, SamplePlan, Sampler

HANDOVER_T: Final = 0.85
"""Above this t an expert that predicts noise is asked only if there is no other: the velocity it
gives is wrong by its error / (1 - t).  Source: arXiv 2603.06741; measured: MSE 4.75 at t = .95.

Bundled run, 4 x 24k samples, two experts of four predict noise, sticky, 500 pictures, one seed: FID
26.3 and caption accuracy .702 when they start their own pictures; 13.1 and .888 with a stand-in
drawn from p over the others (all of them mixed: 13.3, .888; the likeliest: 13.0, .902; four FM
experts: 10.2, .918).  The draw is kept: the three cannot be told apart at 500 pictures."""
LEAST_OVERLAP: Final = 0.5
"""A picture whose weights overlap less than this with those of the evaluation before is drawn by
other experts now: the old slope is not its past."""
_GOLDEN: Final = 0x9E3779B97F4A7C15  # 2^64 / golden ratio


class Routes(Protocol):
    """Probabilities of clusters, fixed for the picture or following x_t."""

    @property
    def clusters(self) -> tuple[int, ...]:
        """The cluster of each column."""
        ...

    @property
    def is_static(self) -> bool:
        """True if the answer never depends on x_t: it is asked once per picture."""
        ...

    @property
    def freeze_below(self) -> float:
        """Below this t the last decision is kept."""
        ...

    def probabilities(self, x_t: Tensor, t: float) -> Tensor:
        """[B, C, H, W] at time t -> [B, E], >= 0."""
        ...


@dataclass(frozen=True, slots=True)
class StaticRoutes:
    """The same probabilities [B, E] at every step: p(k | caption)."""

    clusters: tuple[int, ...]
    table: Tensor
    is_static: bool = field(default=True, init=False)
    freeze_below: float = field(default=0.0, init=False)

    def probabilities(self, x_t: Tensor, t: float) -> Tensor:
        """The table, whatever x_t and t are."""
        del x_t, t
        return self.table


Denoise = Generator[tuple[ExpertQuery, ...], Sequence[Tensor | None], Denoised]


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """x_1 of each picture from its own generator: [B, C, H, W], independent of the batch."""
    noises = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noises)


def seed_uniform(seed: int) -> float:
    """The number in [0, 1) with which a picture draws its expert.

    Fibonacci hashing: uniform over seeds, and n neighbouring seeds are spread evenly, so a handful
    of pictures of one caption shows its clusters in their true shares.
    """
    return ((seed * _GOLDEN) % 2**64 >> 11) / 2**53  # 53 bits: never rounds up to 1.0


def fresh_uniform(seed: int, stream: int) -> float:
    """Another number in [0, 1) of the same seed, independent of `seed_uniform`'s and by stream.

    The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), twice: once over each number.
    """
    return _mixed_bits(_mixed_bits(seed) ^ _mixed_bits(stream + 1)) / 2**53


def _mixed_bits(number: int) -> int:
    """53 well mixed bits of a number."""
    bits = (number + 1) * _GOLDEN % 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return (bits ^ bits >> 31) >> 11


def denoise(
    plan: SamplePlan,
    routes: Routes,
    reachable: Iterable[int],
    noise_experts: Collection[int] = (),
) -> Denoise:
    """Integrate from noise to data; see the module's docstring for the dialogue.

    Args:
        plan: what to draw.
        routes: p(k | ...) for the clusters known.
        reachable: clusters whose expert can be asked.
        noise_experts: those whose expert predicts noise: near pure noise (t > `HANDOVER_T`) other
            experts stand in for them, if there is one that can be asked.

    Yields:
        The queries of one evaluation, in the order in which answers are expected: [b, C, H, W]
        velocities, or None.  An answer of another shape, or not finite, counts as None.

    Raises:
        NoExpertError: if no expert is left that answers.
    """
    state = _State(plan, routes, reachable, noise_experts)
    x_t = initial_noise(plan.seeds, plan.shape)
    integrate = _heun if plan.options.sampler is Sampler.HEUN else _adams
    x_0 = yield from integrate(state, x_t)
    return Denoised(x_0, state.shares(), tuple(sorted(state.lost)))


def starting_shares(
    plan: SamplePlan, routes: StaticRoutes, reachable: Iterable[int], noise_experts: Collection[int]
) -> dict[int, float]:
    """Mean weight of each expert at the first evaluation, largest first."""
    state = _State(plan, routes, reachable, noise_experts)
    state.route(torch.zeros(len(plan.seeds), *plan.shape), 1.0)
    return Mixture(routes.clusters, state.weights, {}).shares()


_Velocities = Generator[tuple[ExpertQuery, ...], Sequence[Tensor | None], Tensor]
"""Yields queries, is sent answers, returns a tensor [B, C, H, W]."""


def _adams(state: "_State", x_t: Tensor) -> _Velocities:
    """Euler, or Adams-Bashforth of two steps, on a uniform grid."""
    steps = state.plan.options.steps
    has_memory = state.plan.options.sampler is Sampler.AB2
    past: Tensor | None = None
    for step in range(steps):
        velocity = yield from _evaluate(state, x_t, 1 - step / steps)
        slope = velocity
        if has_memory and past is not None:
            same = ~state.has_changed[:, None, None, None]  # another expert's slope is not our past
            slope = torch.where(same, 1.5 * velocity - 0.5 * past, velocity)
        x_t = x_t - slope / steps
        past = velocity
    return x_t


def _heun(state: "_State", x_t: Tensor) -> _Velocities:
    """Heun's method, two evaluations a step; the last step as `Sampler.HEUN` says."""
    evaluations = state.plan.options.steps
    steps = (evaluations + 1) // 2
    for step in range(steps):
        t, after = 1 - step / steps, 1 - (step + 1) / steps
        is_last, is_odd = step == steps - 1, evaluations % 2 == 1
        slope = yield from _evaluate(state, x_t, t)
        if not (is_last and is_odd):
            probe_t = (t + after) / 2 if is_last else after
            probe = yield from _evaluate(state, x_t - (t - probe_t) * slope, probe_t)
            second = probe if is_last else (slope + probe) / 2
            same = ~state.has_changed[:, None, None, None]
            slope = torch.where(same, second, slope)
        x_t = x_t - (t - after) * slope
    return x_t


class _State:
    """Who is asked for which picture, through losses; no arithmetic on latents."""

    def __init__(
        self,
        plan: SamplePlan,
        routes: Routes,
        reachable: Iterable[int],
        noise_experts: Collection[int],
    ) -> None:
        self.plan = plan
        self.routes = routes
        self.reachable = set(reachable)
        self.lost: set[int] = set()
        self.step = 0
        self.weights = torch.zeros(len(plan.seeds), len(routes.clusters), dtype=torch.float64)
        self.has_changed = torch.zeros(len(plan.seeds), dtype=torch.bool)
        self._noise_experts = frozenset(noise_experts)
        self._t = 1.0
        self._uniforms = _doubles([seed_uniform(seed) for seed in plan.seeds])
        self._others = _doubles([fresh_uniform(seed, 0) for seed in plan.seeds])
        self._table: Tensor | None = None
        self._first_table = self.weights
        self._used = torch.zeros_like(self.weights[0])

    def route(self, x_t: Tensor, t: float) -> None:
        """Set the weights of one evaluation; sticky, static and late decisions are kept."""
        strategy = self.plan.options.strategy
        is_kept = (
            strategy is Strategy.STICKY or self.routes.is_static or t < self.routes.freeze_below
        )
        is_same = self._phase(t) == self._phase(self._t)
        is_first, self._t = self._table is None, t
        if self._table is None or not is_kept:
            self._table = self.routes.probabilities(x_t, t)
        if is_first:
            self._first_table = self._table
        if strategy is Strategy.RANDOM:
            draws = [fresh_uniform(seed, 1 + self.step) for seed in self.plan.seeds]
            self._uniforms = _doubles(draws)
        self.has_changed = torch.zeros_like(self.has_changed)
        if is_first or not is_kept or not is_same or strategy is Strategy.RANDOM:
            before, self.weights = self.weights, self._mix(self._table)
            overlap = torch.minimum(before, self.weights).sum(dim=1)
            self.has_changed = overlap < LEAST_OVERLAP

    def queries(self, x_t: Tensor, t: float, wanted: Tensor) -> tuple[ExpertQuery, ...]:
        """One query per expert for the (picture, expert) pairs of `wanted` [B, E]."""
        built = []
        for column, cluster in enumerate(self.routes.clusters):
            rows = wanted[:, column].nonzero().squeeze(1)
            if len(rows):
                captions = tuple(self.plan.captions[row] for row in rows.tolist())
                built.append(
                    ExpertQuery(
                        cluster, rows, x_t[rows], t, captions,
                        self.plan.options.guidance, self.step, self.plan.options.steps,
                        self.plan.options.autoguidance_at(t),
                    )
                )  # fmt: skip
        return tuple(built)

    def lose(self, clusters: set[int]) -> None:
        """Give the pictures of these experts to the others; pictures of the others stay put."""
        self.reachable -= clusters
        self.lost |= clusters
        touched = (self.weights[:, self._columns(clusters)] != 0).any(dim=1)
        if touched.any() and self._table is not None:
            anew = self._mix(self._table)
            self.weights = torch.where(touched[:, None], anew, self.weights)
            self.has_changed |= touched

    def count(self, weights: Tensor) -> None:
        """Add the weights [B, E] that made one evaluation to the report; go to the next."""
        self._used += shares_of(weights).mean(dim=0)
        self.step += 1

    def shares(self) -> dict[int, float]:
        """Mean share of each expert over the evaluations so far."""
        total = float(self._used.sum())
        pairs = zip(self.routes.clusters, self._used.tolist(), strict=True)
        return {cluster: used / total for cluster, used in pairs if used}

    def _mix(self, table: Tensor) -> Tensor:
        """Weights [B, E] now; near pure noise, others stand in for experts that predict noise."""
        weights = self._weights_among(self.reachable, table, self._uniforms)
        starters = self.reachable - self._noise_experts
        if not self._is_near_noise(self._t) or starters.isdisjoint(self.routes.clusters):
            return weights
        barred = self.reachable & self._noise_experts
        touched = (weights[:, self._columns(barred)] != 0).any(dim=1, keepdim=True)
        return torch.where(touched, self._weights_among(starters, table, self._others), weights)

    def _weights_among(self, experts: set[int], table: Tensor, uniforms: Tensor) -> Tensor:
        """Weights [B, E] now over some experts; one that is drawn is the same at every t."""
        options, clusters = self.plan.options, self.routes.clusters
        choice = options.choice_at(self._t)
        is_drawn = choice.strategy in (Strategy.STICKY, Strategy.CONTRAST)
        asked = self._first_table if is_drawn else table
        weights = mix(asked, clusters, experts, choice, uniforms).weights
        contrast = options.contrast_at(self._t)
        if not contrast:
            return weights
        here = torch.where(self._columns(experts), table.double(), 0.0)
        return contrasted(weights, here, contrast)

    def _phase(self, t: float) -> tuple[object, ...]:
        """What else than probabilities decides about the weights."""
        options = self.plan.options
        return self._is_near_noise(t), options.choice_at(t), options.contrast_at(t)

    def _is_near_noise(self, t: float) -> bool:
        return t > HANDOVER_T

    def _columns(self, clusters: Collection[int]) -> Tensor:
        return torch.tensor([cluster in clusters for cluster in self.routes.clusters])


def _evaluate(state: _State, x_t: Tensor, t: float) -> _Velocities:
    """Velocity of the mixture at x_t [B, C, H, W]; asks again for pictures left with nothing."""
    state.route(x_t, t)
    columns = {cluster: column for column, cluster in enumerate(state.routes.clusters)}
    velocities = x_t.new_zeros((len(columns), *x_t.shape))
    weights = state.weights
    has_answer = torch.zeros_like(weights, dtype=torch.bool)
    wanted = weights != 0
    while wanted.any():
        queries = state.queries(x_t, t, wanted)
        answers = yield queries
        gone = set()
        for query, answer in zip(queries, answers, strict=True):
            if answer is None or not _is_usable(answer, query):
                gone.add(query.cluster)
                continue
            velocities[columns[query.cluster], query.rows] = answer.to(x_t.dtype)
            has_answer[query.rows, columns[query.cluster]] = True
        if gone:
            state.lose(gone)
        orphans = ~(has_answer & (weights > 0)).any(dim=1, keepdim=True)
        weights = torch.where(orphans, state.weights, weights)
        wanted = orphans & (weights != 0)
    weights = torch.where(has_answer, weights, 0.0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    state.count(weights)
    return combine(weights, velocities)


def _is_usable(answer: Tensor, query: ExpertQuery) -> bool:
    return answer.shape == query.x_t.shape and bool(torch.isfinite(answer).all())


def _doubles(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)
