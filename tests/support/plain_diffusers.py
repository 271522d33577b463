"""Run as a program where paris-node cannot be imported: draws and asks with diffusers alone.

    plain_diffusers.py ASKED DRAWN QUESTIONS ANSWERS

ASKED and DRAWN are exported folders, one for velocities, one for pictures; QUESTIONS and ANSWERS
are safetensors files. The velocities are computed as the model card says.
"""

import json
import math
import sys
from pathlib import Path

for _package in ("training", "node", "p2p", "verification"):
    sys.modules[_package] = None  # type: ignore[assignment]  # importing one is an error now

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import (  # noqa: E402
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
)
from safetensors.torch import load_file, save_file  # noqa: E402


def main(folder: Path, drawn: Path, questions: Path, answers: Path) -> None:
    asked = load_file(questions)
    x, states, mask = asked["x"], asked["states"], asked["mask"]
    found: dict[str, torch.Tensor] = {}
    for place in sorted(folder.glob("expert_*")):
        net = PixArtTransformer2DModel.from_pretrained(place).eval()
        objective = json.loads((place / "expert.json").read_text())["objective"]
        for index, t in enumerate(asked["times"]):
            n, time = torch.tensor(1.0), t
            if objective == "ddpm-eps":
                n = torch.sqrt((1 - t) ** 2 + t**2)
                time = torch.atan2(t, 1 - t) * (2 / math.pi)
            with torch.no_grad():
                answer = net(
                    x / n,
                    encoder_hidden_states=states,
                    encoder_attention_mask=mask,
                    timestep=(1000 * time).expand(len(x)),
                ).sample
            if objective == "ddpm-eps":
                answer = answer - (x - t * answer) / (1 - t)
            found[f"{place.name}-{index}"] = answer
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 4, 4))
    found["sigmas"] = scheduler.sigmas.clone()
    pipe = DiffusionPipeline.from_pretrained(drawn, trust_remote_code=True)
    for routing in ("sticky", "top-2"):
        pictures = pipe(
            "A disc.", num_images_per_prompt=4, seed=3, routing=routing, output_type="pt"
        )
        found[routing] = (pictures.images * 255).round().to(torch.uint8)
    pipe("two bars of grey").images[0].save(answers.with_suffix(".png"))
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, answers)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
