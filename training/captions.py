"""p(k | caption): the clusters in which pictures with a caption, or one much like it, were seen.

A caption of the run is looked up; for any other its nearest known ones vote, by the cosine of their
mean token states.  Knows nothing about pictures or experts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from training.text import TextEncoder

MAX_KNOWN: Final = 500
"""Captions compared with a new one, the most frequent first: 5 ms each to encode, only once."""
NEAREST: Final = 5
TEMPERATURE: Final = 0.05
"""Cosines within one temperature of each other count alike; paraphrases differ by about 0.2."""


def normal_form(caption: str) -> str:
    """Lower case, single spaces, no full stop: what makes two captions the same to a person."""
    return " ".join(caption.lower().split()).rstrip(".!")


class CaptionPrior:
    """p(k | caption) from the clusters' caption counts."""

    def __init__(self, counts: Mapping[int, Mapping[str, int]], encoder: TextEncoder) -> None:
        """Index the counts.

        Args:
            counts: cluster -> caption -> number of its pictures, >= 0.
            encoder: encodes captions that are not among them, and then those to compare with.

        Raises:
            ValueError: if no caption has a picture.
        """
        self.clusters = tuple(sorted(counts))
        self._encoder = encoder
        table: dict[str, list[float]] = {}
        for column, cluster in enumerate(self.clusters):
            for caption, count in counts[cluster].items():
                row = table.setdefault(normal_form(caption), [0.0] * len(self.clusters))
                row[column] += count
        self._table = {caption: row for caption, row in table.items() if sum(row) > 0}
        if not self._table:
            raise ValueError("no cluster has a captioned picture")
        sizes = Counter({caption: sum(row) for caption, row in self._table.items()})
        self._known = [caption for caption, _ in sizes.most_common(MAX_KNOWN)]
        self._embedded: Tensor | None = None

    def probabilities(self, captions: Sequence[str]) -> Tensor:
        """[B, K] float64, columns as `clusters`, rows sum to 1."""
        rows = {caption: self._row(normal_form(caption)) for caption in dict.fromkeys(captions)}
        return torch.stack([rows[caption] for caption in captions])

    def _row(self, caption: str) -> Tensor:
        known = self._table.get(caption)
        if known is None:
            return self._by_neighbours(caption)
        row = torch.tensor(known, dtype=torch.float64)
        return row / row.sum()

    def _by_neighbours(self, caption: str) -> Tensor:
        if self._embedded is None:
            self._embedded = self._embed(self._known)
        cosines = self._embedded @ self._embed([caption])[0]
        nearest = cosines.topk(min(NEAREST, len(self._known)))
        votes = (nearest.values / TEMPERATURE).softmax(dim=0).double()
        rows = torch.stack([self._row(self._known[index]) for index in nearest.indices.tolist()])
        return votes @ rows

    def _embed(self, captions: Sequence[str]) -> Tensor:
        """Mean of the token states, unit length: [B, D]."""
        text = self._encoder.encode(captions)
        sums = torch.einsum("bld,bl->bd", text.states, text.mask)
        return torch.nn.functional.normalize(sums, dim=1)
