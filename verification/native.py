"""The one door to ezkl: exact calls on files, its failures translated.

ezkl is native code that holds the interpreter's lock, reports an invalid proof as RuntimeError, and
panics on odd input with an exception that is no `Exception`. None of that leaves this module. It
is to run in a process of its own (`verification.sandbox`): what it does to it is not promised.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from verification.circuit import EZKL_VERSION, run_args
from verification.errors import UnavailableError, VerificationError

T = TypeVar("T")

_PANIC_MODULE: Final = "pyo3_runtime"
_NOT_PROVEN: Final = "Failed to run verify: [halo2]"
"""So begins what the proof system itself says; what concerns ezkl's files has other marks."""


class NativeError(VerificationError):
    """ezkl refused, or panicked; the message is its own."""


class NotProvenError(NativeError):
    """The proof system read our keys, read the proof, and says that it does not hold."""


def settings_and_circuit(onnx: Path, logrows: int, settings: Path, compiled: Path) -> None:
    """Derive settings from our own ONNX file, and compile it.

    Raises:
        NativeError, UnavailableError: as every function here.
    """
    ezkl = _ezkl()
    arguments = ezkl.PyRunArgs()
    for name, value in run_args(logrows).items():
        setattr(arguments, name, tuple(value) if isinstance(value, list) else value)
    _call(ezkl.gen_settings, str(onnx), str(settings), py_run_args=arguments)
    compile_circuit(onnx, settings, compiled)


def compile_circuit(onnx: Path, settings: Path, compiled: Path) -> None:
    """Compile a model of weights under settings that are there already."""
    _call(_ezkl().compile_circuit, str(onnx), str(compiled), str(settings))


def set_up(compiled: Path, srs: Path, vk: Path, pk: Path) -> None:
    """Derive both keys of a circuit."""
    _call(_ezkl().setup, str(compiled), str(vk), str(pk), str(srs))


def commit(message: Sequence[str], vk: Path, settings: Path, srs: Path) -> bytes:
    """The commitment to field elements in hex: 64 bytes a column, x then y, big-endian."""
    points = _call(_ezkl().kzg_commit, list(message), str(vk), str(settings), str(srs))
    return b"".join(bytes.fromhex(_hex(c))[::-1] for point in points for c in (point.x, point.y))


def prove(
    inputs: Sequence[Sequence[str]],
    compiled: Path,
    pk: Path,
    srs: Path,
    *,
    folder: Path,
) -> tuple[bytes, list[str]]:
    """A proof, and the public values it is of.

    Args:
        inputs: of the model, field elements in hex.
        compiled: with the weights.
        pk: of the circuit.
        srs: of the circuit's size.
        folder: private, for what lies between the two calls.
    """
    data, witness, proof = folder / "input.json", folder / "witness.json", folder / "proof.json"
    data.write_text(json.dumps({"input_data": [list(part) for part in inputs]}))
    ezkl = _ezkl()
    _call(ezkl.gen_witness, str(data), str(compiled), str(witness))
    _call(ezkl.prove, str(witness), str(compiled), str(pk), str(proof), str(srs))
    found = json.loads(proof.read_text())
    return bytes.fromhex(_hex(found["hex_proof"])), list(found["instances"][0])


def verify(
    proof: bytes, instances: Sequence[str], key: tuple[Path, Path, Path], file: Path
) -> None:
    """Check a proof of public values.

    Args:
        proof: raw bytes.
        instances: field elements in hex, inputs then outputs.
        key: settings, verification key and SRS, all ours.
        file: where the proof is written for the library to read.

    Raises:
        NotProvenError: it does not hold.
        NativeError: nothing was decided: a key or the SRS cannot be read, or a panic.
    """
    file.write_text(
        json.dumps(
            {
                "protocol": None,
                "instances": [list(instances)],
                "proof": list(proof),
                "hex_proof": None,
                "split": None,
                "pretty_public_inputs": None,
                "timestamp": None,
                "version": None,
            }
        )
    )
    settings, vk, srs = key
    try:
        holds = _call(_ezkl().verify, str(file), str(settings), str(vk), str(srs))
    except NativeError as error:
        if str(error).startswith(_NOT_PROVEN):
            raise NotProvenError(str(error)) from error
        raise
    if holds is not True:
        raise NotProvenError("ezkl did not say that the proof holds")


def _ezkl() -> Any:  # noqa: ANN401  its stubs lack most of what is used
    try:
        import ezkl  # noqa: PLC0415  an extra: only who proves or verifies needs it
    except ImportError as error:
        raise UnavailableError(
            f"proofs need ezkl, which can't be loaded ({error}): pip install 'paris-node[zk]'"
        ) from error
    library: Any = ezkl
    if library.__version__ != EZKL_VERSION:
        raise UnavailableError(
            f"ezkl {library.__version__} is installed; circuits are those of {EZKL_VERSION}: "
            "pip install 'paris-node[zk]'"
        )
    return library


def _call(function: Callable[..., T], *arguments: object, **named: object) -> T:
    try:
        return function(*arguments, **named)
    except (RuntimeError, OSError) as error:
        raise NativeError(str(error)) from error
    except BaseException as error:
        if type(error).__module__ != _PANIC_MODULE:
            raise
        raise NativeError(f"the native library panicked: {error}") from error


def _hex(text: str) -> str:
    return text.removeprefix("0x")
