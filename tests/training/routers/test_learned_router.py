import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.config import SCHEMA
from training.errors import CheckpointError, TensorFileError
from training.routers.calibration import LabelledLatents, calibrate
from training.routers.learned_router import (
    LEARNED,
    ROUTER_FILE,
    ROUTER_WEIGHTS,
    LearnedRouter,
    RouterInfo,
    load_router,
    read_router_info,
    save_router,
)
from training.routers.router_net import RouterShape, build_router_net
from training.run import Run


@pytest.fixture
def router(run: Run) -> LearnedRouter:
    shape = RouterShape(2, 8, 1, 1, run.facts.latent, 2)
    net = build_router_net(shape, seed=4)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    info = RouterInfo(
        schema=SCHEMA, kind=LEARNED, run=run.digest, codec=run.codec_digest, clusters=(0, 1),
        rows=run.facts.rows, counts=(30, 10), shape=shape, times="uniform", samples=640, seed=0,
        experts={}, calibration=None, model_digest="",
    )  # fmt: skip
    return LearnedRouter(net, info)


def noisy(run: Run, count: int = 6) -> torch.Tensor:
    return torch.randn(count, *run.facts.latent, generator=torch.Generator().manual_seed(2))


def test_saved_router_reads_back_and_answers_the_same(
    router: LearnedRouter, run: Run, tmp_path: Path
) -> None:
    save_router(router, tmp_path / "r")
    again = load_router(tmp_path / "r", run)
    assert replace(again.info, model_digest="") == router.info
    assert torch.equal(again.probabilities(noisy(run), 0.4), router.probabilities(noisy(run), 0.4))


def test_saving_again_replaces_the_router_and_gives_the_same_bytes(
    router: LearnedRouter, tmp_path: Path
) -> None:
    save_router(router, tmp_path / "r")
    first = (tmp_path / "r" / ROUTER_WEIGHTS).read_bytes()
    save_router(router, tmp_path / "r")
    assert (tmp_path / "r" / ROUTER_WEIGHTS).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_evidence_is_what_the_net_says_beyond_its_training_shares(
    router: LearnedRouter, run: Run
) -> None:
    x_t = noisy(run)
    shares = torch.tensor([0.75, 0.25]).expand(len(x_t), 2)
    logits = router._net(x_t, torch.full((len(x_t),), 0.4))
    assert torch.allclose(router.probabilities(x_t, 0.4, shares), logits.softmax(1), atol=1e-6)


def test_caption_rules_a_cluster_out(router: LearnedRouter, run: Run) -> None:
    prior = torch.tensor([[0.0, 1.0]]).expand(6, 2)
    assert torch.allclose(router.probabilities(noisy(run), 0.4, prior), prior, atol=1e-4)


def test_without_a_caption_the_runs_sizes_are_the_prior(router: LearnedRouter, run: Run) -> None:
    sizes = torch.tensor(run.facts.rows).float()
    prior = (sizes / sizes.sum()).expand(6, 2)
    x_t = noisy(run)
    assert torch.allclose(router.probabilities(x_t, 0.4), router.probabilities(x_t, 0.4, prior))


def test_temperatures_of_its_calibration_are_used_until_asked_not_to(
    router: LearnedRouter, run: Run
) -> None:
    rows = LabelledLatents(noisy(run, 60), torch.arange(60) % 2)
    calibration = calibrate(router, rows)
    mended = LearnedRouter(router._net, replace(router.info, calibration=calibration))
    x_t, temperature = noisy(run), calibration.tempering.at(0.4)
    assert temperature > 2  # labels that have nothing to do with the latents
    assert torch.allclose(
        mended.log_likelihood(x_t, 0.4), router.log_likelihood(x_t, 0.4) / temperature
    )
    plain = mended.untempered()
    assert torch.equal(plain.log_likelihood(x_t, 0.4), router.log_likelihood(x_t, 0.4))


def test_latents_of_another_shape_are_refused(router: LearnedRouter) -> None:
    with pytest.raises(ValueError, match="the router expects"):
        router.log_likelihood(torch.randn(2, 3, 2, 2), 0.5)


def test_altered_weights_are_refused(router: LearnedRouter, run: Run, tmp_path: Path) -> None:
    save_router(router, tmp_path / "r")
    path = tmp_path / "r" / ROUTER_WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="altered"):
        load_router(tmp_path / "r", run)


Spoil = Callable[[dict[str, object]], None]
SPOILED: dict[str, Spoil] = {
    "schema": lambda facts: facts.update(schema=9),
    "kind": lambda facts: facts.update(kind="guessed"),
    "run": lambda facts: facts.update(run="0" * 64),
    "codec": lambda facts: facts.update(codec="0" * 64),
    "cluster": lambda facts: facts.update(clusters=[0, 9]),
    "distinct": lambda facts: facts.update(clusters=[1, 1]),
    "below 1": lambda facts: facts.update(counts=[0, 10]),
    "counts for 2": lambda facts: facts.update(rows=[3]),
    "unknown key": lambda facts: facts.update(extra=1),
    "router: ": lambda facts: facts["shape"].update(layers=10_000),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("named", SPOILED)
def test_router_that_says_what_cannot_be_is_refused(
    router: LearnedRouter, run: Run, tmp_path: Path, named: str
) -> None:
    save_router(router, tmp_path / "r")
    facts = json.loads((tmp_path / "r" / ROUTER_FILE).read_bytes())
    SPOILED[named](facts)
    (tmp_path / "r" / ROUTER_FILE).write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=named):
        load_router(tmp_path / "r", run)


def test_shape_that_does_not_fit_the_weights_is_refused_before_a_net_is_built(
    router: LearnedRouter, run: Run, tmp_path: Path
) -> None:
    save_router(router, tmp_path / "r")
    facts = json.loads((tmp_path / "r" / ROUTER_FILE).read_bytes())
    facts["shape"]["layers"] = 2
    (tmp_path / "r" / ROUTER_FILE).write_text(json.dumps(facts))
    with pytest.raises(TensorFileError, match=r"lacks tensor layers\.1"):
        load_router(tmp_path / "r", run)


def test_impossible_temperature_is_refused(router: LearnedRouter, run: Run, tmp_path: Path) -> None:
    rows = LabelledLatents(noisy(run, 60), torch.arange(60) % 2)
    info = replace(router.info, calibration=calibrate(router, rows))
    save_router(LearnedRouter(router._net, info), tmp_path / "r")
    facts = json.loads((tmp_path / "r" / ROUTER_FILE).read_bytes())
    facts["calibration"]["buckets"][3]["temperature"] = 0
    (tmp_path / "r" / ROUTER_FILE).write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="temperature 0"):
        read_router_info(tmp_path / "r")


def test_absent_router_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"router\.json: cannot be read"):
        load_router(tmp_path / "none")
