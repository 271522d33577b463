"""Drawing for peers: one at a time, a bounded queue, every refusal with its reason.

Prompts are neither logged nor kept. A peer that goes away stops its drawing within one step.
"""

import logging
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

import trio

from node.clock import now_s
from node.context import NodeContext
from node.drawing import Drawing, DrawOrder, Materials, image_of, shares_of
from node.errors import ErrorCode, NodeError
from node.workers.link import Message
from p2p.codec import BLOB_KEY, seal
from p2p.errors import DecodeError, PeerError, StorageError, TransportError
from p2p.host import Stream
from p2p.ids import ClusterId, PeerId, blob_id
from p2p.inference import (
    PROTOCOL,
    InferenceProgress,
    InferenceRefusal,
    InferenceReply,
    InferenceRequest,
    admit,
    pack_message,
    parse_request,
    refusal_of,
)
from p2p.limits import MAX_IMAGE_REPLY_SIZE, MAX_REQUEST_SIZE, REQUEST_TIMEOUT_S
from p2p.records import ImageReceipt
from p2p.routing import parse_routing

logger = logging.getLogger(__name__)

_FAILED: Final = InferenceRefusal("failed", "this node could not draw it: ask another")
"""Our own sentences name our paths and processes; those are none of a peer's business."""
_NO_EXPERTS: Final = InferenceRefusal("no_experts", "this node has no expert to draw with yet")
_REFUSALS: Final = {
    ErrorCode.NOT_FOUND: _NO_EXPERTS,
    ErrorCode.NO_PEERS: _NO_EXPERTS,
    ErrorCode.REFUSED: InferenceRefusal("busy", "too many drawings wait here: try later"),
}


@dataclass(slots=True)
class Serving:
    """Answers inference requests."""

    context: NodeContext
    drawing: Drawing
    _running: list[PeerId] = field(default_factory=list)
    _waiting: list[PeerId] = field(default_factory=list)
    _turn: trio.Lock = field(default_factory=trio.Lock)

    async def run(self) -> None:
        """Serve until cancelled."""
        self.context.host.set_handler(PROTOCOL, self._answer)
        await trio.sleep_forever()

    async def _answer(self, stream: Stream) -> None:
        frame = await stream.receive_frame(max_size=MAX_REQUEST_SIZE, timeout_s=REQUEST_TIMEOUT_S)
        try:
            request = parse_request(frame)
        except PeerError as error:
            await _send(stream, refusal_of(error))
            return
        peer = stream.peer
        verdict = admit(
            request,
            peer,
            serves=self.context.run,
            running=self._running,
            waiting=self._waiting,
        )
        if isinstance(verdict, InferenceRefusal):
            await _send(stream, verdict)
            return
        with trio.move_on_after(request.deadline_s) as deadline:
            await self._take_turn(stream, request)
        if deadline.cancelled_caught:
            await _send(stream, InferenceRefusal("deadline", "not drawn in the time given"))

    async def _take_turn(self, stream: Stream, request: InferenceRequest) -> None:
        peer = stream.peer
        self._waiting.append(peer)
        try:
            await self._turn.acquire()
        finally:
            self._waiting.remove(peer)
        self._running.append(peer)
        try:
            await self._draw(stream, request)
        except NodeError as error:
            logger.warning("drawing for %s: %s", peer, error)
            await _send(stream, _REFUSALS.get(error.code, _FAILED))
        except (DecodeError, StorageError, TransportError) as error:  # ours: not the asker's fault
            logger.warning("drawing for %s: %s", peer, error)
            await _send(stream, _FAILED)
        finally:
            self._running.remove(peer)
            self._turn.release()

    async def _draw(self, stream: Stream, request: InferenceRequest) -> None:
        materials = await self.drawing.materials()
        order = DrawOrder(
            prompt=request.prompt,
            n=request.n,
            seed=request.seed,
            routing=parse_routing(request.strategy),
            sampler=request.sampler,
            steps=request.steps,
            guidance=request.guidance,
        )
        started = trio.current_time()
        async with aclosing(self.drawing.draw(order, materials)) as news:
            async for message in news:
                match message["kind"]:
                    case "progress":
                        await _send(
                            stream,
                            InferenceProgress(
                                int(str(message["step"])), int(str(message["steps"]))
                            ),
                        )
                    case "image":
                        seconds = trio.current_time() - started
                        await _send(stream, self._reply(request, message, materials, seconds))
                    case _:
                        pass
        self.context.journal.write("served", peer=stream.peer, pictures=request.n)

    def _reply(
        self, request: InferenceRequest, message: Message, materials: Materials, seconds: float
    ) -> InferenceReply:
        index, png = int(str(message["index"])), image_of(message)
        receipt = ImageReceipt(
            run=request.run,
            image=blob_id(png),
            seed=request.seed + index,
            strategy=request.strategy,
            sampler=request.sampler,
            steps=request.steps,
            guidance=request.guidance,
            experts=tuple(
                (cluster, materials.experts[ClusterId(cluster)].cid, share)
                for cluster, share in shares_of(message).items()
            ),
            seconds=seconds,
            created_at=now_s(),
        )
        envelope = seal(receipt, self.context.identity, key=BLOB_KEY, expires_at=None)
        return InferenceReply(index, png, envelope)


async def _send(
    stream: Stream, message: InferenceProgress | InferenceReply | InferenceRefusal
) -> None:
    await stream.send_frame(pack_message(message), max_size=MAX_IMAGE_REPLY_SIZE)
