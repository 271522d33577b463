from dataclasses import replace

import pytest
import torch

from training.errors import ConfigError
from training.exchange.paris_layout import NetConfig
from training.exchange.paris_net import router_shapes
from training.routers.router_net import (
    MAX_LAYERS,
    ROUTER_PRESETS,
    RouterShape,
    build_router_net,
    default_preset,
    router_shape,
)
from training.tensors import spec_of

LATENT = (16, 4, 4)


def small(**changes: object) -> RouterShape:
    shape = RouterShape(2, 8, 2, 2, (3, 4, 6), 5)
    return replace(shape, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("preset", "latent", "millions"),
    [("tiny/1", LATENT, 0.2517), ("tiny/2", (4, 32, 32), 0.993), ("B/2", (4, 32, 32), 129.1)],
)
def test_presets_have_the_parameters_that_the_papers_name(
    preset: str, latent: tuple[int, int, int], millions: float
) -> None:
    count = router_shape(latent, 8, preset).parameters()
    assert count / 1e6 == pytest.approx(millions, rel=1e-3)


def test_papers_router_is_a_dit_b_2_with_a_cls_token() -> None:
    shape = router_shape((4, 32, 32), 8, "B/2")
    schema = shape.schema()
    assert (shape.width, shape.layers, shape.patches) == (768, 12, 256)
    assert schema["pos_embed"].shape == (1, 256, 768)
    assert schema["cls_token"].shape == (1, 1, 768)
    assert schema["patch_embed.weight"].shape == (768, 4, 2, 2)
    assert schema["head.4.weight"].shape == (8, 768)
    assert schema["layers.11.adaLN_modulation.1.weight"].shape == (6 * 768, 768)


def test_published_router_is_a_state_of_this_net() -> None:
    shape = router_shape((4, 8, 8), 3, "S/2")
    config = NetConfig(
        hidden_size=shape.width, num_layers=12, num_heads=6, patch_size=2, in_channels=4
    )
    assert {n: s.shape for n, s in shape.schema().items()} == router_shapes(config, (4, 8, 8), 3)


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("is_learned", [True, False])
def test_net_of_any_pieces_has_the_tensors_of_its_schema_and_a_logit_per_cluster(
    has_cls: bool, is_learned: bool
) -> None:
    shape = small(has_cls_token=has_cls, has_learned_positions=is_learned)
    net = build_router_net(shape, seed=0)
    assert shape.schema() == {name: spec_of(value) for name, value in net.state_dict().items()}
    assert ("cls_token" in shape.schema()) == has_cls
    assert ("pos_embed" in shape.schema()) == is_learned
    assert net(torch.randn(7, 3, 4, 6), torch.rand(7)).shape == (7, 5)


def test_fresh_nets_of_one_seed_are_equal_and_leave_the_callers_draws_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (build_router_net(small(), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.cls_token, same.cls_token)
    assert not torch.equal(one.cls_token, other.cls_token)


@pytest.mark.parametrize("is_learned", [True, False])
def test_trained_net_tells_places_and_times_apart(is_learned: bool) -> None:
    net = build_router_net(small(has_learned_positions=is_learned), seed=0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    x_t = torch.randn(1, 3, 4, 6)
    here = net(x_t, torch.tensor([0.5]))
    assert not torch.allclose(here, net(x_t.flip(3), torch.tensor([0.5])), atol=1e-3)
    assert not torch.allclose(here, net(x_t, torch.tensor([0.9])), atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size": 4},
        {"heads": 0},
        {"layers": MAX_LAYERS + 1},
        {"head_dim": 4096},
        {"head_dim": 3},
        {"clusters": 0},
        {"latent": (3, 4, 0)},
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="router"):
        small(**changes)


def test_unknown_preset_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="tiny/1, tiny/2, S/2, B/2"):
        router_shape(LATENT, 4, "huge")


@pytest.mark.parametrize(
    ("latent", "preset"), [((16, 4, 4), "tiny/1"), ((16, 9, 9), "tiny/1"), ((4, 32, 32), "tiny/2")]
)
def test_default_preset_fits_the_grid(latent: tuple[int, int, int], preset: str) -> None:
    assert default_preset(latent) == preset
    assert router_shape(latent, 2).patch_size == ROUTER_PRESETS[preset].patch_size
