"""Whoever asks an offer's owner: what is refused, dropped or answered, and what it costs."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio

import node.lora_serving
from node.errors import ErrorCode, NodeError
from node.lora_budget import Leak
from node.lora_market import LookWish
from node.lora_serving import SLOTS
from node.offer_folder import DELIVERY_FILE
from node.proving import RejectedByProofError
from node.reaching import reach
from p2p.codec import BLOB_KEY, Verified, seal
from p2p.errors import StreamClosedError
from p2p.host import Stream
from p2p.ids import BlobId, PeerId
from p2p.limits import (
    MAX_ANSWER_FRAME,
    MAX_ASK_AGE_S,
    MAX_BLIND_QUESTIONS,
    MAX_CLOCK_SKEW_S,
    MAX_LORA_FRAME,
)
from p2p.lora_matrices import unpack_values
from p2p.lora_messages import (
    PROTOCOL,
    Agreed,
    Answer,
    BuyStart,
    LoraRefusal,
    LoraReply,
    ProbeStart,
    Question,
    Receipt,
    pack_question,
    pack_start,
    parse_reply,
    questions_digest,
)
from p2p.lora_records import BLIND, DELTA, Agreement, LoraOffer, ProbeRequest
from p2p.memory_host import MemoryHost
from p2p.sealed_box import new_secret, public_of
from tests.support.lora_offers import blind_question, delta_question
from tests.support.offer_swarm import (
    OfferNode,
    OfferWorld,
    change,
    helpful,
    last_of,
    offer_world,
    seen_within,
    small_layers,
)
from tests.support.plain_proving import PlainProving
from tests.support.swarm import World, wall, world

__all__ = ["small_layers", "world"]

OTHERS = ("bob", "carol", "dave", "erin", "frank")


@dataclass
class Scene:
    """Alice offers; the others ask."""

    swarm: OfferWorld
    offer: BlobId = field(init=False)

    @property
    def alice(self) -> OfferNode:
        return self.swarm.nodes["alice"]

    @property
    def bob(self) -> OfferNode:
        return self.swarm.nodes["bob"]

    @property
    def opened(self) -> Verified[LoraOffer]:
        own = self.alice.loras.own_offer(self.offer)
        assert own is not None
        return self.alice.offers.opened(own)

    @property
    def leaks(self) -> set[Leak]:
        """What was counted of each layer, beyond what the offer itself told."""
        own = self.alice.loras.own_offer(self.offer)
        assert own is not None
        told = self.alice.loras.leaks(own.adapter).values()
        return {Leak(one.scalars - 16, one.rows, one.proofs - 1) for one in told}

    def question(self, layer: int = 0, pairs: int = 1) -> Question:
        return blind_question(self.opened.record.modules[layer], pairs=pairs)

    def rows(self, count: int, layer: int = 0) -> Question:
        return delta_question(self.opened.record.modules[layer], count)

    def request(self, *questions: Question, **changes: Any) -> ProbeRequest:
        made = ProbeRequest(
            run=self.swarm.nodes["alice"].member.context.run,
            offer=self.offer,
            nonce=b"N" * 16,
            mode=DELTA if questions[0].is_delta else BLIND,
            questions=questions_digest(map(pack_question, questions)),
            count=len(questions),
            asked_at=wall(),
        )
        return replace(made, **changes)

    def agreement(self, **changes: Any) -> Agreement:
        made = Agreement(
            run=self.bob.member.context.run,
            offer=self.offer,
            buyer=self.bob.peer,
            seller=self.alice.peer,
            buyer_key=public_of(new_secret()),
            terms="free",
            nonce=b"n" * 16,
            agreed_at=wall(),
        )
        return replace(made, **changes)


@asynccontextmanager
async def opened_scene(folder: Path, world: World, *askers: str) -> AsyncIterator[Scene]:
    async with offer_world(folder, "alice", *askers, plain=world) as swarm:
        await swarm.acquainted()
        made = Scene(swarm)
        made.offer = await made.alice.offered(swarm.base, delta_rows=40)
        yield made
        host = cast("MemoryHost", made.alice.member.context.host)
        assert host.counts["handler_errors"] == 0  # whatever came


@pytest.fixture
async def scene(
    tmp_path: Path, world: World, autojump_clock: object, small_layers: None
) -> AsyncIterator[Scene]:
    async with opened_scene(tmp_path, world, "bob", "carol") as made:
        yield made


@pytest.fixture
async def crowd(
    tmp_path: Path, world: World, autojump_clock: object, small_layers: None
) -> AsyncIterator[Scene]:
    """More askers than there are places."""
    async with opened_scene(tmp_path, world, *OTHERS) as made:
        yield made


def sealed(record: ProbeRequest | Agreement, node: OfferNode) -> bytes:
    return seal(record, node.member.context.identity, key=BLOB_KEY, expires_at=None)


@asynccontextmanager
async def stream_to(scene: Scene, asker: OfferNode) -> AsyncIterator[Stream]:
    context = asker.member.context
    await reach(context, scene.alice.peer)
    async with context.host.open_stream(scene.alice.peer, PROTOCOL, timeout_s=5) as stream:
        yield stream


async def begin(
    stream: Stream, start: ProbeStart | BuyStart, questions: Sequence[Question] = ()
) -> None:
    await stream.send_frame(pack_start(start), max_size=MAX_LORA_FRAME)
    for question in questions:
        await stream.send_frame(pack_question(question), max_size=MAX_LORA_FRAME)


async def reply(stream: Stream) -> LoraReply:
    return parse_reply(await stream.receive_frame(max_size=MAX_ANSWER_FRAME, timeout_s=600))


async def replies(stream: Stream) -> list[LoraReply]:
    """All that comes until the other side closes, or drops, the stream."""
    found: list[LoraReply] = []
    while True:
        try:
            found.append(await reply(stream))
        except StreamClosedError:
            return found


async def asked(
    scene: Scene,
    *questions: Question,
    asker: OfferNode | None = None,
    signer: OfferNode | None = None,
    **changes: Any,
) -> list[LoraReply]:
    """Ask some questions; what comes back."""
    asker = asker or scene.bob
    envelope = sealed(scene.request(*questions, **changes), signer or asker)
    async with stream_to(scene, asker) as stream:
        await begin(stream, ProbeStart(envelope), questions)
        return await replies(stream)


async def bought(
    scene: Scene, *, signer: OfferNode | None = None, **changes: Any
) -> list[LoraReply]:
    """Ask to buy as bob; what comes back."""
    envelope = sealed(scene.agreement(**changes), signer or scene.bob)
    async with stream_to(scene, scene.bob) as stream:
        await begin(stream, BuyStart(envelope))
        return await replies(stream)


def refusal(found: list[LoraReply]) -> tuple[str, str]:
    (only,) = found
    assert isinstance(only, LoraRefusal)
    return only.code, only.reason


NOTHING = {Leak()}
DROPPED: list[LoraReply] = []


# --- what is asked --------------------------------------------------------------------------------


async def test_questions_are_answered_truly_and_counted_layer_by_layer(
    scene: Scene, autojump_clock: object
) -> None:
    found = await asked(scene, scene.question(0), scene.question(0), scene.question(1))
    assert [type(one) for one in found] == [Answer, Answer, Answer, Receipt]
    a, b = helpful()["block.to_q"]
    expected = int(a.astype(object).sum(axis=0) @ b.astype(object).sum(axis=1)) * 2
    assert isinstance(found[0], Answer)
    assert unpack_values(found[0].values, 1, 1) == [[expected]]
    assert scene.leaks == {Leak(2, 0, 2), Leak(1, 0, 1)}


async def test_request_is_answered_once(scene: Scene, autojump_clock: object) -> None:
    assert len(await asked(scene, scene.question())) == 2
    assert refusal(await asked(scene, scene.question())) == (
        "bad_request",
        "this request was answered already",
    )
    assert len(await asked(scene, scene.question(), nonce=b"O" * 16)) == 2
    assert scene.leaks == {Leak(2, 0, 2), Leak()}


async def test_request_of_another_peer_is_dropped_and_costs_that_peer_nothing(
    scene: Scene, autojump_clock: object
) -> None:
    carol = scene.swarm.nodes["carol"]
    assert await asked(scene, scene.question(), asker=carol, signer=scene.bob) == DROPPED
    assert scene.leaks == NOTHING
    assert len(await asked(scene, scene.question())) == 2  # bob's nonce is still his


@pytest.mark.parametrize(
    ("age_s", "is_answered"),
    [
        (MAX_ASK_AGE_S - 1, True),
        (MAX_ASK_AGE_S + 1, False),
        (-MAX_CLOCK_SKEW_S + 1, True),
        (-MAX_CLOCK_SKEW_S - 1, False),
    ],
)
async def test_request_must_be_fresh(
    scene: Scene, age_s: float, autojump_clock: object, *, is_answered: bool
) -> None:
    found = await asked(scene, scene.question(), asked_at=wall() - age_s)
    if is_answered:
        assert len(found) == 2
    else:
        assert refusal(found)[0] == "expired"
        assert scene.leaks == NOTHING


async def test_questions_that_were_not_signed_are_dropped_before_one_is_answered(
    scene: Scene, autojump_clock: object
) -> None:
    digest = questions_digest([pack_question(scene.question(1))])
    assert await asked(scene, scene.question(0), questions=digest) == DROPPED
    assert scene.leaks == NOTHING
    assert scene.alice.plain.jobs.count("prove") == 2  # of the offer


@pytest.mark.parametrize(
    ("count", "is_answered"),
    [(MAX_BLIND_QUESTIONS, True), (MAX_BLIND_QUESTIONS + 1, False)],
    ids=["as many as may be", "one more"],
)
async def test_questions_about_a_layer_are_few(
    scene: Scene, count: int, autojump_clock: object, *, is_answered: bool
) -> None:
    found = await asked(scene, *[scene.question()] * count)
    assert (len(found) == count + 1) is is_answered
    if not is_answered:
        assert refusal(found)[0] == "bad_request"
        assert scene.leaks == NOTHING


async def test_question_about_no_layer_of_the_offer_is_refused(
    scene: Scene, autojump_clock: object
) -> None:
    other = replace(scene.question(), module="another")
    code, reason = refusal(await asked(scene, other))
    assert (code, scene.leaks) == ("bad_request", NOTHING)
    assert "is not in the offer" in reason


async def test_question_in_the_other_mode_is_refused(scene: Scene, autojump_clock: object) -> None:
    assert refusal(await asked(scene, scene.question(), mode=DELTA))[0] == "bad_request"
    assert refusal(await asked(scene, scene.rows(1), mode=BLIND))[0] == "bad_request"
    assert scene.leaks == NOTHING


async def test_what_is_no_request_is_refused(scene: Scene, autojump_clock: object) -> None:
    async with stream_to(scene, scene.bob) as stream:
        await stream.send_frame(b"\x93garbage", max_size=MAX_LORA_FRAME)
        assert refusal(await replies(stream))[0] == "bad_request"
    async with stream_to(scene, scene.bob) as stream:
        await begin(stream, ProbeStart(b"no envelope"))
        assert refusal(await replies(stream))[0] == "bad_request"
    async with stream_to(scene, scene.bob) as stream:  # an agreement is no request
        await begin(stream, ProbeStart(sealed(scene.agreement(), scene.bob)))
        assert refusal(await replies(stream))[0] == "bad_request"


# --- which offer ----------------------------------------------------------------------------------


async def test_offer_nobody_makes_is_unknown(scene: Scene, autojump_clock: object) -> None:
    found = await asked(scene, scene.question(), offer=scene.swarm.base)
    assert refusal(found) == ("unknown_offer", f"this node does not offer {scene.swarm.base}")


async def test_withdrawn_offer_is_unknown_from_then_on(
    scene: Scene, autojump_clock: object
) -> None:
    question = scene.question()
    scene.alice.offers.withdraw(scene.offer)
    assert refusal(await asked(scene, question))[0] == "unknown_offer"
    assert refusal(await bought(scene))[0] == "unknown_offer"


async def test_offer_whose_time_is_over_is_unknown(scene: Scene, autojump_clock: object) -> None:
    scene.offer = await scene.alice.offered(scene.swarm.base, days=60 / 86_400)
    question = scene.question()
    assert len(await asked(scene, question)) == 2
    await trio.sleep(61)
    assert refusal(await asked(scene, question))[0] == "unknown_offer"


async def test_offer_withdrawn_while_its_questions_come_tells_nothing(
    scene: Scene, autojump_clock: object
) -> None:
    question = scene.question()
    async with stream_to(scene, scene.bob) as stream:
        await begin(stream, ProbeStart(sealed(scene.request(question), scene.bob)))
        await trio.sleep(1)
        scene.alice.offers.withdraw(scene.offer)
        await stream.send_frame(pack_question(question), max_size=MAX_LORA_FRAME)
        assert refusal(await replies(stream))[0] == "unknown_offer"
    assert scene.leaks == NOTHING


async def test_request_accepted_before_the_offers_end_is_answered_after_it(
    scene: Scene, autojump_clock: object
) -> None:
    scene.offer = await scene.alice.offered(scene.swarm.base, days=60 / 86_400)
    scene.alice.plain.gate = trio.Event()
    found: list[LoraReply] = []

    async def ask() -> None:
        found.extend(await asked(scene, scene.question()))

    await trio.sleep(58)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(5)
        assert scene.offer not in {own.offer for own in scene.alice.offers.standing()}
        scene.alice.plain.gate.set()
    assert [type(one) for one in found] == [Answer, Receipt]


# --- budgets --------------------------------------------------------------------------------------


async def test_budget_is_counted_before_the_first_answer_though_the_asker_hangs_up(
    scene: Scene, autojump_clock: object
) -> None:
    scene.alice.plain.gate = trio.Event()
    questions = [scene.question(0), scene.question(1)]
    async with stream_to(scene, scene.bob) as stream:
        await begin(stream, ProbeStart(sealed(scene.request(*questions), scene.bob)), questions)
        await trio.sleep(1)
        assert scene.leaks == {Leak(1, 0, 1)}
        await stream.reset()
    scene.alice.plain.gate.set()
    await trio.sleep(1)
    assert scene.leaks == {Leak(1, 0, 1)}
    assert len(await asked(scene, scene.question(), nonce=b"O" * 16)) == 2


async def test_request_beyond_the_budget_is_refused_whole(
    scene: Scene, autojump_clock: object
) -> None:
    every = [scene.question(0, pairs=4)]  # 16 scalars at once: all there are
    assert len(await asked(scene, *every)) == 2
    code, reason = refusal(
        await asked(scene, scene.question(1), scene.question(0), nonce=b"O" * 16)
    )
    assert code == "budget_spent"
    assert "32 of 32 scalars of layer block.to_q" in reason
    assert scene.leaks == {Leak(16, 0, 1), Leak()}


async def test_rows_have_a_budget_of_their_own(scene: Scene, autojump_clock: object) -> None:
    assert len(await asked(scene, scene.rows(30), scene.rows(10))) == 3
    found = await asked(scene, scene.rows(1), nonce=b"O" * 16)
    assert refusal(found)[0] == "budget_spent"
    assert scene.leaks == {Leak(0, 40, 2), Leak()}


async def test_budget_is_that_of_the_adapter_however_often_it_is_offered(
    scene: Scene, autojump_clock: object
) -> None:
    assert len(await asked(scene, scene.question(0, pairs=4))) == 2
    scene.alice.offers.withdraw(scene.offer)
    scene.offer = await scene.alice.offered(scene.swarm.base)
    found = await asked(scene, scene.question(0), nonce=b"O" * 16)
    assert refusal(found)[0] == "budget_spent"


async def test_delta_mode_that_is_not_offered_is_refused_before_a_question_comes(
    scene: Scene, autojump_clock: object
) -> None:
    scene.offer = await scene.alice.offered(scene.swarm.base, delta_rows=0)
    async with stream_to(scene, scene.bob) as stream:
        await begin(stream, ProbeStart(sealed(scene.request(scene.rows(1)), scene.bob)))
        assert refusal([await reply(stream)])[0] == "not_offered"


# --- places ---------------------------------------------------------------------------------------


async def waiting_request(scene: Scene, asker: OfferNode, nonce: int) -> None:
    """A request whose questions never come, and whose asker leaves after a while."""
    request = scene.request(scene.question(), nonce=bytes([nonce]) * 16)
    async with stream_to(scene, asker) as stream:
        await begin(stream, ProbeStart(sealed(request, asker)))
        await trio.sleep(20)
        await stream.reset()


async def test_a_peer_has_one_place_and_others_theirs(scene: Scene, autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting_request, scene, scene.bob, 1)
        await trio.sleep(1)
        assert refusal(await asked(scene, scene.question()))[0] == "busy"
        assert refusal(await bought(scene))[0] == "busy"
        carol = scene.swarm.nodes["carol"]
        assert len(await asked(scene, scene.question(), asker=carol)) == 2
    assert len(await asked(scene, scene.question(), nonce=b"O" * 16)) == 2


@pytest.mark.slow
async def test_places_are_few_and_free_again_when_the_askers_leave(
    crowd: Scene, autojump_clock: object
) -> None:
    *others, last = (crowd.swarm.nodes[name] for name in OTHERS)
    assert len(others) == SLOTS
    async with trio.open_nursery() as nursery:
        for number, asker in enumerate(others):
            nursery.start_soon(waiting_request, crowd, asker, number)
        await trio.sleep(1)
        assert refusal(await asked(crowd, crowd.question(), asker=last))[0] == "busy"
        assert crowd.leaks == NOTHING
    found = await asked(crowd, crowd.question(), asker=last, nonce=b"O" * 16)
    assert len(found) == 2


async def test_questions_that_come_too_slowly_lose_their_place(
    scene: Scene, autojump_clock: object
) -> None:
    questions = [scene.question(0), scene.question(1), scene.question(1)]
    async with stream_to(scene, scene.bob) as stream:
        await begin(stream, ProbeStart(sealed(scene.request(*questions), scene.bob)))
        for question in questions[:2]:
            await trio.sleep(14)
            await stream.send_frame(pack_question(question), max_size=MAX_LORA_FRAME)
        await trio.sleep(14)
        code, reason = refusal([await reply(stream)])
    assert (code, reason) == ("bad_request", "the questions did not arrive in time")
    assert scene.leaks == NOTHING
    assert len(await asked(scene, scene.question(), nonce=b"O" * 16)) == 2


async def test_long_questions_may_take_longer(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    monkeypatch.setattr(node.lora_serving, "_LEAST_BYTES_PER_S", 20)
    questions = [scene.question(0), scene.question(1)]  # of 300 bytes: 15 s more each
    async with stream_to(scene, scene.bob) as stream:
        await begin(stream, ProbeStart(sealed(scene.request(*questions), scene.bob)))
        for question in questions:
            await trio.sleep(20)
            await stream.send_frame(pack_question(question), max_size=MAX_LORA_FRAME)
        assert len(await replies(stream)) == 3


async def test_asker_that_does_not_read_loses_its_place(
    scene: Scene, autojump_clock: object
) -> None:
    questions = [scene.rows(1)] * 30  # more answers than lie between two nodes
    async with stream_to(scene, scene.bob) as stream:
        await begin(stream, ProbeStart(sealed(scene.request(*questions), scene.bob)), questions)
        await trio.sleep(25)
        assert refusal(await asked(scene, scene.question(), nonce=b"O" * 16))[0] == "busy"
        await trio.sleep(25)
        assert len(await asked(scene, scene.question(), nonce=b"P" * 16)) == 2
        assert len(await replies(stream)) < len(questions)


async def test_asker_that_reads_now_and_then_loses_its_place_too(
    scene: Scene, autojump_clock: object
) -> None:
    """Each answer is taken before its own timeout: only all of them together come too late."""
    questions = [scene.rows(1)] * 30
    async with stream_to(scene, scene.bob) as stream:
        await begin(stream, ProbeStart(sealed(scene.request(*questions), scene.bob)), questions)
        assert await read_slowly(stream, pause_s=10) < 6


async def read_slowly(stream: Stream, pause_s: float) -> int:
    """How many replies come if one is read at a time, with pauses."""
    read = 0
    with suppress(StreamClosedError):
        while True:
            await trio.sleep(pause_s)
            await reply(stream)
            read += 1
    return read


class Lingering:
    """A stream on which each frame is there at once, and sent only a while later."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.peer = stream.peer
        self.receive_frame = stream.receive_frame

    async def send_frame(self, payload: bytes, *, max_size: int) -> None:
        await self._stream.send_frame(payload, max_size=max_size)
        await trio.sleep(1)


