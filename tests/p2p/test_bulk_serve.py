"""The serving half of bulk transfers: whole blobs that are there and sound, and nothing else."""

import asyncio
import socket
import threading
import time
from pathlib import Path

import pytest

from p2p.blob_files import blob_path
from p2p.dht.bulk import PullTiming, ServeGate, serve_stream
from p2p.ids import blob_id
from p2p.limits import BULK_REFUSAL_PAUSE_S
from p2p.transfer import HEADER_SIZE, Asking, BlobRefused, Status
from tests.support.blob_providers import flip_bit, honest, random_blobs, run_pull


async def _converse(root: Path, gate: ServeGate, sent: bytes, *, peer: str = "p") -> bytes:
    """What `serve_stream` answers to raw bytes, until it ends the stream."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    task = asyncio.create_task(
        serve_stream(root, peer, *await asyncio.open_unix_connection(sock=theirs), gate)
    )
    writer.write(sent)
    writer.write_eof()
    async with asyncio.timeout(5):
        answer = await reader.read(-1)
        await task
    writer.close()
    return answer


def test_serving_refuses_what_it_lacks_and_what_decayed(tmp_path: Path) -> None:
    good, bad = random_blobs(tmp_path / "a", 2)
    path = blob_path(tmp_path / "a", bad[0])
    path.write_bytes(flip_bit(path.read_bytes(), 77))
    asking = Asking()
    request = asking.ask([bad, (blob_id(b"nowhere"), 5), good])
    events = asking.receive(asyncio.run(_converse(tmp_path / "a", ServeGate(), request)))
    assert events[:2] == [
        BlobRefused(bad[0], Status.MISSING),
        BlobRefused(blob_id(b"nowhere"), Status.MISSING),
    ]
    assert len(events) == 3
    assert not path.exists()


def test_asking_for_what_is_not_there_is_slowed_down(tmp_path: Path) -> None:
    random_blobs(tmp_path / "a", 1)
    request = Asking().ask([(blob_id(bytes([number])), 1) for number in range(20)])
    started = time.monotonic()
    answer = asyncio.run(_converse(tmp_path / "a", ServeGate(), request))
    assert len(answer) == 20 * HEADER_SIZE
    assert time.monotonic() - started >= 20 * BULK_REFUSAL_PAUSE_S


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\0\0\0\0",
        b"\0\0\0\x05../..",
        b"\0\0\0\x21" + b"x" * 33,
        b"\xff\xff\xff\xff" + b"x" * 100,
        b"GET /etc/passwd HTTP/1.1\r\n\r\n",
    ],
    ids=["empty", "path", "not digests", "huge", "http"],
)
def test_request_that_breaks_the_protocol_is_answered_with_an_end(
    request_bytes: bytes, tmp_path: Path
) -> None:
    random_blobs(tmp_path / "a", 1)
    try:
        answer = asyncio.run(_converse(tmp_path / "a", ServeGate(), request_bytes))
    except ConnectionError:
        answer = b""
    assert answer == b""


def test_digest_that_spells_a_path_is_only_a_digest(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    random_blobs(tmp_path / "a", 1)
    digest = b"../../secret".ljust(32, b"\0")
    answer = asyncio.run(_converse(tmp_path / "a", ServeGate(), b"\0\0\0\x20" + digest))
    assert answer == bytes([Status.MISSING]) + digest + b"\0\0\0\0"


def test_stream_over_a_peers_limit_is_told_busy_and_others_are_not(tmp_path: Path) -> None:
    ((blob, size),) = random_blobs(tmp_path / "a", 1)
    gate = ServeGate(max_streams_per_peer=2, max_streams=3)
    assert gate.enter("greedy")
    for is_second_held, expected in ((False, 20_000 + HEADER_SIZE), (True, HEADER_SIZE)):
        if is_second_held:
            assert gate.enter("greedy")
        request = Asking().ask([(blob, size)])
        answer = asyncio.run(_converse(tmp_path / "a", gate, request, peer="greedy"))
        assert len(answer) == expected
    assert answer[0] == Status.BUSY
    answer = asyncio.run(_converse(tmp_path / "a", gate, request, peer="other"))
    assert answer[0] == Status.HAVE
    assert gate.enter("another")
    answer = asyncio.run(_converse(tmp_path / "a", gate, request, peer="other"))
    assert answer[0] == Status.BUSY


def test_busy_provider_is_asked_again_and_not_blamed(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 3)
    gate = ServeGate(max_streams=1)
    assert gate.enter("another")
    timing = PullTiming(retry_s=(0.01,) * 50)
    freeing = threading.Timer(0.1, gate.leave, ["another"])
    freeing.start()
    result = run_pull({"a": honest(tmp_path / "a", gate)}, wanted, tmp_path / "b", timing=timing)
    freeing.join()
    assert result.missing == ()
    assert result.bad_peers == ()


def test_reader_that_takes_nothing_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p.dht.bulk_serve.REQUEST_TIMEOUT_S", 0.1)
    wanted = random_blobs(tmp_path / "a", 4, size=1 << 20)
    gate = ServeGate()

    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        streams = await asyncio.open_unix_connection(sock=theirs)
        ours.send(Asking().ask(wanted))
        async with asyncio.timeout(5):
            await serve_stream(tmp_path / "a", "p", *streams, gate)
        assert streams[1].transport.get_write_buffer_size() == 0  # given up, not still sending
        ours.close()

    asyncio.run(main())
    assert gate.served_bytes < 4 << 20
    assert gate.enter("p")


async def _served_for(root: Path, sent: list[bytes], pause_s: float) -> float:
    """Seconds that `serve_stream` bears a peer who sends `sent` with pauses and then nothing."""
    ours, theirs = socket.socketpair()
    streams = await asyncio.open_unix_connection(sock=theirs)
    started = time.monotonic()
    task = asyncio.create_task(serve_stream(root, "p", *streams, ServeGate()))
    for piece in sent:
        if not task.done():
            ours.send(piece)
            await asyncio.sleep(pause_s)
    async with asyncio.timeout(5):
        await task
    ours.close()
    return time.monotonic() - started


def test_stream_without_a_first_request_is_closed_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p.dht.bulk_serve.FIRST_BYTE_TIMEOUT_S", 0.05)
    assert asyncio.run(_served_for(tmp_path, [], 0.0)) < 2


def test_idle_stream_is_closed_after_the_idle_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p.dht.bulk_serve.IDLE_STREAM_TIMEOUT_S", 0.05)
    wanted = random_blobs(tmp_path / "a", 1)
    request = Asking().ask(wanted)
    assert asyncio.run(_served_for(tmp_path / "a", [request], 0.0)) < 2


def test_request_that_trickles_is_cut_off_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p.dht.bulk_serve.FIRST_BYTE_TIMEOUT_S", 0.1)
    trickle = [b"\0"] * 3 + [b"\x20"] + [b"d"] * 31
    assert asyncio.run(_served_for(tmp_path, trickle, 0.04)) < 2


def test_streams_beyond_the_polite_refusals_are_dropped_at_once(tmp_path: Path) -> None:
    ((blob, size),) = random_blobs(tmp_path / "a", 1)
    gate = ServeGate(max_streams=1)
    assert gate.enter("held")
    request = Asking().ask([(blob, size)])
    assert asyncio.run(_converse(tmp_path / "a", gate, request))[0] == Status.BUSY
    assert gate.enter_refusal()
    try:
        answer = asyncio.run(_converse(tmp_path / "a", gate, request))
    except ConnectionError:
        answer = b""
    assert answer == b""
