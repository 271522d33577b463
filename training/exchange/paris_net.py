"""The nets of the published Paris layout: their tensors, and the same nets as modules.

An expert is DiT with AdaLN-single and cross-attention, which is what diffusers' PixArt transformer
computes, with three differences: `text_proj` is one Linear (PixArt has two with a GELU between),
`pos_embed` is stored with the weights (PixArt computes a fixed one), and q, k, v lie in one matrix.
`build_expert` is that PixArt transformer with the first two changed; `expert_to_pixart` and
`expert_from_pixart` map the names both ways, bit for bit.

Known: names and shapes of all tensors, the blocks' order of operations, that every one of the 77
text states is attended to (no mask), times 0..1000, latents scaled by 0.18215, and that the router
puts its CLS token first, without a position.  Source: the port of the published weights in
aws-neuron/neuronx-distributed-inference, contrib/models/paris-diffusion (read, not copied).
Assumed, because only that port shows it: the layer norms' epsilon, the router head's GELUs, and a
router's heads of 64 features where its config does not say.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from training.config import LatentShape
from training.exchange.paris_layout import NetConfig
from training.experts.nets import predict
from training.parts.libraries import pixart_class
from training.parts.text import TextStates
from training.routers.router import log_of, posterior
from training.routers.router_net import RouterNet, RouterShape
from training.tensors import TensorSpec

NORM_EPS: Final = 1e-5
FREQUENCIES: Final = 256
"""Width of the sinusoidal time embedding."""
ROUTER_HEAD_WIDTH: Final = 64

Shapes = dict[str, tuple[int, ...]]

_TIME: Final = "adaln_single.emb.timestep_embedder."
_RENAMES: Final = (
    (re.compile(r"^time_embed\.mlp\.0\."), f"{_TIME}linear_1."),
    (re.compile(r"^time_embed\.mlp\.2\."), f"{_TIME}linear_2."),
    (re.compile(r"^layers\."), "transformer_blocks."),
    (re.compile(r"\.attn\."), ".attn1."),
    (re.compile(r"\.cross_attn\."), ".attn2."),
    (re.compile(r"\.out_proj\."), ".to_out.0."),
    (re.compile(r"\.mlp\.0\."), ".ff.net.0.proj."),
    (re.compile(r"\.mlp\.2\."), ".ff.net.2."),
    (re.compile(r"^patch_embed\."), "pos_embed.proj."),
    (re.compile(r"^pos_embed$"), "pos_embed.pos_embed"),
    (re.compile(r"^t_block\.1\."), "adaln_single.linear."),
    (re.compile(r"^text_proj\."), "caption_projection."),
    (re.compile(r"^final_layer\.linear\."), "proj_out."),
    (re.compile(r"^final_layer\."), ""),
)
"""Applied in this order."""


def expert_shapes(config: NetConfig, latent: LatentShape) -> Shapes:
    """Every tensor of a published expert."""
    width, text = config.hidden_size, config.text_embed_dim
    shapes = _trunk_shapes(config, latent)
    shapes |= _linear("text_proj", width, text)
    shapes |= _linear("t_block.1", 6 * width, width)
    shapes |= _linear("final_layer.linear", config.patch_size**2 * config.out_channels, width)
    shapes["final_layer.scale_shift_table"] = (2, width)
    for layer in range(config.num_layers):
        block = f"layers.{layer}"
        shapes[f"{block}.scale_shift_table"] = (6, width)
        shapes |= _attention(f"{block}.attn", width) | _attention(f"{block}.cross_attn", width)
        shapes |= _hidden(block, config)
    return shapes


def router_shapes(config: NetConfig, latent: LatentShape, clusters: int) -> Shapes:
    """Every tensor of a published router."""
    width = config.hidden_size
    shapes = _trunk_shapes(config, latent)
    shapes["cls_token"] = (1, 1, width)
    for layer in range(config.num_layers):
        block = f"layers.{layer}"
        shapes |= _linear(f"{block}.adaLN_modulation.1", 6 * width, width)
        shapes |= _attention(f"{block}.attn", width) | _hidden(block, config)
    shapes |= _linear("head.0", width, width) | _linear("head.4", clusters, width)
    shapes |= {"head.2.weight": (width,), "head.2.bias": (width,)}
    return shapes


def _trunk_shapes(config: NetConfig, latent: LatentShape) -> Shapes:
    width, patch = config.hidden_size, config.patch_size
    tokens = (latent[1] // patch) * (latent[2] // patch)
    return {
        "patch_embed.weight": (width, config.in_channels, patch, patch),
        "patch_embed.bias": (width,),
        "pos_embed": (1, tokens, width),
        **_linear("time_embed.mlp.0", width, FREQUENCIES),
        **_linear("time_embed.mlp.2", width, width),
    }


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _attention(name: str, width: int) -> Shapes:
    return {
        f"{name}.in_proj_weight": (3 * width, width),
        f"{name}.in_proj_bias": (3 * width,),
        **_linear(f"{name}.out_proj", width, width),
    }


def _hidden(block: str, config: NetConfig) -> Shapes:
    hidden = int(config.hidden_size * config.mlp_ratio)
    return _linear(f"{block}.mlp.0", hidden, config.hidden_size) | _linear(
        f"{block}.mlp.2", config.hidden_size, hidden
    )


def expert_to_pixart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published expert's tensors under the names of the module that `build_expert` makes.

    The numbers stay what they are; q, k and v are views of the matrix that held them.
    """
    mapped: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        renamed = name
        for pattern, replacement in _RENAMES:
            renamed = pattern.sub(replacement, renamed)
        head, is_joined, part = renamed.partition("in_proj_")
        if is_joined:
            pieces = zip("qkv", tensor.chunk(3), strict=True)
            mapped |= {f"{head}to_{letter}.{part}": piece for letter, piece in pieces}
        else:
            mapped[renamed] = tensor
    return mapped


