"""Pulling and serving over real streams: several providers, liars, deaths, stalls, caps."""

import asyncio
import time
from pathlib import Path

import pytest

from p2p.blob_files import CHUNKS, blob_path, read_blob
from p2p.dht.bulk import PullTiming, ServeGate, pull
from p2p.errors import QuotaError
from p2p.ids import blob_id
from p2p.transfer import (
    UNKNOWN_SIZE,
    BulkPeer,
    PullJob,
    PullProgress,
    Serving,
    Status,
)
from p2p.transfer_schedule import MIN_WINDOW
from tests.support.blob_providers import (
    QUICK,
    Handler,
    Network,
    all_there,
    answering,
    breaking_off,
    flip_bit,
    have,
    honest,
    paced,
    random_blobs,
    run_pull,
)


def test_one_provider_gives_everything_and_progress_ends_at_the_total(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 30)
    progress: list[PullProgress] = []
    result = run_pull({"a": honest(tmp_path / "a")}, wanted, tmp_path / "b", progress=progress)
    assert all_there(tmp_path / "b", wanted)
    assert (result.missing, result.bad_peers, result.failed_peers) == ((), (), ())
    assert (result.fetched_blobs, result.fetched_bytes) == (30, 600_000)
    assert dict(result.bytes_by_peer) == {"a": 600_000}
    last = progress[-1]
    assert (last.done_blobs, last.total_blobs) == (30, 30)
    assert last.done_bytes == last.total_bytes == 600_000


def test_blob_known_by_name_only_is_fetched(tmp_path: Path) -> None:
    ((blob, _),) = random_blobs(tmp_path / "a", 1)
    result = run_pull({"a": honest(tmp_path / "a")}, ((blob, UNKNOWN_SIZE),), tmp_path / "b")
    assert result.missing == ()
    assert all_there(tmp_path / "b", ((blob, 0),))


def test_empty_job_dials_nobody(tmp_path: Path) -> None:
    assert run_pull({}, (), tmp_path / "b", names=("nobody",)).failed_peers == ()


def test_resumed_pull_asks_only_for_what_is_not_there(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 20)
    run_pull({"a": honest(tmp_path / "a")}, wanted[:12], tmp_path / "b")
    gate = ServeGate()
    result = run_pull({"a": honest(tmp_path / "a", gate)}, wanted, tmp_path / "b")
    assert (result.present_blobs, result.fetched_blobs) == (12, 8)
    assert gate.served_bytes == 8 * 20_000


def test_torn_blob_of_the_wrong_size_is_fetched_again(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 2)
    run_pull({"a": honest(tmp_path / "a")}, wanted, tmp_path / "b")
    with blob_path(tmp_path / "b", wanted[0][0]).open("r+b") as file:
        file.truncate(100)
    result = run_pull({"a": honest(tmp_path / "a")}, wanted, tmp_path / "b")
    assert result.fetched_blobs == 1
    assert all_there(tmp_path / "b", wanted)


def test_blobs_spread_over_providers_come_from_each(tmp_path: Path) -> None:
    first = random_blobs(tmp_path / "a", 10)
    second = random_blobs(tmp_path / "b", 10)
    providers = {name: honest(tmp_path / name) for name in ("a", "b")}
    result = run_pull(providers, first + second, tmp_path / "c")
    assert all_there(tmp_path / "c", first + second)
    assert dict(result.bytes_by_peer) == {"a": 200_000, "b": 200_000}


def test_what_nobody_has_is_named_and_the_rest_comes(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 5)
    nowhere = (blob_id(b"nowhere"), 7)
    providers = {name: honest(tmp_path / "a") for name in ("a", "b")}
    result = run_pull(providers, (nowhere, *wanted), tmp_path / "c")
    assert result.missing == (nowhere[0],)
    assert all_there(tmp_path / "c", wanted)
    assert result.bad_peers == result.failed_peers == ()


LIES = {
    "altered": lambda blob, data: have(blob, flip_bit(data, 4321)),
    "short": lambda blob, data: have(blob, data[:-1]),
    "long": lambda blob, data: have(blob, data + b"!"),
    "huge": lambda blob, data: have(blob, b"", length=2**32 - 1),
    "empty": lambda blob, data: have(blob, b""),
    "another blob": lambda blob, data: have(blob_id(b"another"), b"another"),
    "unknown status": lambda blob, data: have(blob, data, status=9),
    "refusal with bytes": lambda blob, data: have(blob, data, status=1),
    "answer twice": lambda blob, data: have(blob, data) * 2,
    "not the protocol": lambda blob, data: b"HTTP/1.1 200 OK\r\n" * 40,
}


