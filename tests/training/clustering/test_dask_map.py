"""Real schedulers and workers, on the loopback only."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.clustering import kmeans
from training.clustering.dask_map import Waits, dask_mapper
from training.clustering.kmeans import Job, assign, two_stage
from training.clustering.mapping import LOCAL
from training.clustering.rows import MemoryRows, open_rows
from training.errors import ConfigError, DaskError, DataError

ROOT = Path(__file__).parents[3]
SOON = Waits(connect_s=5.0, block_s=60.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A scheduler and two workers in this process, reached over TCP."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp://",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as started:
        yield started


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.mark.slow
def test_results_come_in_the_order_of_the_blocks(cluster: Any) -> None:
    with dask_mapper(cluster.scheduler_address, SOON) as mapper:
        blocks = list(range(20))
        assert list(mapper.map_blocks(add, blocks, 5)) == list(LOCAL.map_blocks(add, blocks, 5))
        assert list(mapper.map_blocks(add, [], 5)) == []


@pytest.mark.slow
def test_blocks_are_taken_only_a_few_ahead(cluster: Any) -> None:
    taken = []

    def blocks() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    with dask_mapper(cluster.scheduler_address, SOON) as mapper:
        results = mapper.map_blocks(add, blocks(), 0)
        for number in range(3):
            assert next(results) == number
            assert len(taken) <= number + 4


@pytest.mark.slow
def test_clusters_are_those_found_here_to_the_bit(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "SAMPLE_ROWS", 100)
    features = torch.randn(260, 6, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "rows.npy", features.numpy())
    here = two_stage(features, 3, seed=0, job=Job(full_passes=3))
    owners = torch.cat(list(assign(MemoryRows(features), *here)))
    with dask_mapper(cluster.scheduler_address, SOON) as mapper:
        job = Job(mapper, block_rows=90, full_passes=3)
        for rows in (open_rows(tmp_path / "rows.npy"), MemoryRows(features)):
            there = two_stage(rows, 3, seed=0, job=job)
            assert torch.equal(there[0], here[0])
            assert torch.equal(there[1], here[1])
            assert torch.equal(torch.cat(list(assign(rows, *there, job))), owners)


@pytest.mark.slow
def test_a_file_that_a_worker_cannot_read_is_named(cluster: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.ones((10, 2), dtype="<f4"))
    rows = open_rows(tmp_path / "rows.npy")
    (tmp_path / "rows.npy").unlink()
    with (
        dask_mapper(cluster.scheduler_address, SOON) as mapper,
        pytest.raises(DataError, match=r"rows\.npy: cannot be read"),
    ):
        two_stage(rows, 2, seed=0, job=Job(mapper))


@pytest.mark.slow
def test_a_block_that_takes_too_long_is_given_up(cluster: Any) -> None:
    with (
        dask_mapper(cluster.scheduler_address, Waits(connect_s=5, block_s=0.2)) as mapper,
        pytest.raises(DaskError, match=r"no result of a block within 0\.2 s"),
    ):
        list(mapper.map_blocks(time.sleep, [1.5]))


@pytest.mark.slow
def test_nobody_there_is_told_in_time(closed_port: int) -> None:
    began = time.monotonic()
    with (
        pytest.raises(DaskError, match=r"no answer within 0\.5 s .* is `dask scheduler` running"),
        dask_mapper(f"tcp://127.0.0.1:{closed_port}", Waits(connect_s=0.5)),
    ):
        pass
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_port_that_stays_silent_is_told_in_time() -> None:
    began = time.monotonic()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with (
            pytest.raises(DaskError, match=r"no answer within 0\.5 s"),
            dask_mapper(f"tcp://127.0.0.1:{silent.getsockname()[1]}", Waits(connect_s=0.5)),
        ):
            pass
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("address", ["", "127.0.0.1:8786", "http://127.0.0.1:8786", "inproc://1"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected tcp://host:port"), dask_mapper(address):
        pass


def test_without_dask_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(DaskError, match=r'pip install "paris-node\[dask\]"'),
        dask_mapper("tcp://127.0.0.1:8786"),
    ):
        pass


# --- a cluster of processes, which die ----------------------------------------------------------
class Processes:
    """`dask scheduler` and `dask worker` as a user starts them."""

    def __init__(self, folder: Path) -> None:
        common = ["--no-dashboard", "--host", "127.0.0.1"]
        file = str(folder / "scheduler.json")
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", file, *common)
        self.address = self._read(self.scheduler, "Scheduler at:").rpartition(" ")[2].strip()
        self.worker: subprocess.Popen[str] | None = None

    def start_worker(self) -> None:
        common = ["--no-dashboard", "--host", "127.0.0.1", "--no-nanny"]
        self.worker = self._start("worker", self.address, "--nthreads", "1", *common)

    def kill_worker(self) -> None:
        assert self.worker is not None
        self.worker.kill()

    def stop(self) -> None:
        for process in (self.worker, self.scheduler):
            if process is not None:
                process.kill()
                process.communicate()

    @staticmethod
    def _start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dask", *arguments]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    @staticmethod
    def _read(process: subprocess.Popen[str], wanted: str) -> str:
        assert process.stderr is not None
        for line in process.stderr:
            if wanted in line:
                return line
        raise AssertionError(f"dask ended with {process.wait()}")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    yield started
    started.stop()


@pytest.mark.slow
def test_a_cluster_without_workers_is_told_in_time(processes: Processes) -> None:
    with (
        pytest.raises(DaskError, match=r"no worker within 0\.5 s: start one with `dask worker tcp"),
        dask_mapper(processes.address, Waits(connect_s=0.5)),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "reason"),
    [
        (lambda started: started.scheduler.kill(), "lost its scheduler"),
        (Processes.kill_worker, "has no workers any more"),
    ],
    ids=["scheduler", "worker"],
)
def test_a_part_killed_while_it_works_is_told_in_time(
    kill: Callable[[Processes], None], reason: str, processes: Processes
) -> None:
    processes.start_worker()
    waits = Waits(connect_s=30.0, block_s=120.0, idle_s=0.0)
    with dask_mapper(processes.address, waits) as mapper:

        def blocks() -> Iterator[float]:
            yield 100.0
            kill(processes)
            yield 100.0

        began = time.monotonic()
        with pytest.raises(DaskError, match=reason):
            list(mapper.map_blocks(time.sleep, blocks()))
        assert time.monotonic() - began < 60
