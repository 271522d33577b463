"""The published nets, computed by this program, against reference nets written in the test."""

from pathlib import Path

import pytest
import torch

from tests.support.paris_folder import CHANNELS, SIDE, TEXT, FakeParis, write_paris
from training.exchange.paris_model import read_layout
from training.exchange.paris_net import expert_to_pixart


@pytest.fixture(scope="module")
def paris(tmp_path_factory: pytest.TempPathFactory) -> FakeParis:
    return write_paris(tmp_path_factory.mktemp("paris") / "model")


def test_expert_gives_the_velocities_of_the_published_net(paris: FakeParis) -> None:
    layout = read_layout(paris.folder)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, CHANNELS, SIDE, SIDE, generator=generator)
    text = torch.randn(3, 7, TEXT, generator=generator)
    t = torch.tensor([0.04, 0.5, 1.0])
    for number, reference in enumerate(paris.experts):
        with torch.no_grad():
            expected = reference(x, t * 1000, text)
        found = layout.load_expert(number).velocity(x, t, text, torch.ones(3, 7))
        assert expected.std() > 0.1  # the reference does depend on its input
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_router_gives_the_probabilities_of_the_published_router(paris: FakeParis) -> None:
    router = read_layout(paris.folder).load_router()
    x = torch.randn(4, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    for t in (1.0, 0.63, 0.02):
        with torch.no_grad():
            expected = paris.router(x, torch.full((4,), t * 1000)).softmax(dim=1)
        assert expected.std() > 0.01
        torch.testing.assert_close(router.probabilities(x, t), expected, rtol=0, atol=1e-5)


def test_every_number_of_an_expert_is_kept_bit_for_bit(paris: FakeParis) -> None:
    weights = paris.experts[0].state_dict()
    mapped = expert_to_pixart(weights)
    net = read_layout(paris.folder).load_expert(0).net
    loaded = net.state_dict()
    assert mapped.keys() == loaded.keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in mapped.items())
    assert sum(tensor.numel() for tensor in mapped.values()) == sum(
        tensor.numel() for tensor in weights.values()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_computed_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    paris = write_paris(tmp_path / "model", clusters=1)
    expert = paris.experts[0].to(dtype)
    file = tmp_path / "model" / "expert_0" / "diffusion_pytorch_model.safetensors"
    save_file(expert.state_dict(), file)
    x, text = torch.randn(1, CHANNELS, SIDE, SIDE), torch.randn(1, 2, TEXT)
    with torch.no_grad():
        expected = expert.float()(x, torch.tensor([500.0]), text)
    found = read_layout(tmp_path / "model").load_expert(0)
    velocity = found.velocity(x, torch.tensor([0.5]), text, torch.ones(1, 2))
    torch.testing.assert_close(velocity, expected, rtol=0, atol=1e-5)
