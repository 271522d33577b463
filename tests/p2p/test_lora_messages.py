import hashlib
from dataclasses import fields, replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.errors import DecodeError, EncodeError, LimitError
from p2p.limits import (
    DELIVERY_PIECE,
    MAX_ANSWER_FRAME,
    MAX_DELTA_ROWS_PER_REQUEST,
    MAX_LETTER_SIZE,
    MAX_LORA_FRAME,
    MAX_LORA_WIDTH,
    MAX_MODULE_NAME,
    MAX_PROBE_PAIRS,
    MAX_PROBE_VALUE,
    MAX_PROOF_SIZE,
    MAX_REASON_LENGTH,
    MAX_REQUEST_SIZE,
)
from p2p.lora_matrices import pack_probe, pack_values
from p2p.lora_messages import (
    REFUSAL_CODES,
    Agreed,
    Answer,
    BuyStart,
    Delivered,
    LoraRefusal,
    LoraReply,
    LoraStart,
    Piece,
    ProbeStart,
    Question,
    Receipt,
    answers_digest,
    pack_question,
    pack_reply,
    pack_start,
    parse_question,
    parse_reply,
    parse_start,
    questions_digest,
    refusal_for,
)
from tests.support.lora_offers import answer, blind_question, delta_question

STARTS: list[LoraStart] = [ProbeStart(b"sealed request"), BuyStart(b"sealed agreement")]
REPLIES: list[LoraReply] = [
    answer(blind_question()),
    answer(delta_question(), outputs=5),
    Receipt(b"sealed receipt"),
    Agreed(b"sealed agreement"),
    Delivered(b"sealed delivery"),
    Piece(b"some bytes"),
    LoraRefusal("budget_spent", "no scalars are left"),
]
BLIND, DELTA = blind_question(pairs=2), delta_question()  # [2, 6], [5, 2] and [2, 6]


def probe(lines: int, width: int = 1) -> bytes:
    return pack_probe([[1] * width] * lines)


# --- round trips and forms ------------------------------------------------------------------------


@pytest.mark.parametrize("start", STARTS, ids=lambda start: type(start).__name__)
def test_a_start_comes_back_as_it_was(start: LoraStart) -> None:
    assert parse_start(pack_start(start)) == start


@pytest.mark.parametrize("question", [BLIND, DELTA, blind_question()], ids=["blind", "delta", "1"])
def test_a_question_comes_back_as_it_was(question: Question) -> None:
    assert parse_question(pack_question(question)) == question


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: type(reply).__name__)
def test_a_reply_comes_back_as_it_was(reply: LoraReply) -> None:
    assert parse_reply(pack_reply(reply)) == reply


@settings(max_examples=40)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(0, 4),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    data=st.data(),
)
def test_any_question_round_trips(
    rows: int, columns: int, inputs: int, outputs: int, data: st.DataObject
) -> None:
    entries = st.integers(-MAX_PROBE_VALUE, MAX_PROBE_VALUE)
    left = pack_probe([[data.draw(entries) for _ in range(inputs)] for _ in range(rows)])
    right = b""
    if columns:
        right = pack_probe([[data.draw(entries) for _ in range(columns)] for _ in range(outputs)])
    question = Question("m", rows, columns, left, right)
    assert parse_question(pack_question(question)) == question
    assert (question.inputs, question.is_delta) == (inputs, columns == 0)
    assert question.outputs == (outputs if columns else None)
    assert (question.scalars, question.delta_rows) == (rows * columns, 0 if columns else rows)


@given(
    values=st.lists(st.integers(-(2**127), 2**127 - 1), min_size=1, max_size=9),
    proof=st.binary(min_size=1, max_size=99),
)
def test_any_answer_round_trips(values: list[int], proof: bytes) -> None:
    made = Answer("m", pack_values([values]), proof)
    assert parse_reply(pack_reply(made)) == made


FRAMES = [
    *((pack_start(start), parse_start) for start in STARTS),
    *((pack_question(question), parse_question) for question in (BLIND, DELTA)),
    *((pack_reply(reply), parse_reply) for reply in REPLIES),
]


