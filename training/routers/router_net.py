"""The papers' router: a diffusion transformer that reads noisy latents and names their cluster.

Patches of x_t and a CLS token go through blocks whose normalisations follow the time (adaLN-zero,
arXiv 2212.09748); a small head reads the CLS token.  No text.  Source: arXiv 2510.03434 (there a
DiT-B/2 of 129M parameters).  Names, shapes and order of operations are those of the published
router (`training.exchange.paris_net`), whose weights are therefore a state of this net.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import MAX_CLUSTERS, LatentShape
from training.errors import ConfigError
from training.tensors import TensorSpec, spec_of

TIME_FEATURES: Final = 256
TIME_SCALE: Final = 1000.0
MAX_PERIOD: Final = 10_000.0
MLP_RATIO: Final = 4
NORM_EPS: Final = 1e-5
MODULATIONS: Final = 6
"""Shift, scale and gate of attention, and of the feed-forward part."""
INITIAL_SPREAD: Final = 0.02
MAX_WIDTH: Final = 4096
MAX_LAYERS: Final = 64
MAX_TOKENS: Final = 65_536


@dataclass(frozen=True, slots=True)
class RouterShape:
    """What fixes every tensor of a router.

    Args:
        heads: attention heads.
        head_dim: width of each; heads * head_dim is the net's width.
        layers: transformer blocks.
        patch_size: latent pixels per token side.
        latent: channels, height, width of one latent.
        clusters: classes, one logit each.
        has_cls_token: read a token of its own; else the mean of the patches' tokens.
        has_learned_positions: positions are trained; else fixed sines and cosines.

    Raises:
        ConfigError: for sizes that cannot be meant.
    """

    heads: int
    head_dim: int
    layers: int
    patch_size: int
    latent: LatentShape
    clusters: int
    has_cls_token: bool = True
    has_learned_positions: bool = True

    def __post_init__(self) -> None:
        sizes = (self.heads, self.head_dim, self.layers, self.patch_size, *self.latent)
        if min(sizes) < 1 or self.layers > MAX_LAYERS or not 4 <= self.width <= MAX_WIDTH:
            raise ConfigError(
                f"router: {self.layers} layers of width {self.width} on latents {self.latent}"
            )
        if self.width % 4:
            raise ConfigError(f"router: width {self.width} must be divisible by 4")
        if not 1 <= self.clusters <= MAX_CLUSTERS:
            raise ConfigError(f"router: clusters must lie in 1..{MAX_CLUSTERS}: {self.clusters}")
        _, height, width = self.latent
        if height % self.patch_size or width % self.patch_size or self.patches > MAX_TOKENS:
            raise ConfigError(
                f"router: latents of {height}x{width} do not divide into patches of "
                f"{self.patch_size}: choose another preset"
            )

    @property
    def width(self) -> int:
        """Features per token."""
        return self.heads * self.head_dim

    @property
    def patches(self) -> int:
        """Tokens without the CLS token."""
        return self.latent[1] * self.latent[2] // self.patch_size**2

    def schema(self) -> dict[str, TensorSpec]:
        """Names, dtypes and shapes of the weights, without allocating them."""
        return dict(_schema(self))

    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(math.prod(spec.shape) for spec in _schema(self).values())


@dataclass(frozen=True, slots=True)
class RouterPreset:
    """The size of a router; latent and clusters come from the run."""

    heads: int
    head_dim: int
    layers: int
    patch_size: int


ROUTER_PRESETS: Final = {
    "tiny/1": RouterPreset(heads=4, head_dim=16, layers=3, patch_size=1),
    "tiny/2": RouterPreset(heads=4, head_dim=32, layers=3, patch_size=2),
    "S/2": RouterPreset(heads=6, head_dim=64, layers=12, patch_size=2),
    "B/2": RouterPreset(heads=12, head_dim=64, layers=12, patch_size=2),
}
"""`tiny/1` learns a 4x4 grid in a CPU-minute; `B/2` is the papers'."""

SMALL_GRID: Final = 8
"""Up to this side every latent pixel is a token by default; beyond, four are."""


def router_shape(latent: LatentShape, clusters: int, preset: str | None = None) -> RouterShape:
    """The shape of a router for a run.

    Args:
        latent: channels, height, width of its latents.
        clusters: how many it tells apart.
        preset: one of `ROUTER_PRESETS`; None for the tiny one that suits the grid.

    Raises:
        ConfigError: an unknown preset, or latents that do not divide into its patches.
    """
    name = default_preset(latent) if preset is None else preset
    if name not in ROUTER_PRESETS:
        known = ", ".join(ROUTER_PRESETS)
        raise ConfigError(f"unknown router preset {name!r}; known: {known}")
    size = ROUTER_PRESETS[name]
    return RouterShape(
        size.heads, size.head_dim, size.layers, size.patch_size, latent, clusters
    )  # fmt: skip


