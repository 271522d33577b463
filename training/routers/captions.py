"""p(k | caption): the clusters in which pictures with a caption, or one much like it, were seen.

A caption of the run is looked up. Any other is compared with what the clusters' captions mean
(`routers.caption_summary`), or, in a run of few captions, its nearest known ones vote, by the
cosine of their mean token states.  Knows nothing about pictures or experts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from training.parts.text import TextEncoder
from training.routers.caption_summary import CaptionSummary

MAX_KNOWN: Final = 500
"""Captions compared with a new one, the most frequent first: 5 ms each to encode, only once."""
NEAREST: Final = 5
CHUNK: Final = 64
LEAST_SIZE: Final = 1e-3
"""Pictures of a cluster without a listed caption: it is not ruled out."""
TEMPERATURE: Final = 0.05
"""Cosines within one temperature of each other count alike; paraphrases differ by about 0.2."""


def normal_form(caption: str) -> str:
    """Lower case, single spaces, no full stop: what makes two captions the same to a person."""
    return " ".join(caption.lower().split()).rstrip(".!")


def mean_states(encoder: TextEncoder, captions: Sequence[str]) -> Tensor:
    """Mean of a caption's token states, unit length: [B, D]; `CHUNK` captions at a time."""
    parts = []
    for start in range(0, len(captions), CHUNK):
        text = encoder.encode(captions[start : start + CHUNK])
        sums = torch.einsum("bld,bl->bd", text.states, text.mask)
        parts.append(torch.nn.functional.normalize(sums, dim=1))
    return torch.cat(parts)


class CaptionPrior:
    """p(k | caption) from the clusters' caption counts."""

    def __init__(
        self,
        counts: Mapping[int, Mapping[str, int]],
        encoder: TextEncoder,
        summary: CaptionSummary | None = None,
    ) -> None:
        """Index the counts.

        Args:
            counts: cluster -> caption -> number of its pictures, >= 0.
            encoder: encodes captions that are not among them, and then those to compare with.
            summary: of the same clusters, in rising order; without one the nearest known vote.

        Raises:
            ValueError: if no caption has a picture.
        """
        self.clusters = tuple(sorted(counts))
        self._encoder = encoder
        self._summary = summary
        table: dict[str, list[float]] = {}
        for column, cluster in enumerate(self.clusters):
            for caption, count in counts[cluster].items():
                row = table.setdefault(normal_form(caption), [0.0] * len(self.clusters))
                row[column] += count
        self._table = {caption: row for caption, row in table.items() if sum(row) > 0}
        if not self._table:
            raise ValueError("no cluster has a captioned picture")
        totals = torch.tensor(list(self._table.values()), dtype=torch.float64).sum(dim=0)
        self._log_sizes = totals.clamp_min(LEAST_SIZE).log()
        sizes = Counter({caption: sum(row) for caption, row in self._table.items()})
        self._known = [caption for caption, _ in sizes.most_common(MAX_KNOWN)]
        self._embedded: Tensor | None = None

    def probabilities(self, captions: Sequence[str]) -> Tensor:
        """[B, K] float64, columns as `clusters`, rows sum to 1."""
        rows = {caption: self._row(normal_form(caption)) for caption in dict.fromkeys(captions)}
        return torch.stack([rows[caption] for caption in captions])

    def _row(self, caption: str) -> Tensor:
        known = self._table.get(caption)
        if known is None and self._summary is not None:
            return self._by_meaning(caption, self._summary)
        if known is None:
            return self._by_neighbours(caption)
        row = torch.tensor(known, dtype=torch.float64)
        return row / row.sum()

    def _by_meaning(self, caption: str, summary: CaptionSummary) -> Tensor:
        """Bayes' rule over the clusters, by what their captions mean and how many there are."""
        evidence = summary.log_likelihood(mean_states(self._encoder, [caption]))[0]
        return (evidence + self._log_sizes).softmax(dim=0)

    def _by_neighbours(self, caption: str) -> Tensor:
        if self._embedded is None:
            self._embedded = mean_states(self._encoder, self._known)
        cosines = self._embedded @ mean_states(self._encoder, [caption])[0]
        nearest = cosines.topk(min(NEAREST, len(self._known)))
        votes = (nearest.values / TEMPERATURE).softmax(dim=0).double()
        rows = torch.stack([self._row(self._known[index]) for index in nearest.indices.tolist()])
        return votes @ rows
