"""Adapters as integers: int16 at 2^-12, their salt, and the bytes in which they are delivered.

    delivery = magic, salt seed [32], then for each module A [in, r] and B [r, out], row by row,
               int16 little-endian

The salt is part of what was committed to, so its seed is delivered as well.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from verification.circuit import PARAM_SCALE, SALT_BITS, Circuit, Shape, circuit_of
from verification.digests import framed, text_bytes
from verification.errors import DeliveryError, StatementError

SALT_SEED_SIZE: Final = 32
DELIVERY_MAGIC: Final = b"paris-lora-1\n"
SCALE: Final = 2**PARAM_SCALE
"""Integers are weights times this."""
MAX_MODULES: Final = 1024

_SALT_DOMAIN: Final = b"paris/lora/salt/1"


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedModule:
    """A and B of one layer as integers.

    Attributes:
        name: the layer's.
        a: int16 [in, r].
        b: int16 [r, out].

    Raises:
        StatementError: other dtypes, or shapes that do not meet.
    """

    name: str
    a: NDArray[np.int16]
    b: NDArray[np.int16]

    def __post_init__(self) -> None:
        if self.a.dtype != np.int16 or self.b.dtype != np.int16:
            raise StatementError(f"{self.name}: got {self.a.dtype} and {self.b.dtype}, not int16")
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[1] != self.b.shape[0]:
            raise StatementError(f"{self.name}: A {self.a.shape} and B {self.b.shape} do not meet")

    @property
    def shape(self) -> Shape:
        """(in, r, out)."""
        return Shape(self.a.shape[0], self.a.shape[1], self.b.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class SaltedModule:
    """A and B with salt mixed in, as the circuit of their shape has them.

    Attributes:
        circuit: that circuit.
        a: int32 [in + salt, r].
        b: int32 [r, out + salt].
    """

    circuit: Circuit
    a: NDArray[np.int32]
    b: NDArray[np.int32]

    def message(self) -> list[int]:
        """What is committed to: A row by row, then B row by row."""
        flat: list[int] = [*self.a.ravel().tolist(), *self.b.ravel().tolist()]
        return flat


def salted(module: QuantisedModule, seed: bytes) -> SaltedModule:
    """Mix in the salt that a seed gives this module.

    Args:
        module: A and B.
        seed: 32 secret bytes, the same for all modules of an adapter.

    Raises:
        StatementError: a seed of another length, or a shape without a circuit.
    """
    if len(seed) != SALT_SEED_SIZE:
        raise StatementError(f"salt seed: got {len(seed)} bytes, expected {SALT_SEED_SIZE}")
    circuit = circuit_of(module.shape)
    rank = module.shape.rank
    count = rank * (circuit.salt_rows + circuit.salt_columns)
    drawn_from = framed((_SALT_DOMAIN, seed, text_bytes("module", module.name)))
    stream = hashlib.shake_256(drawn_from).digest(3 * count)
    parts = np.frombuffer(stream, np.uint8).reshape(-1, 3).astype(np.int32)
    salt = parts[:, 0] + (parts[:, 1] << 8) + (parts[:, 2] << 16) - 2 ** (SALT_BITS - 1)
    rows, columns = (np.array(marks) for marks in circuit.is_salt())
    a = np.empty((circuit.inputs, rank), np.int32)
    b = np.empty((rank, circuit.outputs), np.int32)
    split = rank * circuit.salt_rows
    a[rows] = salt[:split].reshape(-1, rank)
    b[:, columns] = salt[split:].reshape(rank, -1)
    a[~rows], b[:, ~columns] = module.a, module.b
    return SaltedModule(circuit, a, b)


def delivery_of(seed: bytes, numbers: bytes) -> bytes:
    """A delivery from what stands in it after the seed.

    Args:
        seed: of the salt, 32 bytes.
        numbers: A and B of each module, int16 little-endian, row by row.

    Raises:
        StatementError: a seed of another length.
    """
    if len(seed) != SALT_SEED_SIZE:
        raise StatementError(f"salt seed: got {len(seed)} bytes, expected {SALT_SEED_SIZE}")
    return DELIVERY_MAGIC + seed + numbers


def numbers_of(delivery: bytes) -> bytes:
    """What `delivery_of` put after the seed, in a delivery that was checked."""
    return delivery[len(DELIVERY_MAGIC) + SALT_SEED_SIZE :]


def pack_delivery(seed: bytes, modules: Sequence[QuantisedModule]) -> bytes:
    """The bytes of an adapter, in the order of its modules.

    Raises:
        StatementError: a seed of another length.
    """
    parts = (part for module in modules for part in (module.a, module.b))
    return delivery_of(seed, b"".join(part.astype("<i2").tobytes() for part in parts))


def delivery_size(shapes: Sequence[Shape]) -> int:
    """Bytes of a delivery of such modules."""
    return len(DELIVERY_MAGIC) + SALT_SEED_SIZE + 2 * sum(shape.weights for shape in shapes)


def unpack_delivery(
    data: bytes, named: Sequence[tuple[str, Shape]]
) -> tuple[bytes, tuple[QuantisedModule, ...]]:
    """Seed and modules of a delivery.

    Args:
        data: from outside.
        named: what must be in it: names and shapes, in order.

    Raises:
        DeliveryError: another length, or not a delivery.
    """
    if len(named) > MAX_MODULES:
        raise DeliveryError(f"delivery: {len(named)} modules, expected at most {MAX_MODULES}")
    expected = delivery_size([shape for _, shape in named])
    if len(data) != expected or not data.startswith(DELIVERY_MAGIC):
        raise DeliveryError(
            f"delivery: got {len(data)} bytes beginning {data[:8].hex()}, expected {expected} "
            f"beginning {DELIVERY_MAGIC[:8].hex()}"
        )
    at = len(DELIVERY_MAGIC)
    seed = data[at : at + SALT_SEED_SIZE]
    at += SALT_SEED_SIZE
    modules = []
    for name, shape in named:
        count_a, count_b = shape.rank * shape.inputs, shape.rank * shape.outputs
        a = np.frombuffer(data, "<i2", count_a, at).reshape(shape.inputs, shape.rank)
        b = np.frombuffer(data, "<i2", count_b, at + 2 * count_a).reshape(shape.rank, shape.outputs)
        modules.append(QuantisedModule(name, a.astype(np.int16), b.astype(np.int16)))
        at += 2 * (count_a + count_b)
    return seed, tuple(modules)
