"""Jobs of child processes of bench_verification: any circuit, straight through ezkl.

    python scripts/verification_bare.py JOB ARGUMENTS    prints one line of JSON

The same calls in the same order as `verification` makes them, so that circuits which are not ours
(no salt, another size, row by row) stand beside ours on equal terms.
"""

import json
import random
import resource
from pathlib import Path
from typing import Any

import ezkl as untyped_ezkl
from onnx import TensorProto, ValueInfoProto, helper

from verification.circuit import PARAM_SCALE, SALT_BITS, Circuit, Shape, onnx_bytes, run_args
from verification.digests import PRIME, felt_hex
from verification_meter import Figures, Meter, do_job, middle

ezkl: Any = untyped_ezkl
"""Its stubs do not tell what is optional."""

MEMORY_BYTES = 12 << 30
"""Of address space, for each job."""
_MODEL, _COMPILED, _SETTINGS = "model.onnx", "model.compiled", "settings.json"
_VK, _PK, _INPUT, _WITNESS, _PROOF = "vk.key", "pk.key", "input.json", "witness.json", "proof.json"
_WEIGHT, _SALT, _ACTIVATION = 300, 2 ** (SALT_BITS - 1) - 1, 2**11 - 1
"""Bounds of the random integers."""


def test_srs(path: str, logrows: int) -> Figures:
    """Make an SRS whose secret this machine knew: a test SRS, for comparisons only."""
    meter = Meter()
    ezkl.gen_srs(path, logrows)
    return meter.spent()


def set_up(folder: str, srs: str, model: dict[str, Any], logrows: int, inner: int = 2) -> Figures:
    """Make a circuit with random weights, its keys, and an input.

    Args:
        folder: is made.
        srs: a file for `logrows`.
        model: {shape, salt: [rows, columns]} for ours, {shape, tokens, freivalds} for row by row;
            freivalds: whether ezkl checks products by a random combination, as is its default.
        logrows: k.
        inner: columns of one dot product (`num_inner_cols`).
    """
    place = Path(folder)
    place.mkdir(parents=True)
    data, inputs = _rows_model(model) if "tokens" in model else _bilinear_model(model, logrows)
    (place / _MODEL).write_bytes(data)
    (place / _INPUT).write_text(json.dumps({"input_data": inputs}))
    settings = run_args(logrows) | {"num_inner_cols": inner}
    settings["disable_freivalds"] = not model.get("freivalds", True)
    arguments = ezkl.PyRunArgs()
    for name, value in settings.items():
        setattr(arguments, name, tuple(value) if isinstance(value, list) else value)
    meter = Meter()
    ezkl.gen_settings(str(place / _MODEL), str(place / _SETTINGS), py_run_args=arguments)
    _compile(place)
    ezkl.setup(str(place / _COMPILED), str(place / _VK), str(place / _PK), srs)
    return meter.spent() | {"keys_mb": (place / _PK).stat().st_size / 1e6}


def prove(folder: str, srs: str) -> Figures:
    """Compile, find the witness, prove: what each proof takes."""
    place = Path(folder)
    whole = Meter()
    _compile(place)
    compiled, meter = whole.spent(), Meter()
    ezkl.gen_witness(str(place / _INPUT), str(place / _COMPILED), str(place / _WITNESS))
    witness, meter = meter.spent(), Meter()
    paths = (_WITNESS, _COMPILED, _PK, _PROOF)
    ezkl.prove(*(str(place / name) for name in paths), srs)
    proved, spent = meter.spent(), whole.spent()
    return spent | {
        "compile_cpu_s": compiled["cpu_s"],
        "witness_cpu_s": witness["cpu_s"],
        "native_cpu_s": proved["cpu_s"],
        "proof_bytes": len(_proof(place)),
        "points": points_in(_proof(place)),
    }


