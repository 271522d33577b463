"""Asking a peer to draw and drawing for one: over a real stream, with liars at either end."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from node.asking import Asking, PeerPicture, PeerProgress
from node.drawing import DrawOrder, Materials
from node.errors import ErrorCode, NodeError
from node.serving import Serving
from node.workers.link import Message
from p2p.codec import BLOB_KEY, seal
from p2p.errors import P2PError, StorageError
from p2p.host import Stream
from p2p.identity import Identity
from p2p.ids import RunId, blob_id
from p2p.inference import (
    PROTOCOL,
    InferenceMessage,
    InferenceProgress,
    InferenceRefusal,
    InferenceReply,
    InferenceRequest,
    pack_message,
    pack_request,
    parse_message,
    parse_request,
)
from p2p.limits import MAX_IMAGE_REPLY_SIZE, MAX_REQUEST_SIZE
from p2p.records import ImageReceipt
from p2p.routing import Routing
from tests.node.test_fetching import acquaint
from tests.support.people import carol, cid
from tests.support.swarm import MemberNode, World, open_nodes, wall, world

__all__ = ["world"]

ORDER = DrawOrder("a boat", 2, 7, Routing(), "ab2", 5, 4.0)
PNG = b"\x89PNG\r\n\x1a\n and so on"


@dataclass
class Easel:
    """Stands in for `Drawing`: a second a step; records what was begun and how it ended."""

    steps_done: int = 0
    begun: int = 0
    cancelled: int = 0
    failure: Exception | None = None
    orders: list[DrawOrder] = field(default_factory=list)

    async def materials(self) -> Materials:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        return Materials(None, {}, {}, ())  # type: ignore[arg-type]

    async def draw(self, order: DrawOrder, materials: Materials) -> AsyncGenerator[Message]:
        self.begun += 1
        self.orders.append(order)
        is_whole = False
        try:
            for step in range(order.steps):
                await trio.sleep(1)
                self.steps_done += 1
                yield {"kind": "progress", "step": step + 1, "steps": order.steps}
            for index in range(order.n):
                yield {"kind": "image", "index": index, "png": PNG, "shares": {}}
            is_whole = True
        finally:
            self.cancelled += not is_whole


async def answers(asker: MemberNode, order: DrawOrder = ORDER) -> list[Any]:
    async with aclosing(Asking(asker.context).draw(order, None)) as found:
        return [answer async for answer in found]


Script = Callable[[InferenceRequest], Sequence[InferenceMessage | bytes]]


def receipt(request: InferenceRequest, index: int = 0, **changes: Any) -> ImageReceipt:
    made = ImageReceipt(
        run=request.run,
        image=blob_id(PNG),
        seed=request.seed + index,
        strategy=request.strategy,
        sampler=request.sampler,
        steps=request.steps,
        guidance=request.guidance,
        experts=(),
        seconds=1.0,
        created_at=wall(),
    )
    return replace(made, **changes)


def reply(made: ImageReceipt, signer: Identity, index: int = 0) -> InferenceReply:
    return InferenceReply(index, PNG, seal(made, signer, key=BLOB_KEY, expires_at=None))


def say(node: MemberNode, script: Script, *, silence_s: float = 0.0) -> None:
    """Make a node answer inference requests with a script."""

    async def handler(stream: Stream) -> None:
        frame = await stream.receive_frame(max_size=MAX_REQUEST_SIZE, timeout_s=5)
        await trio.sleep(silence_s)
        for message in script(parse_request(frame)):
            data = message if isinstance(message, bytes) else pack_message(message)
            await stream.send_frame(data, max_size=MAX_IMAGE_REPLY_SIZE)

    node.context.host.set_handler(PROTOCOL, handler)


def serve(node: MemberNode, easel: Easel, nursery: trio.Nursery) -> Serving:
    serving = Serving(node.context, easel)  # type: ignore[arg-type]
    nursery.start_soon(serving.run)
    return serving


async def test_progress_then_pictures_each_with_its_receipt(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        acquaint(ada, ben)
        serve(ben, Easel(), nursery)
        await trio.lowlevel.checkpoint()
        found = await answers(ada)
        assert found[:5] == [PeerProgress(step, 5) for step in range(1, 6)]
        pictures = found[5:]
        assert [picture.index for picture in pictures] == [0, 1]
        assert [picture.receipt.record.seed for picture in pictures] == [7, 8]
        assert {picture.receipt.owner for picture in pictures} == {ben.peer}
        assert ben.events("served")[0]["peer"] == ada.peer
        assert "boat" not in ben.context.config.paths.events_file.read_text()
        nursery.cancel_scope.cancel()


LIES: dict[str, Callable[[MemberNode], Script]] = {
    "another picture": lambda b: lambda r: [reply(receipt(r, image=cid("x")), b.context.identity)],
    "another seed": lambda b: lambda r: [reply(receipt(r, seed=99), b.context.identity)],
    "another run": lambda b: lambda r: [reply(receipt(r, run=RunId(cid("y"))), b.context.identity)],
    "another signer": lambda b: lambda r: [reply(receipt(r), carol)],
    "one picture twice": lambda b: lambda r: [reply(receipt(r), b.context.identity)] * 2,
    "a picture too many": lambda b: lambda r: [reply(receipt(r, 2), b.context.identity, 2)],
    "garbage": lambda b: lambda r: [b"\xc1"],
    "news without end": lambda b: lambda r: [InferenceProgress(1, 5)] * 1000,
}


@pytest.mark.parametrize("lie", LIES)
async def test_lying_peer_is_a_verification_failure(
    world: World, autojump_clock: MockClock, lie: str
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben):
        acquaint(ada, ben)
        say(ben, LIES[lie](ben))
        with pytest.raises(NodeError) as caught:
            await answers(ada)
        assert caught.value.code is ErrorCode.VERIFICATION_FAILED
        assert ben.peer in caught.value.message


@pytest.mark.parametrize("trouble", ["unreachable", "silent", "refuses", "hangs up"])
async def test_peer_that_cannot_draw_is_followed_by_the_next(
    world: World, autojump_clock: MockClock, trouble: str
) -> None:
    async with open_nodes(world, ("ada", "ben", "cem")) as (ada, ben, cem):
        acquaint(ada, ben, cem)
        match trouble:
            case "unreachable":
                world.network.partition([ada.peer, cem.peer], [ben.peer])
            case "silent":
                say(ben, lambda request: [], silence_s=1000)
            case "refuses":
                say(ben, lambda request: [InferenceRefusal("busy", "later")])
            case _:
                say(ben, lambda request: [InferenceProgress(1, 5)])
        say(cem, lambda r: [reply(receipt(r, i), cem.context.identity, i) for i in range(r.n)])
        found = await answers(ada)
        assert [a.receipt.owner for a in found if isinstance(a, PeerPicture)] == [cem.peer] * 2


async def test_nobody_serves_is_no_peers(world: World, autojump_clock: MockClock) -> None:
    async with open_nodes(world, ("ada", "ben"), serve=False) as (ada, ben):
        acquaint(ada, ben)
        with pytest.raises(NodeError) as caught:
            await answers(ada)
        assert caught.value.code is ErrorCode.NO_PEERS


async def test_all_refuse_is_refused_with_their_reasons(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben):
        acquaint(ada, ben)
        say(ben, lambda request: [InferenceRefusal("busy", "come back later")])
        with pytest.raises(NodeError, match="come back later") as caught:
            await answers(ada)
        assert caught.value.code is ErrorCode.REFUSED


async def test_peer_that_never_ends_is_left_at_the_deadline(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben):
        acquaint(ada, ben)

        async def drip(stream: Stream) -> None:
            await stream.receive_frame(max_size=MAX_REQUEST_SIZE, timeout_s=5)
            for step in range(12):
                await trio.sleep(50)
                data = pack_message(InferenceProgress(step % 5, 5))
                await stream.send_frame(data, max_size=100)

        ben.context.host.set_handler(PROTOCOL, drip)
        with pytest.raises(NodeError):
            await answers(ada)
        assert trio.current_time() <= 121


# --- the serving side --------------------------------------------------------------------------
async def ask(asker: MemberNode, server: MemberNode, payload: bytes) -> InferenceMessage:
    """Send a raw request; the last message of the answer."""
    host = asker.context.host
    await host.connect(server.context.host.listening()[0], timeout_s=1)
    last: InferenceMessage | None = None
    async with host.open_stream(server.peer, PROTOCOL, timeout_s=1) as stream:
        await stream.send_frame(payload, max_size=1 << 20)
        try:
            while True:
                frame = await stream.receive_frame(max_size=MAX_IMAGE_REPLY_SIZE, timeout_s=900)
                last = parse_message(frame)
        except P2PError:
            assert last is not None
            return last


def request(server: MemberNode, **changes: Any) -> InferenceRequest:
    made = InferenceRequest(
        server.context.run, "a boat", 1, 7, "sticky", "ab2", 5, 4.0, deadline_s=100.0
    )
    return replace(made, **changes)


async def code_of(asker: MemberNode, server: MemberNode, payload: bytes) -> str:
    answer = await ask(asker, server, payload)
    return answer.code if isinstance(answer, InferenceRefusal) else type(answer).__name__


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (NodeError(ErrorCode.NOT_FOUND, "no expert"), "no_experts"),
        (NodeError(ErrorCode.NO_PEERS, "no expert"), "no_experts"),
        (NodeError(ErrorCode.REFUSED, "16 wait"), "busy"),
        (NodeError(ErrorCode.FAILED, "log is in /home/me/expert.log\nand more"), "failed"),
        (StorageError("disk /dev/sda1 is full"), "failed"),
    ],
    ids=["nothing", "alone", "busy", "worker", "disk"],
)
async def test_own_trouble_is_a_refusal_that_tells_nothing_of_this_machine(
    world: World, autojump_clock: MockClock, failure: Exception, code: str
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        serve(ben, Easel(failure=failure), nursery)
        await trio.lowlevel.checkpoint()
        answer = await ask(ada, ben, pack_request(request(ben)))
        assert isinstance(answer, InferenceRefusal)
        assert answer.code == code
        assert "/" not in answer.reason
        nursery.cancel_scope.cancel()


async def test_bad_and_foreign_requests_are_refused_without_drawing(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        easel = Easel()
        serve(ben, easel, nursery)
        await trio.lowlevel.checkpoint()
        assert await code_of(ada, ben, b"\xc1") == "bad_request"
        foreign = pack_request(request(ben, run=RunId(cid("another"))))
        assert await code_of(ada, ben, foreign) == "wrong_run"
        assert easel.begun == 0
        nursery.cancel_scope.cancel()


async def test_fourth_request_of_one_peer_is_too_many(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        easel = Easel()
        serve(ben, easel, nursery)
        await trio.lowlevel.checkpoint()
        codes: list[str] = []

        async def one() -> None:
            codes.append(await code_of(ada, ben, pack_request(request(ben))))

        async with trio.open_nursery() as askers:
            for _ in range(4):
                askers.start_soon(one)
        assert sorted(codes) == ["InferenceReply"] * 3 + ["too_many"]
        assert easel.begun == 3
        nursery.cancel_scope.cancel()


async def test_deadline_is_kept_and_said(world: World, autojump_clock: MockClock) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        easel = Easel()
        serve(ben, easel, nursery)
        await trio.lowlevel.checkpoint()
        assert await code_of(ada, ben, pack_request(request(ben, deadline_s=2.5))) == "deadline"
        assert (easel.steps_done, easel.cancelled) == (2, 1)
        nursery.cancel_scope.cancel()


async def test_peer_that_leaves_stops_its_drawing_within_a_step(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        easel = Easel()
        serving = serve(ben, easel, nursery)
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(2.5):
            await ask(ada, ben, pack_request(request(ben)))
        await trio.sleep(1.1)
        assert (easel.steps_done, easel.cancelled) == (3, 1)
        assert serving._running == []
        assert await code_of(ada, ben, pack_request(request(ben))) == "InferenceReply"
        nursery.cancel_scope.cancel()


async def test_refusals_do_not_wait_for_a_drawing(world: World, autojump_clock: MockClock) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben), trio.open_nursery() as nursery:
        serve(ben, Easel(), nursery)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(ask, ada, ben, pack_request(request(ben)))
        await trio.sleep(1)
        before = trio.current_time()
        assert await code_of(ada, ben, b"\xc1") == "bad_request"
        assert trio.current_time() - before < 0.1
        nursery.cancel_scope.cancel()