async def test_whoever_has_the_receipt_may_ask_again_at_once(
    scene: Scene, autojump_clock: object
) -> None:
    async def linger(stream: Stream) -> None:
        await scene.alice.serving._answer(cast("Stream", Lingering(stream)))

    scene.alice.member.context.host.set_handler(PROTOCOL, linger)
    for number in range(3):
        question = scene.question()
        request = sealed(scene.request(question, nonce=bytes([number]) * 16), scene.bob)
        async with stream_to(scene, scene.bob) as stream:
            await begin(stream, ProbeStart(request), [question])
            assert isinstance(await reply(stream), Answer)
            assert isinstance(await reply(stream), Receipt)


async def test_answers_of_several_askers_take_turns(scene: Scene, autojump_clock: object) -> None:
    scene.alice.plain.gate = trio.Event()
    order: list[PeerId] = []

    async def ask(asker: OfferNode) -> None:
        questions = [scene.question()] * 3
        async with stream_to(scene, asker) as stream:
            start = ProbeStart(sealed(scene.request(*questions), asker))
            await begin(stream, start, questions)
            for _ in questions:
                assert isinstance(await reply(stream), Answer)
                order.append(asker.peer)

    async with trio.open_nursery() as nursery:
        for name in ("bob", "carol"):
            nursery.start_soon(ask, scene.swarm.nodes[name])
        await trio.sleep(1)
        scene.alice.plain.gate.set()
    assert order[:3] != [order[0]] * 3


