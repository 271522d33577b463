"""Guards around py-libp2p: what a peer sends may cost a stream or a connection, never the host.

Facts behind each guard were measured on libp2p 0.8.1 (the version is pinned). An exception in any
task of its services ends the whole host, so every such task runs under `GuardedManager` and every
stream handler under `GuardedHost`. Both count and log once per kind of failure.
"""
# mypy: disable-error-code="misc"

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.tools.anyio_service.trio_manager import TrioManager

from p2p import limits
from p2p.libp2p_settings import HostLimits

logger = logging.getLogger(__name__)

_DAEMON_RETRY_S = 0.2


def quiet_libp2p_logs() -> None:
    """Keep py-libp2p's loggers silent: hostile peers could fill the log, and we count anyway."""
    foreign = logging.getLogger("libp2p")
    foreign.setLevel(logging.CRITICAL)
    foreign.propagate = False
    logging.getLogger("libp2p.network.auto_connector").setLevel(logging.NOTSET)  # sets its own
    if not foreign.handlers:
        foreign.addHandler(logging.NullHandler())


class FailureLog:
    """Counts failures by kind, and logs the first of each kind with its traceback."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts

    def note(self, where: str, error: BaseException) -> None:
        """Count a contained failure."""
        kind = f"{where}: {type(error).__name__}"
        self._counts["contained_failures"] += 1
        self._counts[kind] += 1
        if self._counts[kind] == 1:
            logger.info("contained in %s: %r (counted from now on)", where, error, exc_info=error)


class GuardedManager(TrioManager):
    """Runs a py-libp2p service whose tasks may fail without ending it.

    A failed one-shot task is noted; a failed daemon task is noted and started again.
    """

    def __init__(self, service: Any, failures: FailureLog) -> None:  # noqa: ANN401 (foreign type)
        super().__init__(service)
        self._failures = failures

    def run_task(  # noqa: D102 (see TrioManager)
        self,
        async_fn: Callable[..., Awaitable[Any]],
        *args: Any,  # noqa: ANN401
        daemon: bool = False,
        name: str | None = None,
        _internal: bool = False,
    ) -> None:
        if not self.is_running and not _internal:
            return  # late work of a connection that outlives the service by a moment
        label = name or str(getattr(async_fn, "__qualname__", "task"))

        async def guarded(*inner_args: Any) -> None:  # noqa: ANN401
            while True:
                try:
                    await async_fn(*inner_args)
                except Exception as error:  # noqa: BLE001 (the guard)
                    self._failures.note(label, error)
                    if not daemon:
                        return
                    await trio.sleep(_DAEMON_RETRY_S)
                else:
                    return

        run = async_fn if _internal else guarded
        super().run_task(run, *args, daemon=daemon, name=label, _internal=_internal)


@asynccontextmanager
async def run_service(service: Any, failures: FailureLog) -> AsyncIterator[None]:  # noqa: ANN401
    """Run a py-libp2p service under guards until the block is left."""
    async with trio.open_nursery() as nursery:
        manager = GuardedManager(service, failures)
        service._manager = manager
        nursery.start_soon(manager.run)
        await manager.wait_started()
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await manager.stop()


class GuardedHost(BasicHost):
    """A `BasicHost` whose stream handlers cannot raise, with a cap on streams per peer."""

    def __init__(
        self,
        network: Any,  # noqa: ANN401
        *,
        host_limits: HostLimits,
        counts: Counter[str],
    ) -> None:
        self._limits = host_limits
        self._counts = counts
        self._failures = FailureLog(counts)
        self._streams_of: Counter[str] = Counter()
        super().__init__(network, negotiate_timeout=int(host_limits.upgrade_timeout_s))

    async def _swarm_stream_handler(self, net_stream: Any) -> None:  # noqa: ANN401
        """Negotiate and serve one inbound stream; whatever goes wrong resets only this stream."""
        peer = str(net_stream.muxed_conn.peer_id)
        unfinished = len(getattr(net_stream.muxed_conn, "streams", ()))
        if (
            self._streams_of[peer] >= self._limits.max_streams_per_peer
            or unfinished > limits.MAX_TRACKED_STREAMS_PER_CONNECTION
        ):
            self._counts["streams_refused"] += 1
            await net_stream.reset()
            return
        self._streams_of[peer] += 1
        try:
            await super()._swarm_stream_handler(net_stream)
        except Exception as error:  # noqa: BLE001 (the guard around every stream handler)
            self._failures.note("stream handler", error)
            await net_stream.reset()
        finally:
            self._streams_of[peer] -= 1
            if not self._streams_of[peer]:
                del self._streams_of[peer]

    async def _identify_peer(self, peer_id: Any, *, reason: str) -> None:  # noqa: ANN401
        """Ask a peer who it is. Runs in a system task, where an exception would end the program."""
        try:
            await super()._identify_peer(peer_id, reason=reason)
        except Exception as error:  # noqa: BLE001 (the guard)
            self._failures.note("identify", error)
