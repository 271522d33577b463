"""Two networks with one face, so that the same tests run over memory and over py-libp2p."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from p2p.host import Host, Stream
from p2p.libp2p_host import HostLimits, HostSettings, LibP2PHost, open_host
from p2p.memory_host import MemoryNetwork

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


async def eventually(condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
    """Wait until something that another task does has happened."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 (the event is another library's)
            await trio.sleep(0.01)


async def echo(stream: Stream) -> None:
    """A stream handler: sends every frame back."""
    while True:
        await stream.send_frame(
            await stream.receive_frame(max_size=2**20, timeout_s=30), max_size=2**20
        )


def settings(
    name: str, *, limits: HostLimits | None = None, listen: str = LOOPBACK
) -> HostSettings:
    """Settings of a host on loopback whose key comes from a name."""
    return HostSettings(
        seed=name.encode().ljust(32, b"\0"), listen=(listen,), limits=limits or HostLimits()
    )


class RealNetwork:
    """py-libp2p hosts on loopback."""

    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[Host]:
        async with open_host(settings(name)) as host:
            yield host

    async def settle(self, topic: str, *hosts: Host) -> None:
        """Wait until every host has every connected subscriber in its mesh."""
        for host in hosts:
            assert isinstance(host, LibP2PHost)
            await eventually(partial(_has_whole_mesh, host, topic, len(hosts)))


class FakeNetwork:
    """Hosts in memory."""

    def __init__(self) -> None:
        self.hub = MemoryNetwork()

    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[Host]:
        async with self.hub.open_host(settings(name).seed) as host:
            yield host

    async def settle(self, topic: str, *hosts: Host) -> None:
        """Nothing to wait for."""


def _has_whole_mesh(host: LibP2PHost, topic: str, hosts: int) -> bool:
    stack = host._stack
    assert stack is not None
    wanted = min(len(host.connected()), hosts - 1)
    return len(stack.pubsub.router.mesh.get(topic, ())) >= wanted
