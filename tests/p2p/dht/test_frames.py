"""Messages on the socket between node and child."""

from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.dht import frames
from p2p.dht.frames import MessageDecoder, pack_message, unpack_message
from p2p.dht.pull_messages import (
    job_from_message,
    job_to_message,
    progress_from_message,
    progress_to_message,
    result_from_message,
    result_to_message,
)
from p2p.dht.settings import ChildSettings
from p2p.errors import DecodeError, LimitError
from p2p.ids import blob_id
from p2p.limits import MAX_CHILD_FRAME_SIZE
from p2p.transfer import BulkPeer, PullJob, PullProgress, PullResult
from p2p.wire import encode_frame

plain = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**40) | st.floats(allow_nan=False) | st.binary(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=10,
)
messages = st.dictionaries(st.text(max_size=8), plain, max_size=5)


@given(st.lists(messages, max_size=4), st.integers(1, 50))
def test_messages_survive_any_fragmentation(sent: list[frames.Message], step: int) -> None:
    stream = b"".join(pack_message(message) for message in sent)
    decoder = MessageDecoder()
    received: list[frames.Message] = []
    for start in range(0, len(stream), step):
        received += decoder.feed(stream[start : start + step])
    assert received == sent


@given(st.binary(max_size=200))
def test_garbage_is_refused_as_such(payload: bytes) -> None:
    try:
        message = unpack_message(payload)
    except DecodeError:
        return
    assert isinstance(message, dict)


@pytest.mark.parametrize("value", [[], 1, None, {1: 2}, {b"k": 1}, msgpack.ExtType(5, b"x")])
def test_what_is_no_map_of_texts_is_refused(value: object) -> None:
    with pytest.raises(DecodeError):
        unpack_message(msgpack.packb(value))


def test_frame_over_the_limit_is_refused_before_its_body() -> None:
    decoder = MessageDecoder()
    with pytest.raises(LimitError):
        decoder.feed((MAX_CHILD_FRAME_SIZE + 1).to_bytes(4, "big"))
    with pytest.raises(LimitError):
        pack_message({"data": b"x" * MAX_CHILD_FRAME_SIZE})


@pytest.mark.parametrize(
    ("read", "wrong"),
    [
        (frames.text, b"bytes"),
        (frames.data, "text"),
        (frames.integer, True),
        (frames.integer, 1.0),
        (frames.number, "1"),
        (frames.number, False),
        (frames.flag, 1),
        (frames.texts, ["a", 1]),
        (frames.texts, "ab"),
        (frames.rows, [1]),
        (frames.mapping, {1: 2}),
        (frames.optional_text, 1),
        (frames.optional_number, "x"),
    ],
)
def test_field_of_another_type_is_named(read: object, wrong: object) -> None:
    assert callable(read)
    with pytest.raises(DecodeError, match="field"):
        read({"field": wrong}, "field")


def child_settings() -> ChildSettings:
    return ChildSettings(
        seed=bytes(32),
        runtime_dir=Path("/run/x"),
        listen=("/ip4/127.0.0.1/tcp/0",),
        announce=(),
        bootstrap=("a", "b"),
        blob_root=None,
        max_upload_bytes_per_s=None,
        max_download_bytes_per_s=2.5,
        has_port_mapping=True,
        has_auto_relay=False,
        rejoin_s=40.0,
        probe_s=10.0,
    )


def test_settings_survive_the_socket_and_hide_the_seed() -> None:
    for settings in (child_settings(), replace(child_settings(), blob_root=Path("/blobs"))):
        (message,) = MessageDecoder().feed(pack_message(settings.to_message()))
        assert ChildSettings.from_message(message) == settings
        assert "seed" not in repr(settings)


@pytest.mark.parametrize("field", list(child_settings().to_message()))
def test_settings_with_a_wrong_field_are_refused(field: str) -> None:
    with pytest.raises(DecodeError, match=field):
        ChildSettings.from_message(child_settings().to_message() | {field: [7]})


def test_pull_survives_the_socket() -> None:
    blob = blob_id(b"x")
    job = PullJob(
        blobs=((blob, 1),),
        providers=(BulkPeer("peer", ("/ip4/1.2.3.4/tcp/1",)),),
        store_root=Path("/store"),
        max_bytes_per_s=5.0,
    )
    message = _through(job_to_message(job.blobs, job.providers, job.store_root))
    assert job_from_message(message, max_bytes_per_s=5.0) == job
    progress = PullProgress(1, 2, 3, 4, 5)
    assert progress_from_message(_through(progress_to_message(progress))) == progress
    result = PullResult(
        fetched_blobs=1,
        fetched_bytes=2,
        present_blobs=3,
        duplicate_bytes=4,
        missing=(blob,),
        bad_peers=(("peer", "lied"),),
        failed_peers=(("peer", "late"),),
        bytes_by_peer=(("peer", 9),),
        seconds=0.5,
    )
    assert result_from_message(_through(result_to_message(result))) == result


@pytest.mark.parametrize(
    "change",
    [
        {"blobs": [["not a CID", 1]]},
        {"blobs": [[blob_id(b"x"), -1]]},
        {"blobs": [[blob_id(b"x")]]},
        {"providers": [["peer", [1]]]},
        {"providers": [[1, []]]},
    ],
)
def test_wrong_pull_is_refused(change: frames.Message) -> None:
    message = job_to_message([(blob_id(b"x"), 1)], [BulkPeer("peer", ())], Path("/store"))
    with pytest.raises(DecodeError):
        job_from_message(message | change, max_bytes_per_s=None)


def _through(message: frames.Message) -> frames.Message:
    (received,) = MessageDecoder().feed(encode_frame(msgpack.packb(message), max_size=10_000))
    return received
