import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.clusters import Cluster
from training.config import TrainConfig
from training.errors import DivergedError, TooLargeError
from training.experts.batches import Batch, Batches
from training.experts.gradients import Gradients, Objective, halved, is_out_of_memory
from training.experts.nets import NetShape, build_net
from training.parts.text import TextEncoder, TextStates
from training.run import Run

SHAPE = NetShape("fashion-tiny", (16, 2, 2), "minilm-l6")


class DoubleText:
    """The run's text encoder, its states in float64."""

    def __init__(self, inner: TextEncoder) -> None:
        self._inner = inner

    @property
    def dim(self) -> int:
        return self._inner.dim

    def encode(self, captions: Sequence[str]) -> TextStates:
        text = self._inner.encode(captions)
        return TextStates(text.states.double(), text.mask.double())


class Cramped(nn.Module):
    """A net on a device with room for a few samples at a time: beyond, memory runs out."""

    def __init__(self, net: nn.Module, room: int) -> None:
        super().__init__()
        self.net, self.room = net, room
        self.asked: list[int] = []

    def forward(self, x: Tensor, **conditions: Any) -> Any:
        self.asked.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(x)} GiB.")
        return self.net(x, **conditions)


def net64() -> nn.Module:
    """The preset's net in float64, with an output layer that passes gradients on."""
    net = build_net(SHAPE, seed=0).double().train()
    nn.init.normal_(
        net.get_parameter("proj_out.weight"), generator=torch.Generator().manual_seed(1)
    )
    return net


def batch64(count: int = 10) -> Batch:
    generator = torch.Generator().manual_seed(2)
    data, noise = torch.randn(2, count, 16, 2, 2, generator=generator, dtype=torch.float64)
    times = torch.rand(count, generator=generator, dtype=torch.float64)
    return Batch(
        data, noise, times, tuple(["a disc", "two bars on a disc", ""][i % 3] for i in range(count))
    )


