"""A real swarm child under its client: it dies in every way, and comes back without being asked."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from p2p.blob_files import prepare, write_blob
from p2p.dht.client import DhtClient, open_dht
from p2p.dht.link import GRACE_S, TERM_S
from p2p.dht.settings import DhtSettings, DhtState
from p2p.errors import ListenError, PortInUseError, StorageError, TransportError
from p2p.ids import blob_id, peer_id
from p2p.transfer import BulkPeer, PullProgress
from tests.support.dht import (
    ALICE,
    BOB,
    child_processes,
    dht_settings,
    eventually,
    is_alive,
    open_nodes,
    put,
    sealed,
    values,
)

pytestmark = pytest.mark.slow


def daemon_pid(client: DhtClient) -> int:
    """The p2pd of a running child."""
    assert client.child_pid is not None
    (pid,) = child_processes(client.child_pid)
    return pid


def is_back(client: DhtClient, restarts: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        status = client.status
        return status.state is DhtState.READY and status.restarts == restarts

    return check


async def test_nodes_find_each_others_records(tmp_path: Path) -> None:
    async with open_nodes(tmp_path, 4) as nodes:
        for number, node in enumerate(nodes):
            assert await put(node, sealed(ALICE, f"paris/1/test/{number}"))
        for node in nodes:
            for number in range(len(nodes)):
                assert len(await node.get(f"paris/1/test/{number}")) == 1


async def test_killed_child_is_back_with_its_records_and_address(tmp_path: Path) -> None:
    async with open_dht(dht_settings(tmp_path, 1)) as node:
        await node.wait_ready(30)
        address, child, daemon = node.addresses(), node.child_pid, daemon_pid(node)
        record = sealed(ALICE)
        assert await put(node, record)
        assert child is not None
        killed_at = time.monotonic()
        os.kill(child, signal.SIGKILL)

        async def is_served() -> bool:
            return node.status.restarts == 1 and await values(node) == {record.value}

        await eventually(is_served)
        assert time.monotonic() - killed_at < 15
        assert node.addresses() == address
        assert not is_alive(daemon), "its p2pd died with it"
        assert "signal 9" in (node.status.last_error or "signal 9")


async def test_killed_p2pd_is_noticed_and_replaced(tmp_path: Path) -> None:
    async with open_dht(dht_settings(tmp_path, 1)) as node:
        await node.wait_ready(30)
        address, daemon = node.addresses(), daemon_pid(node)
        os.kill(daemon, signal.SIGKILL)
        await eventually(is_back(node, restarts=1))
        assert daemon_pid(node) != daemon
        assert node.addresses() == address
        assert await put(node, sealed(ALICE))


async def test_p2pd_that_hangs_is_replaced(tmp_path: Path) -> None:
    async with open_dht(dht_settings(tmp_path, 1, probe_s=0.2)) as node:
        await node.wait_ready(30)
        daemon = daemon_pid(node)
        os.kill(daemon, signal.SIGSTOP)
        await eventually(is_back(node, restarts=1), timeout_s=30)
        assert not is_alive(daemon)


async def test_child_that_hangs_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p.dht.client.HEARTBEAT_S", 0.3)
    async with open_dht(dht_settings(tmp_path, 1)) as node:
        await node.wait_ready(30)
        child, daemon = node.child_pid, daemon_pid(node)
        assert child is not None
        os.kill(child, signal.SIGSTOP)
        await eventually(is_back(node, restarts=1), timeout_s=30)
        assert not is_alive(child)
        assert not is_alive(daemon)


async def test_leaving_is_quick_and_leaves_nothing(tmp_path: Path) -> None:
    settings = dht_settings(tmp_path, 1)
    async with open_dht(settings) as node:
        await node.wait_ready(30)
        child, daemon = node.child_pid, daemon_pid(node)
        assert list(settings.private_dir.iterdir()) or len(str(settings.private_dir)) > 60
        started = trio.current_time()
    assert trio.current_time() - started < 3
    assert child is not None
    assert not is_alive(child)
    assert not is_alive(daemon)
    assert list(settings.private_dir.iterdir()) == []
    assert node.status.state is DhtState.STOPPED
    with pytest.raises(TransportError):
        await node.get("paris/1/test/late")


async def test_leaving_a_child_that_hangs_takes_little_more_than_its_grace(tmp_path: Path) -> None:
    async with open_dht(dht_settings(tmp_path, 1)) as node:
        await node.wait_ready(30)
        child, daemon = node.child_pid, daemon_pid(node)
        assert child is not None
        os.kill(child, signal.SIGSTOP)
        started = trio.current_time()
    assert trio.current_time() - started < GRACE_S + TERM_S + 1
    assert not is_alive(child)

    async def is_gone() -> bool:
        return not is_alive(daemon)

    await eventually(is_gone, timeout_s=5)


PARENT = """
import json, sys, trio
from pathlib import Path
from p2p.dht.client import open_dht
from tests.support.dht import dht_settings, child_processes

