"""Singular pairs of a gradient, and what they foretell of an adapter that is not seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.lora_jobs import base, bases, few_draws, learned, rows
from training.errors import DivergedError
from training.experts import gradients
from training.experts.loaded import Expert
from training.experts.nets import predict
from training.lora.arrays import Arrays
from training.lora.files import LoraInfo, read_lora
from training.lora.layers import ModuleShape
from training.lora.losses import probe_loss, with_weights
from training.lora.pairs import (
    MAX_ENTRY,
    Pairs,
    probe_gradients,
    probe_pairs,
    weight_norms,
)
from training.lora.probe import Probe, read_probe
from training.lora.quantised import dequantise, quantise
from training.run import Run

__all__ = ["base", "bases", "few_draws", "learned", "rows"]


def matrix(rows: int, columns: int) -> Tensor:
    """One whose singular values fall off, as a gradient's do."""
    generator = torch.Generator().manual_seed(2)
    left = torch.linalg.qr(torch.randn(rows, 6, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, 6, generator=generator)).Q
    values = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
    return torch.einsum("ik,k,jk->ij", left, values, right)


@pytest.mark.parametrize(("rows", "columns"), [(24, 40), (40, 24)])
def test_pairs_are_the_largest_singular_ones_as_integers(rows: int, columns: int) -> None:
    gradient = matrix(rows, columns)
    found = probe_pairs(gradient, 3)
    assert [pair.sigma for pair in found.pairs] == pytest.approx([8, 4, 2], rel=1e-5)
    for pair in found.pairs:
        assert pair.inputs.dtype == pair.outputs.dtype == np.int16
        assert (pair.inputs.shape, pair.outputs.shape) == ((columns,), (rows,))
        assert np.abs(pair.inputs).max() == np.abs(pair.outputs).max() == MAX_ENTRY
        left, right = pair.outputs.astype(float), pair.inputs.astype(float)
        along = left @ gradient.double().numpy() @ right
        assert along / np.linalg.norm(left) / np.linalg.norm(right) == pytest.approx(
            pair.sigma, rel=1e-4
        )


def test_captured_is_the_part_of_the_squared_norm_and_grows_with_the_pairs() -> None:
    captured = [probe_pairs(matrix(24, 40), count).captured for count in (1, 2, 3, 4, 24)]
    whole = sum(4.0**k for k in range(-2, 4))
    assert captured == pytest.approx([64 / whole, 80 / whole, 84 / whole, 85 / whole, 1])
    assert max(captured) <= 1


def test_predicted_change_is_exact_where_the_pairs_hold_all() -> None:
    gradient = matrix(24, 40)
    generator = np.random.default_rng(4)
    a = generator.integers(-900, 900, (40, 2)).astype(np.int16)
    b = generator.integers(-900, 900, (2, 24)).astype(np.int16)
    change = torch.from_numpy(((a / 4096) @ (b / 4096)).T)
    expected = float((gradient.double() * change).sum())
    assert predicted(probe_pairs(gradient, 6), a, b) == pytest.approx(expected, rel=1e-3)


def test_gradient_of_nothing_foretells_nothing() -> None:
    found = probe_pairs(torch.zeros(24, 40), 2)
    assert [pair.weight for pair in found.pairs] == [0, 0]
    assert found.captured == 1


def test_no_more_pairs_are_given_than_there_are() -> None:
    assert len(probe_pairs(matrix(24, 40)[:2], 4).pairs) == 2


