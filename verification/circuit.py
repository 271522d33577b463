"""The circuit `y = (u A)(B v)` for one shape of A and B: its layout, its ONNX bytes, its name.

A [in, r] and B [r, out] are private and committed; u, v and y are public. Both sides build the same
bytes, so that the verifier's key never comes from a prover. Commitments hide nothing by themselves
(polynomial columns are not blinded), so *salt* is mixed in: random rows of A and columns of B that
the challenge meets with zeros. Each proof tells one number of 254 bits about each committed column;
as long as the salt of a column has more bits than the proofs made, they say nothing of the weights.

Source: arXiv 2501.13965 for the goal; the bilinear form and the salt are ours.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

from verification.errors import StatementError
from verification.srs import PINNED, SHIPPED

EZKL_VERSION: Final = "23.0.5"
"""Part of each circuit's name: another version may lay circuits out differently."""

PARAM_SCALE: Final = 12
"""Integers are weights times 2^12."""
MAX_RANK: Final = 16
MAX_SIDE: Final = 8_000
"""Inputs or outputs of a layer; u and v must fit the public column at k = 13."""

SALT_BITS: Final = 24
"""Of each salt entry; ONNX carries them as float32, exact below 2^24."""
PROOF_BITS: Final = 254
"""What one proof tells about one committed column: its polynomial's value at a random point."""
SLACK_BITS: Final = 128
"""More than the proofs tell that the salt must have: what is then left is uniform but for 2^-64
(leftover hash lemma)."""
MAX_PROOFS: Final = 64
"""Per commitment, whatever the salt would allow."""
LEAST_PROOFS: Final = 33
"""Every layout's salt hides at least so many: the offer's own proof and 32 scalars."""

_BLINDING_ROWS: Final = 6
"""Rows of each column that halo2 keeps for itself."""
_SPARE_ROWS: Final = 2
"""More of them: ezkl repeats a row where a column ends, and wants one to be left."""
_FEW_COLUMNS: Final = 3
_MOST_COLUMNS: Final = 16
_INNER_COLUMNS: Final = 2
_MOST_CACHED: Final = 1024
"""Of layouts: peers may ask about any number of shapes."""
_TABLE_FILE: Final = Path(__file__).with_name("circuits.json")


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """The shape of one adapted layer.

    Attributes:
        inputs: rows of A.
        rank: columns of A and rows of B.
        outputs: columns of B.

    Raises:
        StatementError: out of range.
    """

    inputs: int
    rank: int
    outputs: int

    def __post_init__(self) -> None:
        sides = (self.inputs, self.outputs)
        if not (1 <= self.rank <= MAX_RANK and all(self.rank <= s <= MAX_SIDE for s in sides)):
            raise StatementError(
                f"shape {self}: expected a rank of 1..{MAX_RANK} and sides from the rank to "
                f"{MAX_SIDE}"
            )

    def __str__(self) -> str:
        return f"({self.inputs}, {self.rank}, {self.outputs})"

    @property
    def weights(self) -> int:
        """Numbers in A and B."""
        return self.rank * (self.inputs + self.outputs)


