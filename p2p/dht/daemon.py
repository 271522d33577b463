"""One p2pd process (hivemind's Go libp2p daemon): started, watched and stopped by us.

hivemind would start it itself, but with its sockets in the shared temp folder, with the identity
on disk for good, and with nothing that ends it when its parent is killed. Here it gets a private
folder, an identity file that is removed once read, and the kernel's word that it dies with us.
"""

import asyncio
import contextlib
import ctypes
import errno
import importlib.util
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p.dht.settings import ChildSettings
from p2p.errors import ListenError, PortInUseError, TransportError
from p2p.limits import MAX_CONNECTIONS

logger = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 1.0
_IDENTITY_PREFIX: Final = bytes((0x08, 0x01, 0x12, 0x40))
"""Protobuf `PrivateKey{type: Ed25519, data: 64 bytes}`; libp2p's peer-ids.md."""
_READY_LINE: Final = b"Peer ID:"
_PR_SET_PDEATHSIG: Final = 1
_MAX_LINE: Final = 64 * 1024


class Daemon:
    """A running p2pd. Made by `start_daemon`."""

    def __init__(self, process: asyncio.subprocess.Process, control_path: Path) -> None:
        self._process = process
        self.control_path = control_path
        """Its control socket."""
        self._last_lines: deque[str] = deque(maxlen=8)
        self._drain: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait until it ends; its exit code (negative: the signal)."""
        return await self._process.wait()

    async def wait_ready(self) -> None:
        """Wait until it listens.

        Raises:
            TransportError: if it ends first or takes longer than `START_TIMEOUT_S`.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while line := await self._read_line():
                    if line.startswith(_READY_LINE):
                        self._drain = asyncio.create_task(self._drain_output())
                        return
                code = await self._process.wait()
        except TimeoutError:
            raise TransportError(f"p2pd did not listen within {START_TIMEOUT_S} s") from None
        reason = self._last_lines[-1] if self._last_lines else "no message"
        raise TransportError(f"p2pd ended with code {code}: {reason}")

    async def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL after `STOP_TIMEOUT_S`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._drain is not None:
            self._drain.cancel()

    async def _drain_output(self) -> None:
        """Keep its pipe empty (it would stop at a full one) and its words in our log."""
        while line := await self._read_line():
            logger.debug("p2pd: %s", line.decode(errors="replace").rstrip())

    async def _read_line(self) -> bytes:
        assert self._process.stdout is not None  # noqa: S101  # asked for in start_daemon
        try:
            line = await self._process.stdout.readline()
        except ValueError:  # longer than the stream's limit: the rest of it is dropped
            return b"(a line too long)\n"
        if line:
            self._last_lines.append(line.decode(errors="replace").strip())
        return line


async def start_daemon(settings: ChildSettings) -> Daemon:
    """Start p2pd and wait until it listens.

    Raises:
        ListenError: if an address of `settings.listen` cannot be had (`PortInUseError` if taken).
        TransportError: if it does not start.
    """
    for address in settings.listen:
        check_port_free(address)
    identity = settings.runtime_dir / "identity"
    control = settings.runtime_dir / "p2pd.sock"
    _write_private(identity, _identity_bytes(settings.seed))
    try:
        process = await asyncio.create_subprocess_exec(
            str(_binary()),
            *_arguments(settings, identity=identity, control=control),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_MAX_LINE,
            env={**os.environ, "GOLOG_LOG_LEVEL": "error", "GOLOG_LOG_FMT": "json"},
            preexec_fn=dies_with_parent(os.getpid()),
        )
    except OSError as error:
        identity.unlink(missing_ok=True)
        raise TransportError(f"p2pd cannot be run: {error}") from error
    daemon = Daemon(process, control)
    try:
        await daemon.wait_ready()
    except BaseException:
        await daemon.stop()
        raise
    finally:
        identity.unlink(missing_ok=True)
    return daemon


def check_port_free(address: str) -> None:
    """Try the address ourselves: p2pd sets SO_REUSEPORT and would share a port without a word.

    Args:
        address: a multiaddr, `/ip4/.../tcp/...`; other kinds and port 0 pass.

    Raises:
        PortInUseError: if another socket is bound there.
        ListenError: if it cannot be used (not this machine's, or not allowed).
    """
    parts = address.split("/")
    if len(parts) < 5 or not parts[4].isdigit() or parts[4] == "0":
        return
    family = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}.get(parts[1])
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}.get(parts[3])
    if family is None or kind is None:
        return
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:  # not stopped by connections in TIME_WAIT
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((parts[2], int(parts[4])))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(address) from error
            raise ListenError(address, error.strerror or str(error)) from error


def _arguments(settings: ChildSettings, *, identity: Path, control: Path) -> list[str]:
    """p2pd's command line: hivemind's own choices, without its own bootstrap (fatal when down)."""
    arguments = [
        f"-listen=/unix{control}",
        f"-id={identity}",
        f"-hostAddrs={','.join(settings.listen)}",
        "-dhtServer=1",  # how p2pd finds the addresses of peers it knows by name only
        "-connManager=1",
        f"-connHi={MAX_CONNECTIONS}",
        f"-connLo={MAX_CONNECTIONS // 2}",
        "-autonat=1",
        "-relay=1",
        f"-natPortMap={int(settings.has_port_mapping)}",
        f"-autoRelay={int(settings.has_auto_relay)}",
        f"-idleTimeout={int(START_TIMEOUT_S)}s",  # ends it when nobody connects at the start
    ]
    if settings.announce:
        arguments.append(f"-announceAddrs={','.join(settings.announce)}")
    if settings.has_auto_relay and settings.bootstrap:
        arguments.append(f"-trustedRelays={','.join(settings.bootstrap)}")
    return arguments


def _binary() -> Path:
    """The p2pd inside hivemind's wheel, found without importing hivemind."""
    spec = importlib.util.find_spec("hivemind")
    if spec is None or not spec.submodule_search_locations:
        raise TransportError("hivemind is not installed: its wheel carries p2pd")
    return Path(spec.submodule_search_locations[0]) / "hivemind_cli" / "p2pd"


def _identity_bytes(seed: bytes) -> bytes:
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return _IDENTITY_PREFIX + seed + public


def _write_private(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def dies_with_parent(parent: int) -> Callable[[], None] | None:
    """What runs in the forked process before p2pd: the kernel kills it when `parent` ends.

    Linux only; elsewhere the node ends the child's process group (`p2p.dht.link`).
    """
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def arm() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended between the fork and the line above
            os._exit(1)

    return arm
