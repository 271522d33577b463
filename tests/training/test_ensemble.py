import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.training.test_captions import WordEncoder
from training.captions import CaptionPrior
from training.checkpoint import ExpertInfo, published_files
from training.clusters import Cluster
from training.codecs import Codec
from training.config import RunSpec
from training.ensemble import CHUNK, Ensemble, answer_query
from training.errors import CheckpointError, ConfigError, DataError
from training.files import write_folder
from training.gauss_calibration import measure_gauss, save_gauss
from training.learned_router import save_router
from training.mixture import Strategy
from training.nets import build_net
from training.plan import (
    MAX_PICTURES,
    ExpertQuery,
    Images,
    Route,
    RouterName,
    SampleEvent,
    SampleOptions,
    Sampler,
    SampleRequest,
    Step,
)
from training.prepare import prepare_run
from training.router import GaussRouter
from training.router_training import (
    DEFAULT_TRAIN,
    RouterSettings,
    TrainedRouter,
    labelled,
    train_router,
)
from training.run import Run, load_run
from training.summary import fit_summary, save_summary

LATENT = (1, 4, 4)
COUNTS = {0: {"dark": 8, "both": 2}, 1: {"light": 8, "both": 2}}
SHADE = {0: 0.25, 1: 0.75}


class GreyCodec:
    """Latents are the pixels, once each."""

    latent = LATENT
    digest = "grey"

    def encode(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(0, 1)


class OneShade:
    """The exact velocity of a cluster that has one grey picture; counts its batches."""

    def __init__(self, shade: float, objective: str = "fm") -> None:
        self.shade = shade
        self.objective = objective
        self.batches: list[int] = []

    def velocity(self, x_t: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        assert len(x_t) == len(t) == len(states) == len(mask)
        self.batches.append(len(x_t))
        return (x_t - self.shade) / t[:, None, None, None]


def an_ensemble(clusters: Iterable[int] = (0, 1), *, has_router: bool = False) -> Ensemble:
    encoder = WordEncoder()
    summaries = {k: fit_summary(torch.full((60, 16), shade)) for k, shade in SHADE.items()}
    return Ensemble(
        cast("Codec", GreyCodec()),
        encoder,
        CaptionPrior(COUNTS, encoder),
        {k: OneShade(SHADE[k]) for k in clusters},
        {RouterName.GAUSS: GaussRouter(summaries)} if has_router else None,
    )


def run_through(events: Iterable[SampleEvent]) -> tuple[Route, list[Step], Images]:
    first, *steps, last = events
    assert isinstance(first, Route)
    assert isinstance(last, Images)
    return first, [step for step in steps if isinstance(step, Step)], last


def shade_of(png: bytes) -> float:
    pixels = Image.open(io.BytesIO(png)).tobytes()
    assert len(set(pixels)) == 1
    return pixels[0] / 255


def test_generation_tells_its_route_its_steps_and_ends_with_pictures() -> None:
    request = SampleRequest("dark", n=2, seed=5, options=SampleOptions(steps=3))
    route, steps, images = run_through(an_ensemble().generate(request))
    assert route == Route(experts={0: 1.0}, missing={})
    assert steps == [Step(0, 3), Step(1, 3), Step(2, 3), Step(3, 3)]
    assert [shade_of(png) for png in images.pngs] == pytest.approx([0.25, 0.25], abs=0.01)
    assert images.shares == {0: 1.0}


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize("has_router", [True, False])
def test_every_way_of_drawing_ends_at_a_finite_picture(
    strategy: Strategy, sampler: Sampler, *, has_router: bool
) -> None:
    options = SampleOptions(strategy, sampler, steps=5)
    drawn = an_ensemble(has_router=has_router).generate_batch(["both"] * 6, 3, options)
    assert drawn.pictures.shape == (6, *LATENT)
    assert drawn.pictures.dtype == torch.uint8
    assert sum(drawn.shares.values()) == pytest.approx(1)


def test_sticky_shows_both_halves_of_an_ambiguous_caption() -> None:
    drawn = an_ensemble().generate_batch(["both"] * 8)
    assert sorted(set(drawn.pictures.flatten().tolist())) == [round(0.25 * 255), round(0.75 * 255)]
    assert drawn.shares == pytest.approx({0: 0.5, 1: 0.5}, abs=0.2)


@pytest.mark.parametrize("strategy", [Strategy.TOP1, Strategy.TOP2, Strategy.ALL])
def test_gauss_routes_settle_on_one_cluster_of_an_ambiguous_caption(strategy: Strategy) -> None:
    """Without them `all` would draw the mean of the two, which no cluster has."""
    options = SampleOptions(strategy, steps=20)
    drawn = an_ensemble(has_router=True).generate_batch(["both"] * 8, options=options)
    means = drawn.pictures.flatten(1).double().mean(1) / 255
    assert all(min(abs(m - 0.25), abs(m - 0.75)) < 0.05 for m in means.tolist())
    blurred = an_ensemble().generate_batch(["both"], options=SampleOptions(Strategy.ALL))
    assert float(blurred.pictures.double().mean()) / 255 == pytest.approx(0.5, abs=0.01)


def test_missing_expert_is_named_and_the_others_draw() -> None:
    route, _, images = run_through(an_ensemble([1]).generate(SampleRequest("both", n=4)))
    assert route == Route(experts={1: 1.0}, missing={0: 0.5})
    assert [shade_of(png) for png in images.pngs] == pytest.approx([0.75] * 4, abs=0.01)


def test_a_batch_is_drawn_in_chunks_with_consecutive_seeds() -> None:
    ensemble = an_ensemble()
    count = CHUNK + 3
    whole = ensemble.generate_batch(["both"] * count, seed=10, options=SampleOptions(steps=2))
    tail = ensemble.generate_batch(["both"] * 3, seed=10 + CHUNK, options=SampleOptions(steps=2))
    assert len(whole.pictures) == count
    assert torch.equal(whole.pictures[CHUNK:], tail.pictures)


def test_pictures_are_the_same_whether_streamed_or_batched() -> None:
    ensemble = an_ensemble()
    _, _, images = run_through(ensemble.generate(SampleRequest("both", n=3, seed=4)))
    batch = ensemble.generate_batch(["both"] * 3, seed=4)
    shades = (batch.pictures[:, 0, 0, 0].double() / 255).tolist()
    assert [shade_of(png) for png in images.pngs] == pytest.approx(shades)


def test_closing_the_stream_stops_asking() -> None:
    expert = OneShade(0.5)
    encoder = WordEncoder()
    ensemble = Ensemble(
        cast("Codec", GreyCodec()), encoder, CaptionPrior(COUNTS, encoder), {0: expert}
    )
    events = ensemble.generate(SampleRequest("dark"))
    for _ in range(3):
        next(events)
    events.close()  # type: ignore[attr-defined]
    assert len(expert.batches) == 1


class TextEcho:
    """Answers with the number of tokens of its caption: tells conditional rows from empty ones."""

    objective = "fm"

    def velocity(self, x_t: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        del t, states
        self.batch = len(x_t)
        return mask.sum(1)[:, None, None, None].expand(x_t.shape)


@pytest.mark.parametrize(
    ("guidance", "batch", "expected"), [(4.0, 4, (8, 12)), (1.0, 2, (2, 3)), (0.0, 4, (0, 0))]
)
def test_guidance_joins_conditional_and_empty_rows_of_one_batch(
    guidance: float, batch: int, expected: tuple[float, float]
) -> None:
    x_t = torch.zeros(2, *LATENT)
    captions = ("two words", "now three words")
    query = ExpertQuery(0, torch.arange(2), x_t, 0.5, captions, guidance, 0, 1)
    expert = TextEcho()
    found = answer_query(expert, WordEncoder(), query)
    assert expert.batch == batch
    assert found[:, 0, 0, 0].tolist() == list(expected)


@pytest.mark.parametrize("n", [0, MAX_PICTURES + 1])
def test_number_of_pictures_is_bounded(n: int) -> None:
    with pytest.raises(ConfigError, match="got"):
        SampleRequest("dark", n=n)
    with pytest.raises(ConfigError, match="captions"):
        an_ensemble().generate_batch(["dark"] * n)
    assert SampleRequest("dark", n=MAX_PICTURES).n == MAX_PICTURES


def test_ensemble_needs_an_expert_of_the_run() -> None:
    with pytest.raises(ConfigError, match="experts of clusters"):
        an_ensemble([])
    encoder = WordEncoder()
    with pytest.raises(ConfigError, match=r"experts of clusters \[9\]"):
        Ensemble(
            cast("Codec", GreyCodec()), encoder, CaptionPrior(COUNTS, encoder), {9: OneShade(0)}
        )


# --- on a run's real files -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clusters of 32-pixel pictures: dark and light ones, prepared as any folder is."""
    source = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for index in range(40):
        name = "dark stripes" if index % 2 else "light stripes"
        pixels = torch.randint(0, 40, (32, 32), generator=generator, dtype=torch.uint8)
        pixels += 0 if index % 2 else 200
        Image.frombytes("L", (32, 32), pixels.numpy().tobytes()).save(
            source / f"{name}_{index:02d}.png"
        )
    out = tmp_path_factory.mktemp("run") / "prepared"
    prepare_run(source, out, RunSpec("stripes", 2))
    return out


def write_expert(folder: Path, run: Run, cluster: int) -> Path:
    net: nn.Module = build_net(run.shape, seed=cluster)
    spec = run.spec
    info = ExpertInfo(
        schema=1, objective="fm", schedule="linear", cluster=cluster, run=run.digest,
        preset=spec.preset, codec=run.codec_digest, text=spec.text, latent=run.facts.latent,
        samples=32, step=1, seed=0, loss=1.0, model_digest="",
    )  # fmt: skip
    write_folder(folder, published_files(info, dict(net.state_dict())))
    return folder


@pytest.mark.slow
def test_ensemble_loads_from_files_and_draws(run_folder: Path, tmp_path: Path) -> None:
    run = load_run(run_folder / "shared")
    experts = {k: write_expert(tmp_path / str(k), run, k) for k in (0, 1)}
    summaries = {k: tmp_path / f"{k}.safetensors" for k in (0, 1)}
    for k, path in summaries.items():
        save_summary(fit_summary(Cluster.load(run_folder / "clusters" / str(k)).latents()), path)
    ensemble = Ensemble.load(run_folder / "shared", experts, summaries)
    assert ensemble.clusters == (0, 1)
    route, _, images = run_through(
        ensemble.generate(SampleRequest("dark stripes", n=2, options=SampleOptions(steps=2)))
    )
    assert len(route.experts) == 1
    assert Image.open(io.BytesIO(images.pngs[0])).size == (32, 32)
    drawn = ensemble.generate_batch(
        ["thin dark lines"], options=SampleOptions(Strategy.TOP2, steps=2)
    )
    assert drawn.pictures.shape == (1, 1, 32, 32)


@pytest.mark.slow
def test_loading_refuses_an_expert_of_another_cluster_or_none(
    run_folder: Path, tmp_path: Path
) -> None:
    run = load_run(run_folder / "shared")
    folder = write_expert(tmp_path / "expert", run, 0)
    with pytest.raises(CheckpointError, match="an expert of cluster 0, expected 1"):
        Ensemble.load(run_folder / "shared", {1: folder})
    with pytest.raises(ConfigError):
        Ensemble.load(run_folder / "shared", {})
    with pytest.raises(DataError, match="no run"):
        Ensemble.load(tmp_path, {0: folder})


@pytest.mark.slow
def test_an_expert_that_was_altered_is_left_out_and_the_others_draw(
    run_folder: Path, tmp_path: Path
) -> None:
    run = load_run(run_folder / "shared")
    experts = {k: write_expert(tmp_path / str(k), run, k) for k in (0, 1)}
    weights = experts[1] / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    ensemble = Ensemble.load(run_folder / "shared", experts)
    assert ensemble.clusters == (0,)
    route, _, images = run_through(
        ensemble.generate(SampleRequest("dark stripes", n=2, options=SampleOptions(steps=2)))
    )
    assert set(route.experts) == {0}
    assert len(images.pngs) == 2


@pytest.mark.slow
def test_trained_routers_and_measured_temperatures_are_used_and_bad_ones_left_out(
    run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = load_run(run_folder / "shared")
    experts = {k: write_expert(tmp_path / str(k), run, k) for k in (0, 1)}
    clusters = [Cluster.load(run_folder / "clusters" / str(k)) for k in (0, 1)]
    train = replace(DEFAULT_TRAIN, batch=8, budget_samples=16)
    *_, end = train_router(labelled(clusters), run, RouterSettings(train=train))
    assert isinstance(end, TrainedRouter)
    save_router(end.router, tmp_path / "learned")
    save_gauss(measure_gauss(labelled(clusters * 8), run, "data"), tmp_path / "gauss")
    summaries = {k: tmp_path / f"{k}.safetensors" for k in (0, 1)}
    for k, path in summaries.items():
        save_summary(fit_summary(clusters[k].latents()), path)
    folders = {name: tmp_path / name for name in ("learned", "gauss", "synthetic")}
    ensemble = Ensemble.load(run_folder / "shared", experts, summaries, folders)
    assert "synthetic router left out" in caplog.text
    assert ensemble._routers[RouterName.GAUSS].freeze_below == 0
    for name in (RouterName.LEARNED, RouterName.GAUSS):
        options = SampleOptions(Strategy.TOP2, steps=2, router=name)
        assert len(ensemble.generate_batch(["thin dark lines"], options=options).pictures) == 1
    with pytest.raises(ConfigError, match="no synthetic router"):
        ensemble.generate_batch(["x"], options=SampleOptions(router=RouterName.SYNTHETIC))