# --- this node's own failures ---------------------------------------------------------------------


async def test_prover_that_fails_is_this_nodes_fault_and_frees_the_place(
    scene: Scene, autojump_clock: object
) -> None:
    def fail(_: int) -> None:
        raise NodeError(ErrorCode.FAILED, "the proof could not be made: /home/alice/secret")

    scene.alice.plain.failing = fail
    assert refusal(await asked(scene, scene.question())) == (
        "failed",
        "this node could not answer: try later",
    )
    scene.alice.plain.failing = PlainProving().failing
    assert len(await asked(scene, scene.question(), nonce=b"O" * 16)) == 2


async def test_reason_of_a_refusal_can_always_be_sent(scene: Scene, autojump_clock: object) -> None:
    def reject(_: int) -> None:
        raise RejectedByProofError("two\nlines\x1b[31m" + 600 * "x")

    scene.alice.plain.failing = reject
    code, reason = refusal(await asked(scene, scene.question()))
    assert code == "bad_request"
    assert reason.startswith("two lines [31mxxx")


# --- purchases ------------------------------------------------------------------------------------


async def test_agreement_is_answered_once(scene: Scene, autojump_clock: object) -> None:
    assert isinstance((await bought(scene))[0], Agreed)
    assert refusal(await bought(scene))[0] == "bad_request"
    assert isinstance((await bought(scene, nonce=b"O" * 16))[0], Agreed)


