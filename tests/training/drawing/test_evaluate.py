import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.drawing.classifier import (
    CLASSES,
    FEATURE_SIZE,
    GROUP_NAMES,
    GROUPS,
    PictureClassifier,
    load_classifier,
    pack_classifier,
)
from training.drawing.evaluate import (
    as_judged,
    frechet_distance,
    held_out_floor,
    judge,
    score_captions,
)
from training.errors import TensorFileError
from training.sources.bundled import load_fashion

JUDGE_FILE = Path(__file__).parents[3] / "scripts/data/classifier/classifier.safetensors"


@pytest.fixture(scope="module")
def net() -> PictureClassifier:
    return load_classifier(JUDGE_FILE)


@pytest.fixture(scope="module")
def real() -> tuple[Tensor, tuple[str, ...]]:
    pictures = load_fashion()
    return pictures.images[::25], pictures.captions[::25]


def test_judge_knows_real_pictures_it_never_saw(
    net: PictureClassifier, real: tuple[Tensor, tuple[str, ...]]
) -> None:
    score = score_captions(net, *real)
    assert score.count == 400
    assert score.caption_accuracy >= 0.9
    assert score.group_accuracy >= 0.97
    assert score.per_caption["a pair of trousers"] >= 0.95
    assert set(score.per_caption) == set(CLASSES)
    assert set(score.per_group) == set(GROUP_NAMES)


def test_judge_is_small() -> None:
    assert JUDGE_FILE.stat().st_size <= 500_000


def test_accuracy_counts_captions_and_groups(
    net: PictureClassifier, real: tuple[Tensor, tuple[str, ...]]
) -> None:
    """Asking for the class that was seen is right, for a class of another group wrong."""
    pictures = real[0][:40]
    seen, features = judge(net, pictures)
    assert features.shape == (40, FEATURE_SIZE)
    right = [CLASSES[index] for index in seen.tolist()]
    assert score_captions(net, pictures, right).caption_accuracy == 1
    elsewhere = [
        next(c for c, group in zip(CLASSES, GROUPS, strict=True) if group != GROUPS[index])
        for index in seen.tolist()
    ]
    score = score_captions(net, pictures, elsewhere)
    assert (score.caption_accuracy, score.group_accuracy) == (0, 0)
    same_group = {0: 2, 2: 0, 4: 0, 6: 0, 5: 7, 7: 5, 9: 5}
    cousins = [CLASSES[same_group.get(index, index)] for index in seen.tolist()]
    assert score_captions(net, pictures, cousins).group_accuracy == 1


@pytest.mark.parametrize(
    ("pictures", "captions", "message"),
    [
        (0, [], "captions"),
        (2, ["a bag"], "captions"),
        (1, ["a sock"], "a sock"),
    ],
)
def test_scores_of_nothing_or_of_unknown_captions_are_refused(
    net: PictureClassifier, pictures: int, captions: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score_captions(net, torch.zeros(pictures, 1, 32, 32, dtype=torch.uint8), captions)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32), (1, 28, 28), (3, 64, 64)])
def test_judged_pictures_are_bright_things_on_black(shape: tuple[int, int, int]) -> None:
    white = torch.full((2, *shape), 255, dtype=torch.uint8)
    judged = as_judged(white)
    assert judged.shape == (2, 1, 28, 28)
    assert float(judged.max()) == 0
    assert float(as_judged(torch.zeros_like(white)).min()) == 1


def test_padding_is_cut_not_squeezed() -> None:
    picture = torch.full((1, 1, 32, 32), 255, dtype=torch.uint8)
    picture[..., 2, 2] = 0
    assert as_judged(picture)[0, 0, 0, 0] == 1


def test_pictures_must_be_bytes() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        as_judged(torch.zeros(1, 1, 28, 28))


def test_frechet_distance_of_known_gaussians() -> None:
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2, here from exact moments."""
    base = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = base - base.mean(0)
    base = base @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.T))).T
    left = base * torch.tensor([1.0, 2.0, 3.0])
    right = base * torch.tensor([2.0, 2.0, 0.0]) + torch.tensor([0.0, 3.0, 0.0])
    assert frechet_distance(left, right) == pytest.approx(1 + 9 + 9, rel=1e-6)
    assert frechet_distance(left, left) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("left", "right"), [((1, 3), (5, 3)), ((5, 3), (1, 3)), ((5, 3), (5, 2))])
def test_frechet_distance_needs_rows_of_one_width(
    left: tuple[int, int], right: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match="features"):
        frechet_distance(torch.randn(left), torch.randn(right))


def test_floor_is_small_against_a_shifted_set_and_falls_with_size() -> None:
    features = torch.randn(3000, 8, generator=torch.Generator().manual_seed(1))
    floor = held_out_floor(features, 1000)
    assert 0 < floor < frechet_distance(features[:1000] + 0.5, features[1000:]) / 10
    assert held_out_floor(features, 50) > floor
    assert held_out_floor(features, 1000) == floor


@pytest.mark.parametrize("count", [1, 9])
def test_floor_needs_two_rows_on_each_side(count: int) -> None:
    assert math.isfinite(held_out_floor(torch.randn(10, 2), 2))
    assert math.isfinite(held_out_floor(torch.randn(10, 2), 8))
    with pytest.raises(ValueError, match="expected 2 to 8"):
        held_out_floor(torch.randn(10, 2), count)


def test_packed_judge_reads_back_the_same(net: PictureClassifier, tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    path.write_bytes(pack_classifier(net))
    again = load_classifier(path)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert pack_classifier(again) == path.read_bytes()
    assert not again.training


def test_file_that_is_not_the_judge_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    path.write_bytes(JUDGE_FILE.read_bytes()[:-2])
    with pytest.raises(TensorFileError, match=r"judge\.safetensors"):
        load_classifier(path)
