"""An adapter's integers as raw bytes."""

import numpy as np
import pytest

from training.errors import LoraError
from training.lora.arrays import ModuleArrays, arrays_size, pack_arrays, unpack_arrays
from training.lora.layers import ModuleShape

LAYERS = (ModuleShape("first", 3, 2), ModuleShape("second", 2, 4))
RANK = 2


def some_arrays() -> dict[str, ModuleArrays]:
    generator = np.random.default_rng(3)
    return {
        layer.name: (
            generator.integers(-32768, 32768, (layer.in_features, RANK)).astype(np.int16),
            generator.integers(-32768, 32768, (RANK, layer.out_features)).astype(np.int16),
        )
        for layer in LAYERS
    }


def test_raw_form_is_a_then_b_of_each_layer_row_by_row_little_endian() -> None:
    arrays = {
        "first": (np.arange(6, dtype=np.int16).reshape(3, 2), np.full((2, 2), 256, np.int16)),
        "second": (np.full((2, 2), -1, np.int16), np.zeros((2, 4), np.int16)),
    }
    expected = bytes([0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0]) + b"\x00\x01" * 4
    assert pack_arrays(LAYERS, arrays) == expected + b"\xff" * 8 + bytes(16)


def test_what_is_packed_is_unpacked() -> None:
    arrays = some_arrays()
    data = pack_arrays(LAYERS, arrays)
    assert len(data) == arrays_size(LAYERS, RANK)
    found = unpack_arrays(data, LAYERS, RANK)
    assert list(found) == ["first", "second"]
    for name, (a, b) in arrays.items():
        assert found[name][0].dtype == found[name][1].dtype == np.int16
        assert np.array_equal(found[name][0], a)
        assert np.array_equal(found[name][1], b)


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data + b"\x00"])
def test_another_number_of_bytes_is_refused(spoil: object) -> None:
    data = spoil(pack_arrays(LAYERS, some_arrays()))  # type: ignore[operator]
    with pytest.raises(LoraError, match="2 layers of rank 2 have 44"):
        unpack_arrays(data, LAYERS, RANK)