@pytest.mark.parametrize(
    "changes",
    [{"terms": "for nothing"}, {"seller": "bob"}, {"buyer": "carol"}],
    ids=["terms", "seller", "buyer"],
)
async def test_agreement_that_says_something_else_is_dropped(
    scene: Scene, changes: dict[str, str], autojump_clock: object
) -> None:
    named: dict[str, Any] = {
        key: scene.swarm.nodes[value].peer if value in scene.swarm.nodes else value
        for key, value in changes.items()
    }
    if named.get("seller") == scene.bob.peer:
        named["buyer"] = scene.alice.peer
    assert await bought(scene, **named) == DROPPED


async def test_agreement_signed_by_another_is_dropped(scene: Scene, autojump_clock: object) -> None:
    assert await bought(scene, signer=scene.swarm.nodes["carol"]) == DROPPED


async def test_agreement_must_be_fresh(scene: Scene, autojump_clock: object) -> None:
    for age_s in (MAX_ASK_AGE_S + 1, -MAX_CLOCK_SKEW_S - 1):
        assert refusal(await bought(scene, agreed_at=wall() - age_s))[0] == "expired"


async def test_key_that_everybody_could_open_is_refused(
    scene: Scene, autojump_clock: object
) -> None:
    assert refusal(await bought(scene, buyer_key=bytes(32)))[0] == "bad_request"
    assert isinstance((await bought(scene, nonce=b"O" * 16))[0], Agreed)