async def main():
    async with open_dht(dht_settings(Path(sys.argv[1]), 1)) as node:
        await node.wait_ready(30)
        child = node.child_pid
        print(json.dumps([child, *child_processes(child)]), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize("with_child", [False, True])
def test_killed_parent_leaves_no_child_and_no_p2pd(tmp_path: Path, with_child: bool) -> None:
    """The child sees its socket end; when it is killed too, the kernel ends p2pd."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        try:
            child, daemon = json.loads(parent.stdout.readline())
            assert is_alive(child)
            assert is_alive(daemon)
        finally:
            parent.kill()
            parent.wait()
        if with_child:
            os.kill(child, signal.SIGKILL)
    gone_by = time.monotonic() + 10
    while is_alive(child) or is_alive(daemon):
        assert time.monotonic() < gone_by
        time.sleep(0.05)
    if not with_child:
        assert list((tmp_path / "node-1").iterdir()) == []


async def test_two_islands_heal_when_one_calls_on_the_other(tmp_path: Path) -> None:
    async with (
        open_nodes(tmp_path / "a", 2) as (left, _),
        open_dht(dht_settings(tmp_path, 9)) as right,
    ):
        await right.wait_ready(30)
        ours, theirs = sealed(ALICE), sealed(BOB)
        assert await put(left, ours)
        assert await put(right, theirs)
        assert await values(left) == {ours.value}
        assert await right.bootstrap(left.addresses()) == 1

        async def both_see_both() -> bool:
            return await values(left) == await values(right) == {ours.value, theirs.value}

        await eventually(both_see_both)


async def test_restarted_child_calls_on_the_peers_it_knew(tmp_path: Path) -> None:
    """Also when the bootstrap it was configured with is gone for good."""
    async with trio.open_nursery() as nursery:
        bootstrap, stop_bootstrap = await nursery.start(_keep_open, dht_settings(tmp_path, 1))
        known = bootstrap.addresses()
        async with (
            open_dht(dht_settings(tmp_path, 2, bootstrap=known)) as second,
            open_dht(dht_settings(tmp_path, 3, bootstrap=known, rejoin_s=1.0)) as third,
        ):
            await second.wait_ready(30)
            await third.wait_ready(30)

            async def is_remembered() -> bool:
                return any(a.endswith(second.peer) for a in third.remembered_peers())

            await eventually(is_remembered)
            stop_bootstrap.cancel()
            assert third.child_pid is not None
            os.kill(third.child_pid, signal.SIGKILL)

            async def knows_second() -> bool:
                return third.status.restarts == 1 and await third.known_peers() >= 1

            await eventually(knows_second)
            record = sealed(ALICE)
            assert await put(second, record)
            assert await values(third) == {record.value}


async def _keep_open(settings: DhtSettings, task_status: Any) -> None:
    async with open_dht(settings) as node:
        await node.wait_ready(30)
        with trio.CancelScope() as scope:
            task_status.started((node, scope))
            await trio.sleep_forever()


async def test_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        address = f"/ip4/127.0.0.1/tcp/{port}"
        async with open_dht(dht_settings(tmp_path, 1, listen=(address,))) as node:
            with pytest.raises(PortInUseError, match=str(port)) as caught:
                await node.wait_ready(30)
            assert (caught.value.address, caught.value.port) == (address, port)
            assert node.status.state is DhtState.BROKEN
            with pytest.raises(PortInUseError):
                await node.get("paris/1/test/x")


async def test_port_of_another_p2pd_is_taken_too(tmp_path: Path) -> None:
    """p2pd sets SO_REUSEPORT: without our own check two of them share a port in silence."""
    async with open_dht(dht_settings(tmp_path, 1)) as first:
        await first.wait_ready(30)
        address = first.addresses()[0].rpartition("/p2p/")[0]
        async with open_dht(dht_settings(tmp_path, 2, listen=(address,))) as second:
            with pytest.raises(PortInUseError, match="in use"):
                await second.wait_ready(30)


async def test_address_of_another_machine_is_not_a_taken_port(tmp_path: Path) -> None:
    listen = ("/ip4/203.0.113.7/tcp/4001",)
    async with open_dht(dht_settings(tmp_path, 1, listen=listen)) as node:
        with pytest.raises(ListenError, match=r"203\.0\.113\.7") as caught:
            await node.wait_ready(30)
        assert not isinstance(caught.value, PortInUseError)
        assert node.status.state is DhtState.BROKEN


async def test_error_of_the_block_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_dht(dht_settings(tmp_path, 1)):
            raise ZeroDivisionError


async def test_calls_before_the_child_is_ready_wait_for_it(tmp_path: Path) -> None:
    async with open_dht(dht_settings(tmp_path, 1)) as node:
        assert node.status.state is DhtState.STARTING
        assert node.addresses() == ()
        assert await put(node, sealed(ALICE))
        assert node.addresses()[0].endswith(node.peer)
        assert await node.known_peers() == 0


async def test_unreachable_bootstrap_is_no_failure(tmp_path: Path) -> None:
    absent = f"/ip4/127.0.0.1/tcp/9/p2p/{peer_id(ALICE.public_key)}"
    settings = dht_settings(
        tmp_path, 1, bootstrap=(absent, "not a multiaddr", "/ip4/1.2.3.4/tcp/1")
    )
    async with open_dht(settings) as node:
        await node.wait_ready(30)
        assert await node.bootstrap([absent]) == 0
        assert await put(node, sealed(ALICE))
        assert node.status.restarts == 0


async def test_secrets_are_neither_in_arguments_nor_environment_nor_on_disk(tmp_path: Path) -> None:
    settings = dht_settings(tmp_path, 7)
    async with open_dht(settings) as node:
        await node.wait_ready(30)
        assert node.child_pid is not None
        for pid in (node.child_pid, daemon_pid(node)):
            check_secret_is_hidden(pid, settings.seed)
        folder = runtime_dir(daemon_pid(node))
        assert folder.stat().st_mode & 0o777 == 0o700
        assert [entry.name for entry in folder.iterdir()] == ["p2pd.sock"], "no identity file"


def check_secret_is_hidden(pid: int, secret: bytes) -> None:
    for name in ("cmdline", "environ"):
        shown = Path(f"/proc/{pid}/{name}").read_bytes()
        assert secret not in shown
        assert secret.hex().encode() not in shown


def runtime_dir(daemon: int) -> Path:
    arguments = Path(f"/proc/{daemon}/cmdline").read_text().split("\0")
    (listen,) = [a for a in arguments if a.startswith("-listen=/unix")]
    return Path(listen.removeprefix("-listen=/unix")).parent


async def test_blobs_are_pulled_through_the_child(tmp_path: Path) -> None:
    blobs = [os.urandom(size) for size in (1024 * 1024, 700_000, 1)]
    names = [(blob_id(blob), len(blob)) for blob in blobs]
    for name in ("giver", "taker"):
        prepare(tmp_path / name)
    for blob, (name_of, _) in zip(blobs, names, strict=True):
        write_blob(tmp_path / "giver", name_of, [blob])
    news: list[PullProgress] = []
    async with (
        open_dht(dht_settings(tmp_path, 1, blob_root=tmp_path / "giver")) as giver,
        open_dht(dht_settings(tmp_path, 2, blob_root=tmp_path / "taker")) as taker,
    ):
        await giver.wait_ready(30)
        provider = BulkPeer(giver.peer, giver.addresses())
        result = await taker.pull(names, [provider], news.append)
        assert (result.fetched_blobs, result.missing) == (3, ())
        assert result.fetched_bytes == sum(size for _, size in names)
        assert news
        again = await taker.pull(names, [provider], news.append)
        assert (again.fetched_blobs, again.present_blobs) == (0, 3)


async def test_bandwidth_is_capped_on_request_and_after_a_restart(tmp_path: Path) -> None:
    blob = os.urandom(600_000)
    prepare(tmp_path / "giver")
    prepare(tmp_path / "taker")
    write_blob(tmp_path / "giver", blob_id(blob), [blob])
    async with (
        open_dht(dht_settings(tmp_path, 1, blob_root=tmp_path / "giver")) as giver,
        open_dht(dht_settings(tmp_path, 2, blob_root=tmp_path / "taker")) as taker,
    ):
        await giver.wait_ready(30)
        await taker.set_bandwidth(max_upload_bytes_per_s=None, max_download_bytes_per_s=400_000)
        assert taker.child_pid is not None
        os.kill(taker.child_pid, signal.SIGKILL)
        await eventually(is_back(taker, restarts=1))
        provider = BulkPeer(giver.peer, giver.addresses())
        result = await taker.pull([(blob_id(blob), len(blob))], [provider], lambda _: None)
        assert result.missing == ()
        assert result.seconds > 1.0


async def test_pull_without_a_store_or_from_nobody_says_so(tmp_path: Path) -> None:
    blob = blob_id(b"nobody has this")
    async with open_dht(dht_settings(tmp_path, 1)) as node:
        with pytest.raises(StorageError, match="without a blob store"):
            await node.pull([(blob, 1)], [], lambda _: None)
    async with open_dht(dht_settings(tmp_path, 2, blob_root=tmp_path / "store")) as node:
        assert (await node.pull([(blob, 1)], [], lambda _: None)).missing == (blob,)