@dataclass(frozen=True, slots=True)
class Circuit:
    """One shape laid out.

    Attributes:
        shape: of the weights.
        logrows: k; a column has 2^k rows.
        columns: committed columns; a commitment has as many points.
        salt_rows: of A, mixed evenly among the inputs.
        salt_columns: of B, mixed evenly among the outputs.
    """

    shape: Shape
    logrows: int
    columns: int
    salt_rows: int
    salt_columns: int

    @property
    def inputs(self) -> int:
        """Rows of A with salt: the length of u."""
        return self.shape.inputs + self.salt_rows

    @property
    def outputs(self) -> int:
        """Columns of B with salt: the length of v."""
        return self.shape.outputs + self.salt_columns

    @property
    def commitment_size(self) -> int:
        """Bytes of a commitment: its points, uncompressed; every raw proof begins with them."""
        return 64 * self.columns

    @property
    def hidden_proofs(self) -> int:
        """How many proofs of one commitment the salt hides the weights from; at most 64."""
        spare_bits = SALT_BITS * _thinnest_salt(self) - SLACK_BITS
        return min(MAX_PROOFS, spare_bits // PROOF_BITS)

    def is_salt(self) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """Which rows of A, and which columns of B, are salt."""
        return (
            _spread(self.shape.inputs, self.salt_rows),
            _spread(self.shape.outputs, self.salt_columns),
        )

    @property
    def id(self) -> str:
        """The circuit's name: sha256 over all that fixes it, 64 hex digits.

        Needs onnx; `known` has the names of the usual shapes.
        """
        facts = (
            onnx_bytes(self),
            json.dumps(run_args(self.logrows), sort_keys=True).encode(),
            EZKL_VERSION.encode(),
            PINNED[self.logrows].sha256.encode(),
            str(self.logrows).encode(),
        )
        digest = hashlib.sha256()
        for fact in facts:
            digest.update(len(fact).to_bytes(8, "little") + fact)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Pin:
    """What is known of a circuit before it is ever set up.

    Attributes:
        circuit: its name.
        vk_sha256: of its verification key's file.
        proof_size: bytes of each of its proofs, the commitment they begin with included.
    """

    circuit: str
    vk_sha256: str
    proof_size: int


@lru_cache(maxsize=_MOST_CACHED)
def circuit_of(shape: Shape) -> Circuit:
    """The one layout of a shape: the smallest that has room for salt.

    Raises:
        StatementError: if none of the shipped sizes has room.
    """
    for logrows in SHIPPED:
        rows = 2**logrows - _BLINDING_ROWS - _SPARE_ROWS
        most = _MOST_COLUMNS if logrows == SHIPPED[-1] else _FEW_COLUMNS
        for columns in range(1, most + 1):
            room = columns * rows - shape.weights
            if room < columns * _least_salt():
                continue
            lines = min(room // shape.rank, rows - 1 - shape.inputs - shape.outputs)
            if lines * shape.rank < columns * _least_salt():
                continue
            return _laid_out(shape, logrows, columns, lines)
    raise StatementError(f"shape {shape} does not fit any circuit of 2^{SHIPPED[-1]} rows")


def known(shape: Shape) -> Pin:
    """What is pinned for a shape.

    Raises:
        StatementError: a shape that no model preset has.
    """
    found = _table().get(shape)
    if found is None:
        raise StatementError(f"no circuit is known for the shape {shape}")
    return found


def run_args(logrows: int) -> dict[str, object]:
    """The settings of ezkl that make the circuit exact integers and nothing else.

    No rescaling and no lookups: an input scale of 0, weights at 2^12, and a rebase multiplier no
    output reaches. Range checks off: with them the settings differ from one run to the next.
    """
    return {
        "input_visibility": "public",
        "output_visibility": "public",
        "param_visibility": "polycommit",
        "input_scale": 0,
        "param_scale": PARAM_SCALE,
        "scale_rebase_multiplier": 20,
        "ignore_range_check_inputs_outputs": True,
        "num_inner_cols": _INNER_COLUMNS,
        "logrows": logrows,
        "lookup_range": [0, 1],
        "check_mode": "unsafe",
    }


def onnx_bytes(
    circuit: Circuit,
    a: "list[list[int]] | None" = None,
    b: "list[list[int]] | None" = None,
) -> bytes:
    """The ONNX model of a circuit, the same bytes on every machine.

    Args:
        circuit: which.
        a: integers [in + salt, r]; ones if not given: the key does not depend on the weights.
        b: integers [r, out + salt]; twos if not given, since equal constants would be merged.
    """
    from onnx import TensorProto, ValueInfoProto, helper  # noqa: PLC0415  a quarter second that verifying saves

    rank, inputs, outputs = circuit.shape.rank, circuit.inputs, circuit.outputs
    flat_a = [1] * (inputs * rank) if a is None else [x for row in a for x in row]
    flat_b = [2] * (rank * outputs) if b is None else [x for row in b for x in row]
    scale = 2.0**PARAM_SCALE

    def constant(name: str, dims: list[int], flat: list[int]) -> TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, dims, [x / scale for x in flat])

    def value(name: str, dims: list[int]) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["u", "A"], ["h"]),
            helper.make_node("MatMul", ["B", "v"], ["g"]),
            helper.make_node("MatMul", ["h", "g"], ["y"]),
        ],
        "bilinear",
        [value("u", [1, inputs]), value("v", [outputs, 1])],
        [value("y", [1, 1])],
        [constant("A", [inputs, rank], flat_a), constant("B", [rank, outputs], flat_b)],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="paris-node", ir_version=8
    )
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _laid_out(shape: Shape, logrows: int, columns: int, lines: int) -> Circuit:
    """Share the salt's lines between A and B as the weights are shared; all lengths even.

    An odd length is padded by the library, which takes a further column and 224 bytes a proof.
    """
    salt_rows = lines * shape.inputs // (shape.inputs + shape.outputs)
    salt_columns = lines - salt_rows
    salt_rows -= (shape.inputs + salt_rows) % _INNER_COLUMNS
    salt_columns -= (shape.outputs + salt_columns) % _INNER_COLUMNS
    return Circuit(shape, logrows, columns, salt_rows, salt_columns)


@lru_cache(maxsize=_MOST_CACHED)
def _thinnest_salt(circuit: Circuit) -> int:
    """Salt entries of the committed column that has the fewest."""
    salt_rows, salt_columns = circuit.is_salt()
    marks = [mark for mark in salt_rows for _ in range(circuit.shape.rank)]
    marks += salt_columns * circuit.shape.rank
    rows = 2**circuit.logrows - _BLINDING_ROWS
    return min(sum(marks[start : start + rows]) for start in range(0, len(marks), rows))


def _least_salt() -> int:
    """Entries a column needs."""
    return -(-LEAST_PROOFS * PROOF_BITS // SALT_BITS)


def _spread(weights: int, salt: int) -> tuple[bool, ...]:
    """`salt` marks among `weights`, as evenly as can be."""
    length = weights + salt
    return tuple((i + 1) * salt // length > i * salt // length for i in range(length))


@cache
def _table() -> Mapping[Shape, Pin]:
    rows = json.loads(_TABLE_FILE.read_text())
    return {Shape(*row[:3]): Pin(*row[3:]) for row in rows}
