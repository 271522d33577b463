"""The same blocks, worked on by a Dask cluster whose address the user gives.

What goes over: rows as paths and places (the workers must see the same files under the same paths)
or small tensors, and centroids; what comes back: sums, counts, owners. Results come in the order of
the blocks and are equal to the bit to those of `LocalMapper`.

Dask sends Python objects as pickles and runs what its scheduler is told: whoever reaches it can run
code on its workers. Use a cluster of your own, in a network of your own. Nothing of it is ever
offered to, or taken from, peers.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from time import monotonic, sleep
from typing import Any, Final, TypeVar

from training.errors import ConfigError, DaskError

logger = logging.getLogger(__name__)

B = TypeVar("B")
R = TypeVar("R")

AHEAD: Final = 2
"""Blocks in flight per worker thread: the next is there when one is done, and no more."""

POLL_S: Final = 2.0
"""How often a waiting caller asks whether there are workers: a lost task is told by nobody."""

GRACE_S: Final = 1.0
"""Beyond the time-out of the library, which explains itself better."""

_SCHEMES: Final = ("tcp://", "tls://")
_GRAPH_LIMIT: Final = "distributed.admin.large-graph-warning-threshold"


@dataclass(frozen=True, slots=True)
class Waits:
    """How long to wait, in seconds.

    Args:
        connect_s: for the scheduler, then for its first worker, and for any later answer.
        block_s: for the result of one block.
        idle_s: with no worker left, for one to come back.
    """

    connect_s: float = 30.0
    block_s: float = 600.0  # 65,536 rows take seconds; reading as many raw pictures, minutes
    idle_s: float = 30.0


class DaskMapper:
    """Runs on the workers of a cluster. Made by `dask_mapper`."""

    def __init__(self, client: Any, address: str, waits: Waits) -> None:  # noqa: ANN401
        self._client = client
        self._address = address
        self._waits = waits

    def map_blocks(
        self, function: Callable[..., R], blocks: Iterable[B], *constants: object
    ) -> Iterator[R]:
        """See `training.clustering.mapping.Mapper`.

        Raises:
            DaskError: the cluster was lost, or a block took longer than it may.
            TrainingError: whatever the function raised on a worker.
        """
        waiting: deque[Any] = deque()
        ahead = AHEAD * max(1, self._threads())
        for block in blocks:
            waiting.append(self._submit(function, block, constants))
            if len(waiting) >= ahead:
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def wait_for_worker(self) -> None:
        """Return once the cluster has a worker.

        Raises:
            DaskError: none in time.
        """
        deadline = monotonic() + self._waits.connect_s
        while not self._threads():
            if monotonic() >= deadline:
                raise DaskError(
                    f"Dask cluster at {self._address}: no worker within "
                    f"{self._waits.connect_s:g} s: start one with `dask worker {self._address}`"
                )
            sleep(0.05)

    def _submit(self, function: Callable[..., R], block: B, constants: tuple[object, ...]) -> Any:  # noqa: ANN401
        import dask  # noqa: PLC0415
        from distributed.client import ClosedClientError  # noqa: PLC0415

        try:
            with dask.config.set({_GRAPH_LIMIT: "1GB"}):  # rows in memory are sent, and meant to be
                return self._client.submit(function, block, *constants, pure=False)
        except (ClosedClientError, OSError) as error:
            raise self._lost(error) from error

    def _result(self, future: Any) -> Any:  # noqa: ANN401
        """One block's result; meanwhile asks now and then whether anyone still works on it."""
        from distributed.scheduler import KilledWorker  # noqa: PLC0415

        waits, started = self._waits, monotonic()
        last_seen = started
        while True:
            try:
                return future.result(timeout=min(POLL_S, waits.block_s))
            except TimeoutError as error:
                if monotonic() - started >= waits.block_s:
                    raise DaskError(
                        f"Dask cluster at {self._address}: no result of a block within "
                        f"{waits.block_s:g} s"
                    ) from error
            except KilledWorker as error:
                raise DaskError(
                    f"Dask cluster at {self._address}: workers died while working on a block "
                    f"(out of memory?): {error}"
                ) from error
            except ImportError as error:
                raise DaskError(
                    f"Dask cluster at {self._address}: a worker lacks a module ({error}): install "
                    "the same version of paris-node there"
                ) from error
            except (CancelledError, OSError) as error:
                raise self._lost(error) from error
            if self._threads():
                last_seen = monotonic()
            elif monotonic() - last_seen >= waits.idle_s:
                raise DaskError(f"Dask cluster at {self._address}: has no workers any more")

    def _threads(self) -> int:
        """Worker threads of the cluster now."""
        client, wait_s = self._client, self._waits.connect_s
        if client.status != "running":
            raise self._lost(None)
        try:
            found = client.sync(client.scheduler.ncores, workers=None, callback_timeout=wait_s)
        except OSError as error:  # TimeoutError is one
            raise self._lost(error) from error
        return sum(found.values())

    def _lost(self, error: Exception | None) -> DaskError:
        why = f": {error}" if error is not None and str(error) else ""
        return DaskError(f"Dask cluster at {self._address}: lost its scheduler{why}")


@contextmanager
def dask_mapper(address: str, waits: Waits = Waits()) -> Iterator[DaskMapper]:
    """Connect to a running cluster, and leave it as it was.

    Args:
        address: of its scheduler, "tcp://host:port", as `dask scheduler` prints it.
        waits: how long for what.

    Raises:
        ConfigError: not such an address.
        DaskError: Dask is not installed here; nobody answers there; no worker in time.
    """
    if not address.startswith(_SCHEMES):
        raise ConfigError(f"Dask address {address!r}: expected tcp://host:port (or tls://)")
    client = _connect(address, waits.connect_s)
    try:
        mapper = DaskMapper(client, address, waits)
        mapper.wait_for_worker()
        yield mapper
    finally:
        try:
            client.close(timeout=waits.connect_s)
        except TimeoutError:
            logger.warning("Dask cluster at %s: did not say goodbye", address)


class _Connecting(Thread):
    """Connects apart: a port that accepts and then stays silent holds `Client` forever.

    (Its time-out covers the connection, not the handshake: distributed 2026.8, comm/core.py.)
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        super().__init__(daemon=True, name="dask-connect")
        self._arguments = (address, timeout_s)
        self._client_class = _client_class()
        self.client: Any = None
        self.error: Exception | None = None
        self.is_given_up = False

    def run(self) -> None:
        address, timeout_s = self._arguments
        try:
            client = self._client_class(address, timeout=timeout_s, set_as_default=False)
        except (OSError, ValueError, ImportError) as error:
            self.error = error
            return
        self.client = client
        if self.is_given_up:
            client.close(timeout=timeout_s)


def _connect(address: str, timeout_s: float) -> Any:  # noqa: ANN401
    """A connected client."""
    connecting = _Connecting(address, timeout_s)
    connecting.start()
    connecting.join(timeout_s + GRACE_S)
    if connecting.client is None:
        connecting.is_given_up = True
        why = f" ({connecting.error})" if connecting.error else ""
        raise DaskError(
            f"Dask cluster at {address}: no answer within {timeout_s:g} s{why}: is "
            "`dask scheduler` running there?"
        ) from connecting.error
    return connecting.client


def _client_class() -> Any:  # noqa: ANN401  (distributed is untyped)
    """The class `distributed.Client`, which does not speak on standard error."""
    try:
        from distributed import Client  # noqa: PLC0415
    except ImportError as error:
        raise DaskError(
            'Dask is not installed here: pip install "paris-node[dask]", or leave its address out'
        ) from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    return Client
