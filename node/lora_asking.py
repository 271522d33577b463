"""Asking an offer's owner: questions answered with proofs, and a delivery for a signed agreement.

What comes back is checked for who sent it and what it is about; whether proofs hold, and whether
weights are those committed to, is for `node.lora_market`.
"""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from node.clock import now_s
from node.context import NodeContext
from node.lora_convert import delivered_size, module_named, offer_name
from node.reaching import reach
from p2p.codec import BLOB_KEY, Verified, open_signed, seal
from p2p.errors import PeerError, RefusedError
from p2p.host import Stream
from p2p.ids import PeerId
from p2p.limits import (
    DELIVERY_PIECE,
    DIAL_TIMEOUT_S,
    KIB,
    MAX_ANSWER_FRAME,
    MAX_LORA_FRAME,
    MAX_REQUEST_SIZE,
)
from p2p.lora_checks import open_agreement, open_delivery, open_receipt
from p2p.lora_messages import (
    PROTOCOL,
    Agreed,
    Answer,
    BuyStart,
    Delivered,
    FramesDigest,
    LoraRefusal,
    LoraReply,
    LoraStart,
    Piece,
    ProbeStart,
    Question,
    Receipt,
    pack_question,
    pack_start,
    parse_reply,
    questions_digest,
)
from p2p.lora_records import NONCE_SIZE, Agreement, Delivery, LoraOffer, ProbeReceipt, ProbeRequest
from p2p.lora_streams import DeliveryReader, open_answer
from p2p.sealed_box import new_secret, open_box, public_of

ANSWER_TIMEOUT_S: Final = 300.0
"""For one answer: those before it in the owner's queue included."""

DELIVERY_TIMEOUT_S: Final = 60.0
"""For a delivery to come, and as long as `LEAST_BYTES_PER_S` allows for its size."""
LEAST_BYTES_PER_S: Final = 32 * KIB

L = TypeVar("L", bound=LoraReply)


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """One answer, and the question and nonce it must be proved for."""

    question: Question
    answer: Answer
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Purchased:
    """What was bought, and everything that proves who sent it.

    Attributes:
        agreement: sealed by the seller.
        delivery: sealed by the seller.
        secret: of the buyer, for this delivery alone.
        ciphertext: as it came; its hash is in the delivery.
    """

    agreement: bytes
    delivery: Verified[Delivery]
    secret: bytes
    ciphertext: bytes

    def plaintext(self) -> bytes:
        """The adapter's bytes.

        Raises:
            PeerError: it does not decrypt, which the seller signed for all the same.
        """
        record = self.delivery.record
        return open_box(
            self.ciphertext,
            secret=self.secret,
            sender=record.seller_key,
            agreement=record.agreement,
        )


@dataclass(slots=True)
class LoraAsking:
    """Talks `/paris/lora/1` to owners of offers."""

    context: NodeContext

    async def probe(
        self, offer: Verified[LoraOffer], mode: str, questions: Sequence[Question]
    ) -> AsyncGenerator[ProbeAnswer | ProbeReceipt]:
        """Ask questions of an offer; answers in their order, then the receipt.

        Raises:
            RefusedError: the owner would not answer.
            PeerError: what came is not what was asked for.
            TransportError: the owner can't be reached, or is too late.
        """
        frames = [pack_question(question) for question in questions]
        nonce = secrets.token_bytes(NONCE_SIZE)
        request = ProbeRequest(
            run=self.context.run,
            offer=offer_name(offer),
            nonce=nonce,
            mode=mode,
            questions=questions_digest(frames),
            count=len(frames),
            asked_at=now_s(),
        )
        envelope = seal(request, self.context.identity, key=BLOB_KEY, expires_at=None)
        asked = open_signed(ProbeRequest, envelope, key=BLOB_KEY, now=now_s())
        digest = FramesDigest()
        async with self._stream(offer.owner, ProbeStart(envelope)) as stream:
            for frame in frames:
                await stream.send_frame(frame, max_size=MAX_LORA_FRAME)
            for question in questions:
                answer, frame = await _receive(stream, Answer)
                digest.add(frame)
                module = module_named(offer.record, question.module)
                await trio.to_thread.run_sync(open_answer, answer, question, module)
                yield ProbeAnswer(question, answer, nonce)
            receipt, _ = await _receive(stream, Receipt)
            opened = open_receipt(
                receipt.envelope, asked, answers=digest.text(), seller=offer.owner, now=now_s()
            )
        yield opened.record

    async def buy(self, offer: Verified[LoraOffer]) -> Purchased:
        """Sign an offer's terms and take what is delivered.

        Raises:
            RefusedError: the owner would not deliver.
            PeerError: what came is not what was agreed on.
            TransportError: the owner can't be reached, or is too late.
        """
        secret = new_secret()
        ours = Agreement(
            run=self.context.run,
            offer=offer_name(offer),
            buyer=self.context.identity.peer,
            seller=offer.owner,
            buyer_key=public_of(secret),
            terms=offer.record.terms,
            nonce=secrets.token_bytes(NONCE_SIZE),
            agreed_at=now_s(),
        )
        envelope = seal(ours, self.context.identity, key=BLOB_KEY, expires_at=None)
        async with self._stream(offer.owner, BuyStart(envelope)) as stream:
            agreed, _ = await _receive(stream, Agreed)
            theirs = open_agreement(agreed.agreement, ours, seller=offer.owner, now=now_s())
            delivered, _ = await _receive(stream, Delivered)
            delivery = open_delivery(delivered.delivery, theirs, now=now_s())
            ciphertext = await _taken(stream, delivery.record, delivered_size(offer.record))
        return Purchased(agreed.agreement, delivery, secret, ciphertext)

    @asynccontextmanager
    async def _stream(self, owner: PeerId, start: LoraStart) -> AsyncIterator[Stream]:
        await reach(self.context, owner)
        async with self.context.host.open_stream(
            owner, PROTOCOL, timeout_s=DIAL_TIMEOUT_S
        ) as stream:
            await stream.send_frame(pack_start(start), max_size=MAX_REQUEST_SIZE)
            yield stream


async def _taken(stream: Stream, delivery: Delivery, size: int) -> bytes:
    """The ciphertext of a delivery, if it is as long as the adapter is, and comes in time.

    Pieces but the last are full: a seller must not make a million of them.
    """
    if delivery.size != size:
        raise PeerError(f"Delivery.size: is {delivery.size}, a delivery of this offer has {size}")
    reader = DeliveryReader(delivery)
    with trio.move_on_after(DELIVERY_TIMEOUT_S + size / LEAST_BYTES_PER_S) as deadline:
        while reader.left:
            expected = min(reader.left, DELIVERY_PIECE)
            piece, _ = await _receive(stream, Piece)
            if len(piece.data) < expected:
                raise PeerError(f"Piece.data: {len(piece.data)} bytes, expected {expected}")
            reader.add(piece)
    if deadline.cancelled_caught:
        raise PeerError(f"delivery: {reader.left} of {size} bytes did not come in time")
    return await trio.to_thread.run_sync(reader.finish)


async def _receive(stream: Stream, kind: type[L]) -> tuple[L, bytes]:
    """The next reply and its frame, if it is of the kind that must come now."""
    frame = await stream.receive_frame(max_size=MAX_ANSWER_FRAME, timeout_s=ANSWER_TIMEOUT_S)
    reply = parse_reply(frame)
    if isinstance(reply, LoraRefusal):
        raise RefusedError(reply.code, reply.reason)
    if not isinstance(reply, kind):
        raise PeerError(f"reply: got {type(reply).__name__}, expected {kind.__name__}")
    return reply, frame