@pytest.mark.parametrize(("frame", "parse"), FRAMES, ids=range(len(FRAMES)))
def test_a_frame_that_is_cut_or_longer_is_refused(frame: bytes, parse: Any) -> None:
    for data in (b"", frame[:-1], frame[: len(frame) // 2], frame + b"\0", frame + frame):
        with pytest.raises(DecodeError):
            parse(data)


@pytest.mark.parametrize(("frame", "parse"), FRAMES, ids=range(len(FRAMES)))
def test_a_frame_is_read_as_what_it_is_and_as_nothing_else(frame: bytes, parse: Any) -> None:
    for other in {parse_start, parse_question, parse_reply} - {parse}:
        with pytest.raises(DecodeError, match="expected \\[kind, fields\\]"):
            other(frame)


@pytest.mark.parametrize(("frame", "parse"), FRAMES, ids=range(len(FRAMES)))
def test_a_field_missing_unknown_or_of_another_type_is_refused(frame: bytes, parse: Any) -> None:
    kind, good = msgpack.unpackb(frame)
    for name in good:
        without = {field: value for field, value in good.items() if field != name}
        for wrong in (without, good | {name: None}, good | {name: [1]}, good | {name: {}}):
            with pytest.raises(DecodeError):
                parse(msgpack.packb([kind, wrong]))
    with pytest.raises(DecodeError, match="zeal"):
        parse(msgpack.packb([kind, good | {"zeal": 1}]))
    for wrong in (["sale", good], [kind, []], [kind], [kind, good, 1], [1, good], good, None):
        with pytest.raises(DecodeError):
            parse(msgpack.packb(wrong))


def test_a_field_of_our_own_that_is_of_another_type_is_our_error() -> None:
    with pytest.raises(EncodeError):
        pack_reply(Piece("text"))  # type: ignore[arg-type]


# --- bounds ---------------------------------------------------------------------------------------

LETTERS = ([b"x", bytes(MAX_LETTER_SIZE)], [b"", bytes(MAX_LETTER_SIZE + 1)])
NAMES = (["m", "é" * MAX_MODULE_NAME], ["", "x" * (MAX_MODULE_NAME + 1), "two\nlines"])
FIELDS: list[tuple[Any, str, tuple[list[Any], list[Any]]]] = [
    (STARTS[0], "request", LETTERS),
    (STARTS[1], "agreement", LETTERS),
    (BLIND, "module", NAMES),
    (BLIND, "rows", ([1, 2, 3], [0, -1, 5, MAX_PROBE_PAIRS + 1, MAX_DELTA_ROWS_PER_REQUEST])),
    (BLIND, "columns", ([1, 2], [-1, -2, 0, 3, 5, 10])),
    (BLIND, "left", ([probe(2), probe(2, MAX_LORA_WIDTH)], [b"", probe(3), probe(2) + b"\0"])),
    (BLIND, "right", ([probe(2), probe(2, 2)], [b"", probe(1), probe(5), probe(2)[:-1]])),
    (DELTA, "rows", ([1, 2, 12], [0, -1, 5, 7])),
    (DELTA, "columns", ([0], [1, 4])),
    (DELTA, "left", ([probe(2)], [b"", probe(2, MAX_LORA_WIDTH + 1)])),
    (DELTA, "right", ([b""], [b"\0\0", probe(2)])),
    (REPLIES[0], "module", NAMES),
    (REPLIES[0], "values", ([bytes(16), bytes(160)], [b"", bytes(15), bytes(17)])),
    (REPLIES[0], "proof", ([b"x", bytes(MAX_PROOF_SIZE)], [b"", bytes(MAX_PROOF_SIZE + 1)])),
    (REPLIES[2], "envelope", LETTERS),
    (REPLIES[3], "agreement", LETTERS),
    (REPLIES[4], "delivery", LETTERS),
    (REPLIES[5], "data", ([b"x", bytes(DELIVERY_PIECE)], [b"", bytes(DELIVERY_PIECE + 1)])),
    (REPLIES[6], "code", (list(REFUSAL_CODES), ["", "shy", "x" * 5000])),
    (
        REPLIES[6],
        "reason",
        (["", "é" * MAX_REASON_LENGTH], ["x" * (MAX_REASON_LENGTH + 1), "\x1b[2J"]),
    ),
]


@pytest.mark.parametrize(
    ("message", "field", "values"),
    FIELDS,
    ids=[f"{type(message).__name__}.{field}" for message, field, _ in FIELDS],
)
def test_every_field_holds_on_both_sides_of_its_bounds(
    message: Any, field: str, values: tuple[list[Any], list[Any]]
) -> None:
    fine, wrong = values
    for value in fine:
        assert getattr(replace(message, **{field: value}), field) == value
    for value in wrong:
        with pytest.raises((DecodeError, LimitError)):
            replace(message, **{field: value})


def test_every_field_is_tried() -> None:
    for kind in {type(message) for message in (*STARTS, BLIND, *REPLIES)}:
        tried = {field for message, field, _ in FIELDS if type(message) is kind}
        assert {field.name for field in fields(kind)} == tried


@pytest.mark.parametrize("value", [2**11, -(2**11), 3 + 2**11, -(2**15)])
def test_a_question_never_holds_an_entry_that_could_be_two(value: int) -> None:
    entry = value.to_bytes(2, "little", signed=True)
    for changes in ({"left": probe(1, 11) + entry}, {"right": probe(1, 9) + entry}):
        with pytest.raises(LimitError, match="2\\^11"):
            replace(BLIND, **changes)  # type: ignore[arg-type]
    with pytest.raises(LimitError, match="2\\^11"):
        replace(DELTA, left=probe(1, 11) + entry)


def test_the_most_rows_of_a_delta_question_are_a_request_s() -> None:
    most = Question("m", MAX_DELTA_ROWS_PER_REQUEST, 0, probe(MAX_DELTA_ROWS_PER_REQUEST), b"")
    assert parse_question(pack_question(most)) == most
    with pytest.raises(DecodeError, match=r"Question\.rows"):
        replace(most, rows=2 * MAX_DELTA_ROWS_PER_REQUEST)


# --- sizes ----------------------------------------------------------------------------------------


def test_a_question_of_64_rows_of_our_widest_layer_fits_its_frame() -> None:
    zeros = Question("é" * MAX_MODULE_NAME, 64, 0, bytes(64 * 4608 * 2), b"")
    assert len(pack_question(zeros)) <= MAX_LORA_FRAME
    with pytest.raises(LimitError):
        pack_question(replace(zeros, left=bytes(64 * 5120 * 2)))


def test_an_answer_of_40_rows_of_our_widest_layer_fits_its_frame() -> None:
    made = Answer("é" * MAX_MODULE_NAME, bytes(40 * 4608 * 16), bytes(MAX_PROOF_SIZE))
    assert len(pack_reply(made)) <= MAX_ANSWER_FRAME
    with pytest.raises(LimitError):
        pack_reply(replace(made, values=bytes(MAX_ANSWER_FRAME)))


def test_a_frame_that_is_too_large_is_refused_unread() -> None:
    for parse, limit in (
        (parse_start, MAX_REQUEST_SIZE),
        (parse_question, MAX_LORA_FRAME),
        (parse_reply, MAX_ANSWER_FRAME),
    ):
        with pytest.raises(LimitError, match=f"the limit is {limit}"):
            parse(bytes(limit + 1))
        with pytest.raises(DecodeError):
            parse(bytes(limit))


# --- digests and refusals -------------------------------------------------------------------------


def test_a_digest_is_that_of_the_bytes_on_the_wire() -> None:
    frames = [b"one", b"", b"three"]
    wire = b"\0\0\0\x03one" + b"\0\0\0\0" + b"\0\0\0\x05three"
    assert questions_digest(frames) == answers_digest(frames) == hashlib.sha256(wire).hexdigest()


def test_frames_that_run_together_alike_have_other_digests() -> None:
    ways = [[b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abc", b""], [b"c", b"ab"], []]
    assert len({questions_digest(way) for way in ways}) == len(ways)


def test_whatever_was_wrong_can_be_said_to_the_peer() -> None:
    for text in ("Question.rows: got 9", "\x1b[31m\n" + "x" * 1000):
        said = refusal_for("bad_request", text)
        assert said.code == "bad_request"
        assert parse_reply(pack_reply(said)) == said
