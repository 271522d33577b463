"""Trained experts, loaded from published checkpoints and asked for velocities."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from training.experts.checkpoint import ExpertInfo, read_published
from training.experts.nets import build_net, predict
from training.flow import velocity_from_epsilon
from training.parts.text import TextStates
from training.run import Run


@dataclass(frozen=True, slots=True, eq=False)
class Expert:
    """A trained net that answers with velocities of the straight path, whatever it predicts.

    Args:
        net: in evaluation mode.
        objective: "fm" or "ddpm-eps".
        info: the published facts about it.
    """

    net: nn.Module
    objective: str
    info: ExpertInfo

    @torch.no_grad()
    def velocity(self, x_t: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """The velocity dx/dt at (x_t, t).

        Args:
            x_t: [B, C, H, W], latent units.
            t: [B], 0 is data, 1 is noise.
            states: [B, L, D] text token states.
            mask: [B, L], 1 for a token.

        Returns:
            [B, C, H, W], latent units per unit of t.
        """
        text = TextStates(states, mask)
        if self.objective == "fm":
            return predict(self.net, x_t, t, text)
        return velocity_from_epsilon(self._epsilon(text), x_t, t)

    def _epsilon(self, text: TextStates) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, s: predict(self.net, x, s, text)


def load_expert(folder: Path, run: Run | None = None, device: str = "cpu") -> Expert:
    """Read a published checkpoint folder, checked in every part, as an expert ready to answer.

    Args:
        folder: holds config.json, diffusion_pytorch_model.safetensors and expert.json.
        run: refuse an expert of another run, preset, codec or text encoder.
        device: where to answer.

    Raises:
        CheckpointError: incomplete, altered, or of another run; says which fact differs.
        TensorFileError: the weights file is malformed, of another shape, or holds NaN.
    """
    info, weights = read_published(folder, run)
    net = build_net(info.shape, seed=0)
    net.load_state_dict(weights)
    net.eval().requires_grad_(False)
    return Expert(net.to(device), info.objective, info)
