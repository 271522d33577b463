"""Training one expert in several processes of one machine: one leads, the others follow.

The leader is the process that talks to whoever ordered the training; it starts the followers as
programs (`python -m training.experts.distributed FOLDER RANK`) and they meet through a file in a
private folder.  All of them run the same loop.  If one dies, the others end within seconds: they
cannot go on, and training continues from the last save when it is started again.
"""

import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import distributed

from training.clusters import Cluster
from training.config import TrainConfig
from training.errors import ConfigError
from training.experts.loop import train
from training.experts.team import PATIENCE
from training.jsonio import canonical_json, from_json, read_json, to_json
from training.run import load_run

logger = logging.getLogger(__name__)

ALL_GPUS: Final = "auto"
_JOB_FILE: Final = "job.json"
_MEETING_FILE: Final = "meeting"
_POLL_S: Final = 0.2
_GRACE_S: Final = 10.0
"""A process that waits for a dead one in a GPU's queue hears no error: then it is ended."""
_LEAVE_S: Final = 20.0
_LOST_STATUS: Final = 70
"""Exit status of a process whose partner died."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the followers are told.

    Args:
        shared: the run's folder.
        models: of pretrained parts.
        data: the cluster's.
        state: of the saves.
        start_from: a published checkpoint; empty for none.
        config: settings; `device` is "cpu" or "cuda" (each process takes the GPU of its number).
        processes: how many train.
    """

    shared: str
    models: str
    data: str
    state: str
    start_from: str
    config: TrainConfig
    processes: int

    def __post_init__(self) -> None:
        """Refuse processes that would have nothing to do."""
        if not 1 <= self.processes <= self.config.batch:
            raise ConfigError(
                f"processes must lie in 1..{self.config.batch} (the batch), got {self.processes}"
            )


def process_count(gpus: str, device: str, visible: int, batch: int) -> int:
    """How many processes train: one per GPU, and one where there is none.

    Args:
        gpus: `ALL_GPUS` or a number.
        device: as set; only "cuda" without a number means more than one.
        visible: GPUs this machine shows.
        batch: samples per step: more processes than samples would idle.

    Raises:
        ConfigError: more GPUs are wanted than there are.
    """
    if device != "cuda":
        return 1
    wanted = visible if gpus == ALL_GPUS else int(gpus)
    if wanted > visible:
        raise ConfigError(f"gpus = {wanted}, but this machine shows {visible}: lower it, or auto")
    return max(1, min(wanted, batch))


@contextmanager
def lead(job: Job) -> Iterator[TrainConfig]:
    """Start the followers and join them; the settings to train with here.

    With one process nothing is started. A process leads at most once in its life.
    """
    if job.processes == 1:
        yield job.config
        return
    with tempfile.TemporaryDirectory(prefix="paris-crew-") as name:  # readable by its owner alone
        folder = Path(name)
        (folder / _JOB_FILE).write_bytes(canonical_json(to_json(job)))
        followers = [_start(folder, rank) for rank in range(1, job.processes)]
        is_over = threading.Event()
        watch = threading.Thread(target=_watch_followers, args=(followers, is_over), daemon=True)
        try:
            watch.start()
            yield _join(folder, job, 0)
        finally:
            is_over.set()
            _dismiss(followers)


def main() -> None:
    """A follower: the same loop as the leader's, until it ends or the leader is gone."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_leave_with_leader, daemon=True).start()
    job = from_json(Job, read_json(folder / _JOB_FILE), _JOB_FILE)
    config = _join(folder, job, rank)
    run, cluster = load_run(Path(job.shared), Path(job.models)), Cluster.load(Path(job.data))
    start_from = Path(job.start_from) if job.start_from else None
    for _ in train(cluster, run, config, state_dir=Path(job.state), start_from=start_from):
        pass


def _start(folder: Path, rank: int) -> subprocess.Popen[bytes]:
    """A follower; the end of its standard input tells it that the leader is gone."""
    return subprocess.Popen(
        [sys.executable, "-m", "training.experts.distributed", str(folder), str(rank)],
        stdin=subprocess.PIPE,
    )


def _join(folder: Path, job: Job, rank: int) -> TrainConfig:
    """Meet the other processes; this one's settings."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(job.processes),
        LOCAL_WORLD_SIZE=str(job.processes),
        OMP_NUM_THREADS=str(job.config.threads),
        GLOO_SOCKET_IFNAME=loopback,  # nothing of this leaves the machine
        NCCL_SOCKET_IFNAME=loopback,
    )
    is_cpu = job.config.device == "cpu"
    if not is_cpu:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "gloo" if is_cpu else "nccl",
        store=distributed.FileStore(  # type: ignore[attr-defined]
            str(folder / _MEETING_FILE), job.processes
        ),
        rank=rank,
        world_size=job.processes,
        timeout=PATIENCE,
    )
    return job.config if is_cpu else replace(job.config, device=f"cuda:{rank}")


def _watch_followers(followers: list[subprocess.Popen[bytes]], is_over: threading.Event) -> None:
    """End this process if a follower dies and the sum it was missed in does not end it first."""
    while not is_over.wait(_POLL_S):
        for rank, follower in enumerate(followers, start=1):
            if follower.poll() not in (None, 0):
                logger.error("training process %d ended with %s", rank, follower.returncode)
                if not is_over.wait(_GRACE_S):
                    os._exit(_LOST_STATUS)
                return


def _leave_with_leader() -> None:
    sys.stdin.buffer.read()
    os._exit(_LOST_STATUS)


def _dismiss(followers: list[subprocess.Popen[bytes]]) -> None:
    """Let followers leave: those that are done do, the others hear that nobody leads them."""
    for follower in followers:
        if follower.stdin is not None:
            follower.stdin.close()
    for follower in followers:
        try:
            follower.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            follower.kill()
            follower.wait()
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
