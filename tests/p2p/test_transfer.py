"""The blob protocol without a socket: what is accepted, and every way to break it."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DecodeError, LimitError
from p2p.ids import BlobId, blob_digest, blob_id
from p2p.limits import CHUNK_SIZE, MAX_BLOBS_OUTSTANDING, MAX_BLOBS_PER_REQUEST
from p2p.transfer import (
    HEADER_SIZE,
    UNKNOWN_SIZE,
    Asking,
    BlobReceived,
    BlobRefused,
    Serving,
    Status,
    check_blob,
)
from tests.support.blob_providers import have


def _split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def _named(contents: list[bytes]) -> list[tuple[BlobId, int]]:
    return [(blob_id(content), len(content)) for content in contents]


@given(
    contents=st.lists(st.binary(max_size=200), min_size=1, max_size=6),
    lacking=st.sets(st.integers(0, 5)),
    cuts=st.lists(st.integers(0, 4000), max_size=12),
)
def test_any_cut_of_the_stream_gives_the_same_answers(
    contents: list[bytes], lacking: set[int], cuts: list[int]
) -> None:
    asking, serving = Asking(), Serving()
    asked = [
        blob
        for part in _split(asking.ask(_named(contents)), cuts)
        for blob in serving.receive(part)
    ]
    assert asked == [blob_id(content) for content in contents]
    answer = b"".join(
        serving.answer(blob, Status.MISSING)
        if index in lacking
        else serving.answer(blob, Status.HAVE, len(content)) + content
        for index, (blob, content) in enumerate(zip(asked, contents, strict=True))
    )
    events = [event for part in _split(answer, cuts) for event in asking.receive(part)]
    for index, (event, content) in enumerate(zip(events, contents, strict=True)):
        assert event.blob == blob_id(content)
        if index in lacking:
            assert event == BlobRefused(event.blob, Status.MISSING)
        else:
            assert isinstance(event, BlobReceived)
            assert b"".join(event.pieces) == content
            assert event.size == len(content)
            check_blob(event.blob, event.pieces)
    assert asking.outstanding == 0
    assert not asking.is_mid_answer


@given(data=st.binary(max_size=300))
def test_garbage_as_an_answer_raises_decode_errors_only(data: bytes) -> None:
    asking = Asking()
    asking.ask(_named([b"one", b"two"]))
    try:
        events = asking.receive(data)
    except DecodeError:
        return
    assert events == []
    assert len(data) < HEADER_SIZE


@given(data=st.binary(max_size=300))
def test_garbage_as_a_request_raises_decode_and_limit_errors_only(data: bytes) -> None:
    serving = Serving()
    try:
        serving.receive(data)
    except (DecodeError, LimitError):
        return


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (have(blob_id(b"two"), b"two"), "expected " + blob_id(b"one")),
        (have(blob_id(b"one"), b"ones"), "announced 4 bytes, expected 3"),
        (have(blob_id(b"one"), b"on"), "announced 2 bytes, expected 3"),
        (have(blob_id(b"one"), b"one", status=3), "unknown status 3"),
        (have(blob_id(b"one"), b"one", status=1), "MISSING with 3 bytes"),
        (have(blob_id(b"one"), b"one") + have(blob_id(b"one"), b"one"), "not asked for"),
    ],
    ids=["other order", "long", "short", "status", "refusal with bytes", "unasked"],
)
def test_answer_that_was_not_asked_for_is_the_peers_fault(answer: bytes, said: str) -> None:
    asking = Asking()
    asking.ask([(blob_id(b"one"), 3)])
    with pytest.raises(DecodeError, match=said):
        asking.receive(answer)


@pytest.mark.parametrize(("length", "is_taken"), [(CHUNK_SIZE, True), (CHUNK_SIZE + 1, False)])
def test_blob_of_unknown_size_is_taken_up_to_the_chunk_size(length: int, is_taken: bool) -> None:
    asking = Asking()
    blob = blob_id(b"manifest")
    asking.ask([(blob, UNKNOWN_SIZE)])
    header = struct.pack(">B32sI", Status.HAVE, blob_digest(blob), length)
    if is_taken:
        assert asking.receive(header) == []
        assert asking.is_mid_answer
    else:
        with pytest.raises(DecodeError, match="at most"):
            asking.receive(header)


def test_blob_in_single_bytes_is_held_in_few_pieces() -> None:
    data = bytes(range(256)) * 40
    asking = Asking()
    asking.ask([(blob_id(data), len(data))])
    answer = have(blob_id(data), data)
    events = [event for byte in answer for event in asking.receive(bytes([byte]))]
    (event,) = events
    assert isinstance(event, BlobReceived)
    assert len(event.pieces) == 1
    check_blob(event.blob, event.pieces)


def test_altered_bytes_do_not_pass_the_check() -> None:
    check_blob(blob_id(b"abcd"), [b"ab", b"cd"])
    for pieces in ([b"ab", b"ce"], [b"cd", b"ab"], [b"abc"], [b"abcd", b"\0"], []):
        with pytest.raises(DecodeError, match="altered"):
            check_blob(blob_id(b"abcd"), pieces)


def test_request_holds_as_many_blobs_as_the_limit_and_no_more() -> None:
    def named(count: int) -> list[tuple[BlobId, int]]:
        return [(blob_id(bytes([number])), 1) for number in range(count)]

    request = Asking().ask(named(MAX_BLOBS_PER_REQUEST))
    assert len(Serving().receive(request)) == MAX_BLOBS_PER_REQUEST
    with pytest.raises(LimitError):
        Asking().ask(named(MAX_BLOBS_PER_REQUEST + 1))
    with pytest.raises(LimitError):
        Asking().ask([])
    oversized = struct.pack(">I", 32 * (MAX_BLOBS_PER_REQUEST + 1))
    with pytest.raises(LimitError):
        Serving().receive(oversized)


def test_outstanding_blobs_are_limited_on_both_sides() -> None:
    blob = blob_id(b"x")
    asking, serving = Asking(), Serving()
    for _ in range(MAX_BLOBS_OUTSTANDING // MAX_BLOBS_PER_REQUEST):
        request = asking.ask([(blob, 1)] * MAX_BLOBS_PER_REQUEST)
        serving.receive(request)
    with pytest.raises(LimitError):
        asking.ask([(blob, 1)])
    serving.answer(blob, Status.MISSING)
    single = Asking().ask([(blob, 1)])
    assert serving.receive(single) == [blob]
    with pytest.raises(LimitError):
        serving.receive(single)


@pytest.mark.parametrize("body", [b"", b"x" * 31, b"x" * 33])
def test_request_that_is_no_list_of_digests_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        Serving().receive(struct.pack(">I", len(body)) + body)
