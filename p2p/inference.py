"""Asking a peer for pictures: messages, their limits, admission, and the check of what comes back.

One stream carries one request frame, then any number of `InferenceProgress` frames and one
`InferenceReply` per picture, or one `InferenceRefusal`. Pure: no queue, no clock, no tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from p2p.codec import Verified, open_signed, pack, unpack
from p2p.errors import DecodeError, LimitError, PeerError
from p2p.ids import PeerId, RunId, blob_id
from p2p.limits import (
    MAX_DEADLINE_S,
    MAX_GUIDANCE,
    MAX_IMAGE_REPLY_SIZE,
    MAX_IMAGES_PER_REQUEST,
    MAX_INFERENCE_PER_PEER,
    MAX_INFERENCE_QUEUE,
    MAX_PROMPT_BYTES,
    MAX_REASON_LENGTH,
    MAX_REQUEST_SIZE,
    MAX_SEED,
    MAX_STEPS,
)
from p2p.msgpack_guard import decode_plain, encode_plain
from p2p.record_checks import printable
from p2p.records import BLOB_KEY, ImageReceipt
from p2p.routing import SAMPLERS, parse_routing
from p2p.schema import from_plain, to_plain

PROTOCOL: Final = "/paris/infer/1"
REFUSAL_CODES: Final = (
    "bad_request",  # not a request, or over a limit
    "busy",  # the queue is full
    "too_many",  # this peer has enough in the queue
    "wrong_run",  # the node serves another run
    "no_experts",  # nothing to draw with
    "deadline",  # could not be drawn in the time given
    "failed",  # this node's own fault
)
_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """Draw `n` pictures of a prompt."""

    run: RunId
    prompt: str
    n: int
    seed: int
    """Picture i takes `seed + i`."""
    strategy: str
    """A label: see `p2p.routing`."""
    sampler: str
    steps: int
    guidance: float
    """Classifier-free guidance scale; 1 is none, 0 ignores the prompt."""
    deadline_s: float

    def __post_init__(self) -> None:
        """Check every number before anything is allocated for it.

        Raises:
            LimitError: naming the field and what is allowed.
            DecodeError: if a name is unknown.
        """
        prompt_bytes = len(self.prompt.encode(errors="surrogatepass"))
        _check_range("prompt", prompt_bytes, 0, MAX_PROMPT_BYTES, "bytes")
        _check_range("n", self.n, 1, MAX_IMAGES_PER_REQUEST)
        _check_range("seed", self.seed, 0, MAX_SEED)
        _check_range("steps", self.steps, 1, MAX_STEPS)
        _check_range("guidance", self.guidance, 0.0, MAX_GUIDANCE)
        _check_range("deadline_s", self.deadline_s, 0.1, MAX_DEADLINE_S, "s")
        parse_routing(self.strategy)
        _check_name("sampler", self.sampler, SAMPLERS)


@dataclass(frozen=True, slots=True)
class InferenceProgress:
    """How far the drawing is."""

    step: int
    steps: int

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            LimitError: if it counts past any request's end.
        """
        _check_range("steps", self.steps, 1, MAX_STEPS * MAX_IMAGES_PER_REQUEST)
        _check_range("step", self.step, 0, self.steps)


@dataclass(frozen=True, slots=True)
class InferenceReply:
    """One finished picture."""

    index: int
    """Which of the request's pictures, from 0."""
    image: bytes
    """A PNG."""
    receipt: bytes
    """A sealed `ImageReceipt`; `open_reply` checks it against the picture and the request."""

    def __post_init__(self) -> None:
        """Check the index and that the image may be a PNG.

        Raises:
            LimitError: if the index is past any request's end.
            DecodeError: if the image is not a PNG file.
        """
        _check_range("index", self.index, 0, MAX_IMAGES_PER_REQUEST - 1)
        if not self.image.startswith(_PNG_MAGIC):
            raise DecodeError("reply: the image is not a PNG")


@dataclass(frozen=True, slots=True)
class InferenceRefusal:
    """No, and why: `code` for programs, `reason` for people."""

    code: str
    reason: str

    def __post_init__(self) -> None:
        """Check what will be shown.

        Raises:
            DecodeError: if the code is unknown or the reason is not printable.
            LimitError: if the reason is too long.
        """
        _check_name("code", self.code, REFUSAL_CODES)
        _check_range("reason", len(self.reason), 0, MAX_REASON_LENGTH, "characters")
        if not self.reason.isprintable():
            raise DecodeError("refusal: the reason is not printable text")


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request may join the queue."""

    request: InferenceRequest


InferenceMessage: TypeAlias = InferenceProgress | InferenceReply | InferenceRefusal
_TAGS: Final[dict[str, type[InferenceMessage]]] = {
    "progress": InferenceProgress,
    "image": InferenceReply,
    "refusal": InferenceRefusal,
}
_TAG_OF: Final = {kind: tag for tag, kind in _TAGS.items()}


def pack_request(request: InferenceRequest) -> bytes:
    """The request as one frame's payload."""
    return pack(request)