@pytest.mark.parametrize("lie", LIES)
def test_liar_is_dropped_and_named_and_its_blobs_come_from_another(
    lie: str, tmp_path: Path
) -> None:
    wanted = random_blobs(tmp_path / "a", 8)
    providers = {"liar": answering(tmp_path / "a", LIES[lie]), "good": honest(tmp_path / "a")}
    result = run_pull(providers, wanted, tmp_path / "b")
    assert [peer for peer, _ in result.bad_peers] == ["liar"]
    assert result.missing == ()
    assert all_there(tmp_path / "b", wanted)


@pytest.mark.parametrize("lie", LIES)
def test_liar_alone_leaves_nothing_wrong_on_disk(lie: str, tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 3)
    result = run_pull({"liar": answering(tmp_path / "a", LIES[lie])}, wanted, tmp_path / "b")
    assert len(result.bad_peers) == 1
    kept = {blob for blob, _ in wanted} - set(result.missing)
    files = {path.name for path in (tmp_path / "b" / CHUNKS).iterdir()}
    assert files == kept
    assert all_there(tmp_path / "b", tuple((blob, 0) for blob in kept))


def test_bad_blob_just_before_the_stream_ends_still_names_the_liar(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", MIN_WINDOW)

    async def one_bad_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        blob, _ = wanted[0]
        writer.write(have(blob, flip_bit(read_blob(tmp_path / "a", blob), 0)))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    result = run_pull({"liar": one_bad_answer}, wanted, tmp_path / "b")
    assert [peer for peer, _ in result.bad_peers] == ["liar"]
    assert result.failed_peers == ()


def test_provider_that_dies_mid_blob_is_replaced_by_the_other(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 12)
    dying = breaking_off(tmp_path / "a", 25_000, hangs=False)
    result = run_pull({"dying": dying, "good": honest(tmp_path / "a")}, wanted, tmp_path / "b")
    assert result.missing == ()
    assert all_there(tmp_path / "b", wanted)
    assert result.bad_peers == ()


def test_provider_that_breaks_off_but_gives_some_is_used_to_the_end(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 8)
    dying = breaking_off(tmp_path / "a", 25_000, hangs=False)
    result = run_pull({"dying": dying}, wanted, tmp_path / "b")
    assert result.fetched_blobs >= 6  # one blob per stream; the last one asked alone is enough


def test_when_all_providers_die_the_missing_blobs_are_named(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 4)
    dead = breaking_off(tmp_path / "a", 500, hangs=False)
    result = run_pull({"dead": dead}, wanted, tmp_path / "b", names=("x",))
    assert set(result.missing) == {blob for blob, _ in wanted}
    assert {peer for peer, _ in result.failed_peers} == {"dead", "x"}
    assert "no route to x" in dict(result.failed_peers)["x"]
    assert result.bad_peers == ()


@pytest.mark.parametrize(("sent", "deadline"), [(0, "0.1"), (25_000, "0.2")])
def test_silent_provider_is_given_up_at_its_deadline(
    sent: int, deadline: str, tmp_path: Path
) -> None:
    wanted = random_blobs(tmp_path / "a", 2)
    silent = breaking_off(tmp_path / "a", sent, hangs=True)
    timing = PullTiming(first_byte_s=0.1, idle_s=0.2, retry_s=())
    result = run_pull({"silent": silent}, wanted, tmp_path / "b", timing=timing)
    assert f"nothing came for {deadline} s" in dict(result.failed_peers)["silent"]
    assert result.fetched_blobs == sent // 20_000


def test_provider_that_trickles_is_given_up(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 1)

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        for byte in have(wanted[0][0], read_blob(tmp_path / "a", wanted[0][0])):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.01)

    timing = PullTiming(first_byte_s=1, idle_s=1, blob_s=0.15, retry_s=())
    result = run_pull({"trickle": trickle}, wanted, tmp_path / "b", timing=timing)
    assert "no whole blob came" in dict(result.failed_peers)["trickle"]


