"""Weights as integers and back, and the folder of an adapter that was bought."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training.errors import ConfigError, LoraError
from training.experts.nets import NetShape
from training.lora.files import HeldOutLoss, LoraBase, read_lora
from training.lora.layers import PROBE_FILES
from training.lora.modules import AdapterShape, fresh_weights, weight_names
from training.lora.probe import Probe, read_probe
from training.lora.quantised import LARGEST, Bought, dequantise, quantise, quantised_folder

SHAPE = AdapterShape(NetShape("fashion-tiny", (16, 2, 2), "minilm-l6"), "attention", 2)
FIRST = SHAPE.modules()[0]
NAME_A, NAME_B = weight_names(FIRST)
BOUGHT = Bought(
    base=LoraBase(
        "ab" * 32, "bafkbase", "cd" * 32, 1, "fm", "fashion-tiny", "minilm-l6", (16, 2, 2)
    ),
    targets="attention",
    rank=2,
    alpha=4.0,
    held_out=HeldOutLoss(6, 1.5, 0.5),
    seed=7,
    licence="CC0-1.0",
    offer="bafkoffer",
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(tensor.shape, generator=generator) / 3
        for name, tensor in fresh_weights(SHAPE, 0).items()
    }


def test_integers_are_the_nearest_and_lie_as_the_protocol_says(weights: dict[str, Tensor]) -> None:
    arrays = quantise(SHAPE, weights)
    assert list(arrays) == [module.name for module in SHAPE.modules()]
    a, b = arrays[FIRST.name]
    assert a.dtype == b.dtype == np.int16
    assert (a.shape, b.shape) == ((64, 2), (2, 64))
    assert np.abs(a - 4096 * weights[NAME_A].T.double().numpy()).max() <= 0.5
    assert np.abs(b - 4096 * weights[NAME_B].T.double().numpy()).max() <= 0.5


def test_weights_that_integers_stand_for_are_exact_and_stay_so(weights: dict[str, Tensor]) -> None:
    arrays = quantise(SHAPE, weights)
    found = dequantise(SHAPE, arrays)
    assert list(found) == list(SHAPE.schema())
    assert found[NAME_A].dtype == torch.float32
    assert np.array_equal(found[NAME_A].double().numpy() * 4096, arrays[FIRST.name][0].T)
    again = quantise(SHAPE, found)
    for name, (a, b) in arrays.items():
        assert np.array_equal(again[name][0], a)
        assert np.array_equal(again[name][1], b)


@pytest.mark.parametrize("sign", [1, -1])
def test_largest_weight_fits_and_the_next_does_not(weights: dict[str, Tensor], sign: int) -> None:
    edge = {**weights, NAME_B: torch.full_like(weights[NAME_B], sign * LARGEST / 4096)}
    assert quantise(SHAPE, edge)[FIRST.name][1][0, 0] == sign * LARGEST
    over = {**weights, NAME_B: torch.full_like(weights[NAME_B], sign * 8.0)}
    with pytest.raises(LoraError, match=f"{NAME_B} reaches 32768 / 4096"):
        quantise(SHAPE, over)


def test_nan_is_no_integer(weights: dict[str, Tensor]) -> None:
    with pytest.raises(LoraError, match=f"{NAME_A} reaches nan"):
        quantise(SHAPE, {**weights, NAME_A: torch.full_like(weights[NAME_A], float("nan"))})


def test_arrays_of_missing_and_unknown_layers_are_refused(weights: dict[str, Tensor]) -> None:
    arrays = quantise(SHAPE, weights)
    with pytest.raises(LoraError, match="layer stranger: expected those of 32 layers"):
        dequantise(SHAPE, {**arrays, "stranger": arrays[FIRST.name]})
    del arrays[FIRST.name]
    with pytest.raises(LoraError, match=f"layer {FIRST.name}"):
        dequantise(SHAPE, arrays)


@pytest.mark.parametrize("spoilt", [0, 1])
def test_arrays_of_another_shape_are_refused_by_the_layer_s_name(
    weights: dict[str, Tensor], spoilt: int
) -> None:
    arrays = quantise(SHAPE, weights)
    pair = list(arrays[FIRST.name])
    pair[spoilt] = pair[spoilt].T
    with pytest.raises(LoraError, match=f"layer {FIRST.name}: .* expected \\[64, 2\\]"):
        dequantise(SHAPE, {**arrays, FIRST.name: (pair[0], pair[1])})


def test_bought_folder_is_an_adapter_that_names_its_offer(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    arrays = quantise(SHAPE, weights)
    written = quantised_folder(tmp_path / "bought", BOUGHT, arrays)
    info, read = read_lora(tmp_path / "bought")
    assert info == written
    assert all(torch.equal(read[name], value) for name, value in dequantise(SHAPE, arrays).items())
    assert (info.offer, info.base, info.licence) == ("bafkoffer", BOUGHT.base, "CC0-1.0")
    assert (info.held_out, info.seed, info.scaling) == (BOUGHT.held_out, 7, 2.0)
    assert (info.samples, info.batch, info.rows, info.data) == (0, 0, 0, "")
    assert not any((tmp_path / "bought" / name).exists() for name in PROBE_FILES)


def test_bought_folder_keeps_the_offer_s_probe(weights: dict[str, Tensor], tmp_path: Path) -> None:
    probe = Probe(torch.ones(1, 16, 2, 2), ("a disc",), 7)
    quantised_folder(tmp_path / "bought", BOUGHT, quantise(SHAPE, weights), probe)
    assert read_probe(tmp_path / "bought", (16, 2, 2)).captions == ("a disc",)
    read_lora(tmp_path / "bought")


def test_integer_that_no_adapter_may_hold_is_not_written(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    arrays = quantise(SHAPE, weights)
    arrays[FIRST.name][0][0, 0] = -32768
    with pytest.raises(LoraError, match=f"{NAME_A} reaches 8"):
        quantised_folder(tmp_path / "bought", BOUGHT, arrays)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [({"alpha": 1e9}, "alpha"), ({"rank": 65}, "1..64"), ({"offer": "x" * 101}, "offer named in")],
)
def test_offer_that_cannot_be_is_not_written(
    weights: dict[str, Tensor], tmp_path: Path, change: dict[str, object], found: str
) -> None:
    bought = replace(BOUGHT, **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=found):
        quantised_folder(tmp_path / "bought", bought, quantise(SHAPE, weights))
    assert list(tmp_path.iterdir()) == []
