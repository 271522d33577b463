#!/usr/bin/env python3
"""Build the run that ships with the package, node/builtin_run/, from the bundled pictures.

Done by hand when its recipe changes: floating point differs between machines, so the run's id would
differ too if every node built its own. A test rebuilds it and compares within a tolerance.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from node.runs import BUILTIN_FOLDER, write_builtin_run
from p2p.records import ClaimPolicy
from training.preparation.prepare import default_spec, prepare_run

NAME = "paris-fashion-1"
CLUSTERS = 4
BUDGET_SAMPLES = 64_000
SAVE_SAMPLES = 8_000
LEARNING_RATE = 2e-3  # the setting measured for 256k samples in all


def main() -> None:
    spec = default_spec("fashion", CLUSTERS)
    train = replace(
        spec.train,
        budget_samples=BUDGET_SAMPLES,
        save_samples=SAVE_SAMPLES,
        learning_rate=LEARNING_RATE,
    )
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare_run(
            "fashion", Path(scratch) / "run", replace(spec, name=NAME, train=train)
        )
        run = write_builtin_run(prepared, ClaimPolicy(), BUILTIN_FOLDER)
    size = sum(path.stat().st_size for path in BUILTIN_FOLDER.rglob("*") if path.is_file())
    print(f"{run}  {size / 1e6:.1f} MB  clusters of {[info.n for info in prepared.clusters]}")


if __name__ == "__main__":
    main()
