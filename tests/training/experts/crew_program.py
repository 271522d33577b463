"""A program: trains as the leader of several processes on this machine's CPU.

usage: crew_program.py SHARED CLUSTER STATE PROCESSES STOP_AFTER KILL   (prints a JSON line a step)

STOP_AFTER steps it is asked to stop (0: never). KILL: "follower" has the follower killed after two
steps, "leader" has this process killed then, "no" neither.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from training.clusters import Cluster
from training.errors import TrainingError
from training.experts import distributed
from training.experts.distributed import Job, lead
from training.experts.loop import StepReport, train
from training.run import load_run


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201


def main() -> None:
    shared, data, state = (Path(argument) for argument in sys.argv[1:4])
    processes, stop_after, kill = int(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
    run, cluster = load_run(shared), Cluster.load(data)
    job = Job(
        str(shared), str(shared), str(data), str(state), "", run.spec.train_config(0), processes
    )
    started: list[subprocess.Popen[bytes]] = []
    real = distributed._start

    def start(folder: Path, rank: int) -> subprocess.Popen[bytes]:
        started.append(real(folder, rank))
        say(follower=started[-1].pid)
        return started[-1]

    distributed._start = start
    asked = itertools.count(1)

    def should_stop() -> bool:
        return next(asked) == stop_after

    try:
        with lead(job) as config:
            made = 0
            for event in train(cluster, run, config, state_dir=state, should_stop=should_stop):
                if not isinstance(event, StepReport):
                    continue
                made += 1
                say(loss=event.loss, processes=event.execution.processes)
                if made == 2 and kill == "follower":
                    started[0].kill()
                if made == 2 and kill == "leader":
                    os.kill(os.getpid(), signal.SIGKILL)
    except TrainingError as error:
        say(failed=str(error))
        raise SystemExit(3) from error
    say(met=torch.distributed.is_initialized())


if __name__ == "__main__":
    main()
