import hashlib
from dataclasses import replace

import pytest

from p2p import lora_streams
from p2p.errors import DecodeError, LimitError, PeerError
from p2p.limits import (
    DELIVERY_PIECE,
    MAX_ANSWER_FRAME,
    MAX_BLIND_QUESTIONS,
    MAX_DELTA_ROWS_PER_REQUEST,
    MAX_LORA_FRAME,
    MAX_LORA_WIDTH,
    MAX_MODULE_NAME,
    MAX_PROOF_SIZE,
)
from p2p.lora_matrices import pack_probe, pack_values
from p2p.lora_messages import Answer, Piece, Question, pack_question, pack_reply
from p2p.lora_records import BLIND, DELTA, LoraModule
from p2p.lora_streams import (
    DeliveryReader,
    QuestionReader,
    check_ciphertext,
    check_question,
    open_answer,
    pieces_of,
    rows_per_question,
)
from tests.support.lora_offers import (
    HEX,
    OFFER,
    QUESTIONS,
    TO_K,
    TO_Q,
    answer,
    blind_question,
    delivery,
    delta_question,
    probe_request,
    question_frames,
)


def module(inputs: int, outputs: int) -> LoraModule:
    return LoraModule("é" * MAX_MODULE_NAME, inputs, outputs, HEX, bytes(64))


# --- questions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(4608, 1152), (1152, 4608), (MAX_LORA_WIDTH, MAX_LORA_WIDTH), (64, 8), (8, 1)],
)
def test_the_most_rows_of_a_question_fit_their_frames_and_no_more_do(
    inputs: int, outputs: int
) -> None:
    layer = module(inputs, outputs)
    rows = rows_per_question(layer)
    assert 1 <= rows <= MAX_DELTA_ROWS_PER_REQUEST
    question = Question(layer.name, rows, 0, bytes(rows * inputs * 2), b"")
    check_question(question, layer, DELTA)
    assert len(pack_question(question)) <= MAX_LORA_FRAME
    reply = Answer(layer.name, bytes(rows * outputs * 16), bytes(MAX_PROOF_SIZE))
    assert len(pack_reply(reply)) <= MAX_ANSWER_FRAME
    assert (rows >= 40) == (max(inputs, outputs) <= 4608)
    if rows < MAX_DELTA_ROWS_PER_REQUEST:
        more = Question(layer.name, rows + 1, 0, bytes((rows + 1) * inputs * 2), b"")
        with pytest.raises(LimitError, match=r"Question\.rows"):
            check_question(more, layer, DELTA)


@pytest.mark.parametrize(
    ("question", "mode", "field"),
    [
        (blind_question(), DELTA, "columns"),
        (delta_question(), BLIND, "columns"),
        (blind_question(replace(TO_Q, name="other")), BLIND, "module"),
        (blind_question(replace(TO_Q, inputs=5)), BLIND, "left"),
        (blind_question(replace(TO_Q, outputs=6)), BLIND, "right"),
        (blind_question(replace(TO_Q, inputs=5, outputs=6)), BLIND, "left"),  # the transpose
        (delta_question(replace(TO_Q, inputs=7)), DELTA, "left"),
    ],
)
def test_a_question_that_does_not_fit_its_module_is_refused_by_name(
    question: Question, mode: str, field: str
) -> None:
    with pytest.raises(DecodeError, match=rf"Question\.{field}"):
        check_question(question, TO_Q, mode)


def test_the_questions_signed_for_are_read_in_order() -> None:
    reader = QuestionReader(probe_request(), OFFER)
    for question, frame in zip(QUESTIONS, question_frames(*QUESTIONS), strict=True):
        assert not reader.is_complete
        assert reader.add(frame) == question
    assert reader.is_complete
    assert reader.finish() == QUESTIONS


def test_questions_other_than_those_signed_for_are_refused() -> None:
    one, two, three = question_frames(*QUESTIONS)
    changed = pack_question(blind_question(first=-6))
    for frames in ([one, two, changed], [two, one, three], [one, one, three]):
        reader = QuestionReader(probe_request(), OFFER)
        for frame in frames:
            reader.add(frame)
        with pytest.raises(PeerError, match=r"ProbeRequest\.questions"):
            reader.finish()


def test_fewer_or_more_questions_than_announced_are_refused() -> None:
    reader = QuestionReader(probe_request(), OFFER)
    frames = question_frames(*QUESTIONS)
    for frame in frames[:-1]:
        reader.add(frame)
    with pytest.raises(PeerError, match="2 of 3"):
        reader.finish()
    reader.add(frames[-1])
    with pytest.raises(LimitError, match="3 announced"):
        reader.add(frames[-1])


@pytest.mark.parametrize(
    "question",
    [
        blind_question(replace(TO_Q, name="blocks.9.attn1.to_q")),
        blind_question(replace(TO_Q, inputs=7)),
        delta_question(),
    ],
    ids=["another module", "another shape", "another mode"],
)
def test_a_question_that_does_not_fit_the_offer_is_refused_as_it_comes(question: Question) -> None:
    request = probe_request(question, mode=BLIND)
    with pytest.raises(DecodeError, match="Question"):
        QuestionReader(request, OFFER).add(pack_question(question))