@pytest.mark.parametrize("harm", ["altered", "gone"])
async def test_seller_signs_for_no_delivery_that_its_disk_altered(
    scene: Scene, harm: str, autojump_clock: object
) -> None:
    """A disk that fails must not make it a fraud."""
    file = scene.alice.offers.folder(scene.offer) / DELIVERY_FILE
    data = file.read_bytes()
    file.unlink()
    if harm == "altered":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert refusal(await bought(scene))[0] == "failed"
    file.write_bytes(data)
    assert isinstance((await bought(scene, nonce=b"O" * 16))[0], Agreed)


async def test_who_may_buy_is_asked_before_anything_is_read(
    scene: Scene, autojump_clock: object
) -> None:
    carol = scene.swarm.nodes["carol"].peer
    scene.offer = await scene.alice.offered(scene.swarm.base, buyers=(carol,))
    assert refusal(await bought(scene)) == ("not_offered", "this offer is not for you")
    (scene.alice.offers.folder(scene.offer) / "buyers.json").unlink()
    assert refusal(await bought(scene, nonce=b"O" * 16))[0] == "failed"  # not: sold to anybody


async def test_whole_look_works_over_plain_proofs_too(scene: Scene, autojump_clock: object) -> None:
    """The stand-in says what the real prover says."""
    await seen_within(lambda: scene.bob.standing(scene.offer) == "proved")
    looked = await last_of(scene.bob.market.verify(LookWish(scene.offer)))
    assert looked["predicted"] == pytest.approx(change(helpful()), rel=0.01)
    assert (await last_of(scene.bob.market.buy(LookWish(scene.offer))))["event"] == "done"
