"""Asking about a LoRA offer, and buying it: the frames of `/paris/lora/1`, each `[kind, fields]`.

To ask: `ProbeStart`, then its `Question` frames; back come one `Answer` each, in order, and a
`Receipt`. To buy: `BuyStart`; back come `Agreed`, `Delivered`, and `Piece` frames until the
ciphertext is whole. A `LoraRefusal` may come instead of anything. Pure: see `p2p.lora_checks` for
what the sealed records inside must say, `p2p.lora_streams` for how much may come.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from p2p.errors import DecodeError, LimitError
from p2p.limits import (
    DELIVERY_PIECE,
    MAX_ANSWER_FRAME,
    MAX_DELTA_ROWS_PER_REQUEST,
    MAX_LETTER_SIZE,
    MAX_LORA_FRAME,
    MAX_LORA_WIDTH,
    MAX_MODULE_NAME,
    MAX_PROBE_PAIRS,
    MAX_PROOF_SIZE,
    MAX_REASON_LENGTH,
    MAX_REQUEST_SIZE,
)
from p2p.lora_matrices import ENTRY_SIZE, VALUE_SIZE, check_probe
from p2p.msgpack_guard import decode_plain, encode_plain
from p2p.record_checks import check_filled, check_named, check_texts, check_within, printable
from p2p.schema import from_plain, to_plain
from p2p.wire import encode_frame

PROTOCOL: Final = "/paris/lora/1"
REFUSAL_CODES: Final = (
    "bad_request",  # not a request, or over a limit
    "busy",  # too much is being proved
    "unknown_offer",  # this node does not offer it
    "wrong_run",  # the node serves another run
    "expired",  # the offer's time is over
    "budget_spent",  # its scalars, proofs or rows are used up
    "not_offered",  # not in this mode, or not for sale
    "failed",  # this node's own fault
)

T = TypeVar("T")


# --- what the asking side sends -----------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ProbeStart:
    """Some questions will follow."""

    request: bytes
    """A sealed `ProbeRequest`."""

    def __post_init__(self) -> None:
        """Check the size; raises `DecodeError` or `LimitError`."""
        check_filled("ProbeStart.request", self.request, MAX_LETTER_SIZE)


@dataclass(frozen=True, slots=True)
class BuyStart:
    """Deliver what is offered."""

    agreement: bytes
    """An `Agreement` sealed by the buyer."""

    def __post_init__(self) -> None:
        """Check the size; raises `DecodeError` or `LimitError`."""
        check_filled("BuyStart.agreement", self.agreement, MAX_LETTER_SIZE)


@dataclass(frozen=True, slots=True)
class Question:
    """What is left * A B * right (blind), or left * A B (delta), of one module?"""

    module: str
    rows: int
    columns: int
    """0 in delta mode."""
    left: bytes
    """[rows, inputs], see `p2p.lora_matrices.pack_probe`."""
    right: bytes
    """[outputs, columns], empty in delta mode."""

    def __post_init__(self) -> None:
        """Check the sizes against each other, and that no entry can hold two numbers.

        Raises:
            DecodeError: if the matrices are not of so many rows and columns.
            LimitError: if the name is too long, or an entry passes `MAX_PROBE_VALUE`.
        """
        check_named("Question.module", self.module, MAX_MODULE_NAME)
        check_within("Question.columns", self.columns, 0, MAX_PROBE_PAIRS)
        most = MAX_DELTA_ROWS_PER_REQUEST if self.is_delta else MAX_PROBE_PAIRS
        check_within("Question.rows", self.rows, 1, most)
        _check_matrix("Question.left", self.left, self.rows)
        if not self.is_delta:
            _check_matrix("Question.right", self.right, self.columns)
        elif self.right:
            raise DecodeError("Question.right: expected nothing beside 0 columns")

    @property
    def is_delta(self) -> bool:
        """Whether it asks for whole rows of outputs."""
        return self.columns == 0

    @property
    def inputs(self) -> int:
        """Columns of `left`."""
        return len(self.left) // (ENTRY_SIZE * self.rows)

    @property
    def outputs(self) -> int | None:
        """Rows of `right`; None in delta mode."""
        return None if self.is_delta else len(self.right) // (ENTRY_SIZE * self.columns)

    @property
    def scalars(self) -> int:
        """What its answer costs of the module's scalar budget."""
        return self.rows * self.columns

    @property
    def delta_rows(self) -> int:
        """What its answer costs of the row budget."""
        return self.rows if self.is_delta else 0