def test_a_frame_that_is_no_question_is_refused() -> None:
    with pytest.raises(DecodeError):
        QuestionReader(probe_request(), OFFER).add(pack_reply(answer(QUESTIONS[0])))


def test_a_module_is_asked_about_so_often_and_no_more() -> None:
    questions = [blind_question(first=number) for number in range(1, MAX_BLIND_QUESTIONS + 2)]
    reader = QuestionReader(probe_request(*questions), OFFER)
    *fits, more = question_frames(*questions)
    for frame in fits:
        reader.add(frame)
    with pytest.raises(LimitError, match="over 5 questions"):
        reader.add(more)


def test_a_module_s_rows_of_one_request_are_bounded_however_they_are_split() -> None:
    half = MAX_DELTA_ROWS_PER_REQUEST // 2
    questions = [delta_question(rows=half), delta_question(TO_K, half), delta_question(rows=half)]
    reader = QuestionReader(probe_request(*questions, delta_question(rows=1)), OFFER)
    for frame in question_frames(*questions):
        reader.add(frame)
    with pytest.raises(LimitError, match="over 1024 rows"):
        reader.add(pack_question(delta_question(rows=1)))


def test_the_bytes_of_one_request_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = question_frames(*QUESTIONS)
    monkeypatch.setattr(lora_streams, "MAX_QUESTIONS_SIZE", sum(map(len, frames)) - 1)
    reader = QuestionReader(probe_request(), OFFER)
    for frame in frames[:-1]:
        reader.add(frame)
    with pytest.raises(LimitError, match="in one request"):
        reader.add(frames[-1])


# --- answers --------------------------------------------------------------------------------------


def test_an_answer_has_the_shape_of_its_question() -> None:
    assert (
        open_answer(answer(blind_question(pairs=2)), blind_question(pairs=2), TO_Q)
        == [[-(2**70)] * 2] * 2
    )
    delta = delta_question(rows=3)
    assert open_answer(answer(delta, TO_Q.outputs), delta, TO_Q) == [[-(2**70)] * 5] * 3


@pytest.mark.parametrize("rows", [[[1]], [[1, 2, 3]], [[1] * 4] * 4, [[1, 2], [3, 4], [5, 6]]])
def test_an_answer_of_another_shape_is_refused(rows: list[list[int]]) -> None:
    question = blind_question(pairs=2)
    with pytest.raises(DecodeError, match="values"):
        open_answer(Answer(TO_Q.name, pack_values(rows), b"proof"), question, TO_Q)
    with pytest.raises(DecodeError, match="values"):
        open_answer(Answer(TO_Q.name, pack_values(rows), b"proof"), delta_question(), TO_Q)


def test_an_answer_about_another_module_is_refused() -> None:
    same_shape = replace(TO_Q, name="blocks.1.attn1.to_q")
    for given, asked in ((same_shape, TO_Q), (TO_Q, same_shape)):
        with pytest.raises(PeerError, match=r"Answer\.module"):
            open_answer(answer(blind_question(given)), blind_question(asked), asked)
    with pytest.raises(PeerError, match=r"Answer\.module"):
        open_answer(answer(blind_question()), blind_question(), same_shape)


# --- deliveries -----------------------------------------------------------------------------------

SENT = bytes(range(256)) * (2 * DELIVERY_PIECE // 256) + b"the end"


def test_pieces_come_together_as_they_were_cut() -> None:
    pieces = list(pieces_of(SENT))
    assert [len(piece.data) for piece in pieces] == [DELIVERY_PIECE, DELIVERY_PIECE, 7]
    reader = DeliveryReader(delivery(SENT))
    for piece in pieces:
        assert reader.left > 0
        reader.add(piece)
    assert reader.left == 0
    assert reader.finish() == SENT


def test_not_a_byte_more_comes_than_was_signed_for() -> None:
    reader = DeliveryReader(delivery(SENT))
    for piece in pieces_of(SENT):
        reader.add(piece)
    with pytest.raises(LimitError, match="0 are left"):
        reader.add(Piece(b"x"))
    short = DeliveryReader(delivery(b"12345"))
    with pytest.raises(LimitError, match="5 are left"):
        short.add(Piece(b"123456"))


def test_a_ciphertext_that_is_not_whole_or_not_the_signed_one_is_refused() -> None:
    reader = DeliveryReader(delivery(SENT))
    reader.add(next(pieces_of(SENT)))
    with pytest.raises(PeerError, match=r"Delivery\.size"):
        reader.finish()
    for wrong in (SENT[:-1] + b"!", b"!" + SENT[1:]):
        with pytest.raises(PeerError, match=r"Delivery\.ciphertext"):
            check_ciphertext(wrong, delivery(SENT))
    longer = SENT + b"\0"
    with pytest.raises(PeerError, match=r"Delivery\.size"):
        check_ciphertext(longer, delivery(SENT, ciphertext=hashlib.sha256(longer).hexdigest()))
    check_ciphertext(SENT, delivery(SENT))


def test_a_probe_s_rows_are_the_question_s_left_rows() -> None:
    question = blind_question(pairs=2)
    assert question.left == pack_probe([[1] * TO_Q.inputs] * 2)
    assert (question.inputs, question.outputs) == (TO_Q.inputs, TO_Q.outputs)
