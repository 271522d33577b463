"""Three ways to copy the same blobs between two processes, for bench_p2p.py.

All three read each blob through the store's check (hashed at the source), hash it again on arrival
and write it with `write_blob`, so that only the way between differs. Run as a program, this is the
serving end of one of the two comparisons: `bench_copies.py tcp|libp2p STORE`, which prints where it
listens and ends with its standard input.
"""

import hashlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio

from p2p.blob_files import CHUNKS, prepare, read_blob, write_blob
from p2p.dht.client import DhtClient
from p2p.host import Stream
from p2p.ids import BlobId, blob_digest, blob_id_of_digest
from p2p.libp2p_host import open_host
from p2p.libp2p_settings import HostSettings
from p2p.limits import CHUNK_SIZE
from p2p.transfer import BulkPeer

PROTOCOL = "/paris/bench-copy/1"
Wanted = Sequence[tuple[BlobId, int]]


def empty(store: Path) -> None:
    """Remove a store's blobs, so that a copy has to bring them all."""
    shutil.rmtree(store / CHUNKS, ignore_errors=True)
    prepare(store)


def check_and_write(store: Path, blob: BlobId, data: bytes | bytearray) -> None:
    """What every copy does with a blob that arrived."""
    if hashlib.sha256(data).digest() != blob_digest(blob):
        raise RuntimeError(f"blob {blob} arrived altered")
    write_blob(store, blob, [memoryview(data)])


async def copy_by_child(client: DhtClient, wanted: Wanted, source: BulkPeer) -> float:
    """Seconds for a pull from one swarm child to another, asked for and reported as a node does."""
    started = time.perf_counter()
    result = await client.pull(wanted, (source,), lambda _progress: None)
    seconds = time.perf_counter() - started
    if result.missing or result.fetched_blobs != len(wanted):
        raise RuntimeError(f"the pull brought {result.fetched_blobs} of {len(wanted)}: {result}")
    return seconds


def copy_by_tcp(address: str, wanted: Wanted, store: Path) -> float:
    """Seconds for a copy over one bare TCP connection."""
    host, _, port = address.rpartition(":")
    started = time.perf_counter()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"".join(blob_digest(blob) for blob, _ in wanted))
        connection.shutdown(socket.SHUT_WR)
        for blob, size in wanted:
            data = bytearray(size)
            view = memoryview(data)
            while view:
                view = view[connection.recv_into(view) :]
            check_and_write(store, blob, data)
    return time.perf_counter() - started


async def copy_by_libp2p(address: str, wanted: Wanted, store: Path) -> float:
    """Seconds for a copy over one py-libp2p stream (TCP, Noise, Yamux); dialling not counted."""
    async with open_host(HostSettings(bytes([7]) * 32, ("/ip4/127.0.0.1/tcp/0",))) as host:
        peer = await host.connect(address, timeout_s=10)
        started = time.perf_counter()
        async with host.open_stream(peer, PROTOCOL, timeout_s=10) as stream:
            asked = b"".join(blob_digest(blob) for blob, _ in wanted)
            await stream.send_frame(asked, max_size=CHUNK_SIZE)
            for blob, _ in wanted:
                data = await stream.receive_frame(max_size=CHUNK_SIZE, timeout_s=30)
                check_and_write(store, blob, data)
            seconds = time.perf_counter() - started
    return seconds


@contextmanager
def serving(kind: str, store: Path) -> Iterator[str]:
    """Run the serving end of a comparison; yields its address."""
    command = [sys.executable, __file__, kind, str(store)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None  # noqa: S101  # asked for above
        assert process.stdout is not None  # noqa: S101
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise RuntimeError(f"the serving end of {kind} did not start")
            yield address
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _blobs_in(digests: bytes) -> list[BlobId]:
    return [blob_id_of_digest(digests[at : at + 32]) for at in range(0, len(digests), 32)]


def _serve_tcp(store: Path) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    print(f"127.0.0.1:{server.getsockname()[1]}", flush=True)

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as file:
                for blob in _blobs_in(file.read()):
                    connection.sendall(read_blob(store, blob))

    threading.Thread(target=serve, daemon=True).start()
    sys.stdin.read()


async def _serve_libp2p(store: Path) -> None:
    async def serve(stream: Stream) -> None:
        digests = await stream.receive_frame(max_size=CHUNK_SIZE, timeout_s=10)
        for blob in _blobs_in(digests):
            await stream.send_frame(read_blob(store, blob), max_size=CHUNK_SIZE)

    async with open_host(HostSettings(bytes([8]) * 32, ("/ip4/127.0.0.1/tcp/0",))) as host:
        host.set_handler(PROTOCOL, serve)
        print(host.listening()[0], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "tcp":
        _serve_tcp(folder)
    else:
        trio.run(_serve_libp2p, folder)
