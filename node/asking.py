"""Asking a peer to draw: pick one that serves, follow its progress, check what it signs."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import trio

from node.clock import now_s
from node.context import NodeContext
from node.drawing import DrawOrder
from node.errors import ErrorCode, NodeError
from node.reaching import reach
from p2p.codec import Verified
from p2p.errors import (
    LimitError,
    PeerError,
    RefusedError,
    StreamClosedError,
    TransportError,
)
from p2p.host import Stream
from p2p.ids import PeerId
from p2p.inference import (
    PROTOCOL,
    InferenceProgress,
    InferenceRefusal,
    InferenceReply,
    InferenceRequest,
    open_reply,
    pack_request,
    parse_message,
)
from p2p.limits import DIAL_TIMEOUT_S, MAX_IMAGE_REPLY_SIZE, MAX_REQUEST_SIZE
from p2p.records import ImageReceipt

logger = logging.getLogger(__name__)

_DEADLINE_S = 120.0
"""For a whole request at one peer, its queue included."""
_MOST_PEERS = 3
"""Peers tried for one request."""


@dataclass(frozen=True, slots=True)
class PeerProgress:
    """How far the peer is."""

    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class PeerPicture:
    """One picture, its receipt checked."""

    index: int
    png: bytes
    receipt: Verified[ImageReceipt]


@dataclass(slots=True)
class Asking:
    """Sends requests to peers that serve."""

    context: NodeContext

    def candidates(self, wanted: PeerId | None) -> tuple[PeerId, ...]:
        """Peers to ask, those already connected first."""
        if wanted is not None:
            return (wanted,)
        connected = {peer.peer for peer in self.context.host.connected()}
        serving = [
            peer
            for peer in self.context.peers.peers()
            if (record := self.context.peers.get(peer)) is not None and record.serves
        ]
        return tuple(sorted(serving, key=lambda peer: peer not in connected))

    async def draw(
        self, order: DrawOrder, wanted: PeerId | None
    ) -> AsyncGenerator[PeerProgress | PeerPicture]:
        """Have a peer draw; the next one if a peer fails before its first picture.

        Raises:
            NodeError: NO_PEERS if nobody serves, REFUSED if all refused, VERIFICATION_FAILED if a
                peer's receipt does not match its picture.
        """
        peers = self.candidates(wanted)
        if not peers:
            raise NodeError(
                ErrorCode.NO_PEERS,
                "no peer that draws for others is known",
                "see who is there: paris-node peers; or draw here: generate --where local",
            )
        failures: list[str] = []
        for peer in peers[:_MOST_PEERS]:
            has_picture = False
            try:
                async with aclosing(self._ask(peer, order)) as answers:
                    async for answer in answers:
                        has_picture = has_picture or isinstance(answer, PeerPicture)
                        yield answer
                return
            except (RefusedError, StreamClosedError, TransportError) as error:
                logger.warning("peer %s did not draw: %s", peer, error)
                failures.append(f"{peer[-6:]}: {error}")
                if has_picture:
                    break
            except PeerError as error:
                raise NodeError(
                    ErrorCode.VERIFICATION_FAILED,
                    f"peer {peer} did not send what was asked for: {error}",
                    "ask another peer: paris-node generate --where peer --peer ID",
                ) from error
        raise NodeError(
            ErrorCode.REFUSED,
            f"no peer drew the picture ({'; '.join(failures)})",
            "try again later",
        )

    async def _ask(
        self, peer: PeerId, order: DrawOrder
    ) -> AsyncGenerator[PeerProgress | PeerPicture]:
        await reach(self.context, peer)
        request = InferenceRequest(
            run=self.context.run,
            prompt=order.prompt,
            n=order.n,
            seed=order.seed,
            strategy=order.routing.label(),
            sampler=order.sampler,
            steps=order.steps,
            guidance=order.guidance,
            deadline_s=_DEADLINE_S,
        )
        async with self.context.host.open_stream(
            peer, PROTOCOL, timeout_s=DIAL_TIMEOUT_S
        ) as stream:
            await stream.send_frame(pack_request(request), max_size=MAX_REQUEST_SIZE)
            async with aclosing(_answers(stream, request, peer)) as answers:
                async for answer in answers:
                    yield answer


async def _answers(
    stream: Stream, request: InferenceRequest, peer: PeerId
) -> AsyncGenerator[PeerProgress | PeerPicture]:
    """What the peer says, until every picture came.

    Raises:
        RefusedError: if it would not draw.
        TransportError: if it was too late.
        PeerError: if it sent what was not asked for, the same picture twice, or news without end.
    """
    ends_at = trio.current_time() + request.deadline_s
    missing = set(range(request.n))
    news_left = (request.steps + 1) * request.n
    while missing:
        match parse_message(await _receive(stream, ends_at - trio.current_time())):
            case InferenceProgress(step, steps):
                news_left -= 1
                if news_left < 0:
                    raise PeerError(f"progress: more news than {request.n} pictures can have")
                yield PeerProgress(step, steps)
            case InferenceReply() as reply:
                receipt = open_reply(reply, request, peer=peer, now=now_s())
                if reply.index not in missing:
                    raise PeerError(f"picture {reply.index} came twice")
                missing.remove(reply.index)
                yield PeerPicture(reply.index, reply.image, receipt)
            case InferenceRefusal(code, reason):
                raise RefusedError(code, reason)


async def _receive(stream: Stream, timeout_s: float) -> bytes:
    if timeout_s <= 0:
        raise TransportError("not drawn in the time given")
    try:
        return await stream.receive_frame(max_size=MAX_IMAGE_REPLY_SIZE, timeout_s=timeout_s)
    except (StreamClosedError, LimitError):
        raise
    except PeerError as error:  # late: nothing was sent that could be wrong
        raise TransportError(str(error)) from error
