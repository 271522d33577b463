"""Pulls on the socket between node and child: job, progress and result as plain messages."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from p2p.dht import frames
from p2p.dht.frames import Message
from p2p.errors import DecodeError
from p2p.ids import BlobId, parse_blob_id
from p2p.transfer import BulkPeer, PullJob, PullProgress, PullResult


def job_to_message(
    blobs: Sequence[tuple[BlobId, int]], providers: Sequence[BulkPeer], store_root: Path
) -> Message:
    """A job as the node asks for it; the child adds the bandwidth cap."""
    return {
        "blobs": [[blob, size] for blob, size in blobs],
        "providers": [[peer.peer_id, list(peer.addresses)] for peer in providers],
        "store_root": str(store_root),
    }


def job_from_message(message: Message, *, max_bytes_per_s: float | None) -> PullJob:
    """The job. Raises `DecodeError` if it is not one."""
    return PullJob(
        blobs=tuple(_blob(row) for row in frames.rows(message, "blobs")),
        providers=tuple(_provider(row) for row in frames.rows(message, "providers")),
        store_root=Path(frames.text(message, "store_root")),
        max_bytes_per_s=max_bytes_per_s,
    )


def progress_to_message(progress: PullProgress) -> Message:
    """How far a pull is."""
    return asdict(progress)


def progress_from_message(message: Message) -> PullProgress:
    """How far a pull is. Raises `DecodeError` if a field is missing."""
    return PullProgress(
        done_blobs=frames.integer(message, "done_blobs"),
        total_blobs=frames.integer(message, "total_blobs"),
        done_bytes=frames.integer(message, "done_bytes"),
        total_bytes=frames.integer(message, "total_bytes"),
        sources=frames.integer(message, "sources"),
    )


def result_to_message(result: PullResult) -> Message:
    """How a pull ended."""
    return asdict(result)


def result_from_message(message: Message) -> PullResult:
    """How a pull ended. Raises `DecodeError` if a field is missing."""
    return PullResult(
        fetched_blobs=frames.integer(message, "fetched_blobs"),
        fetched_bytes=frames.integer(message, "fetched_bytes"),
        present_blobs=frames.integer(message, "present_blobs"),
        duplicate_bytes=frames.integer(message, "duplicate_bytes"),
        missing=tuple(parse_blob_id(blob) for blob in frames.texts(message, "missing")),
        bad_peers=tuple(_pair(row) for row in frames.rows(message, "bad_peers")),
        failed_peers=tuple(_pair(row) for row in frames.rows(message, "failed_peers")),
        bytes_by_peer=tuple(_count(row) for row in frames.rows(message, "bytes_by_peer")),
        seconds=frames.number(message, "seconds"),
    )


def _blob(row: list[object]) -> tuple[BlobId, int]:
    match row:
        case [str(blob), int(size)] if size >= 0:
            return parse_blob_id(blob), size
    raise DecodeError("pull: expected [CID, size] for each blob")


def _provider(row: list[object]) -> BulkPeer:
    match row:
        case [str(peer), list(addresses)] if all(isinstance(item, str) for item in addresses):
            return BulkPeer(peer, tuple(str(item) for item in addresses))
    raise DecodeError("pull: expected [peer id, [address...]] for each provider")


def _pair(row: list[object]) -> tuple[str, str]:
    match row:
        case [str(peer), str(reason)]:
            return peer, reason
    raise DecodeError("pull result: expected [peer id, reason]")


def _count(row: list[object]) -> tuple[str, int]:
    match row:
        case [str(peer), int(size)]:
            return peer, size
    raise DecodeError("pull result: expected [peer id, bytes]")
