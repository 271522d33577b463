"""What one proof says: `U A B V = Y` for the A and B behind a commitment, and how it is folded.

A statement fixes offer, base, module, shape, commitment, a nonce and three public matrices. From
all of it two random vectors r and s are drawn, and one number is proved instead of the matrices:

    (r^T U) A B (V s) = r^T Y s        which a false Y passes with probability <= 2 / p ~ 2^-253.

`offer` statements take U and V from a hash of all the adapter's commitments (`sheet_nonce`): Y
estimates the norm of A B, and anyone checks it without a word from its maker. An adapter offered
anew under the same salt draws the same signs, and tells nothing new. `probe` and `delta` statements
are asked by a user.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from verification.circuit import Circuit, Shape, circuit_of
from verification.digests import (
    PRIME,
    Challenge,
    Matrix,
    combine,
    framed,
    integers_bytes,
    signs,
    text_bytes,
    transposed,
)
from verification.errors import StatementError

OFFER: Final = "offer"
PROBE: Final = "probe"
DELTA: Final = "delta"
KINDS: Final = (OFFER, PROBE, DELTA)

NORM_PAIRS: Final = 4
"""U has so many rows and V so many columns in an offer's proof: 16 numbers a module."""
PROBE_BOUND: Final = 2**11
"""Entries a user asks with stay below: larger ones would pack several rows into one answer."""
NONCE_SIZE: Final = 16
MAX_PAIRS: Final = 4
MAX_ROWS: Final = 1024
"""Of U in one statement."""

_DOMAIN: Final = "paris/lora/fold/1"
_SIGNS_DOMAIN: Final = "paris/offer/1"
_SHEET_DOMAIN: Final = b"paris/lora/sheet/1"


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement.

    Attributes:
        kind: one of `KINDS`.
        base: CID of the checkpoint the adapter is for.
        offer: the offer's id.
        module: the layer's name.
        shape: of its A and B.
        commitment: to them, as the offer has it.
        nonce: 16 bytes the asker drew; `sheet_nonce` in an offer's own proof.
        left: U, [p, in].
        right: V, [out, q]; None for the identity: Y is then U A B itself.
        values: Y, [p, q] or [p, out].

    Raises:
        StatementError: naming the field, what was got and what is expected.
    """

    kind: str
    base: str
    offer: str
    module: str
    shape: Shape
    commitment: bytes
    nonce: bytes
    left: Matrix
    right: Matrix | None
    values: Matrix

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise StatementError(f"kind: got {self.kind[:20]!r}, expected one of {KINDS}")
        if len(self.commitment) != self.circuit.commitment_size:
            raise StatementError(
                f"commitment: got {len(self.commitment)} bytes, the circuit of {self.shape} has "
                f"{self.circuit.commitment_size}"
            )
        if len(self.nonce) != NONCE_SIZE:
            raise StatementError(f"nonce: got {len(self.nonce)} bytes, expected {NONCE_SIZE}")
        self._check_matrices()

    def _check_matrices(self) -> None:
        rows = len(self.left)
        most = MAX_ROWS if self.kind == DELTA else MAX_PAIRS
        if not 1 <= rows <= most:
            raise StatementError(f"left: got {rows} rows, expected 1..{most}")
        _check_size("left", self.left, rows, self.shape.inputs)
        if (self.right is None) != (self.kind == DELTA):
            raise StatementError(
                f"right: absent in {DELTA} statements alone; this is a {self.kind}"
            )
        columns = self.shape.outputs
        if self.right is not None:
            columns = len(self.right[0]) if self.right else 0
            if not 1 <= columns <= MAX_PAIRS:
                raise StatementError(f"right: got {columns} columns, expected 1..{MAX_PAIRS}")
            _check_size("right", self.right, self.shape.outputs, columns)
        _check_size("values", self.values, rows, columns)
        if self.kind == OFFER:
            if (self.left, self.right) != offer_signs(self.nonce, self.module, self.shape):
                raise StatementError("left, right: not the signs that the commitments draw")
            return  # signs are small enough
        for name, matrix in (("left", self.left), ("right", self.right or ())):
            largest = max((abs(x) for row in matrix for x in row), default=0)
            if largest >= PROBE_BOUND:
                raise StatementError(
                    f"{name}: an entry of {largest.bit_length()} bits, expected below {PROBE_BOUND}"
                )

    @property
    def circuit(self) -> Circuit:
        """The one circuit of its shape."""
        return circuit_of(self.shape)

    def canonical(self) -> bytes:
        """Everything the statement fixes, as bytes; two statements never share them."""
        circuit, right = self.circuit, self.right
        shape = (self.shape.inputs, self.shape.rank, self.shape.outputs, circuit.logrows)
        return framed(
            (
                self.kind.encode(),
                text_bytes("base", self.base),
                text_bytes("offer", self.offer),
                text_bytes("module", self.module),
                b"".join(x.to_bytes(4, "little") for x in shape),
                self.commitment,
                self.nonce,
                _dimensions(self.left) + integers_bytes(self.left),
                b"" if right is None else _dimensions(right) + integers_bytes(right),
                _dimensions(self.values) + integers_bytes(self.values),
            )
        )

    def fold(self) -> "Folded":
        """The one bilinear form that is proved, with zeros where the circuit has salt."""
        challenge = Challenge(_DOMAIN, self.canonical())
        r = challenge.felts(len(self.left))
        s = challenge.felts(len(self.values[0]))
        u = combine(r, self.left)
        v = s if self.right is None else combine(s, transposed(self.right))
        y = sum(a * b for a, b in zip(combine(r, self.values), s, strict=True)) % PRIME
        salt_rows, salt_columns = self.circuit.is_salt()
        return Folded(_among_salt(u, salt_rows), _among_salt(v, salt_columns), y)


@dataclass(frozen=True, slots=True)
class Folded:
    """Public inputs and output of the circuit, field elements.

    Attributes:
        u: [in + salt].
        v: [out + salt].
        y: what u A B v must be.
    """

    u: tuple[int, ...]
    v: tuple[int, ...]
    y: int


def sheet_nonce(base: str, modules: Iterable[tuple[str, Shape, bytes]]) -> bytes:
    """What the signs of an offer's own proofs are drawn from: all it commits to, at once.

    Whoever wants other signs for one layer has to draw them for all.

    Args:
        base: CID of the checkpoint.
        modules: name, shape and commitment of each layer, in the offer's order.
    """
    parts = [text_bytes("base", base)]
    for name, shape, commitment in modules:
        sides = b"".join(x.to_bytes(4, "little") for x in (shape.inputs, shape.rank, shape.outputs))
        parts += [text_bytes("module", name), sides, commitment]
    return hashlib.sha512(framed((_SHEET_DOMAIN, *parts))).digest()[:NONCE_SIZE]


def offer_signs(nonce: bytes, module: str, shape: Shape) -> tuple[Matrix, Matrix]:
    """U [4, in] and V [out, 4] of an offer's own proof: signs drawn from its commitments.

    E[(u A B v)^2] over fair signs is the squared Frobenius norm of A B.

    Args:
        nonce: `sheet_nonce` of the offer.
        module: the layer's name.
        shape: of its A and B.
    """
    transcript = framed((nonce, text_bytes("module", module)))
    left = signs(_SIGNS_DOMAIN + "/left", transcript, NORM_PAIRS, shape.inputs)
    right = signs(_SIGNS_DOMAIN + "/right", transcript, shape.outputs, NORM_PAIRS)
    return left, right


def _check_size(name: str, matrix: Matrix, rows: int, columns: int) -> None:
    if len(matrix) != rows or any(len(row) != columns for row in matrix):
        found = f"{len(matrix)} x {len(matrix[0]) if matrix else 0}"
        raise StatementError(f"{name}: got {found}, expected {rows} x {columns}")


def _dimensions(matrix: Matrix) -> bytes:
    return len(matrix).to_bytes(4, "little") + len(matrix[0]).to_bytes(4, "little")


def _among_salt(values: list[int], salt: tuple[bool, ...]) -> tuple[int, ...]:
    rest = iter(values)
    return tuple(0 if mark else next(rest) for mark in salt)
