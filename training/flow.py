"""Paths, targets and conversions of flow matching and of noise prediction.

Time t runs from 0 (data) to 1 (noise) on the straight path x_t = (1 - t) x0 + t eps, whose
velocity is v = eps - x0.  Source: arXiv 2210.02747, eq. 23, with data and noise exchanged.
"""

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

MIN_DATA_PART: Final = 1e-3
"""1 - t below this is clamped in `velocity_from_epsilon`: there x0 = (x_t - t e) / (1 - t) loses
all its digits. A mixture should not ask a noise-predicting expert above t = 0.85 anyway."""

EpsilonNet = Callable[[Tensor, Tensor], Tensor]
"""(x_s [B, C, H, W], s [B]) -> predicted noise [B, C, H, W]."""


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The straight path x_t = (1 - t) x0 + t eps.

    Args:
        data: x0, [B, C, H, W], unit variance.
        noise: standard normal, same shape.
        t: [B] in 0..1.

    Raises:
        ValueError: if the shapes differ.
    """
    _check(data, noise, t)
    times = t[:, None, None, None]
    return (1 - times) * data + times * noise


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """The straight path's velocity, eps - x0 at any t: what `fm` regresses.

    In latent units per unit of t (t = 0 is data).

    Raises:
        ValueError: if the shapes differ.
    """
    if data.shape != noise.shape:
        raise ValueError(f"data {tuple(data.shape)} and noise {tuple(noise.shape)} differ")
    return noise - data


def vp_interpolate(data: Tensor, noise: Tensor, s: Tensor) -> Tensor:
    """The variance-preserving path x_s = cos(pi s / 2) x0 + sin(pi s / 2) eps of `ddpm-eps`.

    Args:
        data: x0, [B, C, H, W].
        noise: standard normal, same shape.
        s: [B] in 0..1.

    Raises:
        ValueError: if the shapes differ.
    """
    _check(data, noise, s)
    angle = s[:, None, None, None] * (math.pi / 2)
    return angle.cos() * data + angle.sin() * noise


def velocity_from_epsilon(net: EpsilonNet, x_t: Tensor, t: Tensor) -> Tensor:
    """The straight path's velocity from a net that predicts noise on the VP path, exactly.

    x_t divided by n = sqrt((1 - t)^2 + t^2) is the VP state of time s = (2 / pi) atan2(t, 1 - t);
    with e the noise predicted there, x0 = (x_t - t e) / (1 - t) and v = e - x0.
    Source: arXiv 2603.06741 (heterogeneous experts).

    Args:
        net: the noise predictor.
        x_t: [B, C, H, W] on the straight path.
        t: [B], below 1 (clamped at 1 - `MIN_DATA_PART`).
    """
    times = t[:, None, None, None]
    norm = ((1 - times).square() + times.square()).sqrt()
    s = torch.atan2(t, 1 - t) * (2 / math.pi)
    epsilon = net(x_t / norm, s)
    data = (x_t - times * epsilon) / (1 - times).clamp_min(MIN_DATA_PART)
    return epsilon - data


def _check(data: Tensor, noise: Tensor, t: Tensor) -> None:
    if data.shape != noise.shape or t.shape != data.shape[:1]:
        raise ValueError(
            f"shapes differ: data {tuple(data.shape)}, noise {tuple(noise.shape)}, "
            f"times {tuple(t.shape)}"
        )
