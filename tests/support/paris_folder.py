"""A tiny folder in the published Paris layout, with reference nets written from its architecture.

Plain torch modules whose state dicts have the published names; nothing of the program is used, so
that what the importer computes can be compared with them.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

WIDTH, LAYERS, HEADS, PATCH = 24, 2, 3, 2
ROUTER_WIDTH, ROUTER_LAYERS, ROUTER_HEADS = 16, 2, 2
SIDE, CHANNELS, TEXT = 8, 4, 20
TOKENS = (SIDE // PATCH) ** 2


class Time(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        rates = torch.exp(-math.log(10000) * torch.arange(128) / 128)
        angles = t[:, None] * rates[None]
        waves: Tensor = self.mlp(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))
        return waves


def hidden_layer(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
    )


def normal(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],))


class ExpertBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, WIDTH) * 0.3)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = hidden_layer(WIDTH)

    def forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table[None] + time).chunk(
            6, dim=1
        )
        h = normal(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attn(h, h, h)[0]
        x = x + self.cross_attn(x, text, text)[0]
        hidden: Tensor = self.mlp(normal(x) * (1 + scale2) + shift2)
        return x + gate2 * hidden


class ExpertHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, PATCH * PATCH * CHANNELS)
        self.scale_shift_table = nn.Parameter(torch.randn(2, WIDTH) * 0.3)


class ReferenceExpert(nn.Module):
    """v(x_t, t, text): [B, 4, 8, 8], [B] in 0..1000, [B, L, text] -> [B, 4, 8, 8]."""

    def __init__(self, text: int = TEXT) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH)
        self.pos_embed = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.time_embed = Time(WIDTH)
        self.text_proj = nn.Linear(text, WIDTH)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        self.layers = nn.ModuleList(ExpertBlock() for _ in range(LAYERS))
        self.final_layer = ExpertHead()

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        time = self.time_embed(t)
        modulation = self.t_block(time).reshape(len(x), 6, WIDTH)
        states = self.text_proj(text)
        for layer in self.layers:
            tokens = layer(tokens, modulation, states)
        table = self.final_layer.scale_shift_table
        shift, scale = (table[None] + time[:, None]).chunk(2, dim=1)
        tokens = self.final_layer.linear(normal(tokens) * (1 + scale) + shift)
        grid = SIDE // PATCH
        patches = tokens.reshape(len(x), grid, grid, PATCH, PATCH, CHANNELS)
        return torch.einsum("nhwpqc->nchpwq", patches).reshape(len(x), CHANNELS, SIDE, SIDE)


class RouterBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = ROUTER_WIDTH
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.attn = nn.MultiheadAttention(width, ROUTER_HEADS, batch_first=True)
        self.mlp = hidden_layer(width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        modulation: Tensor = self.adaLN_modulation(time)
        parts = modulation.reshape(len(x), 6, ROUTER_WIDTH).chunk(6, dim=1)
        h = normal(x) * (1 + parts[1]) + parts[0]
        x = x + parts[2] * self.attn(h, h, h)[0]
        hidden: Tensor = self.mlp(normal(x) * (1 + parts[4]) + parts[3])
        return x + parts[5] * hidden


class ReferenceRouter(nn.Module):
    """Logits of K clusters: [B, 4, 8, 8], [B] in 0..1000 -> [B, K]."""

    def __init__(self, clusters: int) -> None:
        super().__init__()
        width = ROUTER_WIDTH
        self.patch_embed = nn.Conv2d(CHANNELS, width, PATCH, PATCH)
        self.pos_embed = nn.Parameter(torch.randn(1, TOKENS, width))
        self.time_embed = Time(width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.layers = nn.ModuleList(RouterBlock() for _ in range(ROUTER_LAYERS))
        self.head = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(approximate="tanh"),
            nn.LayerNorm(width),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, clusters),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        time = self.time_embed(t)
        for layer in self.layers:
            tokens = layer(tokens, time)
        logits: Tensor = self.head(tokens[:, 0])
        return logits


@dataclass(frozen=True, slots=True, eq=False)
class FakeParis:
    folder: Path
    experts: list[ReferenceExpert]
    router: ReferenceRouter


def write_paris(folder: Path, clusters: int = 3, seed: int = 0, text: int = TEXT) -> FakeParis:
    """A whole folder: K experts, router, configs as published; no vae, text encoder, tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        experts = [ReferenceExpert(text).eval() for _ in range(clusters)]
        router = ReferenceRouter(clusters).eval()
    folder.mkdir(parents=True)
    names = {"vae_name": "stabilityai/sd-vae-ft-mse"}
    names["text_encoder_name"] = "openai/clip-vit-large-patch14"
    shared: dict[str, Any] = {
        "num_experts": clusters, "expert_architecture": "dit",
        "router_architecture": "dit", **names,
    }  # fmt: skip
    top = {
        "model_name": "Tiny Paris", "experiment_name": "tiny", "dataset_name": "made up",
        "image_size": SIDE, "num_channels": CHANNELS, "use_latents": True, **shared,
    }  # fmt: skip
    write_json(folder / "config.json", top)
    index = {"_class_name": "DDMPipeline", "_diffusers_version": "0.21.0", **shared}
    index["vae"] = ["diffusers", "AutoencoderKL"]
    index["text_encoder"] = ["transformers", "CLIPTextModel"]
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    write_json(folder / "model_index.json", index)
    for number, expert in enumerate(experts):
        place = folder / f"expert_{number}"
        place.mkdir()
        write_json(place / "config.json", expert_config(number) | {"text_embed_dim": text})
        head = {"_class_name": "DiTExpert", "_diffusers_version": "0.21.0", "expert_id": number}
        write_json(place / "model_index.json", head)
        save_file(expert.state_dict(), place / "diffusion_pytorch_model.safetensors")
    (folder / "router").mkdir()
    sizes = {"hidden_size": ROUTER_WIDTH, "num_heads": ROUTER_HEADS, "num_experts": clusters}
    write_json(folder / "router" / "config.json", {"architecture": "dit", **sizes})
    save_file(router.state_dict(), folder / "router" / "pytorch_model.safetensors")
    return FakeParis(folder, experts, router)


def expert_config(number: int) -> dict[str, Any]:
    return {
        "model_type": "dit_expert", "expert_id": number, "architecture": "dit",
        "hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "patch_size": PATCH,
        "in_channels": CHANNELS, "out_channels": CHANNELS, "mlp_ratio": 4.0,
        "use_text_conditioning": True, "use_class_conditioning": False, "num_classes": 1000,
        "text_embed_dim": TEXT, "use_dit_time_embed": True, "use_adaln_single": True,
        "cfg_dropout_prob": 0.1,
    }  # fmt: skip


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))


def change_json(path: Path, **changes: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})
