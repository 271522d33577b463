"""The loss on a probe: the same draws without an adapter and with it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.lora_jobs import SETTINGS, base, bases, few_draws, learned, rows
from training.errors import ProbeError, TooLargeError
from training.experts.gradients import Objective
from training.experts.loaded import Expert
from training.lora import losses
from training.lora import trainer as lora_trainer
from training.lora.files import read_lora
from training.lora.losses import fitting_part, mean_loss, probe_loss, probe_objective, with_weights
from training.lora.probe import read_probe
from training.lora.quantised import dequantise, quantise
from training.lora.settings import LoraRows
from training.run import Run

__all__ = ["base", "bases", "few_draws", "learned", "rows"]

pytestmark = pytest.mark.slow


def test_integers_cost_less_than_a_thousandth_of_what_the_adapter_gains(
    base: Expert, run: Run, learned: Path
) -> None:
    info, weights = read_lora(learned)
    draws = read_probe(learned, run.facts.latent).draws()
    sold = dequantise(info.shape, quantise(info.shape, weights))
    without = probe_loss(base, run.text, draws)
    trained, integers = (
        probe_loss(with_weights(base, info.shape, values, info.scaling), run.text, draws)
        for values in (weights, sold)
    )
    assert trained < 0.995 * without
    assert abs(integers - trained) < 1e-3 * (without - trained)


def test_loss_does_not_depend_on_how_many_draws_are_computed_at_a_time(
    base: Expert, run: Run, learned: Path
) -> None:
    draws = read_probe(learned, run.facts.latent).draws(20)
    whole, single = (
        mean_loss(base.net, run.text, draws, probe_objective(base), part) for part in (20, 3)
    )
    assert whole == pytest.approx(single, rel=1e-6)


def test_probe_is_measured_in_single_precision(base: Expert) -> None:
    """Whatever the machine trains in: others compute the loss again, on other machines."""
    assert probe_objective(base) == Objective(base.objective, precision="fp32")


def test_loss_that_is_not_finite_is_an_error(base: Expert, run: Run, learned: Path) -> None:
    draws = read_probe(learned, run.facts.latent).draws(4)
    with pytest.raises(ProbeError, match="the loss on the probe is nan"):
        probe_loss(base, run.text, replace(draws, data=draws.data * float("nan")))


def test_probe_beside_an_adapter_is_of_rows_it_never_saw(
    base: Expert, run: Run, rows: LoraRows, learned: Path
) -> None:
    probe = read_probe(learned, run.facts.latent)
    info, _ = read_lora(learned)
    assert len(probe) == info.held_out.rows == 6
    stored = {latent.numpy().tobytes() for latent in probe.latents}
    assert stored <= {latent.numpy().tobytes() for latent in rows.latents.float()}
    trainer = lora_trainer.LoraTrainer(base, run, rows, SETTINGS)
    seen = {rows.latents[i].float().numpy().tobytes() for i in trainer._trained.tolist()}
    assert not stored & seen


def test_no_more_than_so_many_rows_are_kept_as_a_probe(
    base: Expert, run: Run, rows: LoraRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_trainer, "PROBE_ROWS", 4)
    trainer = lora_trainer.LoraTrainer(base, run, rows, SETTINGS)
    probe = trainer.probe()
    assert len(probe) == 4
    assert torch.equal(probe.latents, rows.latents[trainer._held_out[:4]].float())


@pytest.mark.parametrize(("available", "part"), [(None, 32), (2**40, 32), (2**22, 4)])
def test_no_more_samples_are_computed_at_a_time_than_fit_the_memory(
    base: Expert, run: Run, monkeypatch: pytest.MonkeyPatch, available: int | None, part: int
) -> None:
    monkeypatch.setattr(losses, "available_bytes", lambda: available)
    monkeypatch.setattr(losses, "sample_bytes", lambda *asked: 2**19)
    assert fitting_part(base.net, base.info.latent, run.text.dim, 32) == part


def test_parameters_that_learn_count_as_memory(
    base: Expert, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "available_bytes", lambda: 2**20)
    monkeypatch.setattr(losses, "sample_bytes", lambda *asked: 1)
    learning = torch.nn.Linear(512, 512)  # a mebibyte, and three times that beside it
    with pytest.raises(TooLargeError):
        fitting_part(learning, base.info.latent, run.text.dim, 32)
