"""Field elements, challenges and integers as bytes: what both sides of a proof must agree on.

The field is the scalar field of BN254. Challenges are uniform in it: small random numbers would
let a prover guess. Source of the check they serve: Freivalds, 1977.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from verification.errors import StatementError

PRIME: Final = 21888242871839275222246405745257275088548364400416034343698204186575808495617
"""Order of BN254's scalar field."""
FELT_SIZE: Final = 32
INTEGER_SIZE: Final = 16
"""Bytes of an integer of a statement, two's complement: products of what it allows stay below."""

Matrix: TypeAlias = tuple[tuple[int, ...], ...]
"""Rows of exact integers."""

_SMALL: Final = {x: x.to_bytes(INTEGER_SIZE, "little", signed=True) for x in range(-2047, 2048)}
"""What most entries are, written once."""
_SIGNS_OF_BYTE: Final = [tuple(1 if byte >> i & 1 else -1 for i in range(8)) for byte in range(256)]


def felt_hex(value: int) -> str:
    """An integer as ezkl takes it: 32 bytes modulo the prime, little-endian, in hex."""
    return (value % PRIME).to_bytes(FELT_SIZE, "little").hex()


def integers_bytes(matrix: Matrix) -> bytes:
    """A matrix row by row, each integer 16 bytes, two's complement, little-endian.

    Raises:
        StatementError: an integer that does not fit.
    """
    try:
        return b"".join(
            _SMALL.get(x) or x.to_bytes(INTEGER_SIZE, "little", signed=True)
            for row in matrix
            for x in row
        )
    except OverflowError as error:
        raise StatementError(f"an integer of more than {8 * INTEGER_SIZE} bits") from error


def text_bytes(name: str, text: str) -> bytes:
    """Text in UTF-8, as transcripts hold it.

    Raises:
        StatementError: halves of characters, which JSON lets through.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise StatementError(f"{name}: no text of whole characters") from error


def framed(parts: Iterable[bytes]) -> bytes:
    """Parts, each after its length: no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


class Challenge:
    """Field elements drawn from a transcript: whoever changes a byte of it draws others.

    Args:
        domain: what they are for; another domain draws others.
        transcript: everything fixed before they are drawn.
    """

    def __init__(self, domain: str, transcript: bytes) -> None:
        self._seed = hashlib.sha512(framed((domain.encode(), transcript))).digest()
        self._drawn = 0

    def felt(self) -> int:
        """The next element: 512 bits modulo the prime, uniform up to 2^-258."""
        block = hashlib.sha512(self._seed + self._drawn.to_bytes(8, "little")).digest()
        self._drawn += 1
        return int.from_bytes(block, "little") % PRIME

    def felts(self, count: int) -> list[int]:
        """The next `count` elements."""
        return [self.felt() for _ in range(count)]


def signs(domain: str, transcript: bytes, rows: int, columns: int) -> Matrix:
    """A matrix of +1 and -1, as fair coins, drawn from a transcript."""
    need = -(-rows * columns // 8)
    stream = hashlib.shake_256(framed((domain.encode(), transcript))).digest(need)
    flat = [sign for byte in stream for sign in _SIGNS_OF_BYTE[byte]][: rows * columns]
    return tuple(tuple(flat[r * columns : (r + 1) * columns]) for r in range(rows))


def combine(weights: Sequence[int], matrix: Matrix) -> list[int]:
    """weights^T matrix modulo the prime: [rows] by [rows, columns] gives [columns]."""
    columns = len(matrix[0])
    sums = [0] * columns
    for weight, row in zip(weights, matrix, strict=True):
        for i, x in enumerate(row):
            sums[i] += weight * x
    return [x % PRIME for x in sums]


def transposed(matrix: Matrix) -> Matrix:
    """Rows as columns."""
    return tuple(zip(*matrix, strict=True))
