"""What starts p2pd: the address check and the kernel's word that nothing outlives its parent."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from p2p.dht.daemon import check_port_free
from p2p.errors import ListenError, PortInUseError
from tests.support.dht import is_alive

PARENT = """
import os, subprocess, sys
from p2p.dht.daemon import dies_with_parent
sleeper = subprocess.Popen(["sleep", "60"], preexec_fn=dies_with_parent(os.getpid()))
print(sleeper.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_process_dies_with_its_killed_parent() -> None:
    """Not of its own accord, as p2pd may: this one would sleep on."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        sleeper = int(parent.stdout.readline())
        assert is_alive(sleeper)
        parent.kill()
    try:
        gone_by = time.monotonic() + 5
        while is_alive(sleeper):
            assert time.monotonic() < gone_by
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(sleeper, signal.SIGKILL)


@pytest.mark.parametrize(
    ("transport", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)]
)
@pytest.mark.parametrize("is_shared", [False, True])
def test_taken_address_is_found_out(
    transport: str, kind: socket.SocketKind, is_shared: bool
) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        if is_shared:  # as p2pd does: others could bind it too, and connections would be split
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        address = f"/ip4/127.0.0.1/{transport}/{other.getsockname()[1]}"
        with pytest.raises(PortInUseError) as caught:
            check_port_free(address)
        assert caught.value.address == address
    check_port_free(address)


@pytest.mark.parametrize(
    "address", ["/ip4/127.0.0.1/tcp/0", "/dns4/example.org/tcp/4001", "/ip4/127.0.0.1", ""]
)
def test_addresses_that_cannot_be_tried_pass(address: str) -> None:
    check_port_free(address)


def test_address_of_another_machine_is_named() -> None:
    with pytest.raises(ListenError, match=r"203\.0\.113\.7"):
        check_port_free("/ip4/203.0.113.7/tcp/4001")
