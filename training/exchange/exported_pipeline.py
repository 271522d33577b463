"""The `pipeline.py` of an exported folder: draws with diffusers, transformers and torch alone.

Nothing of paris-node is imported, here or in this program by anyone: `exchange.export` copies this
file as it is, and whoever got the folder draws with

    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
    pipe("a sneaker", seed=7).images[0].save("sneaker.png")

Experts are read when they are first asked. What is computed is what paris-node computes: the same
prompt, seed, steps and guidance give the same picture up to rounding (if all experts predict
velocities; near noise, stand-ins for the others are weighed by paris-node with more care).
"""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, PixArtTransformer2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils import numpy_to_pil
from safetensors.torch import load_file

TIME_SCALE = 1000.0
FOCUS, LEAST, LEAST_OVERLAP, FREEZE_BELOW, NOISE_BELOW = 0.4, 1e-3, 0.5, 0.3, 0.85
ROUTINGS = ("sticky", "top-1", "top-2", "full-ensemble")
MAX_TOKENS = {"bert": 64, "clip_text_model": 77}

Tensor = torch.Tensor


class ParisPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Text to image with K experts that were trained apart.

    The scheduler is there for loops of one's own (see README.md); this class needs none.
    """

    _optional_components = ["text_encoder", "tokenizer", "vae"]  # noqa: RUF012  as diffusers has it

    def __init__(
        self,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        vae: Any = None,
        num_experts: int = 1,
        expert_architecture: str = "pixart",
        router_architecture: str = "",
        vae_name: str = "",
        text_encoder_name: str = "",
    ) -> None:
        super().__init__()
        self.register_to_config(
            num_experts=num_experts,
            expert_architecture=expert_architecture,
            router_architecture=router_architecture,
            vae_name=vae_name,
            text_encoder_name=text_encoder_name,
        )
        self.register_modules(
            scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer, vae=vae
        )
        self._experts: dict[int, Any] = {}
        self._notes: dict[str, Any] = {}

    @property
    def folder(self) -> Path:
        """Where the experts lie."""
        return Path(self.config._name_or_path)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        routing: str = "sticky",
        num_inference_steps: int = 10,
        guidance_scale: float = 4.0,
        output_type: str = "pil",
    ) -> Any:
        """Draw pictures of one prompt; picture i has the seed `seed + i`.

        Args:
            prompt: what to draw.
            num_images_per_prompt: how many.
            seed: of the first.
            routing: "sticky" draws one expert for each picture from p(k | prompt); the others
                choose at every step, from p(k | x_t, prompt), and need the router.
            num_inference_steps: evaluations, by two-step Adams-Bashforth.
            guidance_scale: weight of the prompt; 1 for none.
            output_type: "pil", or "pt" for a tensor [B, C, S, S] in 0..1.
        """
        if routing not in ROUTINGS:
            raise ValueError(f"routing is {routing!r}, expected one of {', '.join(ROUTINGS)}")
        seeds = [seed + i for i in range(num_images_per_prompt)]
        latent = self._json("run/run.json")["latent"]
        noise = [torch.randn(latent, generator=torch.Generator().manual_seed(s)) for s in seeds]
        x = torch.stack(noise).to(self.device)
        text = self._encode([prompt] if guidance_scale == 1 else [prompt, ""])
        prior = self._prior(prompt).repeat(len(seeds), 1)
        times = [1 - step / num_inference_steps for step in range(num_inference_steps + 1)]
        past, weights, before = torch.zeros_like(x), None, torch.zeros_like(prior)
        for t, following in pairwise(times):
            if weights is None or (routing != "sticky" and t >= FREEZE_BELOW):
                table = prior if routing == "sticky" else self._posterior(x, t, prior)
                weights = self._choose(table, routing, seeds)
            asked = self._able(weights, t)
            velocity = self._mixture(x, t, asked, text, guidance_scale)
            # A picture that other experts draw from now on starts anew: the old slope is not its.
            is_same = torch.minimum(asked, before).sum(dim=1)[:, None, None, None] >= LEAST_OVERLAP
            slope = torch.where(is_same.to(x.device), 1.5 * velocity - 0.5 * past, velocity)
            x, past, before = x + (following - t) * slope, velocity, asked
        pictures = self._decode(x)
        if output_type == "pt":
            return ImagePipelineOutput(images=pictures)
        return ImagePipelineOutput(images=numpy_to_pil(pictures.permute(0, 2, 3, 1).cpu().numpy()))

    @torch.no_grad()
    def velocity(
        self, k: int, x: Tensor, t: float, states: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Velocity dx/dt of expert k at x [B, C, H, W], t in 0..1 (1 is noise).

        A `ddpm-eps` expert predicts the noise of a variance-preserving path; here it is converted.
        """
        net = self._expert(k)
        if self._json(f"expert_{k}/expert.json")["objective"] == "fm":
            return _ask(net, x, t, states, mask)
        norm = math.sqrt((1 - t) ** 2 + t**2)
        noise = _ask(net, x / norm, math.atan2(t, 1 - t) * 2 / math.pi, states, mask)
        data = (x - t * noise) / max(1 - t, 1e-3)
        return noise - data

    def _mixture(
        self, x: Tensor, t: float, weights: Tensor, text: tuple[Tensor, Tensor], guidance: float
    ) -> Tensor:
        """The experts' velocities by their weights [B, K], each asked only for its pictures."""
        total = torch.zeros_like(x)
        states, mask = text
        for k in weights.sum(dim=0).nonzero().flatten().tolist():
            rows = weights[:, k].nonzero().flatten().to(x.device)
            doubled = torch.cat([x[rows]] * len(states))
            said = states.repeat_interleave(len(rows), dim=0)
            seen = mask.repeat_interleave(len(rows), dim=0)
            answers = self.velocity(k, doubled, t, said, seen).chunk(len(states))
            guided = answers[-1] + guidance * (answers[0] - answers[-1])
            answer = answers[0] if len(answers) == 1 else guided
            total[rows] += weights[rows.cpu(), k].to(x)[:, None, None, None] * answer
        return total

    def _able(self, weights: Tensor, t: float) -> Tensor:
        """Near noise a noise-predicting expert says nothing: the others take its part."""
        facts = [self._json(f"expert_{k}/expert.json") for k in range(weights.shape[1])]
        is_able = torch.tensor([f["objective"] == "fm" or t <= NOISE_BELOW for f in facts])
        if is_able.all() or not is_able.any():
            return weights
        kept = torch.where(is_able, weights, 0.0)
        kept = torch.where(kept.sum(1, keepdim=True) > 0, kept, is_able.double())
        return kept / kept.sum(1, keepdim=True)

    def _choose(self, table: Tensor, routing: str, seeds: Sequence[int]) -> Tensor:
        """Probabilities [B, K] -> weights [B, K]; rows sum to 1."""
        if routing == "sticky":
            least = (FOCUS * table.amax(dim=1, keepdim=True)).clamp_min(LEAST)
            edges = torch.where(table < least, 0.0, table).cumsum(dim=1)
            drawn = torch.tensor([_uniform(s) for s in seeds], dtype=torch.float64)
            chosen = torch.searchsorted(edges, drawn[:, None] * edges[:, -1:], right=True)
            return torch.nn.functional.one_hot(chosen[:, 0], table.shape[1]).double()
        count = {"top-1": 1, "top-2": 2}.get(routing, table.shape[1])
        largest = table.topk(min(count, table.shape[1]), dim=1)
        kept = torch.zeros_like(table).scatter(1, largest.indices, largest.values)
        kept = kept / kept.sum(1, keepdim=True)
        kept = torch.where(kept < LEAST, 0.0, kept)
        return kept / kept.sum(1, keepdim=True)

    def _prior(self, prompt: str) -> Tensor:
        """p(k | prompt) [1, K]: where the prompt, or the captions most like it, were seen."""
        found = self._json("run/captions.json")
        rows = torch.tensor(found["counts"], dtype=torch.float64).T
        table: dict[str, Tensor] = {}
        for caption, row in zip(found["captions"], rows, strict=True):
            table[_plain(caption)] = table.get(_plain(caption), torch.zeros_like(row)) + row
        table = {caption: row for caption, row in table.items() if row.sum() > 0}
        if _plain(prompt) in table:
            row = table[_plain(prompt)]
            return (row / row.sum())[None]
        known = sorted(table, key=lambda caption: -float(table[caption].sum()))[:500]
        if "known" not in self._notes:
            self._notes["known"] = torch.cat([self._embed(caption) for caption in known])
        cosines = self._notes["known"] @ self._embed(_plain(prompt))[0]
        nearest = cosines.topk(min(5, len(known)))
        votes = (nearest.values / 0.05).softmax(dim=0).double().cpu()
        voters = [table[known[i]] for i in nearest.indices.tolist()]
        mixed: Tensor = votes @ torch.stack([row / row.sum() for row in voters])
        return mixed[None]

    def _posterior(self, x: Tensor, t: float, prior: Tensor) -> Tensor:
        """p(k | x_t, prompt) [B, K] from each cluster's mixture of Gaussians, exact at every t."""
        flat, keep, columns = x.flatten(1).float().cpu(), 1 - t, []
        for k in range(prior.shape[1]):
            file = self.folder / "router" / f"summary_{k}.safetensors"
            if not file.is_file():
                raise ValueError(f"{file.name} is missing: only sticky routing can be had")
            part = self._notes.setdefault(str(file), load_file(file))
            away = flat[:, None] - keep * part["means"]
            along = torch.einsum("bgd,grd->bgr", away, part["eigenvectors"].float()).square()
            tail = keep**2 * part["tails"] + t**2
            spread = keep**2 * part["eigenvalues"] + t**2
            rest = (away.square().sum(-1) - along.sum(-1)) / tail + (along / spread).sum(-1)
            others = flat.shape[1] - spread.shape[1]
            volume = spread.log().sum(-1) + others * tail.log()
            columns.append((part["weights"].log() - 0.5 * (rest + volume)).logsumexp(dim=1))
        logits = torch.stack(columns, dim=1).double() + prior.clamp_min(1e-30).log()
        return logits.softmax(dim=1)

    def _encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token states [B, L, D] and their mask [B, L]; each caption is encoded by itself."""
        if self.text_encoder is None or self.tokenizer is None:
            name = self.config.text_encoder_name
            raise ValueError(f"pass text_encoder= and tokenizer= of {name} to from_pretrained")
        length = MAX_TOKENS.get(self.text_encoder.config.model_type, 64)
        rows = []
        for caption in captions:
            ids = self.tokenizer(caption, truncation=True, max_length=length).input_ids
            encoded = self.text_encoder(input_ids=torch.tensor([ids], device=self.device))
            rows.append(encoded.last_hidden_state[0])
        states = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=states.device)
        mask = torch.arange(states.shape[1], device=states.device)[None] < lengths[:, None]
        return states, mask.to(states.dtype)

    def _embed(self, caption: str) -> Tensor:
        states, _ = self._encode([caption])
        unit: Tensor = torch.nn.functional.normalize(states.sum(dim=1), dim=1)
        return unit

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents -> pictures [B, C, S, S] in 0..1."""
        if self.vae is not None:
            pictures: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor).sample
            return (pictures / 2 + 0.5).clamp(0, 1)
        file = self.folder / "vae" / "codec.safetensors"
        if not file.is_file():
            raise ValueError(f"pass vae= of {self.config.vae_name} to from_pretrained")
        decoder = load_file(file)["decoder"].float()
        latents = latents.float().cpu()
        count, channels, grid, _ = latents.shape
        near = torch.nn.functional.unfold(latents, kernel_size=3, padding=1)
        near = near.reshape(count, channels * 9, grid, grid).permute(0, 2, 3, 1)
        near = torch.cat([near, torch.ones(count, grid, grid, 1)], dim=-1)
        patches = torch.einsum("nijf,ijfp->nijp", near, decoder[_kinds(grid, len(decoder))])
        tiles = patches.reshape(count, grid, grid, -1, 8, 8).permute(0, 3, 1, 4, 2, 5)
        return tiles.reshape(count, -1, grid * 8, grid * 8).clamp(0, 1)

    def _expert(self, k: int) -> Any:
        if k not in self._experts:
            net = PixArtTransformer2DModel.from_pretrained(self.folder / f"expert_{k}")
            self._experts[k] = net.eval().requires_grad_(False)
        return self._experts[k].to(self.device)

    def _json(self, name: str) -> Any:
        if name not in self._notes:
            self._notes[name] = json.loads((self.folder / name).read_text())
        return self._notes[name]


def _ask(net: Any, x: Tensor, t: float, states: Tensor, mask: Tensor | None) -> Tensor:
    answer: Tensor = net(
        x,
        encoder_hidden_states=states,
        encoder_attention_mask=mask,
        timestep=torch.full((len(x),), t * TIME_SCALE, device=x.device),
    ).sample
    return answer


def _kinds(grid: int, decoders: int) -> Tensor:
    """Which decoder paints each position: one each, or on large grids one per kind of border."""
    if decoders == grid * grid:
        return torch.arange(decoders).reshape(grid, grid)
    line = torch.ones(grid, dtype=torch.int64)
    line[0], line[-1] = 0, 2
    return line[:, None] * 3 + line[None, :]


def _plain(caption: str) -> str:
    return " ".join(caption.lower().split()).rstrip(".!")


def _uniform(seed: int) -> float:
    """The number in [0, 1) with which a picture draws its expert."""
    return ((seed * 0x9E3779B97F4A7C15) % 2**64 >> 11) / 2**53
