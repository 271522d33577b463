"""A program: saves checkpoints in forked children that are killed at every operation on the disk.

usage: kill_saves.py SHARED CLUSTER WORK   (prints one JSON line)

Runs apart from the tests because it forks; everything slow is imported once, before the forks.
"""

import copy
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from training.clusters import Cluster
from training.experts.checkpoint import Snapshot, read_latest, write_save
from training.experts.trainer import Trainer
from training.run import Run, load_run

OPERATIONS = ("open", "write", "fsync", "rename", "unlink", "rmdir", "mkdir", "close")
KEEP = 2
MAX_OPERATIONS = 500


def arm(kill_at: int) -> None:
    """From now on, die at the `kill_at`-th operation; a write first leaves half its bytes."""
    seen = 0

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == kill_at:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in OPERATIONS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def snapshots(run: Run, cluster: Cluster) -> list[Snapshot]:
    """What three saves hold: after 8, 16 and 24 samples."""
    trainer, taken = Trainer(cluster, run, run.spec.train), []
    while trainer.samples < 24:
        trainer.step_once()
        if trainer.samples % 8 == 0:
            taken.append(copy.deepcopy(trainer.snapshot()))
    return taken


def was_killed(work: Callable[[], object], kill_at: int) -> bool:
    """Work in a child that dies at one operation; false if it had fewer than that."""
    child = os.fork()
    if child == 0:
        arm(kill_at)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGKILL
    if os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"child failed at operation {kill_at}")
    return False


def main() -> None:
    shared, data, work = (Path(argument) for argument in sys.argv[1:])
    run, cluster = load_run(shared), Cluster.load(data)
    template, state = work / "template", work / "state"
    template.mkdir()
    *before, last = snapshots(run, cluster)
    for snapshot in before:
        write_save(template, snapshot, KEEP)
    found: list[int] = []
    for kill_at in range(1, MAX_OPERATIONS):
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(template, state, copy_function=os.link)
        killed = was_killed(partial(write_save, state, last, KEEP), kill_at)
        latest = read_latest(state, run, cluster.number)
        found.append(-1 if latest is None else latest.state.samples)
        write_save(state, last, KEEP)  # whatever was left behind does not stand in the way
        if len(list(state.iterdir())) > KEEP:
            raise SystemExit(f"left behind: {[p.name for p in state.iterdir()]}")
        if not killed:
            break
    print(json.dumps({"found": found, "killed": len(found) - 1}))  # noqa: T201


if __name__ == "__main__":
    main()