# --- what comes back ----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Answer:
    """The values of one question, and the proof that they are A's and B's."""

    module: str
    values: bytes
    """[rows, columns], in delta mode [rows, outputs]; see `p2p.lora_matrices.pack_values`."""
    proof: bytes

    def __post_init__(self) -> None:
        """Check name and sizes; `p2p.lora_streams.open_answer` compares with the question.

        Raises:
            DecodeError: if something is empty, or the values are not whole.
            LimitError: if the name or the proof is too long.
        """
        check_named("Answer.module", self.module, MAX_MODULE_NAME)
        if not self.values or len(self.values) % VALUE_SIZE:
            raise DecodeError(f"Answer.values: {len(self.values)} bytes are no whole values")
        check_filled("Answer.proof", self.proof, MAX_PROOF_SIZE)


@dataclass(frozen=True, slots=True)
class Receipt:
    """After the last answer."""

    envelope: bytes
    """A sealed `ProbeReceipt`."""

    def __post_init__(self) -> None:
        """Check the size; raises `DecodeError` or `LimitError`."""
        check_filled("Receipt.envelope", self.envelope, MAX_LETTER_SIZE)


@dataclass(frozen=True, slots=True)
class Agreed:
    """The seller agrees."""

    agreement: bytes
    """The buyer's `Agreement`, sealed by the seller."""

    def __post_init__(self) -> None:
        """Check the size; raises `DecodeError` or `LimitError`."""
        check_filled("Agreed.agreement", self.agreement, MAX_LETTER_SIZE)


