"""Answering for own offers: probes within their budgets, and deliveries to whoever signs the terms.

Every answer is counted on disk before it is made, whoever asks. Requests are signed, fresh, and
taken once. A few are at hand at a time, and their answers take turns; whoever asks must send and
read at some pace, or loses its place.
"""

import hashlib
import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from node.clock import now_s
from node.context import NodeContext
from node.errors import NodeError
from node.lora_budget import BudgetSpentError, Spend
from node.lora_convert import modules_plain, question_statement
from node.lora_rows import OwnOffer
from node.offer_folder import DELIVERY_FILE, read_delivery
from node.offers import Offers, limits_of
from node.proving import Proving, RejectedByProofError
from p2p.codec import BLOB_KEY, Verified, open_signed, seal
from p2p.errors import DecodeError, ExpiredError, LimitError, PeerError, StorageError
from p2p.host import Stream
from p2p.ids import BlobId, PeerId, blob_id
from p2p.limits import (
    KIB,
    MAX_ANSWER_FRAME,
    MAX_ASK_AGE_S,
    MAX_CLOCK_SKEW_S,
    MAX_LORA_FRAME,
    MAX_REQUEST_SIZE,
    REQUEST_TIMEOUT_S,
)
from p2p.lora_checks import open_purchase, open_request
from p2p.lora_messages import (
    PROTOCOL,
    Agreed,
    Answer,
    BuyStart,
    Delivered,
    FramesDigest,
    LoraRefusal,
    LoraReply,
    ProbeStart,
    Question,
    Receipt,
    pack_reply,
    parse_start,
    refusal_for,
)
from p2p.lora_records import DELTA, Agreement, Delivery, LoraOffer, ProbeReceipt, ProbeRequest
from p2p.lora_streams import QuestionReader, pieces_of
from p2p.sealed_box import new_secret, public_of, seal_box

logger = logging.getLogger(__name__)

SLOTS: Final = 4
"""Requests read and waiting at once: one of 40 layers takes half a minute."""
PER_PEER: Final = 1
_PATIENCE_S: Final = 30.0
"""For all questions of a request to arrive, and for all its answers to be taken; more as they are
long, see `_LEAST_BYTES_PER_S`."""
_LEAST_BYTES_PER_S: Final = 32 * KIB
_NONCES: Final = 4096
"""Remembered, the oldest forgotten first; none older than `MAX_ASK_AGE_S` can come again."""
_FAILED: Final = LoraRefusal("failed", "this node could not answer: try later")


