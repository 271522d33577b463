"""A program: makes a run in forked children that are killed at operations on the disk.

usage: kill_prepare.py PICTURES WORK STRIDE   (prints one JSON line)

Every STRIDE-th operation is tried. After each death the same call must finish the run, with the
bytes of one that was never interrupted, and leave nothing else behind.
"""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import torch

from tests.training.conftest import TINY_SPEC
from tests.training.experts.kill_saves import was_killed
from training.preparation import encode
from training.preparation.prepare import prepare_run

BATCH = 8


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def main() -> None:
    pictures, work, stride = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    vars(encode).update(MIN_BATCH=BATCH, MAX_BATCH=BATCH)
    expected = contents(prepare_run(pictures, work / "whole", TINY_SPEC).root)
    spooled: list[int] = []
    for kill_at in range(1, 10_000, stride):
        out = work / "out"
        shutil.rmtree(out, ignore_errors=True)
        if not was_killed(partial(prepare_run, pictures, out, TINY_SPEC), kill_at):
            break
        spooled.append(len(list(out.glob("spool/batch-*"))))
        if contents(out).keys() == expected.keys():
            continue  # it died on its way out, with all done
        prepare_run(pictures, out, TINY_SPEC)
        found = contents(out)
        if found != expected:
            raise SystemExit(f"killed at operation {kill_at}: another run, {sorted(found)}")
    print(json.dumps({"spooled": spooled}))  # noqa: T201


if __name__ == "__main__":
    main()
