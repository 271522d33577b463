"""What both stages of clustering share: distances, the nearest centroid, a k-means++ start.

`nearest` is exact: whichever way the rows are cut into blocks, on however many threads, next to
whichever other rows, a row gets the same centroid. Matrix products alone do not promise that: their
last bits depend on the shape of the block.
"""

from typing import Final

import torch
from torch import Tensor

from training.errors import DataError

TILE_ROWS: Final = 8192
TILE_NUMBERS: Final = 2**21
"""Distances held at a time: 8 MB, about what a core's caches hold."""

_UNIT: Final = 2.0**-24
"""Largest relative error of one float32 operation."""

_SMALLEST: Final = 2.0**-126
"""Below this, float32 loses digits or flushes to zero."""


def distances(rows: Tensor, centres: Tensor) -> Tensor:
    """Squared distances, float32 [N, F], by one matrix product: right to a few last bits."""
    squares = rows.square().sum(1)[:, None] + centres.square().sum(1)[None, :]
    return (squares - 2 * rows @ centres.T).clamp_min(0)


def nearest(features: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid of each row; the lower index wins a tie.

    Distances are compared as float64 sums of squared differences, added in one fixed order by
    elementwise operations alone, which IEEE 754 fixes to the last bit. Only candidates within the
    error bound of the fast float32 distances are compared so; it is the same result as if all were.

    Args:
        features: float32 [N, D].
        centroids: float32 [F, D], F > 0.

    Returns:
        int64 [N].

    Raises:
        DataError: a row is NaN, infinite, or too large to be squared; names it.
    """
    size = max(1, min(TILE_ROWS, TILE_NUMBERS // len(centroids)))
    owners = torch.empty(len(features), dtype=torch.int64)
    for start in range(0, len(features), size):
        owners[start : start + size] = _nearest(features[start : start + size], centroids, start)
    return owners


def plus_plus(rows: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A k-means++ start: each next centre is drawn by its weighted squared distance.

    Args:
        rows: float32 [N, D].
        weights: [N], positive.
        count: centres wanted.
        generator: of the draws.

    Returns:
        rows [C, D]; C < count if the rows have only C distinct values.  Source: Arthur and
        Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    """
    chosen = [int(torch.multinomial(weights.double(), 1, generator=generator))]
    gap = _gaps(rows, chosen[0])
    while len(chosen) < count:
        odds = gap * weights
        if float(odds.sum()) <= 1e-12:
            break  # every remaining row equals a centre
        chosen.append(int(torch.multinomial(odds, 1, generator=generator)))
        gap = torch.minimum(gap, _gaps(rows, chosen[-1]))
    return rows[chosen]


def _gaps(rows: Tensor, centre: int) -> Tensor:
    """Squared distance of every row to one of them, float64 [N]; in tiles, for their copies."""
    tiles = torch.split(rows, TILE_ROWS)
    return torch.cat([(tile - rows[centre]).square().sum(1) for tile in tiles]).double()


def _nearest(rows: Tensor, centroids: Tensor, first: int) -> Tensor:
    """`nearest` of one tile, whose first row is number `first`."""
    rough = distances(rows, centroids)
    least, owners = rough.min(1)
    is_bad = ~least.isfinite()
    if bool(is_bad.any()):
        row = first + int(is_bad.long().argmax())
        raise DataError(f"features: row {row} is not finite, or too large for float32 distances")
    close = rough <= (least + _slack(rows, centroids))[:, None]
    unsure = (close.sum(1) > 1).nonzero()[:, 0]
    for part in torch.split(unsure, max(1, TILE_NUMBERS // len(centroids))):
        owners[part] = _exact(rows[part], centroids, close[part])
    return owners


def _slack(rows: Tensor, centroids: Tensor) -> Tensor:
    """How much larger than the least a float32 distance may be and yet be the nearest, [N].

    A sum of D products in any order errs by at most D * 2^-24 times the sum of magnitudes; twice
    that, for two distances.  Source: Higham, "Accuracy and stability of numerical algorithms", 3.1.
    """
    reach = rows.square().sum(1).sqrt() + centroids.square().sum(1).max().sqrt()
    terms = rows.shape[1] + 8
    return 2.02 * terms * (_UNIT * reach.square() + _SMALLEST)


def _exact(rows: Tensor, centroids: Tensor, candidates: Tensor) -> Tensor:
    """The nearest of each row's candidates (bool [N, F]) by float64 distances, int64 [N]."""
    found = torch.full(candidates.shape, float("inf"), dtype=torch.float64)
    row, centroid = candidates.nonzero(as_tuple=True)
    step = max(1, TILE_NUMBERS // rows.shape[1])
    pairs = zip(torch.split(row, step), torch.split(centroid, step), strict=True)
    for some_rows, some_centroids in pairs:
        gaps = rows[some_rows].double() - centroids[some_centroids].double()
        found[some_rows, some_centroids] = _fold(gaps * gaps)
    return found.argmin(1)


def _fold(terms: Tensor) -> Tensor:
    """Sum over the last axis by halves, [N, D] -> [N]: `sum` may add in an order of its own."""
    while terms.shape[1] > 1:
        half = terms.shape[1] // 2
        folded = terms[:, :half] + terms[:, half : 2 * half]
        odd = terms[:, 2 * half :]
        terms = torch.cat([folded, odd], 1) if odd.shape[1] else folded
    return terms[:, 0]
