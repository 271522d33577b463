"""One child's socket, played by the test: answers, progress, garbage, silence."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from p2p.dht.frames import Message, MessageDecoder, pack_message
from p2p.dht.link import ChildLink
from p2p.errors import DecodeError, LimitError, QuotaError, StorageError, TransportError


class Child:
    """The other end of a link."""

    def __init__(self, nursery: trio.Nursery) -> None:
        ours, self.stream = trio.testing.memory_stream_pair()
        self.events: list[Message] = []
        self.link = ChildLink(ours, self.events.append)
        self.failure: list[BaseException] = []
        self.has_ended = trio.Event()
        self._decoder = MessageDecoder()
        self._received: list[Message] = []
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        try:
            await self.link.run()
        except (DecodeError, LimitError) as error:
            self.failure.append(error)
        finally:
            self.has_ended.set()

    async def receive(self) -> Message:
        while not self._received:
            self._received += self._decoder.feed(bytes(await self.stream.receive_some(4096)))
        return self._received.pop(0)

    async def send(self, message: Message) -> None:
        await self.stream.send_all(pack_message(message))


@pytest.fixture
async def child(autojump_clock: trio.testing.MockClock) -> AsyncIterator[Child]:
    async with trio.open_nursery() as nursery:
        yield Child(nursery)
        nursery.cancel_scope.cancel()


async def test_answers_find_their_callers_in_any_order(child: Child) -> None:
    results: dict[str, Message] = {}

    async def ask(name: str) -> None:
        results[name] = await child.link.request("get", {"key": name})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "a")
        nursery.start_soon(ask, "b")
        asked = [await child.receive(), await child.receive()]
        for request in reversed(asked):
            await child.send({"id": request["id"], "ok": {"key": request["key"]}})
    assert results == {"a": {"key": "a"}, "b": {"key": "b"}}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("timeout", TransportError),
        ("transport", TransportError),
        ("from a newer version", TransportError),
        ("invalid", DecodeError),
        ("limit", LimitError),
        ("storage", StorageError),
        ("quota", QuotaError),
    ],
)
async def test_errors_keep_their_kind_and_words(
    child: Child, code: str, error: type[Exception]
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_answer_once, child, {"error": code, "message": "the reason"})
        with pytest.raises(error, match="the reason"):
            await child.link.request("put", {})


async def test_progress_is_told_before_the_answer(child: Child) -> None:
    told: list[Message] = []

    async def pull() -> None:
        request = await child.receive()
        await child.send({"id": request["id"], "progress": {"done": 1}})
        await trio.testing.wait_all_tasks_blocked()
        await child.send({"id": request["id"], "ok": {}})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull)
        assert await child.link.request("pull", {}, told.append) == {}
    assert told == [{"done": 1}]


async def test_cancelled_request_tells_the_child_and_its_late_answer_is_ignored(
    child: Child,
) -> None:
    with trio.move_on_after(1):
        await child.link.request("pull", {})
    request = await child.receive()
    assert await child.receive() == {"id": request["id"], "op": "cancel"}
    await child.send({"id": request["id"], "ok": {}})
    await _answer_once(child, {"ok": {}}, child.link)


async def test_end_of_the_child_fails_whoever_waits_and_whoever_comes(child: Child) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_leave_after_request, child)
        with pytest.raises(TransportError, match="went away"):
            await child.link.request("get", {})
    await child.has_ended.wait()
    with pytest.raises(TransportError, match="went away"):
        await child.link.request("get", {})
    assert child.failure == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x00\x00\x01\xc1",
        b"\xff\xff\xff\xff",
        pack_message({"neither": "id", "nor": "event"}),
        pack_message({"id": "text"}),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
async def test_garbage_ends_the_link(child: Child, garbage: bytes) -> None:
    await child.stream.send_all(garbage)
    await child.has_ended.wait()
    assert len(child.failure) == 1


async def test_events_are_handed_on(child: Child) -> None:
    await child.send({"event": "peers", "count": 1})
    await trio.testing.wait_all_tasks_blocked()
    assert child.events == [{"event": "peers", "count": 1}]


async def _answer_once(child: Child, answer: Message, link: ChildLink | None = None) -> None:
    async def reply() -> None:
        request = await child.receive()
        await child.send({"id": request["id"], **answer})

    if link is None:
        await reply()
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reply)
        assert await link.request("ping", {}) == {}


async def _leave_after_request(child: Child) -> None:
    await child.receive()
    await child.stream.aclose()
