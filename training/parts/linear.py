"""Principal components, the same on every machine up to rounding."""

import torch
from torch import Tensor


def principal_components(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The directions of largest variance.

    Args:
        rows: float [N, D].
        count: how many directions; at most D.

    Returns:
        mean [D], directions [count, D] (orthonormal; the entry largest in size is positive, which
        fixes the sign), and standard deviations [count], all float64, in falling order.
    """
    mean = torch.zeros(rows.shape[1], dtype=torch.float64)
    for block in torch.split(rows, 4096):
        mean += block.double().sum(0)
    mean /= len(rows)
    scatter = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for block in torch.split(rows, 4096):
        centred = block.double() - mean
        scatter += centred.T @ centred
    variances, vectors = torch.linalg.eigh(scatter / len(rows))
    directions = vectors.T.flip(0)[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    return mean, directions, variances.flip(0)[:count].clamp_min(0).sqrt()
