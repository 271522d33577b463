"""Write verification/circuits.json: name, key and proof size of every circuit a preset can need.

    .venv/bin/python scripts/make_circuit_table.py [--ranks 1-16] [--check]

Derives every circuit's keys and makes one proof with each (minutes); --check compares instead of
writing. The result depends on the ezkl release and on the SRS alone.
"""

import argparse
import json
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import numpy as np

from training.config import PRESETS
from verification import native
from verification.adapter import QuantisedModule, salted
from verification.circuit import MAX_RANK, Shape, circuit_of, onnx_bytes
from verification.digests import felt_hex
from verification.keys import derive
from verification.srs import SrsFolder

TABLE = Path(__file__).parent.parent / "verification" / "circuits.json"


def shapes() -> list[Shape]:
    """Attention (w, w) and feed-forward (w, 4w), (4w, w) of every preset, at every rank."""
    found = set()
    for preset in PRESETS.values():
        width = preset.width
        for inputs, outputs in ((width, width), (width, 4 * width), (4 * width, width)):
            found |= {Shape(inputs, rank, outputs) for rank in range(1, MAX_RANK + 1)}
    return sorted(found)


def row(shape: Shape) -> list[object]:
    """Derive one circuit, prove once."""
    circuit = circuit_of(shape)
    srs = SrsFolder()(circuit.logrows)
    module = QuantisedModule(
        "m",
        np.ones((shape.inputs, shape.rank), np.int16),
        np.ones((shape.rank, shape.outputs), np.int16),
    )
    mixed = salted(module, bytes(32))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        derive(circuit, srs, folder)
        model, compiled = folder / "weights.onnx", folder / "weights.compiled"
        model.write_bytes(onnx_bytes(circuit, mixed.a.tolist(), mixed.b.tolist()))
        native.compile_circuit(model, folder / "settings.json", compiled)
        ones = [[felt_hex(1)] * circuit.inputs, [felt_hex(1)] * circuit.outputs]
        proof, _ = native.prove(ones, compiled, folder / "pk.key", srs, folder=folder)
        vk = sha256((folder / "vk.key").read_bytes()).hexdigest()
    return [shape.inputs, shape.rank, shape.outputs, circuit.id, vk, len(proof)]


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--ranks", type=int, nargs="*", help="only these")
    options = parser.parse_args()
    known = {tuple(r[:3]): r for r in json.loads(TABLE.read_text())} if TABLE.exists() else {}
    wanted = [s for s in shapes() if not options.ranks or s.rank in options.ranks]
    for shape in wanted:
        key = (shape.inputs, shape.rank, shape.outputs)
        found = row(shape)
        if options.check and known.get(key) != found:
            sys.exit(f"{shape}: the table has {known.get(key)}, derived {found}")
        known[key] = found
        print(shape, found[5], flush=True)
        if not options.check:
            lines = ",\n".join(json.dumps(known[k]) for k in sorted(known))
            TABLE.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
