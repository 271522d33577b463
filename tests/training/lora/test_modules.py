"""Which layers an adapter changes, in every preset, without allocating one."""

import pytest
import torch

from training.config import PRESETS, ModelPreset
from training.errors import ConfigError
from training.experts.nets import NetShape, build_net
from training.lora.layers import FEED_FORWARD, TARGETS, ModuleShape
from training.lora.modules import (
    MAX_RANK,
    PREFIX,
    AdapterShape,
    adapted,
    adapter_parameters,
    fresh_weights,
)
from training.tensors import TensorSpec

TINY = NetShape("fashion-tiny", (16, 4, 4), "minilm-l6")


def net_shape(preset: str) -> NetShape:
    return NetShape(preset, (16, 4, 4), "minilm-l6")


def as_triples(modules: tuple[ModuleShape, ...]) -> dict[str, tuple[int, int]]:
    return {module.name: (module.in_features, module.out_features) for module in modules}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_attention_of_every_preset_is_q_k_v_and_out_twice_a_block(preset: str) -> None:
    width, layers = PRESETS[preset].width, PRESETS[preset].layers
    found = as_triples(AdapterShape(net_shape(preset), "attention", 4).modules())
    expected = {
        f"transformer_blocks.{layer}.{part}.{end}": (width, width)
        for layer in range(layers)
        for part in ("attn1", "attn2")
        for end in ("to_q", "to_k", "to_v", "to_out.0")
    }
    assert found == expected


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_feed_forward_of_every_preset_goes_four_wide_and_back(preset: str, rank: int) -> None:
    width, layers = PRESETS[preset].width, PRESETS[preset].layers
    shape = AdapterShape(net_shape(preset), "attention+ff", rank)
    found = as_triples(shape.modules())
    assert len(found) == 10 * layers
    for layer in range(layers):
        block = f"transformer_blocks.{layer}"
        assert found[f"{block}.{FEED_FORWARD[0]}"] == (width, 4 * width)
        assert found[f"{block}.{FEED_FORWARD[1]}"] == (4 * width, width)
    schema = shape.schema()
    assert len(schema) == 20 * layers
    first = f"{PREFIX}transformer_blocks.0.ff.net.0.proj"
    assert schema[f"{first}.lora_A.weight"] == TensorSpec("F32", (rank, width))
    assert schema[f"{first}.lora_B.weight"] == TensorSpec("F32", (4 * width, rank))


def test_largest_preset_has_the_shapes_that_proofs_are_made_for() -> None:
    found = set(as_triples(AdapterShape(net_shape("XL/2"), "attention+ff", 4).modules()).values())
    assert found == {(1152, 1152), (1152, 4608), (4608, 1152)}


@pytest.mark.parametrize("targets", list(TARGETS))
def test_names_and_shapes_are_those_that_peft_saves(targets: str) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    shape = AdapterShape(TINY, targets, 3)
    config = LoraConfig(r=3, target_modules=list(TARGETS[targets]))
    saved = get_peft_model_state_dict(get_peft_model(build_net(TINY, 0), config))
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == {
        name: spec.shape for name, spec in shape.schema().items()
    }


def test_fresh_weights_depend_on_the_seed_alone_and_change_nothing() -> None:
    shape = AdapterShape(TINY, "attention", 2)
    first, torch_state = fresh_weights(shape, 7), torch.get_rng_state()
    torch.manual_seed(1)
    again = fresh_weights(shape, 7)
    other = fresh_weights(shape, 8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    names_a = [name for name in first if ".lora_A." in name]
    assert not any(torch.equal(first[name], other[name]) for name in names_a)
    assert all(0.9 / 8 < float(first[name].abs().max()) <= 1 / 8 for name in names_a)
    assert not any(first[name].any() for name in first if ".lora_B." in name)
    torch.set_rng_state(torch_state)


def test_adapted_net_trains_the_adapter_alone() -> None:
    net = build_net(TINY, 0).requires_grad_(False)
    shape = AdapterShape(TINY, "attention+ff", 2)
    result = adapted(net, shape, fresh_weights(shape, 0), 1.0)
    trained = {id(p) for p in result.parameters() if p.requires_grad}
    assert trained == {id(p) for p in adapter_parameters(result, shape).values()}
    assert not any("lora" in name for name, _ in net.named_modules())


@pytest.mark.parametrize("rank", [0, MAX_RANK + 1])
def test_rank_out_of_range_is_refused(rank: int) -> None:
    with pytest.raises(ConfigError, match=f"1..64, got {rank}"):
        AdapterShape(TINY, "attention", rank)


def test_rank_above_a_layer_s_size_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PRESETS, "mini", ModelPreset("mini", 2, 8, layers=1, patch_size=1))
    AdapterShape(net_shape("mini"), "attention", 16)
    with pytest.raises(ConfigError, match=r"rank 17 exceeds layer transformer_blocks.0.attn1.to_q"):
        AdapterShape(net_shape("mini"), "attention", 17)


def test_unknown_targets_are_refused_naming_the_known() -> None:
    with pytest.raises(ConfigError, match=r"known: attention, attention\+ff"):
        AdapterShape(TINY, "all", 4)