def gradients_of(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("objective", ["fm", "ddpm-eps"])
@pytest.mark.parametrize("micro", [1, 3, 7])
def test_parts_of_a_batch_give_the_gradients_of_the_whole(
    run: Run, objective: str, micro: int
) -> None:
    text, batch, net = DoubleText(run.text), batch64(), net64()
    whole = Gradients(net, text, Objective(objective), len(batch)).fill(batch)
    expected = gradients_of(net)
    parts = Gradients(net, text, Objective(objective), micro).fill(batch)
    assert max(float(abs(p)) for p in map(torch.max, map(torch.abs, expected))) > 1e-3
    for got, wanted in zip(gradients_of(net), expected, strict=True):
        assert float((got - wanted).abs().max()) < 1e-12
    assert parts.mean == pytest.approx(whole.mean, abs=1e-12)
    assert parts.grad_norm == pytest.approx(whole.grad_norm, abs=1e-11)
    assert parts.each == pytest.approx(whole.each, abs=1e-12)


def test_batch_that_does_not_fit_is_halved_until_it_does_and_stays_so(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    text, batch = DoubleText(run.text), batch64(10)
    roomy, cramped = net64(), Cramped(net64(), room=3)
    Gradients(roomy, text, Objective(), 10).fill(batch)
    gradients = Gradients(cramped, text, Objective(), 10)
    with caplog.at_level(logging.INFO):
        gradients.fill(batch)
    assert gradients.micro_batch == 3
    assert "3 samples at a time, not 5" in caplog.text
    assert cramped.asked == [10, 5, 3, 3, 3, 1]
    for got, wanted in zip(gradients_of(cramped), gradients_of(roomy), strict=True):
        assert float((got - wanted).abs().max()) < 1e-12
    gradients.fill(batch)
    assert cramped.asked[6:] == [3, 3, 3, 1]  # the size that was found is not lost


def test_memory_that_runs_out_in_the_middle_of_a_batch_leaves_no_trace(run: Run) -> None:
    text, batch = DoubleText(run.text), batch64(6)
    roomy, net = net64(), Cramped(net64(), room=6)
    Gradients(roomy, text, Objective(), 6).fill(batch)
    gradients = Gradients(net, text, Objective(), 3)
    handle = net.register_forward_pre_hook(
        lambda module, _: setattr(module, "room", 2 if len(net.asked) == 1 else net.room)
    )
    gradients.fill(batch)  # the first half went through before it happened
    handle.remove()
    assert net.asked == [3, 3, 2, 2, 2]
    for got, wanted in zip(gradients_of(net), gradients_of(roomy), strict=True):
        assert float((got - wanted).abs().max()) < 1e-12


def test_net_too_large_for_one_sample_is_refused_with_the_mend(run: Run) -> None:
    gradients = Gradients(Cramped(net64(), room=0), DoubleText(run.text), Objective(), 4)
    with pytest.raises(TooLargeError, match=r"one sample .* memory of cpu: .* smaller preset"):
        gradients.fill(batch64(4))


def test_other_errors_are_not_taken_for_a_lack_of_memory(run: Run) -> None:
    gradients = Gradients(net64(), run.text, Objective(), 4)  # float32 states meet a float64 net
    with pytest.raises(RuntimeError, match="dtype"):
        gradients.fill(batch64(4))
    assert gradients.micro_batch == 4


def test_lack_of_memory_is_known_by_what_torch_really_says() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_halving_ends_at_one() -> None:
    sizes = [33]
    while sizes[-1] > 1:
        sizes.append(halved(sizes[-1]))
    assert sizes == [33, 17, 9, 5, 3, 2, 1]


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_clipping_scales_gradients_down_to_the_norm_and_never_up(run: Run, share: float) -> None:
    text, batch, net = DoubleText(run.text), batch64(4), net64()
    free = Gradients(net, text, Objective(), 4).fill(batch)
    before = gradients_of(net)
    clipped = Gradients(net, text, Objective("fm", share * free.grad_norm), 4).fill(batch)
    scale = share if share == 0.5 else 1.0
    assert clipped.grad_norm == pytest.approx(free.grad_norm)
    for got, wanted in zip(gradients_of(net), before, strict=True):
        assert torch.allclose(got, scale * wanted, rtol=1e-12, atol=0)


def test_gradients_that_are_not_finite_are_refused_though_the_loss_is(run: Run) -> None:
    net, batch = net64(), batch64(4)
    net.get_parameter("proj_out.bias").register_hook(lambda grad: grad * float("nan"))  # type: ignore[no-untyped-call]
    with pytest.raises(DivergedError, match="norm of its gradients nan"):
        Gradients(net, DoubleText(run.text), Objective(), 4).fill(batch)


def test_frozen_parameters_get_no_gradient(run: Run) -> None:
    net = net64()
    net.requires_grad_(False).get_parameter("proj_out.weight").requires_grad_(True)
    found = Gradients(net, DoubleText(run.text), Objective(), 4).fill(batch64(4))
    grads = {name for name, p in net.named_parameters() if p.grad is not None}
    assert grads == {"proj_out.weight"}
    assert found.grad_norm == pytest.approx(
        float(net.get_parameter("proj_out.weight").grad.norm())  # type: ignore[union-attr]
    )


def test_batches_are_a_function_of_the_counters_alone(cluster: Cluster) -> None:
    config = TrainConfig(batch=5, caption_drop=0.5)
    first = Batches(cluster, config)
    taken = [first.take(5 * step, step) for step in range(12)]  # more than one pass over 24 rows
    again = Batches(cluster, config).take(5 * 9, 9)
    assert torch.equal(again.data, taken[9].data)
    assert torch.equal(again.noise, taken[9].noise)
    assert torch.equal(again.times, taken[9].times)
    assert again.captions == taken[9].captions
    assert {"", "a disc"} >= {c for b in taken for c in b.captions if c != "two bars"}
    seen = torch.cat([b.data for b in taken])[: len(cluster)]
    assert len(seen.unique(dim=0)) == len(cluster.latents().unique(dim=0))  # type: ignore[no-untyped-call]
