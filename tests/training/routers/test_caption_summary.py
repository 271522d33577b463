from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.training.conftest import TINY_SPEC, draw_pictures
from tests.training.routers.test_captions import WordEncoder
from training.errors import DataError, TensorFileError
from training.preparation import assembly
from training.preparation.prepare import prepare_run
from training.routers.caption_summary import (
    DIRECTIONS,
    MIN_PER_DIRECTION,
    CaptionSummary,
    fit_caption_summary,
    load_caption_summary,
    pack_caption_summary,
)
from training.routers.captions import CaptionPrior, mean_states
from training.run import MEANINGS_FILE

WIDTH = 12


def topics(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Captions about one of six things, three of them in cluster 0: directions and clusters."""
    generator = torch.Generator().manual_seed(seed)
    about = torch.randint(6, (count,), generator=generator)
    noise = 0.15 * torch.randn(count, WIDTH, generator=generator)
    return functional.normalize(torch.eye(6, WIDTH)[about] + noise, dim=1), about // 3


@pytest.fixture(scope="module")
def summary() -> CaptionSummary:
    embedded, clusters = topics(600, 0)
    return fit_caption_summary(embedded, functional.one_hot(clusters, 2))


def test_captions_never_seen_are_found_in_the_cluster_of_their_like(
    summary: CaptionSummary,
) -> None:
    embedded, clusters = topics(300, 1)
    log_shares = summary.log_likelihood(embedded).log_softmax(dim=1)
    nll = -float(log_shares.gather(1, clusters[:, None]).mean())
    assert float((log_shares.argmax(dim=1) == clusters).float().mean()) > 0.95
    assert nll < 0.2


def test_summary_is_bounded_and_the_same_from_the_same_captions(summary: CaptionSummary) -> None:
    embedded, clusters = topics(600, 0)
    again = fit_caption_summary(embedded, functional.one_hot(clusters, 2))
    assert pack_caption_summary(again) == pack_caption_summary(summary)
    assert summary.directions.shape == (2, DIRECTIONS, WIDTH)
    assert torch.allclose(summary.weights.sum(dim=1), torch.ones(2))


def test_frequent_captions_weigh_more() -> None:
    embedded = torch.eye(2, WIDTH).repeat_interleave(MIN_PER_DIRECTION, 0)
    counts = torch.tensor([[9]] * MIN_PER_DIRECTION + [[1]] * MIN_PER_DIRECTION)
    found = fit_caption_summary(embedded, counts, seed=1)
    used = found.weights[0] > 0
    shares = {
        int(direction.argmax()): float(weight)
        for direction, weight in zip(found.directions[0][used], found.weights[0][used], strict=True)
    }
    assert shares in ({0: pytest.approx(0.9), 1: pytest.approx(0.1)}, {0: pytest.approx(1.0)})


def test_cluster_without_a_listed_caption_is_what_no_caption_fits() -> None:
    embedded, _ = topics(80, 0)
    counts = torch.stack([torch.ones(80), torch.zeros(80)], dim=1).long()
    found = fit_caption_summary(embedded, counts)
    likelihood = found.log_likelihood(embedded)
    assert bool(likelihood.isfinite().all())
    assert bool((likelihood[:, 0] > likelihood[:, 1]).all())


def test_prior_asks_the_summary_for_unknown_captions_and_the_counts_for_known_ones() -> None:
    encoder = WordEncoder()
    counts = {
        0: {f"a red {word}": 1 for word in ("boat", "ship", "sail")},
        1: {f"my green {word}": 3 for word in ("tree", "leaf", "bush")},
    }
    captions = [caption for row in counts.values() for caption in row]
    table = torch.tensor([[counts[k].get(caption, 0) for k in (0, 1)] for caption in captions])
    summary = fit_caption_summary(mean_states(encoder, captions), table)
    encoder.asked.clear()
    prior = CaptionPrior(counts, encoder, summary)
    known, unknown = prior.probabilities(["a red boat", "my green fern"])
    assert known.tolist() == [1, 0]
    assert float(unknown[1]) > 0.9
    assert encoder.asked == ["my green fern"]


def test_caption_like_none_goes_by_the_clusters_sizes() -> None:
    encoder = WordEncoder()
    counts = {0: {"a": 1}, 1: {"b": 3}}
    table = torch.tensor([[1, 0], [0, 3]])
    summary = fit_caption_summary(mean_states(encoder, ["a", "b"]), table)
    found = CaptionPrior(counts, encoder, summary).probabilities(["zebra"])
    assert torch.allclose(found, torch.tensor([[0.25, 0.75]]).double(), atol=1e-4)


Spoil = Callable[[CaptionSummary], CaptionSummary]
SPOILED: dict[str, Spoil] = {
    "kappa": lambda one: replace(one, kappa=-1.0),
    "at most": lambda one: replace(one, kappa=1e9),
    "shares": lambda one: replace(one, weights=one.weights * 1.1),
    "sum to 1": lambda one: replace(one, weights=one.weights - 1.0),
    "longer than 1": lambda one: replace(one, directions=one.directions * 3),
    "directions": lambda one: replace(one, directions=one.directions[:, :, 1:]),
    "NaN": lambda one: replace(one, directions=one.directions * float("nan")),
}


@pytest.mark.parametrize("named", SPOILED)
def test_summary_from_outside_with_impossible_values_is_refused(
    summary: CaptionSummary, tmp_path: Path, named: str
) -> None:
    path = tmp_path / MEANINGS_FILE
    path.write_bytes(pack_caption_summary(summary))
    assert load_caption_summary(path, 2, WIDTH).kappa == summary.kappa
    path.write_bytes(pack_caption_summary(SPOILED[named](summary)))
    with pytest.raises(TensorFileError, match=named):
        load_caption_summary(path, 2, WIDTH)


@pytest.mark.parametrize("counts", [torch.ones(3, 2), torch.ones(0, 2)])
def test_counts_that_do_not_go_with_the_captions_are_refused(counts: Tensor) -> None:
    with pytest.raises(ValueError, match="captions"):
        fit_caption_summary(torch.zeros(len(counts) and 2, WIDTH), counts)


@pytest.mark.slow
def test_run_of_many_different_captions_holds_a_summary_and_guards_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "OPEN_CAPTIONS", 40)
    folder = draw_pictures(tmp_path / "pictures")
    metadata = folder / "metadata.jsonl"
    lines = metadata.read_text().splitlines()
    told = [line.replace('"}', f' {i}"}}') for i, line in enumerate(lines)]
    metadata.write_text("\n".join(told))
    made = prepare_run(folder, tmp_path / "out", TINY_SPEC)
    run = made.load()
    assert run.caption_summary is not None
    prior = CaptionPrior(run.caption_counts.by_cluster(), run.text, run.caption_summary)
    disc, bars = prior.probabilities(["a disc like no other", "two bars like no others"])
    assert int(disc.argmax()) != int(bars.argmax())
    path = made.shared / MEANINGS_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DataError, match="altered"):
        _ = made.load().caption_summary


def test_run_of_few_captions_has_none(tmp_path: Path) -> None:
    made = prepare_run(draw_pictures(tmp_path / "pictures"), tmp_path / "out", TINY_SPEC)
    assert made.load().caption_summary is None
    assert not (made.shared / MEANINGS_FILE).exists()
