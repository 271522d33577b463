from collections.abc import Sequence

import pytest
import torch

from training.parts.text import TextStates
from training.routers.captions import CaptionPrior, normal_form

COUNTS = {
    0: {"a red boat": 3, "a bag": 1},
    2: {"a red boat": 1, "a bag": 0},
    7: {"a bag": 3, "never seen": 0},
}


class WordEncoder:
    """One axis per word: captions that share words are alike. Remembers what it was asked."""

    dim = 64

    def __init__(self) -> None:
        self.words: dict[str, int] = {}
        self.asked: list[str] = []

    def encode(self, captions: Sequence[str]) -> TextStates:
        self.asked += captions
        states = torch.zeros(len(captions), 8, self.dim)
        mask = torch.zeros(len(captions), 8)
        for row, caption in enumerate(captions):
            for place, word in enumerate(caption.split()):
                states[row, place, self.words.setdefault(word, len(self.words))] = 1
                mask[row, place] = 1
        return TextStates(states, mask)


def test_known_captions_have_their_counted_shares_without_encoding() -> None:
    encoder = WordEncoder()
    prior = CaptionPrior(COUNTS, encoder)
    found = prior.probabilities(["a red boat", "a bag", "a red boat"])
    assert prior.clusters == (0, 2, 7)
    assert found.tolist() == [[0.75, 0.25, 0], [0.25, 0, 0.75], [0.75, 0.25, 0]]
    assert encoder.asked == []


@pytest.mark.parametrize("same", ["A  Bag", "a bag.", " a bag!"])
def test_spelling_does_not_make_another_caption(same: str) -> None:
    prior = CaptionPrior(COUNTS, WordEncoder())
    assert normal_form(same) == "a bag"
    assert prior.probabilities([same]).tolist() == [[0.25, 0, 0.75]]


def test_unknown_caption_goes_where_its_nearest_neighbours_are() -> None:
    prior = CaptionPrior(COUNTS, WordEncoder())
    boat, bag = prior.probabilities(["the red boat", "big bag"])
    assert boat.argmax() == 0
    assert bag.argmax() == 2
    assert float(boat.sum()) == pytest.approx(1)


def test_caption_that_no_cluster_has_pictures_of_counts_as_unknown() -> None:
    found = CaptionPrior(COUNTS, WordEncoder()).probabilities(["never seen"])
    assert float(found.sum()) == pytest.approx(1)


def test_counts_without_any_picture_are_refused() -> None:
    with pytest.raises(ValueError, match="captioned picture"):
        CaptionPrior({0: {"a bag": 0}}, WordEncoder())
