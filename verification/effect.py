"""What proved numbers say of an adapter nobody has seen: how large it is, and whether it helps.

The size comes from answers to fair signs: E[(u A B v)^2] = ||A B||_F^2; those of an offer's own
proof can be drawn again by its maker, those of a user's probe cannot. The effect comes from the
probe: to first order a layer's change dW moves the loss by <dL/dW, dW>, and the
top singular pairs of dL/dW make that a few numbers. It is a certificate for small changes only: an
adapter scaled up fools it, which is why the size is looked at as well.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from verification.circuit import PARAM_SCALE
from verification.digests import Matrix

_UNIT = 2.0 ** (-2 * PARAM_SCALE)
"""Of one unit of A B in integers."""


def norm_squared(values: Matrix, scaling: float) -> float:
    """Estimate of ||scaling A B||_F^2 from answers to signs.

    Args:
        values: Y [p, q] = U A B V, integers; [4, 4] in an offer's own proof.
        scaling: alpha / rank.

    Returns:
        The mean of the squares: unbiased; its standard deviation is about as large as itself for
        one layer of 16 answers, and falls with the number of layers that are added up.
    """
    changes = [y * _UNIT * scaling for row in values for y in row]
    return sum(x * x for x in changes) / len(changes)  # x**2 would raise where this is infinite


def total_norm(squares: Iterable[float]) -> float:
    """||dW||_F over all layers from the squared norms of each."""
    return math.sqrt(sum(squares))


def predicted_change(
    values: Mapping[str, Sequence[int]], weights: Mapping[str, Sequence[float]], scaling: float
) -> float:
    """Change of the loss to first order, from proved scalars.

    Args:
        values: by module, y = u A B v in integers for each pair asked.
        weights: by module and pair, what the loss changes by per unit of y and of scaling: holds
            singular value and the scales of u, v, A and B.
        scaling: alpha / rank.

    Raises:
        ValueError: other modules or numbers of pairs were asked than answered.
    """
    if values.keys() != weights.keys():
        raise ValueError("predicted change: other modules were asked than answered")
    return scaling * math.fsum(
        float(y) * weight
        for module, found in values.items()
        for y, weight in zip(found, weights[module], strict=True)
    )
