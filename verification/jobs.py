"""What a child process is asked to do: jobs as plain maps in, answers as plain maps out.

A job is {kind, keys, ...}; it never raises for what a peer sent, but answers `rejected` with the
reason; nor for what this machine lacks, but answers `failed`. Matrices are (rows, columns, width,
data): integers of `width` bytes, row by row, two's complement, little-endian.

    commit   modules, delivery              -> commitment {module, value} each, done
    prove    modules, delivery, statement   -> proof {values, proof}, done
    verify   statement, proof               -> verified {square}
    check    modules with commitments, delivery -> verified
    keys     shapes                         -> done
    add-srs  k, file                        -> done
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from verification.circuit import Shape, circuit_of
from verification.digests import INTEGER_SIZE, Matrix, integers_bytes
from verification.errors import RejectedError, StatementError, UnavailableError
from verification.keys import KeyStore
from verification.srs import SrsFolder
from verification.statement import OFFER, Statement, offer_signs

if TYPE_CHECKING:
    from verification.adapter import QuantisedModule

Job: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = dict[str, object]
T = TypeVar("T", int, str, bytes)


def carry_out(job: Job) -> Iterator[Answer]:
    """Do one job; the last answer is `done`, `verified`, `rejected` or `failed`."""
    try:
        yield from _KINDS[job["kind"]](job, store_of(job))
    except RejectedError as error:
        yield {"kind": "rejected", "reason": str(error)}
    except (UnavailableError, OSError) as error:
        yield {"kind": "failed", "error": str(error)}
    except MemoryError:
        yield {"kind": "failed", "error": "out of memory"}


def store_of(job: Job) -> KeyStore:
    """The key store a job names."""
    folder = Path(job["keys"])
    return KeyStore(folder, SrsFolder(folder / "srs"))


def matrix_of(plain: Sequence[Any]) -> Matrix:
    """A matrix from its plain form.

    Raises:
        StatementError: not that form, wider integers than a statement has, or the bytes do not
            fill it.
    """
    kinds = [type(one) for one in plain] if isinstance(plain, list | tuple) else []
    if kinds != [int, int, int, bytes]:
        raise StatementError("matrix: expected rows, columns, bytes per integer and bytes")
    rows, columns, width, data = plain
    if rows < 1 or columns < 1 or not 1 <= width <= INTEGER_SIZE:
        raise StatementError(f"matrix: {rows} x {columns} integers of {width} bytes")
    if len(data) != rows * columns * width:
        raise StatementError(f"matrix: {len(data)} bytes for {rows} x {columns} of {width}")
    flat = [
        int.from_bytes(data[i : i + width], "little", signed=True)
        for i in range(0, len(data), width)
    ]
    return tuple(tuple(flat[r * columns : (r + 1) * columns]) for r in range(rows))


def plain_of(matrix: Matrix) -> tuple[int, int, int, bytes]:
    """A matrix in plain form, 16 bytes an integer."""
    return len(matrix), len(matrix[0]), INTEGER_SIZE, integers_bytes(matrix)


def statement_of(plain: Mapping[str, Any]) -> Statement:
    """A statement from its plain form.

    `left` and `right` may be absent in an offer's own proof; absent `values` are zeros, to be
    filled in by `prover.with_values`.

    Raises:
        StatementError: a field that nothing could mean.
    """
    shape = _shape(plain)
    kind, nonce, module = (
        _field(plain, "kind", str),
        _field(plain, "nonce", bytes),
        _field(plain, "module", str),
    )
    right: Matrix | None
    if kind == OFFER and plain.get("left") is None:
        left, right = offer_signs(nonce, module, shape)
    else:
        left = matrix_of(plain.get("left", ()))
        right = None if plain.get("right") is None else matrix_of(plain["right"])
    if plain.get("values") is None:
        columns = shape.outputs if right is None else len(right[0])
        values: Matrix = ((0,) * columns,) * len(left)
    else:
        values = matrix_of(plain["values"])
    return Statement(
        kind=kind,
        base=_field(plain, "base", str),
        offer=_field(plain, "offer", str),
        module=module,
        shape=shape,
        commitment=_field(plain, "commitment", bytes),
        nonce=nonce,
        left=left,
        right=right,
        values=values,
    )


def named_shapes(job: Job) -> list[tuple[str, Shape]]:
    """Names and shapes of a job's modules.

    Raises:
        StatementError: none, one without a shape, or two of one name: they would share their salt.
    """
    named = [(_field(module, "name", str), _shape(module)) for module in job["modules"]]
    if not named or len({name for name, _ in named}) != len(named):
        raise StatementError(f"modules: {len(named)}, expected some, each of a name of its own")
    return named


def _field(plain: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = plain.get(name)
    if type(value) is not kind:
        raise StatementError(f"{name}: got {type(value).__name__}, expected {kind.__name__}")
    return value


def _shape(plain: Mapping[str, Any]) -> Shape:
    return Shape(*(_field(plain, name, int) for name in ("inputs", "rank", "outputs")))


def _delivered(job: Job) -> "tuple[bytes, tuple[QuantisedModule, ...]]":
    """Salt seed and modules; no more is read than they can have."""
    from verification.adapter import (  # noqa: PLC0415  numpy: 0.1 s that verifying saves
        delivery_size,
        unpack_delivery,
    )

    named = named_shapes(job)
    with Path(job["delivery"]).open("rb") as file:
        data = file.read(delivery_size([shape for _, shape in named]) + 1)
    return unpack_delivery(data, named)


def _commit(job: Job, keys: KeyStore) -> Iterator[Answer]:
    from verification.prover import commit  # noqa: PLC0415

    seed, modules = _delivered(job)
    for module in modules:
        yield {"kind": "commitment", "module": module.name, "value": commit(module, seed, keys)}
    yield {"kind": "done"}


def _prove(job: Job, keys: KeyStore) -> Iterator[Answer]:
    from verification.prover import prove, with_values  # noqa: PLC0415

    statement = statement_of(job["statement"])
    seed, modules = _delivered(job)
    module = next((one for one in modules if one.name == statement.module), None)
    if module is None:
        raise StatementError(f"the adapter has no layer {statement.module[:80]!r}")
    if job["statement"].get("values") is None:
        statement = with_values(statement, module)
    proof = prove(statement, module, seed, keys)
    yield {"kind": "proof", "values": integers_bytes(statement.values), "proof": proof}
    yield {"kind": "done"}


def _verify(job: Job, keys: KeyStore) -> Iterator[Answer]:
    from verification.policy import check_not_zero  # noqa: PLC0415
    from verification.verifier import verify  # noqa: PLC0415

    statement = statement_of(job["statement"])
    verify(statement, job["proof"], keys)
    square = check_not_zero(statement) if statement.kind == OFFER else 0.0
    yield {"kind": "verified", "square": square}


def _check(job: Job, keys: KeyStore) -> Iterator[Answer]:
    from verification.prover import commit  # noqa: PLC0415
    from verification.verifier import check_committed  # noqa: PLC0415

    seed, modules = _delivered(job)
    for module, named in zip(modules, job["modules"], strict=True):
        promised = _field(named, "commitment", bytes)
        check_committed(module.name, promised, commit(module, seed, keys))
    yield {"kind": "verified", "square": 0.0}


def _keys(job: Job, keys: KeyStore) -> Iterator[Answer]:
    for inputs, rank, outputs in job["shapes"]:
        keys.verifying(circuit_of(Shape(inputs, rank, outputs)))
    yield {"kind": "done"}


def _add_srs(job: Job, keys: KeyStore) -> Iterator[Answer]:
    keys.srs.add(job["k"], Path(job["file"]))
    yield {"kind": "done"}


_KINDS: Final[Mapping[str, Callable[[Job, KeyStore], Iterator[Answer]]]] = {
    "commit": _commit,
    "prove": _prove,
    "verify": _verify,
    "check": _check,
    "keys": _keys,
    "add-srs": _add_srs,
}
