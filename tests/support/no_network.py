"""A guard for tests: this process opens no connection that leaves the machine."""

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class NetworkTouchedError(AssertionError):
    """A test tried to reach another machine."""


@contextmanager
def network_forbidden() -> Iterator[None]:
    """Inside, connecting or looking a name up raises, except on this machine itself."""
    connect, connect_ex, look_up = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.getaddrinfo,
    )

    def check(host: object) -> None:
        name = str(host)
        if name == "localhost":
            return
        try:
            is_here = ipaddress.ip_address(name).is_loopback
        except ValueError:
            is_here = False
        if not is_here:
            raise NetworkTouchedError(f"a test tried to reach {name}")

    def guarded(original: Any) -> Any:
        def reach(self: socket.socket, address: Any, *rest: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                check(address[0])
            return original(self, address, *rest)

        return reach

    def guarded_look_up(host: Any, *rest: Any, **options: Any) -> Any:
        check(host)
        return look_up(host, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(connect))
        patch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield
