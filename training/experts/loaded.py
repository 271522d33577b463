"""Trained experts, loaded from published checkpoints and asked for velocities."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from training.errors import CheckpointError
from training.experts.checkpoint import GUIDE_FILE, ExpertInfo, Weights, read_guide, read_published
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
        guide: its earlier self, if that lies beside it.
    """

    net: nn.Module
    objective: str
    info: ExpertInfo
    guide: "Guide | None" = None

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


class Guide:
    """An expert's earlier self, read when it is first asked: most drawings do without.

    Args:
        folder: of the published checkpoint.
        info: the expert's.
        device: where to answer.
    """

    def __init__(self, folder: Path, info: ExpertInfo, device: str) -> None:
        self._folder, self._info, self._device = folder, info, device

    @property
    def objective(self) -> str:
        """The expert's."""
        return self._info.objective

    def velocity(self, x_t: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """As `Expert.velocity`.

        Raises:
            CheckpointError: its file was altered or has gone.
            TensorFileError: its file is malformed, of another shape, or holds NaN.
        """
        return self._expert.velocity(x_t, t, states, mask)

    @cached_property
    def _expert(self) -> Expert:
        weights = read_guide(self._folder, self._info)
        if weights is None:
            raise CheckpointError(f"{self._folder / GUIDE_FILE} has gone")
        whole = {name: value.float() for name, value in weights.items()}
        return Expert(_frozen(self._info, whole, self._device), self._info.objective, self._info)


def load_expert(folder: Path, run: Run | None = None, device: str = "cpu") -> Expert:
    """Read a published checkpoint folder, checked in every part, as an expert ready to answer.

    Args:
        folder: holds config.json, diffusion_pytorch_model.safetensors and expert.json, and
            guide.safetensors if the expert has an earlier self.
        run: refuse an expert of another run, preset, codec or text encoder.
        device: where to answer.

    Raises:
        CheckpointError: incomplete, altered, or of another run; says which fact differs.
        TensorFileError: the weights file is malformed, of another shape, or holds NaN.
    """
    info, weights = read_published(folder, run)
    has_guide = info.guide_digest and (folder / GUIDE_FILE).exists()
    guide = Guide(folder, info, device) if has_guide else None
    return Expert(_frozen(info, weights, device), info.objective, info, guide)


def _frozen(info: ExpertInfo, weights: Weights, device: str) -> nn.Module:
    net = build_net(info.shape, seed=0)
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False).to(device)
