import pytest
import torch
from torch import Tensor

from tests.training.routers.test_captions import WordEncoder
from training.drawing.answers import TEXTS_KEPT, RememberedTexts, answer_query
from training.drawing.plan import ExpertQuery

SHAPE = (1, 4, 4)


class TextEcho:
    """Answers with the number of tokens of its caption: tells conditional rows from empty ones."""

    objective = "fm"

    def velocity(self, x_t: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        del t, states
        self.batch = len(x_t)
        return mask.sum(1)[:, None, None, None].expand(x_t.shape)


class HalfEcho(TextEcho):
    """Knows half of it."""

    batch = 0

    def velocity(self, x_t: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return super().velocity(x_t, t, states, mask) / 2


@pytest.mark.parametrize(
    ("guidance", "batch", "expected"), [(4.0, 4, (8, 12)), (1.0, 2, (2, 3)), (0.0, 4, (0, 0))]
)
def test_guidance_joins_conditional_and_empty_rows_of_one_batch(
    guidance: float, batch: int, expected: tuple[float, float]
) -> None:
    x_t = torch.zeros(2, *SHAPE)
    captions = ("two words", "now three words")
    query = ExpertQuery(0, torch.arange(2), x_t, 0.5, captions, guidance, 0, 1)
    expert = TextEcho()
    found = answer_query(expert, WordEncoder(), query)
    assert expert.batch == batch
    assert found[:, 0, 0, 0].tolist() == list(expected)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(("autoguidance", "pushed"), [(0.0, 0.0), (0.5, 0.5), (2.0, 2.0)])
def test_guide_is_asked_about_conditional_rows_and_pushed_away_from(
    guidance: float, autoguidance: float, pushed: float
) -> None:
    x_t, captions = torch.zeros(2, *SHAPE), ("two words", "now three words")
    query = ExpertQuery(0, torch.arange(2), x_t, 0.5, captions, guidance, 0, 1, autoguidance)
    plain = answer_query(TextEcho(), WordEncoder(), query)
    guide = HalfEcho()
    found = answer_query(TextEcho(), WordEncoder(), query, guide)
    assert guide.batch == (2 if autoguidance else 0)
    halves = torch.tensor([1.0, 1.5])  # of the tokens of each caption: what the guide falls short
    assert torch.equal((found - plain)[:, 0, 0, 0], pushed * halves)


def test_texts_that_are_kept_are_bounded_and_the_right_ones() -> None:
    texts, plain = RememberedTexts(WordEncoder()), WordEncoder()
    captions = [f"{first} {second}" for first in "abc" for second in "defg"]
    assert len(captions) > TEXTS_KEPT
    for caption in [*captions, captions[0], captions[-1]]:
        found, expected = texts.encode([caption]), plain.encode([caption])
        assert torch.equal(found.states, expected.states)
        assert torch.equal(found.mask, expected.mask)
    assert len(texts._kept) == TEXTS_KEPT
    assert texts.dim == plain.dim