class RefusedHereError(Exception):
    """What is asked is not answered: the refusal that says so."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.refusal = refusal_for(code, reason)


@dataclass(slots=True)
class LoraServing:
    """Answers `/paris/lora/1`; `run` must be running."""

    context: NodeContext
    offers: Offers
    proving: Proving
    _slots: Counter[PeerId] = field(default_factory=Counter)
    _nonces: OrderedDict[tuple[PeerId, bytes], float] = field(default_factory=OrderedDict)

    async def run(self) -> None:
        """Serve until cancelled."""
        self.context.host.set_handler(PROTOCOL, self._answer)
        await trio.sleep_forever()

    async def _answer(self, stream: Stream) -> None:
        frame = await stream.receive_frame(max_size=MAX_REQUEST_SIZE, timeout_s=REQUEST_TIMEOUT_S)
        try:
            match parse_start(frame):
                case ProbeStart(request):
                    await self._probe(stream, request)
                case BuyStart(agreement):
                    await self._buy(stream, agreement)
        except RefusedHereError as error:
            await _send(stream, error.refusal)
        except (NodeError, StorageError) as error:  # ours: not the asker's fault
            logger.warning("a request of %s failed: %s", stream.peer, error)
            await _send(stream, _FAILED)
        except ExpiredError as error:
            await _send(stream, refusal_for("expired", str(error)))
        except (DecodeError, LimitError) as error:
            await _send(stream, refusal_for("bad_request", str(error)))

    # --- probes ---------------------------------------------------------------------------------
    async def _probe(self, stream: Stream, envelope: bytes) -> None:
        own, offer = self._offer_of(envelope, ProbeRequest)
        request = open_request(envelope, offer, peer=stream.peer, now=now_s())
        if request.record.mode == DELTA and not offer.record.leaks.delta_rows:
            raise RefusedHereError("not_offered", "this offer has no delta mode")
        self._take_nonce(stream.peer, request.record.nonce)
        replies = _Replies(stream)
        with self._slot(stream.peer):
            questions = await _questions(stream, QuestionReader(request.record, offer.record))
            self._check_standing(own)  # it may have been withdrawn meanwhile
            self._spend(own, offer.record, questions)
            answers = FramesDigest()
            for question in questions:
                answer = await self._proved(own, offer, question, request.record.nonce)
                answers.add(await replies.send(answer))
            receipt = self._receipt(own, offer, envelope, answers.text())
        await replies.send(receipt)  # whoever has it may ask again at once
        self.context.journal.write("probed", offer=own.offer, peer=stream.peer)

    async def _proved(
        self, own: OwnOffer, offer: Verified[LoraOffer], question: Question, nonce: bytes
    ) -> Answer:
        statement = question_statement(offer.record, own.offer, question, nonce)
        try:
            proven = await self.proving.prove(
                modules_plain(offer.record), self._delivery(own.offer), statement
            )
        except RejectedByProofError as error:
            raise RefusedHereError("bad_request", str(error)) from error
        return Answer(question.module, proven.values, proven.proof)

    def _spend(self, own: OwnOffer, offer: LoraOffer, questions: tuple[Question, ...]) -> None:
        """Count all questions of a request before the first is answered."""
        wanted: dict[str, Spend] = {}
        for question in questions:
            so_far = wanted.get(question.module, Spend())
            wanted[question.module] = Spend(
                scalars=so_far.scalars + question.scalars,
                rows=so_far.rows + question.delta_rows,
                proofs=so_far.proofs + 1,
            )
        try:
            self.context.state.loras.spend(own.adapter, wanted, limits_of(offer))
        except BudgetSpentError as error:
            raise RefusedHereError("budget_spent", error.message) from error

    def _receipt(
        self, own: OwnOffer, offer: Verified[LoraOffer], request: bytes, answers: str
    ) -> Receipt:
        limits = limits_of(offer.record)
        leaks = self.context.state.loras.leaks(own.adapter).values()
        receipt = ProbeReceipt(
            run=self.context.run,
            offer=own.offer,
            request=blob_id(request),
            answers=answers,
            scalars_left=max(0, limits.scalars - max((one.scalars for one in leaks), default=0)),
            rows_left=max(0, limits.rows - max((one.rows for one in leaks), default=0)),
            issued_at=now_s(),
        )
        return Receipt(seal(receipt, self.context.identity, key=BLOB_KEY, expires_at=None))

    # --- purchases ------------------------------------------------------------------------------
    async def _buy(self, stream: Stream, envelope: bytes) -> None:
        own, offer = self._offer_of(envelope, Agreement)
        agreed = open_purchase(envelope, offer, buyer=stream.peer, now=now_s())
        self._take_nonce(stream.peer, agreed.record.nonce)
        buyers = self.offers.buyers(own.offer)
        if buyers and stream.peer not in buyers:
            raise RefusedHereError("not_offered", "this offer is not for you")
        with self._slot(stream.peer):
            mine = seal(agreed.record, self.context.identity, key=BLOB_KEY, expires_at=None)
            secret = new_secret()
            ciphertext, digest = await trio.to_thread.run_sync(
                _sealed, self.offers.folder(own.offer), secret, agreed.record.buyer_key, mine
            )
            delivery = Delivery(
                run=self.context.run,
                offer=own.offer,
                agreement=blob_id(mine),
                seller_key=public_of(secret),
                size=len(ciphertext),
                ciphertext=digest,
                delivered_at=now_s(),
            )
            said = seal(delivery, self.context.identity, key=BLOB_KEY, expires_at=None)
            replies = _Replies(stream)
            await replies.send(Agreed(mine))
            await replies.send(Delivered(said))
            for piece in pieces_of(ciphertext):
                await replies.send(piece)
        self.context.journal.write("delivered", offer=own.offer, peer=stream.peer)

    # --- shared ---------------------------------------------------------------------------------
    def _offer_of(
        self, envelope: bytes, kind: type[ProbeRequest | Agreement]
    ) -> tuple[OwnOffer, Verified[LoraOffer]]:
        """The own offer that a signed request names."""
        named = open_signed(kind, envelope, key=BLOB_KEY, now=now_s()).record.offer
        for own in self.offers.standing():
            if own.offer == named:
                return own, self.offers.opened(own)
        raise RefusedHereError("unknown_offer", f"this node does not offer {named}")

    def _check_standing(self, own: OwnOffer) -> None:
        if all(one.offer != own.offer for one in self.offers.standing()):
            raise RefusedHereError("unknown_offer", f"this node does not offer {own.offer} now")

    @contextmanager
    def _slot(self, peer: PeerId) -> Iterator[None]:
        """A place among the requests at hand, or a refusal."""
        if self._slots[peer] >= PER_PEER or self._slots.total() >= SLOTS:
            raise RefusedHereError("busy", "other requests are being answered: try later")
        self._slots[peer] += 1
        try:
            yield
        finally:
            self._slots[peer] -= 1
            if not self._slots[peer]:
                del self._slots[peer]

    def _delivery(self, offer: BlobId) -> Path:
        return self.offers.folder(offer) / DELIVERY_FILE

    def _take_nonce(self, peer: PeerId, nonce: bytes) -> None:
        """Refuse a request that was taken already."""
        now = now_s()
        horizon = now - MAX_ASK_AGE_S - 2 * MAX_CLOCK_SKEW_S
        while self._nonces and (
            len(self._nonces) >= _NONCES or next(iter(self._nonces.values())) < horizon
        ):
            self._nonces.popitem(last=False)
        if (peer, nonce) in self._nonces:
            raise RefusedHereError("bad_request", "this request was answered already")
        self._nonces[peer, nonce] = now


@dataclass(slots=True)
class _Replies:
    """Sends to one who must take it all at some pace: else not reading would hold a place."""

    stream: Stream
    _left_s: float = _PATIENCE_S

    async def send(self, reply: LoraReply) -> bytes:
        """Send one reply; its frame.

        Raises:
            PeerError: it was not taken in time.
        """
        frame = pack_reply(reply)
        self._left_s += len(frame) / _LEAST_BYTES_PER_S
        begun = trio.current_time()
        with trio.move_on_after(max(0.0, self._left_s)) as deadline:
            await self.stream.send_frame(frame, max_size=MAX_ANSWER_FRAME)
        if deadline.cancelled_caught:
            raise PeerError(f"{self.stream.peer} does not take what it asked for")
        self._left_s -= trio.current_time() - begun
        return frame


async def _questions(stream: Stream, reader: QuestionReader) -> tuple[Question, ...]:
    """All questions of a request, in the time that all of them have."""
    with trio.move_on_after(_PATIENCE_S) as deadline:
        while not reader.is_complete:
            frame = await stream.receive_frame(max_size=MAX_LORA_FRAME, timeout_s=REQUEST_TIMEOUT_S)
            deadline.deadline += len(frame) / _LEAST_BYTES_PER_S
            await trio.to_thread.run_sync(reader.add, frame)
    if deadline.cancelled_caught:
        raise RefusedHereError("bad_request", "the questions did not arrive in time")
    return reader.finish()


def _sealed(folder: Path, secret: bytes, to: bytes, agreement: bytes) -> tuple[bytes, str]:
    """A delivery encrypted under a sealed agreement, and the hash of that. Blocks."""
    plaintext = read_delivery(folder)
    ciphertext = seal_box(plaintext, secret=secret, to=to, agreement=blob_id(agreement))
    return ciphertext, hashlib.sha256(ciphertext).hexdigest()


async def _send(stream: Stream, reply: LoraReply) -> None:
    await _Replies(stream).send(reply)