def test_stalled_provider_is_overtaken_long_before_its_deadline(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 8)
    stalled = breaking_off(tmp_path / "a", 25_000, hangs=True)
    patient = PullTiming(first_byte_s=15, idle_s=15)
    started = time.monotonic()
    result = run_pull(
        {"stalled": stalled, "good": honest(tmp_path / "a")},
        wanted,
        tmp_path / "b",
        timing=patient,
    )
    assert time.monotonic() - started < 5
    assert all_there(tmp_path / "b", wanted)
    assert result.duplicate_bytes == 0  # what the stalled one sent of the second blob is cut off


def test_pull_ends_when_all_is_here_though_a_provider_still_owes_a_copy(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", MIN_WINDOW)
    first, last = wanted[0][0], wanted[-1][0]
    patient = PullTiming(first_byte_s=15, idle_s=15)
    has_overtaken = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await has_overtaken.wait()
        writer.write(have(first, read_blob(tmp_path / "a", first)))
        await asyncio.Event().wait()

    async def has_only_the_last(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = Serving()
        for blob in serving.receive(await reader.read(65536)):
            is_last = blob == last
            writer.write(
                have(blob, read_blob(tmp_path / "a", blob))
                if is_last
                else serving.answer(blob, Status.MISSING)
            )
        await reader.read(1)  # the puller leaves: there is nothing more to get here
        has_overtaken.set()

    started = time.monotonic()
    providers: dict[str, Handler] = {"slow": slow, "last": has_only_the_last}
    result = run_pull(providers, wanted, tmp_path / "b", timing=patient)
    assert time.monotonic() - started < 5
    assert dict(result.bytes_by_peer) == {"slow": 20_000, "last": 20_000}


def test_slow_provider_gives_less_and_duplicates_stay_few(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 40)
    providers = {"slow": paced(tmp_path / "a", 0.1), "fast": paced(tmp_path / "a", 0.002)}
    result = run_pull(providers, wanted, tmp_path / "b")
    given = dict(result.bytes_by_peer)
    assert all_there(tmp_path / "b", wanted)
    assert given["fast"] > 3 * given.get("slow", 0)
    assert result.duplicate_bytes <= MIN_WINDOW * 20_000


def test_provider_dialled_in_vain_gets_a_second_chance(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 3)
    served = honest(tmp_path / "a")
    tries: list[int] = []

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.append(1)
        if len(tries) > 1:
            await served(reader, writer)

    assert run_pull({"late": late}, wanted, tmp_path / "b").missing == ()
    assert len(tries) == 2


def test_download_cap_holds(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 10)
    result = run_pull(
        {"a": honest(tmp_path / "a")}, wanted, tmp_path / "b", max_bytes_per_s=500_000
    )
    assert result.missing == ()
    assert result.seconds >= 0.15  # 200 kB at 500 kB/s, less the burst and the last wait


def test_upload_cap_is_shared_by_all_streams(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 20)
    gate = ServeGate(max_bytes_per_s=1_000_000)
    providers = {name: honest(tmp_path / "a", gate) for name in ("a", "b")}
    result = run_pull(providers, wanted, tmp_path / "b")
    assert result.missing == ()
    assert result.seconds >= 0.2  # 400 kB at 1 MB/s, less the burst and each stream's last wait


def test_disk_that_refuses_ends_the_pull_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = random_blobs(tmp_path / "a", 6)

    def full(*_args: object) -> int:
        raise QuotaError("the disk is full")

    monkeypatch.setattr("p2p.dht.bulk.write_blob", full)
    with pytest.raises(QuotaError, match="the disk is full"):
        run_pull({"a": honest(tmp_path / "a")}, wanted, tmp_path / "b")


def test_cancelled_pull_leaves_whole_blobs_and_no_temps(tmp_path: Path) -> None:
    wanted = random_blobs(tmp_path / "a", 12)

    async def main() -> None:
        network = Network({"a": paced(tmp_path / "a", 0.02)})
        job = PullJob(wanted, (BulkPeer("a", ()),), tmp_path / "b", None)
        enough = asyncio.Event()

        def watch(progress: PullProgress) -> None:
            if progress.done_blobs >= 3:
                enough.set()

        task = asyncio.create_task(pull(job, network.open_stream, watch, timing=QUICK))
        await enough.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await network.close()
        assert task.cancelled()

    asyncio.run(main())
    names = {path.name for path in (tmp_path / "b" / CHUNKS).iterdir()}
    assert 3 <= len(names) < 12
    assert names <= {blob for blob, _ in wanted}
    result = run_pull({"a": honest(tmp_path / "a")}, wanted, tmp_path / "b")
    assert result.present_blobs == len(names)
    assert result.missing == ()
