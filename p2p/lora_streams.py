"""How much may come on a `/paris/lora/1` stream, and whether it fits what was asked or signed.

Sans-I/O: frames in, checked messages out. The serving side feeds `QuestionReader` and answers only
after `finish`, since until then the questions may not be the signed ones; the asking side calls
`open_answer` for each answer, a buyer feeds `DeliveryReader`.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Final

from p2p.errors import DecodeError, LimitError, PeerError
from p2p.limits import (
    DELIVERY_PIECE,
    MAX_ANSWER_FRAME,
    MAX_BLIND_QUESTIONS,
    MAX_DELTA_ROWS_PER_REQUEST,
    MAX_LORA_FRAME,
    MAX_PROOF_SIZE,
    MAX_QUESTIONS_SIZE,
)
from p2p.lora_matrices import ENTRY_SIZE, VALUE_SIZE, unpack_values
from p2p.lora_messages import Answer, FramesDigest, Piece, Question, parse_question
from p2p.lora_records import DELTA, Delivery, LoraModule, LoraOffer, ProbeRequest

_FRAME_ROOM: Final = 1024
"""Bytes of a frame beside its matrices and proof: the field names, and a module's name."""


def rows_per_question(module: LoraModule) -> int:
    """Most rows of one delta question: it and its answer must each fit one frame."""
    asked = (MAX_LORA_FRAME - _FRAME_ROOM) // (ENTRY_SIZE * module.inputs)
    answered = (MAX_ANSWER_FRAME - MAX_PROOF_SIZE - _FRAME_ROOM) // (VALUE_SIZE * module.outputs)
    return min(asked, answered, MAX_DELTA_ROWS_PER_REQUEST)


def check_question(question: Question, module: LoraModule, mode: str) -> None:
    """Check a question against the module it is about.

    Raises:
        DecodeError: if it is of another mode, module or shape.
        LimitError: if its answer would not fit one frame.
    """
    if question.is_delta != (mode == DELTA):
        raise DecodeError(f"Question.columns: {question.columns} in {mode} mode")
    if question.module != module.name:
        raise DecodeError(f"Question.module: is {question.module!r}, expected {module.name!r}")
    if question.inputs != module.inputs:
        raise DecodeError(f"Question.left: {question.inputs} inputs, expected {module.inputs}")
    if question.outputs not in (None, module.outputs):
        raise DecodeError(f"Question.right: {question.outputs} outputs, expected {module.outputs}")
    if question.rows > rows_per_question(module):
        raise LimitError(
            f"Question.rows: got {question.rows}, the limit is {rows_per_question(module)}"
        )


class QuestionReader:
    """Reads the questions of one request: each fits the offer, all are those that were signed.

    Args:
        request: what the asking peer signed.
        offer: the offer it is about.
    """

    def __init__(self, request: ProbeRequest, offer: LoraOffer) -> None:
        self._request = request
        self._modules = {module.name: module for module in offer.modules}
        self._digest = FramesDigest()
        self._questions: list[Question] = []
        self._size = 0
        self._asked: Counter[str] = Counter()

    @property
    def is_complete(self) -> bool:
        """Whether as many questions came as were announced."""
        return len(self._questions) == self._request.count

    def add(self, frame: bytes) -> Question:
        """Take the next question frame's payload.

        Raises:
            LimitError: if there are more questions, bytes, pairs or rows than may be asked.
            DecodeError: if it is no question about the offer, in the request's mode.
        """
        self._size += len(frame)
        if self.is_complete:
            raise LimitError(f"questions: more than the {self._request.count} announced")
        if self._size > MAX_QUESTIONS_SIZE:
            raise LimitError(f"questions: over {MAX_QUESTIONS_SIZE} bytes in one request")
        question = parse_question(frame)
        module = self._modules.get(question.module)
        if module is None:
            raise DecodeError(f"Question.module: {question.module!r} is not in the offer")
        check_question(question, module, self._request.mode)
        self._count(question)
        self._digest.add(frame)
        self._questions.append(question)
        return question

    def _count(self, question: Question) -> None:
        limit = MAX_DELTA_ROWS_PER_REQUEST if question.is_delta else MAX_BLIND_QUESTIONS
        self._asked[question.module] += question.rows if question.is_delta else 1
        if self._asked[question.module] > limit:
            what = "rows" if question.is_delta else "questions"
            raise LimitError(f"Question.module: over {limit} {what} about {question.module!r}")

    def finish(self) -> tuple[Question, ...]:
        """All questions, once they are known to be the signed ones.

        Raises:
            PeerError: if there are fewer than announced, or they are not what was signed.
        """
        if not self.is_complete:
            raise PeerError(f"questions: got {len(self._questions)} of {self._request.count}")
        if self._digest.text() != self._request.questions:
            raise PeerError("ProbeRequest.questions: is not the digest of what was asked")
        return tuple(self._questions)


def open_answer(answer: Answer, question: Question, module: LoraModule) -> list[list[int]]:
    """The values of an answer to our question; whether they are proved is for a verifier.

    Returns:
        [rows, columns], in delta mode [rows, outputs].

    Raises:
        PeerError: if it answers about another module.
        DecodeError: if there are not as many values as were asked for.
    """
    if not answer.module == question.module == module.name:
        raise PeerError(f"Answer.module: is {answer.module!r}, asked was {question.module!r}")
    columns = module.outputs if question.is_delta else question.columns
    return unpack_values(answer.values, question.rows, columns)


def pieces_of(ciphertext: bytes) -> Iterator[Piece]:
    """A ciphertext in the pieces it travels in."""
    for at in range(0, len(ciphertext), DELIVERY_PIECE):
        yield Piece(ciphertext[at : at + DELIVERY_PIECE])


def check_ciphertext(ciphertext: bytes, delivery: Delivery) -> None:
    """Check that bytes are the ones a seller signed for.

    Raises:
        PeerError: if their number or their hash is another.
    """
    if len(ciphertext) != delivery.size:
        raise PeerError(f"Delivery.size: is {delivery.size}, got {len(ciphertext)} bytes")
    digest = hashlib.sha256(ciphertext).hexdigest()
    if digest != delivery.ciphertext:
        raise PeerError(f"Delivery.ciphertext: is {delivery.ciphertext}, got bytes of {digest}")


class DeliveryReader:
    """Collects a delivery's pieces, no byte more than was signed for.

    Args:
        delivery: what the seller signed.
    """

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._data = bytearray()

    @property
    def left(self) -> int:
        """Bytes still to come."""
        return self._delivery.size - len(self._data)

    def add(self, piece: Piece) -> None:
        """Take the next piece.

        Raises:
            LimitError: if it is more than what is left.
        """
        if len(piece.data) > self.left:
            raise LimitError(f"Piece.data: {len(piece.data)} bytes where {self.left} are left")
        self._data += piece.data

    def finish(self) -> bytes:
        """The ciphertext.

        Raises:
            PeerError: if it is not whole, or not what the seller signed for.
        """
        ciphertext = bytes(self._data)
        check_ciphertext(ciphertext, self._delivery)
        return ciphertext
