import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import LimitError
from p2p.wire import PREFIX_SIZE, FrameDecoder, encode_frame, frame_length


@given(st.lists(st.binary(max_size=64), max_size=8), st.data())
def test_frames_survive_any_split_of_the_stream(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(payload, max_size=64) for payload in payloads)
    decoder = FrameDecoder(max_size=64)
    got: list[bytes] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        got += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert got == payloads
    assert decoder.buffered == 0


def test_a_frame_of_exactly_the_limit_passes_and_one_more_byte_does_not() -> None:
    assert FrameDecoder(max_size=8).feed(encode_frame(bytes(8), max_size=8)) == [bytes(8)]
    with pytest.raises(LimitError, match="9 bytes"):
        encode_frame(bytes(9), max_size=8)
    with pytest.raises(LimitError, match="announced 9"):
        FrameDecoder(max_size=8).feed(encode_frame(bytes(9), max_size=9))


def test_an_announced_length_is_refused_before_its_body_arrives() -> None:
    with pytest.raises(LimitError):
        frame_length(b"\xff\xff\xff\xff", max_size=1 << 20)
    with pytest.raises(LimitError):
        FrameDecoder(max_size=1 << 20).feed(b"\xff\xff\xff\xff")


def test_half_a_frame_waits() -> None:
    decoder = FrameDecoder(max_size=8)
    assert decoder.feed(encode_frame(b"abcd", max_size=8)[:-1]) == []
    assert decoder.buffered == PREFIX_SIZE + 3
    assert decoder.feed(b"d") == [b"abcd"]