def build_expert(
    config: NetConfig, latent: LatentShape, weights: Mapping[str, Tensor]
) -> nn.Module:
    """A published expert as a module, in float32 and in evaluation mode.

    Args:
        config: of the expert.
        latent: channels, height, width.
        weights: named and shaped as `expert_shapes` says, of any float type.
    """
    width = config.hidden_size
    with torch.device("meta"):
        net = pixart_class()(
            num_attention_heads=config.num_heads,
            attention_head_dim=width // config.num_heads,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_layers=config.num_layers,
            cross_attention_dim=width,
            sample_size=latent[1],
            patch_size=config.patch_size,
            norm_eps=NORM_EPS,
            use_additional_conditions=False,
            caption_channels=None,
        )
        net.caption_projection = nn.Linear(config.text_embed_dim, width)
    net.norm_out.eps = NORM_EPS
    positions = net.pos_embed.pos_embed
    del net.pos_embed.pos_embed
    net.pos_embed.register_buffer("pos_embed", positions, persistent=True)
    mapped = {name: tensor.float() for name, tensor in expert_to_pixart(weights).items()}
    net.load_state_dict(mapped, assign=True)
    module: nn.Module = net.eval().requires_grad_(False)
    return module


@dataclass(frozen=True, slots=True, eq=False)
class PublishedExpert:
    """Answers with velocities of the straight path, as `training.experts.loaded.Expert` does."""

    net: nn.Module
    objective: str = "fm"

    @torch.no_grad()
    def velocity(self, x_t: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """[B, C, H, W], [B] in 0..1, [B, L, D], [B, L] -> [B, C, H, W]."""
        return predict(self.net, x_t, t, TextStates(states, mask))


class PublishedRouter:
    """p(k | x_t, t) by the published router; the p(k) of its training data is not known."""

    freeze_below = 0.0
    """Asked at every step, as in the paper."""

    def __init__(self, net: RouterNet) -> None:
        self._net = net
        self.clusters = tuple(range(net.shape.clusters))

    @torch.no_grad()
    def log_likelihood(self, x_t: Tensor, t: float) -> Tensor:
        """Log p(k | x_t, t): log p(x_t | k) if all clusters were equally frequent; [B, K]."""
        logits: Tensor = self._net(x_t.float(), torch.full((len(x_t),), t))
        return logits.log_softmax(dim=1)

    def probabilities(self, x_t: Tensor, t: float, prior: Tensor | None = None) -> Tensor:
        """Noisy latents [B, C, H, W] at time t in 0..1 -> [B, K]; see `routers.router.Router`."""
        flat = torch.zeros(len(self.clusters))
        return posterior(self.log_likelihood(x_t, t), flat if prior is None else log_of(prior))


def router_shape(config: NetConfig, latent: LatentShape, clusters: int) -> RouterShape:
    """The shape of a published router, as this program's own routers have one.

    Raises:
        ConfigError: if it is larger than any router this program builds.
    """
    width = config.hidden_size // config.num_heads
    return RouterShape(
        config.num_heads, width, config.num_layers, config.patch_size, latent, clusters
    )


def build_router(
    config: NetConfig, latent: LatentShape, weights: Mapping[str, Tensor]
) -> RouterNet:
    """A published router as a module, in float32 and in evaluation mode.

    Args:
        config: of the router, completed by `sized_router`.
        latent: channels, height, width.
        weights: named and shaped as `router_shapes` says, of any float type.

    Raises:
        ConfigError: if it is larger than any router this program builds.
    """
    shape = router_shape(config, latent, len(weights["head.4.bias"]))
    with torch.device("meta"):
        net = RouterNet(shape)
    floats = {name: tensor.float() for name, tensor in weights.items()}
    net.load_state_dict(floats, assign=True)
    return net.eval().requires_grad_(False)


def sized_router(config: NetConfig, tensors: Mapping[str, TensorSpec]) -> NetConfig:
    """A router's config with what it leaves out read off the shapes of its tensors.

    What cannot be read off stays as it was: `check_net` then names the tensor that is missing.
    """
    cls, patches = tensors.get("cls_token"), tensors.get("patch_embed.weight")
    width = config.hidden_size or (cls.shape[-1] if cls and cls.shape else 0)
    is_kernel = patches is not None and len(patches.shape) == 4
    return replace(
        config,
        hidden_size=width,
        num_layers=config.num_layers or _layers(tensors),
        num_heads=config.num_heads or max(1, width // ROUTER_HEAD_WIDTH),
        patch_size=config.patch_size or (patches.shape[2] if patches and is_kernel else 0),
        in_channels=config.in_channels or (patches.shape[1] if patches and is_kernel else 0),
    )


def _layers(tensors: Mapping[str, TensorSpec]) -> int:
    numbers = [re.match(r"layers\.(\d{1,4})\.", name) for name in tensors]
    return max((int(found[1]) + 1 for found in numbers if found), default=0)
