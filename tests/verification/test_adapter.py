"""Weights as integers: where their salt goes, and the bytes they are delivered in."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.proofs import NARROW, SEED, SQUARE, WIDE, layer
from verification.adapter import (
    DELIVERY_MAGIC,
    MAX_MODULES,
    QuantisedModule,
    delivery_size,
    pack_delivery,
    salted,
    unpack_delivery,
)
from verification.circuit import Shape
from verification.errors import DeliveryError, StatementError

MODULES = (layer("q", SQUARE), layer("k", NARROW), layer("v", WIDE))
NAMED = [(module.name, module.shape) for module in MODULES]
DELIVERY = pack_delivery(SEED, MODULES)


def test_delivery_comes_back_as_it_was() -> None:
    assert len(DELIVERY) == delivery_size([shape for _, shape in NAMED])
    seed, modules = unpack_delivery(DELIVERY, NAMED)
    assert seed == SEED
    for found, sent in zip(modules, MODULES, strict=True):
        assert found.name == sent.name
        assert (found.a == sent.a).all()
        assert (found.b == sent.b).all()


def test_delivery_is_little_endian_row_by_row() -> None:
    a, b = np.array([[1, -2], [3, 4], [0x1234, 6]], np.int16), np.array([[7, 8, 9]] * 2, np.int16)
    data = pack_delivery(SEED, [QuantisedModule("m", a, b)])
    assert data[
        len(DELIVERY_MAGIC) + 32 :
    ].hex() == "0100feff030004003412060007000800090007000800" + ("0900")


@pytest.mark.parametrize("change", [-1, 1, -len(DELIVERY), 1000])
def test_delivery_of_another_size_is_refused(change: int) -> None:
    data = DELIVERY[:change] if change < 0 else DELIVERY + bytes(change)
    with pytest.raises(DeliveryError, match=f"got {len(data)} bytes .* expected {len(DELIVERY)}"):
        unpack_delivery(data, NAMED)


def test_delivery_of_other_modules_is_refused() -> None:
    with pytest.raises(DeliveryError, match="expected"):
        unpack_delivery(DELIVERY, NAMED[:2])


def test_delivery_that_begins_otherwise_is_refused() -> None:
    for at in range(len(DELIVERY_MAGIC)):
        data = bytearray(DELIVERY)
        data[at] ^= 1
        with pytest.raises(DeliveryError, match=f"beginning {DELIVERY_MAGIC[:8].hex()}"):
            unpack_delivery(bytes(data), NAMED)


def test_number_of_modules_is_limited_on_both_sides() -> None:
    least = ("m", Shape(1, 1, 1))
    data = DELIVERY_MAGIC + bytes(32 + 4 * MAX_MODULES)
    assert len(unpack_delivery(data, [least] * MAX_MODULES)[1]) == MAX_MODULES
    with pytest.raises(DeliveryError, match="1025 modules"):
        unpack_delivery(data + bytes(4), [least] * (MAX_MODULES + 1))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_salt_seed_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(StatementError, match=f"got {size} bytes, expected 32"):
        pack_delivery(bytes(size), MODULES)
    with pytest.raises(StatementError, match=f"got {size} bytes, expected 32"):
        salted(MODULES[0], bytes(size))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.shape))
def test_weights_keep_their_order_among_the_salt(module: QuantisedModule) -> None:
    mixed = salted(module, SEED)
    rows, columns = (np.array(marks) for marks in mixed.circuit.is_salt())
    assert (mixed.a[~rows] == module.a).all()
    assert (mixed.b[:, ~columns] == module.b).all()
    assert len(mixed.message()) == module.shape.rank * (len(rows) + len(columns))
    assert mixed.message()[: module.shape.rank] == mixed.a[0].tolist()


def salt_of(module: QuantisedModule, seed: bytes) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    mixed = salted(module, seed)
    rows, columns = (np.array(marks) for marks in mixed.circuit.is_salt())
    return np.concatenate([mixed.a[rows].ravel(), mixed.b[:, columns].ravel()])


def test_salt_is_of_24_bits_and_uniform() -> None:
    salt = salt_of(layer("v", WIDE), SEED).astype(float)
    assert -(2**23) <= salt.min() < -0.95 * 2**23
    assert 0.95 * 2**23 < salt.max() < 2**23
    assert len(np.unique(salt)) > 0.99 * len(salt)
    assert abs(salt.mean()) < 4 * 2**24 / np.sqrt(12 * len(salt))


def test_salt_is_exact_where_the_model_carries_it() -> None:
    for extreme in (-(2**23), 2**23 - 1):
        assert np.float32(extreme / 4096) * 4096 == extreme


def test_salt_depends_on_seed_and_name_and_not_on_the_weights() -> None:
    salt = salt_of(layer("q"), SEED)
    assert (salt == salt_of(layer("q", draw=5), SEED)).all()
    assert not (salt == salt_of(layer("k"), SEED)).any()
    assert not (salt == salt_of(layer("q"), bytes(32))).any()


def test_salt_is_the_same_for_good() -> None:
    digest = hashlib.sha256(salt_of(layer("q"), SEED).astype("<i4").tobytes()).hexdigest()
    assert digest == "450af73c3fff5dc11067795294e3228337e458d060f7b18fe314a5b2f984eba6"


def test_module_of_other_integers_or_shapes_is_refused() -> None:
    a, b = layer().a, layer().b
    with pytest.raises(StatementError, match="int32 and int16, not int16"):
        QuantisedModule("m", a.astype(np.int32), b)
    with pytest.raises(StatementError, match="int16 and float64, not int16"):
        QuantisedModule("m", a, b.astype(float))
    with pytest.raises(StatementError, match="do not meet"):
        QuantisedModule("m", a, b[:3])
    with pytest.raises(StatementError, match="do not meet"):
        QuantisedModule("m", a, b[0])


@settings(max_examples=20)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_delivery_or_refused(data: bytes) -> None:
    with pytest.raises(DeliveryError):
        unpack_delivery(data, NAMED)
