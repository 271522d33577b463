"""What ezkl's settings of one circuit must say, word for word.

The library builds the gates that a proof is checked against from a settings file: another file is
another circuit, whatever the verification key is, and a hostile one makes it hang or panic. So the
one that is kept is compared with this before each use.
"""

import json
from pathlib import Path
from typing import Final

from verification.circuit import EZKL_VERSION, PARAM_SCALE, Circuit, run_args
from verification.errors import UnavailableError

_MAX_BYTES: Final = 1 << 16
"""Settings have 1.2 kB."""


def check_settings(file: Path, circuit: Circuit) -> None:
    """Refuse settings that are not those of a circuit.

    Raises:
        UnavailableError: other settings, or none; names a field that differs.
    """
    expected = expected_settings(circuit)
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UnavailableError(f"settings of circuit {circuit.shape}: {error}") from error
    if not isinstance(found, dict):
        raise UnavailableError(f"settings of circuit {circuit.shape}: not a JSON object")
    found.pop("timestamp", None)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise UnavailableError(
                f"settings of circuit {circuit.shape}: {name[:80]} is not as ezkl "
                f"{EZKL_VERSION} makes it"
            )


def expected_settings(circuit: Circuit) -> dict[str, object]:
    """The settings of a circuit but for the moment when they were made."""
    rank, inputs, outputs = circuit.shape.rank, circuit.inputs, circuit.outputs
    is_odd = rank % 2
    rows = (rank + 1) * (inputs + outputs) // 2 + (rank + is_odd) // 2
    return {
        "run_args": _run_args(circuit),
        "num_rows": rows,
        "total_assignments": 2 * rows + 1,
        "total_const_size": is_odd,  # a zero that fills up the last sum
        "total_dynamic_col_size": 0,
        "max_dynamic_input_len": 0,
        "num_dynamic_lookups": 0,
        "num_shuffles": 0,
        "total_shuffle_col_size": 0,
        "einsum_params": {"equations": _equations(circuit), "total_einsum_col_size": 0},
        "model_instance_shapes": [[1, inputs], [outputs, 1], [1, 1]],
        "model_output_scales": [2 * PARAM_SCALE],
        "model_input_scales": [0, 0],
        "module_sizes": {"polycommit": [rank * (inputs + outputs)], "poseidon": [0, [0]]},
        "required_lookups": [],
        "required_range_checks": [],
        "check_mode": "UNSAFE",
        "version": EZKL_VERSION,
        "num_blinding_factors": None,
        "input_types": ["F32", "F32"],
        "output_types": ["F32"],
    }


def _run_args(circuit: Circuit) -> dict[str, object]:
    """Ours as ezkl writes them, and its defaults."""
    return {
        **run_args(circuit.logrows),
        "input_visibility": "Public",
        "output_visibility": "Public",
        "param_visibility": "KZGCommit",
        "check_mode": "UNSAFE",
        "rebase_scale": None,
        "variables": [["batch_size", 1]],
        "rebase_frac_zero_constants": False,
        "decomp_base": 16_384,
        "decomp_legs": 2,
        "bounded_log_lookup": False,
        "epsilon": 2.0**-52,
        "disable_freivalds": False,
    }


def _equations(circuit: Circuit) -> list[list[object]]:
    """The three products as ezkl names them; it leaves out axes of one."""
    rank, inputs, outputs = circuit.shape.rank, circuit.inputs, circuit.outputs
    if rank == 1:
        return [
            ["mk,k->", {"m": 1, "k": inputs}],
            ["k,kn->", {"k": outputs, "n": 1}],
            [",->mn", {}],
        ]
    return [
        ["mk,kn->n", {"m": 1, "k": inputs, "n": rank}],
        ["mk,kn->m", {"m": rank, "k": outputs, "n": 1}],
        ["k,k->mn", {"k": rank}],
    ]