def default_preset(latent: LatentShape) -> str:
    """The tiny preset for a grid: one that a CPU trains in a minute or a few."""
    is_odd = latent[1] % 2 or latent[2] % 2
    return "tiny/1" if is_odd or max(latent[1:]) <= SMALL_GRID else "tiny/2"


class RouterNet(nn.Module):
    """Noisy latents and times to one logit per cluster; its tensors have the published names."""

    def __init__(self, shape: RouterShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.patch_embed = nn.Conv2d(shape.latent[0], width, shape.patch_size, shape.patch_size)
        if shape.has_cls_token:
            self.cls_token = nn.Parameter(INITIAL_SPREAD * torch.randn(1, 1, width))
        if shape.has_learned_positions:
            self.pos_embed = nn.Parameter(INITIAL_SPREAD * torch.randn(1, shape.patches, width))
        else:
            self.register_buffer("pos_embed", _grid_waves(shape), persistent=False)
        self.time_embed = _TimeEmbed(width)
        self.layers = nn.ModuleList(_Block(width, shape.heads) for _ in range(shape.layers))
        self.head = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(approximate="tanh"),
            nn.LayerNorm(width, eps=NORM_EPS),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, shape.clusters),
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Logits of p(k | x_t, t) under the training data's p(k).

        Args:
            x_t: [B, C, H, W], latent units.
            t: [B] in 0..1; 0 is data, 1 is noise.

        Returns:
            [B, K].
        """
        tokens = self.patch_embed(x_t).flatten(2).transpose(1, 2) + self.pos_embed
        if self.shape.has_cls_token:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        time = self.time_embed(t)
        for layer in self.layers:
            tokens = layer(tokens, time)
        read = tokens[:, 0] if self.shape.has_cls_token else tokens.mean(dim=1)
        logits: Tensor = self.head(read)
        return logits


class _TimeEmbed(nn.Module):
    """Times [B] to features [B, D]: sines and cosines, then two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        features: Tensor = self.mlp(_waves(t * TIME_SCALE, TIME_FEATURES))
        return features


class _Attention(nn.Module):
    """Every token sees every other; one matrix makes queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, tokens: Tensor) -> Tensor:
        joined = functional.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        parts = joined.reshape(*tokens.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        mixed: Tensor = self.out_proj(seen.transpose(1, 2).reshape(tokens.shape))
        return mixed


class _Block(nn.Module):
    """Attention and a feed-forward part, each shifted, scaled and gated by the time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = _Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(MLP_RATIO * width, width),
        )
        modulation = nn.Linear(width, MODULATIONS * width)
        nn.init.zeros_(modulation.weight)
        nn.init.zeros_(modulation.bias)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), modulation)

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """[B, L, D] tokens and [B, D] time features -> [B, L, D]."""
        parts = self.adaLN_modulation(time)[:, None].chunk(MODULATIONS, dim=2)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        tokens = tokens + gate * self.attn(_normed(tokens) * (1 + scale) + shift)
        mixed: Tensor = mlp_gate * self.mlp(_normed(tokens) * (1 + mlp_scale) + mlp_shift)
        return tokens + mixed


def build_router_net(shape: RouterShape, seed: int) -> RouterNet:
    """A fresh net in float32; the same seed gives the same weights on one machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RouterNet(shape)


def _normed(tokens: Tensor) -> Tensor:
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS)


def _waves(positions: Tensor, features: int) -> Tensor:
    """Cosines and sines of `features` / 2 frequencies: [...] -> [..., features]."""
    half = features // 2
    rates = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, device=positions.device) / half)
    angles = positions[..., None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _grid_waves(shape: RouterShape) -> Tensor:
    """Fixed positions [1, L, D]: half the features for the row, half for the column."""
    rows = torch.arange(shape.latent[1] // shape.patch_size, dtype=torch.float32)
    columns = torch.arange(shape.latent[2] // shape.patch_size, dtype=torch.float32)
    grid = torch.cartesian_prod(rows, columns)
    half = shape.width // 2
    waves = torch.cat([_waves(grid[:, 0], half), _waves(grid[:, 1], half)], dim=1)
    return waves[None]


@cache
def _schema(shape: RouterShape) -> Mapping[str, TensorSpec]:
    with torch.device("meta"):
        net = RouterNet(shape)
    return {name: spec_of(tensor) for name, tensor in net.state_dict().items()}