@dataclass(frozen=True, slots=True)
class Delivered:
    """The seller's word for the pieces that follow."""

    delivery: bytes
    """A sealed `Delivery`."""

    def __post_init__(self) -> None:
        """Check the size; raises `DecodeError` or `LimitError`."""
        check_filled("Delivered.delivery", self.delivery, MAX_LETTER_SIZE)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the ciphertext, in order."""

    data: bytes

    def __post_init__(self) -> None:
        """Check the size; raises `DecodeError` or `LimitError`."""
        check_filled("Piece.data", self.data, DELIVERY_PIECE)


@dataclass(frozen=True, slots=True)
class LoraRefusal:
    """No, and why: `code` for programs, `reason` for people."""

    code: str
    reason: str

    def __post_init__(self) -> None:
        """Check what will be shown.

        Raises:
            DecodeError: if the code is unknown or the reason is not printable.
            LimitError: if the reason is too long.
        """
        if self.code not in REFUSAL_CODES:
            raise DecodeError(f"LoraRefusal.code: got {self.code[:40]!r}, known: {REFUSAL_CODES}")
        check_texts("LoraRefusal.reason", (self.reason,), MAX_REASON_LENGTH)


LoraStart: TypeAlias = ProbeStart | BuyStart
LoraReply: TypeAlias = Answer | Receipt | Agreed | Delivered | Piece | LoraRefusal
_STARTS: Final[dict[str, type[LoraStart]]] = {"probe": ProbeStart, "buy": BuyStart}
_QUESTIONS: Final[dict[str, type[Question]]] = {"question": Question}
_REPLIES: Final[dict[str, type[LoraReply]]] = {
    "answer": Answer,
    "receipt": Receipt,
    "agreed": Agreed,
    "delivered": Delivered,
    "piece": Piece,
    "refusal": LoraRefusal,
}
_KIND_OF: Final = {
    kind: name for table in (_STARTS, _QUESTIONS, _REPLIES) for name, kind in table.items()
}


def pack_start(start: LoraStart) -> bytes:
    """The first frame's payload.

    Raises:
        EncodeError: if a field is not of its type.
    """
    return _pack(start, MAX_REQUEST_SIZE)


def parse_start(data: bytes) -> LoraStart:
    """Read the first frame of a stream.

    Raises:
        LimitError: if it is over a limit.
        DecodeError: if it is anything but a start.
    """
    return _parse(_STARTS, data, MAX_REQUEST_SIZE)


def pack_question(question: Question) -> bytes:
    """One question frame's payload.

    Raises:
        EncodeError: if a field is not of its type.
        LimitError: if it is larger than `MAX_LORA_FRAME` bytes: ask for fewer rows at a time.
    """
    return _pack(question, MAX_LORA_FRAME)


def parse_question(data: bytes) -> Question:
    """Read one question.

    Raises:
        LimitError: if it, or an entry of its matrices, is over a limit.
        DecodeError: if it is anything but a question.
    """
    return _parse(_QUESTIONS, data, MAX_LORA_FRAME)


def pack_reply(reply: LoraReply) -> bytes:
    """One frame's payload on the way back.

    Raises:
        EncodeError: if a field is not of its type.
        LimitError: if it is larger than `MAX_ANSWER_FRAME` bytes.
    """
    return _pack(reply, MAX_ANSWER_FRAME)


def parse_reply(data: bytes) -> LoraReply:
    """Read one frame from the offering peer.

    Raises:
        LimitError: if it, or something in it, is over a limit.
        DecodeError: if it is anything but a reply.
    """
    return _parse(_REPLIES, data, MAX_ANSWER_FRAME)


def refusal_for(code: str, reason: str) -> LoraRefusal:
    """A refusal whose reason may be any text; raises `DecodeError` for an unknown code."""
    return LoraRefusal(code, printable(reason, MAX_REASON_LENGTH))


class FramesDigest:
    """sha2-256 over frames as they travel: each with its length before it."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()

    def add(self, frame: bytes) -> None:
        """Take the next frame's payload."""
        self._hasher.update(encode_frame(frame, max_size=MAX_ANSWER_FRAME))

    def text(self) -> str:
        """64 hexadecimal digits."""
        return self._hasher.hexdigest()


def questions_digest(frames: Iterable[bytes]) -> str:
    """What a `ProbeRequest` says of its question frames, in order; 64 hexadecimal digits."""
    digest = FramesDigest()
    for frame in frames:
        digest.add(frame)
    return digest.text()


def answers_digest(frames: Iterable[bytes]) -> str:
    """What a `ProbeReceipt` says of the `Answer` frames before it; 64 hexadecimal digits."""
    return questions_digest(frames)


def _pack(message: LoraStart | Question | LoraReply, limit: int) -> bytes:
    data = encode_plain([_KIND_OF[type(message)], to_plain(message)])
    if len(data) > limit:
        raise LimitError(f"{type(message).__name__}: {len(data)} bytes, the limit is {limit}")
    return data


def _parse(table: Mapping[str, type[T]], data: bytes, limit: int) -> T:
    match decode_plain(data, max_size=limit):
        case [str(kind), dict(fields)] if kind in table:
            return from_plain(table[kind], fields)
        case _:
            raise DecodeError(f"frame: expected [kind, fields], kind one of {list(table)}")


def _check_matrix(what: str, data: bytes, lines: int) -> None:
    width, rest = divmod(len(data), ENTRY_SIZE * lines)
    if rest or not 1 <= width <= MAX_LORA_WIDTH:
        raise DecodeError(f"{what}: {len(data)} bytes are no {lines} lines of numbers")
    check_probe(data)