def test_pairs_neither_read_nor_change_torch_s_randomness() -> None:
    flat = torch.randn(60, 60, generator=torch.Generator().manual_seed(3))  # hard to tell apart
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = probe_pairs(flat, 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = probe_pairs(flat, 2)
    assert np.array_equal(first.pairs[1].inputs, second.pairs[1].inputs)


def predicted(found: Pairs, a: np.ndarray, b: np.ndarray) -> float:
    """From exact integers, as an adapter's owner proves them; scaling is left out."""
    a, b = a.astype(object), b.astype(object)
    values = (pair.inputs.astype(object) @ a @ b @ pair.outputs for pair in found.pairs)
    return sum(pair.weight * int(value) for pair, value in zip(found.pairs, values, strict=True))


class Asker:
    """Someone with a probe and a base, and an adapter that answers."""

    def __init__(
        self, base: Expert, run: Run, probe: Probe, layers: tuple[ModuleShape, ...]
    ) -> None:
        self.gradients = probe_gradients(base, run.text, probe.draws(), layers)

    def predict(self, info: LoraInfo, arrays: Arrays, pairs: int = 4) -> float:
        return info.scaling * sum(
            predicted(probe_pairs(gradient, pairs), *arrays[name])
            for name, gradient in self.gradients.items()
        )


@pytest.fixture(scope="module")
def asker(base: Expert, run: Run, learned: Path) -> Asker:
    info, _ = read_lora(learned)
    return Asker(base, run, read_probe(learned, run.facts.latent), info.modules)


@pytest.mark.slow
def test_predicted_change_is_the_true_one_for_a_small_step(
    base: Expert, run: Run, learned: Path, asker: Asker
) -> None:
    info, weights = read_lora(learned)
    arrays = quantise(info.shape, weights)
    draws = read_probe(learned, run.facts.latent).draws()
    small = with_weights(base, info.shape, dequantise(info.shape, arrays), 0.05 * info.scaling)
    true = probe_loss(small, run.text, draws) - probe_loss(base, run.text, draws)
    assert true < 0
    assert 0.05 * asker.predict(info, arrays) == pytest.approx(true, rel=0.2)


@pytest.mark.slow
def test_random_adapter_of_the_same_size_is_foretold_to_do_next_to_nothing(
    learned: Path, asker: Asker
) -> None:
    info, weights = read_lora(learned)
    generator = torch.Generator().manual_seed(0)
    real = asker.predict(info, quantise(info.shape, weights))
    for _ in range(3):
        random = {
            name: value.std() * torch.randn(value.shape, generator=generator)
            for name, value in weights.items()
        }
        assert abs(asker.predict(info, quantise(info.shape, random))) < 0.15 * abs(real)


@pytest.mark.slow
def test_gradient_is_that_of_the_probe_s_loss_itself(
    base: Expert, run: Run, learned: Path, asker: Asker
) -> None:
    """Against a difference quotient along one layer's gradient."""
    draws = read_probe(learned, run.facts.latent).draws()
    name = "transformer_blocks.1.attn1.to_v"
    gradient = asker.gradients[name]
    weight = base.net.get_parameter(f"{name}.weight")
    kept, step = weight.detach().clone(), 1e-2 / gradient.norm()
    losses = []
    for sign in (1, -1):
        weight.data.copy_(kept + sign * step * gradient)
        losses.append(probe_loss(base, run.text, draws))
    weight.data.copy_(kept)
    slope = (losses[0] - losses[1]) / float(2 * step)
    assert slope == pytest.approx(float(gradient.square().sum()), rel=0.02)


@pytest.mark.slow
def test_gradients_are_of_the_wanted_layers_alone_and_leave_the_base_frozen(
    base: Expert, run: Run, learned: Path
) -> None:
    info, _ = read_lora(learned)
    before = {name: tensor.clone() for name, tensor in base.net.state_dict().items()}
    draws = read_probe(learned, run.facts.latent).draws(8)
    found = probe_gradients(base, run.text, draws, info.modules[3:5])
    assert list(found) == [module.name for module in info.modules[3:5]]
    assert not any(parameter.requires_grad for parameter in base.net.parameters())
    assert all(parameter.grad is None for parameter in base.net.parameters())
    after = base.net.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.slow
def test_gradients_in_parts_that_fit_the_memory_are_the_same(
    base: Expert, run: Run, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, _ = read_lora(learned)
    draws = read_probe(learned, run.facts.latent).draws(8)
    whole = probe_gradients(base, run.text, draws, info.modules)
    monkeypatch.setattr("training.lora.pairs.fitting_part", lambda *asked: 3)
    parts = probe_gradients(base, run.text, draws, info.modules)
    for name, gradient in whole.items():
        assert torch.allclose(parts[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_gradients_that_are_not_finite_are_an_error(
    base: Expert, run: Run, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, _ = read_lora(learned)
    draws = read_probe(learned, run.facts.latent).draws(4)
    monkeypatch.setattr(gradients, "predict", lambda *asked: predict(*asked) * float("nan"))
    with pytest.raises(DivergedError, match="the loss is nan"):
        probe_gradients(base, run.text, draws, info.modules)


@pytest.mark.slow
def test_norms_are_those_of_the_base_s_weights(base: Expert, learned: Path) -> None:
    info, _ = read_lora(learned)
    norms = weight_norms(base.net, info.modules)
    assert list(norms) == [module.name for module in info.modules]
    name = info.modules[-1].name
    weight = base.net.get_parameter(f"{name}.weight")
    assert norms[name] == pytest.approx(float(weight.square().sum().sqrt()))
