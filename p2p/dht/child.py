"""The swarm child, `python -m p2p.dht.child FD`: records and bulk blobs on hivemind's DHT, p2pd.

Its only tie to the node is the inherited socket FD: settings in the first frame, then requests. The
end of that socket means the node is gone, however it went: p2pd is stopped and the child leaves.
Crash-only: what cannot go on exits with a code, and the node starts a new child.
"""

import asyncio
import contextlib
import logging
import random
import shutil
import signal
import socket
import sys
from typing import Final

from p2p.dht.child_requests import Requests
from p2p.dht.child_socket import ParentSocket
from p2p.dht.daemon import Daemon, start_daemon
from p2p.dht.frames import Message, MessageDecoder
from p2p.dht.settings import ChildSettings
from p2p.dht.swarm import MAX_KNOWN_PEERS, Swarm, open_swarm
from p2p.errors import DecodeError, LimitError, ListenError, PortInUseError, TransportError
from p2p.limits import DHT_CALL_TIMEOUT_S

logger = logging.getLogger(__name__)

EXIT_CLEAN: Final = 0
EXIT_START_FAILED: Final = 3
EXIT_DAEMON_GONE: Final = 4
EXIT_BAD_SOCKET: Final = 5
_FIRST_FRAME_TIMEOUT_S: Final = 30.0
_MAX_FAILED_PROBES: Final = 2
_LONELY_DELAYS_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Pauses between calls on the bootstraps while nobody is known."""


def main(arguments: list[str]) -> int:
    """Run one child.

    Args:
        arguments: the number of the inherited socket.

    Returns:
        The exit code, one of `EXIT_*`.
    """
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    with socket.socket(fileno=int(arguments[0])) as parent:
        try:
            settings = _read_settings(parent)
        except (DecodeError, LimitError, OSError) as error:
            logger.error("no settings came from the node: %s", error)
            return EXIT_BAD_SOCKET
        if settings is None:
            return EXIT_CLEAN
        try:
            return asyncio.run(_run(parent, settings))
        finally:
            shutil.rmtree(settings.runtime_dir, ignore_errors=True)


def _read_settings(parent: socket.socket) -> ChildSettings | None:
    """The first frame; None if the node left before sending it."""
    parent.settimeout(_FIRST_FRAME_TIMEOUT_S)
    decoder = MessageDecoder()
    while True:
        received = parent.recv(65536)
        if not received:
            return None
        messages = decoder.feed(received)
        if messages:
            return ChildSettings.from_message(messages[0])


async def _run(parent: socket.socket, settings: ChildSettings) -> int:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # a coroutine of asyncio.run is always in a task
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    link = await ParentSocket.open(parent)
    daemon: Daemon | None = None
    try:
        daemon = await start_daemon(settings)
        swarm = await open_swarm(daemon.control_path)
        try:
            return await _serve(link, settings, daemon, swarm)
        finally:
            await swarm.close()
    except TransportError as error:
        logger.error("cannot start: %s", error)
        await link.send({"event": "failed", **_failure(error)})
        return EXIT_START_FAILED
    except asyncio.CancelledError:
        return EXIT_CLEAN
    finally:
        if daemon is not None:
            await daemon.stop()
        await link.close()


def _failure(error: TransportError) -> Message:
    """Why the start failed, as fields of a message."""
    match error:
        case PortInUseError():
            return {"code": "port_in_use", "address": error.address, "message": error.reason}
        case ListenError():
            return {"code": "listen", "address": error.address, "message": error.reason}
        case _:
            return {"code": "start", "address": "", "message": str(error)}


async def _serve(link: ParentSocket, settings: ChildSettings, daemon: Daemon, swarm: Swarm) -> int:
    """Work until the node leaves or p2pd ends; the exit code says which."""
    joining = Joining(link, swarm, settings)
    requests = Requests(link, swarm, joining, settings)
    await requests.serve_blobs()
    addresses = await swarm.addresses()
    logger.info("ready: %s", ", ".join(addresses))
    await link.send({"event": "ready", "peer": swarm.peer, "addresses": list(addresses)})
    endings = {
        asyncio.create_task(requests.run()): EXIT_CLEAN,
        asyncio.create_task(_watch(daemon, swarm, settings.probe_s)): EXIT_DAEMON_GONE,
        asyncio.create_task(joining.run()): EXIT_DAEMON_GONE,
    }
    try:
        done, _ = await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        first = done.pop()
        if isinstance(first.exception(), DecodeError | LimitError):
            logger.error("the node sent garbage: %s", first.exception())
            return EXIT_BAD_SOCKET
        first.result()
        return endings[first]
    finally:
        for task in endings:
            task.cancel()
        await asyncio.gather(*endings, return_exceptions=True)


async def _watch(daemon: Daemon, swarm: Swarm, probe_s: float) -> None:
    """Return when p2pd has ended or answers no more: hivemind itself would not notice (F8)."""
    ended = asyncio.create_task(daemon.wait())
    try:
        failed = 0
        while failed < _MAX_FAILED_PROBES:
            done, _ = await asyncio.wait({ended}, timeout=probe_s)
            if done:
                logger.error("p2pd ended with code %s", ended.result())
                return
            try:
                await swarm.probe()
                failed = 0
            except TransportError as error:
                failed += 1
                logger.warning("probe %d failed: %s", failed, error)
    finally:
        ended.cancel()


class Joining:
    """Keeps the node in touch: hivemind never retries dead peers nor heals islands."""

    def __init__(self, link: ParentSocket, swarm: Swarm, settings: ChildSettings) -> None:
        self._link = link
        self._swarm = swarm
        self._rejoin_s = settings.rejoin_s
        self._bootstrap = list(dict.fromkeys(settings.bootstrap))
        self._known: tuple[str, ...] = ()

    async def add(self, addresses: tuple[str, ...]) -> int:
        """Call on more peers now, and again in every later round; how many answered."""
        merged = dict.fromkeys((*addresses, *self._bootstrap))
        self._bootstrap = list(merged)[:MAX_KNOWN_PEERS]
        async with asyncio.timeout(DHT_CALL_TIMEOUT_S):
            met = await self._swarm.join(addresses)
        await self._report()
        return met

    async def run(self) -> None:
        """Join round after round; never returns."""
        lonely_rounds = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rejoin_s):
                    await self._swarm.join((*self._bootstrap, *self._known))
            await self._report()
            pause_s = self._rejoin_s * random.uniform(0.75, 1.25)
            if not self._swarm.size and lonely_rounds < len(_LONELY_DELAYS_S):
                pause_s = min(pause_s, _LONELY_DELAYS_S[lonely_rounds])
                lonely_rounds += 1
            await asyncio.sleep(pause_s)

    async def _report(self) -> None:
        """Tell the node whom we know, so that a new child can call on them."""
        with contextlib.suppress(TransportError, TimeoutError):
            known = await self._swarm.known_addresses()
            self._known = known or self._known
        await self._link.send(
            {"event": "peers", "count": self._swarm.size, "known": list(self._known)}
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