def verify(folder: str, srs: str, rounds: int) -> Figures:
    """Verify as often as `rounds` says; the first time is not counted."""
    place, seconds, cpu_seconds = Path(folder), [], []
    for _ in range(rounds + 1):
        meter = Meter()
        paths = (_PROOF, _SETTINGS, _VK)
        if ezkl.verify(*(str(place / name) for name in paths), srs) is not True:
            raise RuntimeError(f"{folder}: the proof does not hold")
        seconds.append(meter.spent()["wall_s"])
        cpu_seconds.append(meter.spent()["cpu_s"])
    return {
        "warm_ms": 1e3 * middle(seconds[1:]),
        "warm_ms_least": 1e3 * min(seconds[1:]),
        "warm_cpu_ms": 1e3 * middle(cpu_seconds[1:]),
    }


def points_in(proof: bytes) -> int:
    """How many curve points a proof holds, 64 bytes each; the rest are scalars of 32.

    Each is a polynomial that was committed to: an FFT and a multi-scalar multiplication at least.
    """
    at, found = 0, 0
    while at < len(proof):
        is_point = len(proof) - at >= 64 and _is_on_curve(proof[at : at + 64])
        found += is_point
        at += 64 if is_point else 32
    return found


def _is_on_curve(data: bytes) -> bool:
    """Whether 64 bytes are a point of BN254: y^2 = x^3 + 3; other bytes never are, by chance."""
    modulus = 21888242871839275222246405745257275088696311157297823662689037894645226208583
    x, y = int.from_bytes(data[:32]), int.from_bytes(data[32:])
    return (y * y - x * x * x - 3) % modulus == 0


def _proof(place: Path) -> bytes:
    text: str = json.loads((place / _PROOF).read_text())["hex_proof"]
    return bytes.fromhex(text.removeprefix("0x"))


def _compile(place: Path) -> None:
    paths = (_MODEL, _COMPILED, _SETTINGS)
    ezkl.compile_circuit(*(str(place / name) for name in paths))


def _bilinear_model(model: dict[str, Any], logrows: int) -> tuple[bytes, list[list[str]]]:
    """Our circuit, laid out as asked; u and v are random field elements, zero where salt is."""
    draw, shape = random.Random(0), Shape(*model["shape"])
    circuit = Circuit(shape, logrows, 0, *model["salt"])
    lines = [
        [_weights(draw, shape.rank, _SALT if is_salt else _WEIGHT) for is_salt in marks]
        for marks in circuit.is_salt()
    ]
    b = [list(row) for row in zip(*lines[1], strict=True)]
    inputs = [
        [felt_hex(0 if is_salt else draw.randrange(PRIME)) for is_salt in marks]
        for marks in circuit.is_salt()
    ]
    return onnx_bytes(circuit, lines[0], b), inputs


def _rows_model(model: dict[str, Any]) -> tuple[bytes, list[list[str]]]:
    """The circuit of arXiv 2501.13965: delta = (X A) B, every row of it."""
    (inputs, rank, outputs), tokens = model["shape"], model["tokens"]
    draw, scale = random.Random(0), 2.0**PARAM_SCALE

    def weights(name: str, rows: int, columns: int) -> TensorProto:
        flat = [x / scale for x in _weights(draw, rows * columns)]
        return helper.make_tensor(name, TensorProto.FLOAT, [rows, columns], flat)

    def value(name: str, columns: int) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [tokens, columns])

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["X", "A"], ["XA"]),
            helper.make_node("MatMul", ["XA", "B"], ["delta"]),
        ],
        "rows",
        [value("X", inputs)],
        [value("delta", outputs)],
        [weights("A", inputs, rank), weights("B", rank, outputs)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    x = [felt_hex(draw.randint(-_ACTIVATION, _ACTIVATION)) for _ in range(tokens * inputs)]
    return made.SerializeToString(), [x]


def _weights(draw: random.Random, count: int, bound: int = _WEIGHT) -> list[int]:
    return [draw.randint(-bound, bound) for _ in range(count)]


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    do_job(
        {
            "test_srs": test_srs,
            "set_up": set_up,
            "prove": prove,
            "verify": verify,
        }
    )