def parse_request(data: bytes) -> InferenceRequest:
    """Read a request from outside.

    Raises:
        LimitError: if it, or a number in it, is over its limit; the message says which and what is
            allowed, and may be shown to the peer.
        DecodeError: if it is anything but a request.
    """
    return unpack(InferenceRequest, data, max_size=MAX_REQUEST_SIZE)


def pack_message(message: InferenceMessage) -> bytes:
    """One answer frame's payload: `[kind, fields]`.

    Raises:
        EncodeError: if a field is not of its type.
        LimitError: if it is larger than `MAX_IMAGE_REPLY_SIZE` bytes.
    """
    data = encode_plain([_TAG_OF[type(message)], to_plain(message)])
    if len(data) > MAX_IMAGE_REPLY_SIZE:
        raise LimitError(f"reply: {len(data)} bytes, the limit is {MAX_IMAGE_REPLY_SIZE}")
    return data


def parse_message(data: bytes) -> InferenceMessage:
    """Read one answer frame from the serving peer.

    Raises:
        LimitError: if it is over `MAX_IMAGE_REPLY_SIZE`, or a number is over its limit.
        DecodeError: if it is anything but a message.
    """
    match decode_plain(data, max_size=MAX_IMAGE_REPLY_SIZE):
        case [str(tag), dict(fields)] if tag in _TAGS:
            return from_plain(_TAGS[tag], fields)
        case _:
            raise DecodeError(f"answer: expected [kind, fields], kind one of {list(_TAGS)}")


def open_reply(
    reply: InferenceReply, request: InferenceRequest, *, peer: PeerId, now: float
) -> Verified[ImageReceipt]:
    """Check that a picture is the one its receipt names, by this peer, as it was asked for.

    Says nothing of whether the pixels are what the experts would draw: that takes a spot check.

    Raises:
        PeerError: if the receipt is not valid, is another's, or does not match; naming the field.
    """
    receipt = open_signed(ImageReceipt, reply.receipt, key=BLOB_KEY, now=now)
    if receipt.owner != peer:
        raise PeerError(f"receipt: signed by {receipt.owner}, the picture came from {peer}")
    asked = {
        "run": request.run,
        "image": blob_id(reply.image),
        "seed": request.seed + reply.index,
        "strategy": request.strategy,
        "sampler": request.sampler,
        "steps": request.steps,
        "guidance": request.guidance,
    }
    if reply.index >= request.n:
        raise PeerError(f"reply: picture {reply.index} of a request for {request.n}")
    for field, expected in asked.items():
        got = getattr(receipt.record, field)
        if got != expected:
            raise PeerError(f"receipt: {field} is {got!r}, expected {expected!r}")
    return receipt


def admit(
    request: InferenceRequest,
    peer: PeerId,
    *,
    serves: RunId,
    running: Sequence[PeerId],
    waiting: Sequence[PeerId],
) -> Admitted | InferenceRefusal:
    """Whether a request may join the queue now.

    Args:
        request: parsed, so within every limit.
        peer: who asks, as the channel proved.
        serves: the run this node draws from.
        running: who asked for what is being drawn.
        waiting: who asked for what is queued.
    """
    if request.run != serves:
        return InferenceRefusal("wrong_run", f"this node serves run {serves}, not {request.run}")
    mine = sum(one == peer for one in (*running, *waiting))
    if mine >= MAX_INFERENCE_PER_PEER:
        return InferenceRefusal(
            "too_many", f"you have {mine} requests here; at most {MAX_INFERENCE_PER_PEER} at a time"
        )
    if len(waiting) >= MAX_INFERENCE_QUEUE:
        return InferenceRefusal(
            "busy", f"{len(waiting)} requests are waiting, the most this node queues: try later"
        )
    return Admitted(request)


def refusal_of(error: PeerError) -> InferenceRefusal:
    """The refusal that tells a peer what was wrong with its request."""
    return InferenceRefusal("bad_request", printable(str(error), MAX_REASON_LENGTH))


def _check_range(name: str, value: float, low: float, high: float, unit: str = "") -> None:
    if not low <= value <= high:  # also false for NaN
        raise LimitError(f"{name}: got {value:.6g}, allowed {low:g} to {high:g} {unit}".rstrip())


def _check_name(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise DecodeError(f"{name}: got {value[:40]!r}, expected one of {', '.join(allowed)}")
