"""Hostile owners of offers: what they send instead, and what a buyer is left with."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio

import node.lora_asking
import node.lora_receiving
from node.errors import ErrorCode, NodeError
from node.lora_asking import DELIVERY_TIMEOUT_S, LEAST_BYTES_PER_S
from node.lora_convert import delivered_size
from node.lora_market import LookWish
from node.lora_rows import OfferStanding
from node.offer_board import STRIKES
from p2p.codec import BLOB_KEY, Verified, open_signed, seal
from p2p.errors import PeerError, RefusedError, StorageError
from p2p.fraud import check_fraud, unpack_fraud
from p2p.host import Stream
from p2p.ids import BlobId, blob_id
from p2p.limits import DELIVERY_PIECE, MAX_ANSWER_FRAME, MAX_LORA_FRAME, MAX_REQUEST_SIZE
from p2p.lora_messages import (
    PROTOCOL,
    Agreed,
    Answer,
    BuyStart,
    Delivered,
    LoraReply,
    Piece,
    ProbeStart,
    Receipt,
    answers_digest,
    pack_reply,
    parse_question,
    parse_reply,
    parse_start,
)
from p2p.lora_records import Agreement, Delivery, LoraOffer, ProbeReceipt, ProbeRequest
from p2p.sealed_box import new_secret, public_of, seal_box
from tests.support.offer_swarm import (
    OfferNode,
    OfferWorld,
    last_of,
    offer_world,
    seen_within,
    small_layers,
)
from tests.support.swarm import World, wall, world
from training.files import write_file

__all__ = ["small_layers", "world"]


@dataclass
class Market:
    """Mallory offers something true, and answers as a test says; bob asks."""

    swarm: OfferWorld
    offer: BlobId

    @property
    def mallory(self) -> OfferNode:
        return self.swarm.nodes["mallory"]

    @property
    def bob(self) -> OfferNode:
        return self.swarm.nodes["bob"]

    @property
    def record(self) -> LoraOffer:
        return self.opened.record

    @property
    def opened(self) -> Verified[LoraOffer]:
        own = self.mallory.loras.own_offer(self.offer)
        assert own is not None
        return self.mallory.offers.opened(own)

    @property
    def plaintext(self) -> bytes:
        return (self.mallory.offers.folder(self.offer) / "delivery.bin").read_bytes()

    def answers(self, handler: Callable[[Stream], Awaitable[None]]) -> None:
        self.mallory.member.context.host.set_handler(PROTOCOL, handler)

    def sealed(self, record: Agreement | Delivery | ProbeReceipt) -> bytes:
        identity = self.mallory.member.context.identity
        return seal(record, identity, key=BLOB_KEY, expires_at=None)

    @property
    def strikes(self) -> int:
        return self.bob.board._strikes[self.mallory.peer]

    def is_banned(self, in_s: float = 0.0) -> bool:
        return self.bob.loras.is_banned(self.mallory.peer, wall() + in_s)

    @property
    def left_behind(self) -> set[str]:
        """Names of files and folders in the buyer's private folder, and on its shelf."""
        home = self.bob.member.context.config.paths
        found: set[str] = set()
        for folder in (home.offers, home.loras):
            if folder.exists():
                found |= {path.name for path in folder.iterdir()}
        return found


@pytest.fixture
async def market(
    tmp_path: Path, world: World, autojump_clock: object, small_layers: None
) -> AsyncIterator[Market]:
    async with offer_world(tmp_path, "mallory", "bob", plain=world) as swarm:
        await swarm.acquainted()
        offer = await swarm.nodes["mallory"].offered(swarm.base, delta_rows=64)
        made = Market(swarm, offer)
        await seen_within(lambda: made.bob.standing(offer) is OfferStanding.PROVED)
        yield made


@dataclass
class Seller:
    """Sells as the protocol says, but for what a test changes.

    Attributes:
        plaintext: what is encrypted; None for the adapter.
        ciphertext: given the honest one; what is signed for and sent.
        agreement: fields of the agreement that are changed.
        delivery: fields of the delivery that are changed.
        sent: what is sent after the delivery; None for the ciphertext in full pieces.
        pause_s: before each piece.
    """

    market: Market
    plaintext: bytes | None = None
    ciphertext: Callable[[bytes], bytes] = lambda data: data
    agreement: dict[str, Any] | None = None
    delivery: dict[str, Any] | None = None
    sent: Callable[[bytes], Sequence[LoraReply]] | None = None
    pause_s: float = 0.0
    pieces: int = 0

    async def __call__(self, stream: Stream) -> None:
        start = parse_start(await stream.receive_frame(max_size=MAX_REQUEST_SIZE, timeout_s=30))
        assert isinstance(start, BuyStart)
        asked = open_signed(Agreement, start.agreement, key=BLOB_KEY, now=wall()).record
        mine = self.market.sealed(replace(asked, **(self.agreement or {})))
        secret = new_secret()
        plaintext = self.market.plaintext if self.plaintext is None else self.plaintext
        honest = seal_box(plaintext, secret=secret, to=asked.buyer_key, agreement=blob_id(mine))
        ciphertext = self.ciphertext(honest)
        delivery = Delivery(
            run=asked.run,
            offer=asked.offer,
            agreement=blob_id(mine),
            seller_key=public_of(secret),
            size=len(ciphertext),
            ciphertext=hashlib.sha256(ciphertext).hexdigest(),
            delivered_at=wall(),
        )
        said = self.market.sealed(replace(delivery, **(self.delivery or {})))
        await _send(stream, Agreed(mine))
        await _send(stream, Delivered(said))
        for piece in (self.sent or in_pieces)(ciphertext):
            await trio.sleep(self.pause_s)
            await _send(stream, piece)
            self.pieces += 1
        await trio.sleep_forever()  # holds the stream


def in_pieces(data: bytes, size: int = DELIVERY_PIECE) -> list[Piece]:
    return [Piece(data[at : at + size]) for at in range(0, len(data), size)]


async def _send(stream: Stream, message: LoraReply) -> None:
    await stream.send_frame(pack_reply(message), max_size=MAX_ANSWER_FRAME)


async def buys(market: Market) -> dict[str, Any]:
    return await last_of(market.bob.market.buy(LookWish(market.offer)))


# --- deliveries -----------------------------------------------------------------------------------


async def test_stand_in_seller_sells_when_nothing_is_changed(
    market: Market, autojump_clock: object
) -> None:
    market.answers(Seller(market))
    assert (await buys(market))["event"] == "done"
    assert market.bob.standing(market.offer) is OfferStanding.MEASURED


@pytest.mark.parametrize("more", [-1, 1, 1 << 20])
async def test_delivery_of_another_size_is_refused_before_a_piece_is_read(
    market: Market, autojump_clock: object, more: int
) -> None:
    seller = Seller(market, delivery={"size": delivered_size(market.record) + more})
    market.answers(seller)
    with pytest.raises(PeerError, match=r"Delivery\.size: is \d+, a delivery of this offer has"):
        await buys(market)
    assert market.left_behind == set()


async def test_seller_that_stops_in_the_middle_is_waited_for_so_long_and_no_longer(
    market: Market, autojump_clock: object
) -> None:
    market.answers(Seller(market, sent=lambda data: []))
    begun = trio.current_time()
    with pytest.raises(PeerError, match="did not come in time"):
        await buys(market)
    patience_s = DELIVERY_TIMEOUT_S + delivered_size(market.record) / LEAST_BYTES_PER_S
    assert trio.current_time() - begun < patience_s + 5
    assert market.left_behind == set()
    market.answers(Seller(market))
    assert (await buys(market))["event"] == "done"


async def test_seller_that_closes_in_the_middle_leaves_nothing(
    market: Market, autojump_clock: object
) -> None:
    async def closes(stream: Stream) -> None:
        await stream.receive_frame(max_size=MAX_REQUEST_SIZE, timeout_s=30)

    market.answers(closes)
    with pytest.raises(PeerError):
        await buys(market)
    assert market.left_behind == set()
    assert market.strikes == 0  # networks fail


async def test_delivery_in_crumbs_is_refused_at_the_first(
    market: Market, autojump_clock: object
) -> None:
    seller = Seller(market, sent=lambda data: in_pieces(data, 1))
    market.answers(seller)
    with pytest.raises(PeerError, match=r"Piece\.data: 1 bytes, expected"):
        await buys(market)


async def test_pieces_that_come_slowly_run_out_of_time_together(
    market: Market, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them is late by itself."""
    monkeypatch.setattr(node.lora_asking, "DELIVERY_PIECE", 100)
    seller = Seller(market, sent=lambda data: in_pieces(data, 100), pause_s=20)
    market.answers(seller)
    with pytest.raises(PeerError, match="of 1085 bytes did not come in time"):
        await buys(market)
    assert seller.pieces in (2, 3)


async def test_other_bytes_than_were_signed_for_prove_nothing_and_are_refused(
    market: Market, autojump_clock: object
) -> None:
    market.answers(Seller(market, sent=lambda data: in_pieces(bytes(len(data)))))
    with pytest.raises(PeerError, match=r"Delivery\.ciphertext: is"):
        await buys(market)
    assert market.left_behind == set()
    assert not market.is_banned()


async def test_agreement_that_was_changed_is_refused(
    market: Market, autojump_clock: object
) -> None:
    market.answers(Seller(market, agreement={"terms": "everything you own"}))
    with pytest.raises(PeerError, match=r"Agreement\.terms"):
        await buys(market)


async def test_refusal_is_told_as_one(market: Market, autojump_clock: object) -> None:
    market.mallory.offers.withdraw(market.offer)
    with pytest.raises(RefusedError, match="does not offer") as caught:
        await buys(market)
    assert caught.value.code == "unknown_offer"


async def convicted(market: Market) -> Path:
    """Buy, be cheated, and see the seller banned; the file that proves it."""
    with pytest.raises(NodeError, match="not what was offered") as caught:
        await buys(market)
    assert caught.value.code is ErrorCode.VERIFICATION_FAILED
    assert market.bob.standing(market.offer) is OfferStanding.REFUSED
    assert market.is_banned(in_s=300 * 86_400)
    file = Path(caught.value.fix.split("judge ")[1])
    assert market.left_behind == {file.name}
    assert (
        await trio.Path(file).stat()
    ).st_mode & 0o077 == 0  # the buyer's key and the weights are in it
    return file


async def test_ciphertext_that_does_not_decrypt_is_fraud_by_itself(
    market: Market, autojump_clock: object
) -> None:
    market.answers(Seller(market, ciphertext=lambda data: bytes(len(data))))
    file = await convicted(market)
    case = check_fraud(unpack_fraud(await trio.Path(file).read_bytes()), now=wall())
    assert (case.seller, case.buyer) == (market.mallory.peer, market.bob.peer)
    assert case.plaintext is None
    assert "does not decrypt" in str(case.reason)


async def test_key_of_small_order_is_fraud_by_itself(
    market: Market, autojump_clock: object
) -> None:
    market.answers(Seller(market, delivery={"seller_key": bytes(32)}))
    file = await convicted(market)
    case = check_fraud(unpack_fraud(await trio.Path(file).read_bytes()), now=wall())
    assert case.plaintext is None


async def test_weights_that_were_not_committed_to_are_fraud(
    market: Market, autojump_clock: object
) -> None:
    other = bytearray(market.plaintext)
    other[-1] ^= 1
    market.answers(Seller(market, plaintext=bytes(other)))
    file = await convicted(market)
    case = check_fraud(unpack_fraud(await trio.Path(file).read_bytes()), now=wall())
    assert case.plaintext == bytes(other)


async def test_banned_sellers_offers_are_neither_looked_into_nor_bought(
    market: Market, autojump_clock: object
) -> None:
    market.answers(Seller(market, ciphertext=lambda data: bytes(len(data))))
    await convicted(market)
    market.answers(Seller(market))
    for action in (market.bob.market.buy, market.bob.market.verify):
        with pytest.raises(NodeError, match="nothing to do with its offers") as caught:
            await last_of(action(LookWish(market.offer)))
        assert caught.value.code is ErrorCode.REFUSED
    assert market.bob.standing(market.offer) is OfferStanding.REFUSED


async def test_prover_of_our_own_that_fails_accuses_nobody(
    market: Market, autojump_clock: object
) -> None:
    def fail(_: int) -> None:
        raise NodeError(ErrorCode.FAILED, "no ezkl here")

    market.bob.plain.failing = fail
    with pytest.raises(NodeError, match="no ezkl here"):
        await buys(market)
    assert market.strikes == 0
    assert market.left_behind == set()
    assert market.bob.standing(market.offer) is OfferStanding.PROVED


async def test_one_offer_is_bought_once_at_a_time(market: Market, autojump_clock: object) -> None:
    """Two deliveries at once could be checked one for the other."""
    seller = Seller(market, pause_s=5)
    market.answers(seller)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buys, market)
        await trio.sleep(1)
        with pytest.raises(NodeError, match="is being bought already") as caught:
            await buys(market)
        assert caught.value.code is ErrorCode.REFUSED
    assert (await buys(market))["event"] == "done"  # afterwards it may be bought again
    assert len(market.left_behind) == 2


async def test_purchase_that_was_given_up_is_no_purchase_under_way(
    market: Market, autojump_clock: object
) -> None:
    market.answers(Seller(market, pause_s=50))
    with trio.move_on_after(5):
        await buys(market)
    assert market.left_behind == set()
    market.answers(Seller(market))
    assert (await buys(market))["event"] == "done"


@pytest.mark.parametrize("name", ["delivered.bin", "arrays.bin", "purchase.json"])
async def test_disk_that_is_full_on_the_way_is_told_as_such_and_leaves_no_weights(
    market: Market, autojump_clock: object, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.name == name:
            raise OSError(28, "No space left on device")
        write_file(path, data)

    monkeypatch.setattr(node.lora_receiving, "write_file", full)
    with pytest.raises(StorageError, match="the disk is full"):
        await buys(market)
    offers = market.bob.member.context.config.paths.offers
    assert list(offers.iterdir()) == []
    assert market.strikes == 0
    monkeypatch.setattr(node.lora_receiving, "write_file", write_file)
    assert (await buys(market))["event"] == "done"


async def test_seller_is_banned_though_the_proof_of_its_fraud_cannot_be_written(
    market: Market, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".fraud":
            raise OSError(28, "No space left on device")
        write_file(path, data)

    monkeypatch.setattr(node.lora_receiving, "write_file", full)
    market.answers(Seller(market, ciphertext=lambda data: bytes(len(data))))
    with pytest.raises(StorageError, match="write the proof of fraud: the disk is full"):
        await buys(market)
    assert market.is_banned(in_s=300 * 86_400)
    assert market.left_behind == set()


# --- answers --------------------------------------------------------------------------------------


async def test_other_values_than_the_true_ones_are_not_proved_and_count_against_their_owner(
    market: Market, autojump_clock: object
) -> None:
    market.mallory.plain.lies = True
    for number in range(STRIKES):
        assert market.strikes == number
        with pytest.raises(NodeError, match="is not proved") as caught:
            await last_of(market.bob.market.verify(LookWish(market.offer)))
        assert caught.value.code is ErrorCode.VERIFICATION_FAILED
    assert market.is_banned()


async def test_deltas_that_are_not_true_are_not_proved(
    market: Market, autojump_clock: object
) -> None:
    def lie(number: int) -> None:
        market.mallory.plain.lies = number > begun + 2 * 2  # the blind questions are answered

    begun = len(market.mallory.plain.jobs)
    market.mallory.plain.failing = lie
    with pytest.raises(NodeError, match="is not proved"):
        await last_of(market.bob.market.verify(LookWish(market.offer, delta_draws=1)))
    assert market.strikes == 1


async def test_owner_that_sends_nothing_is_given_up(market: Market, autojump_clock: object) -> None:
    async def silent(stream: Stream) -> None:
        await trio.sleep_forever()

    market.answers(silent)
    begun = trio.current_time()
    with pytest.raises(PeerError, match="no whole frame"):
        await last_of(market.bob.market.verify(LookWish(market.offer)))
    assert trio.current_time() - begun < 400
    assert market.strikes == 0


async def relayed(
    market: Market, alter: Callable[[LoraReply], LoraReply | None], *, draws: int = 0
) -> Any:
    """Mallory's true answers, altered on their way; what bob is told."""
    serving = market.mallory.serving

    class Altered:
        """A stream whose replies are changed."""

        def __init__(self, stream: Stream) -> None:
            self._stream = stream
            self.peer = stream.peer

        async def send_frame(self, payload: bytes, *, max_size: int) -> None:
            reply = alter(parse_reply(payload))
            if reply is not None:
                await self._stream.send_frame(pack_reply(reply), max_size=max_size)

        async def receive_frame(self, *, max_size: int, timeout_s: float) -> bytes:
            return await self._stream.receive_frame(max_size=max_size, timeout_s=timeout_s)

    async def answer(stream: Stream) -> None:
        await serving._answer(Altered(stream))  # type: ignore[arg-type]

    market.answers(answer)
    return await last_of(market.bob.market.verify(LookWish(market.offer, delta_draws=draws)))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"module": "block.to_k"}, r"Answer\.module: is 'block\.to_k', asked was 'block\.to_q'"),
        ({"values": bytes(32)}, r"values: got 32 bytes, expected 1 x 1 of 16"),
    ],
    ids=["of another layer", "of two numbers"],
)
async def test_answer_to_something_else_is_refused_before_its_proof_is_looked_at(
    market: Market, autojump_clock: object, changes: dict[str, Any], why: str
) -> None:
    def alter(reply: LoraReply) -> LoraReply:
        return replace(reply, **changes) if isinstance(reply, Answer) else reply

    market.bob.plain.jobs.clear()
    with pytest.raises(PeerError, match=why):
        await relayed(market, alter)
    assert market.bob.plain.jobs == []


def receipt_saying(market: Market, **changes: Any) -> Callable[[LoraReply], LoraReply]:
    def alter(reply: LoraReply) -> LoraReply:
        if not isinstance(reply, Receipt):
            return reply
        said = open_signed(ProbeReceipt, reply.envelope, key=BLOB_KEY, now=wall()).record
        return Receipt(market.sealed(replace(said, **changes)))

    return alter


@pytest.mark.parametrize(("said", "told"), [(32, 14), (15, 14), (14, 14), (3, 3), (0, 0)])
async def test_receipt_cannot_say_that_less_was_told_than_we_know(
    market: Market, autojump_clock: object, said: int, told: int
) -> None:
    """16 by the offer, and a pair and signs by ourselves."""
    looked = await relayed(market, receipt_saying(market, scalars_left=said))
    assert looked["scalars_left"] == told
    assert 0 < looked["leak_percent"] < 20


@pytest.mark.parametrize(("said", "told"), [(64, 56), (57, 56), (56, 56), (9, 9)])
async def test_receipt_cannot_say_that_fewer_rows_were_told_than_we_asked(
    market: Market, autojump_clock: object, said: int, told: int
) -> None:
    """8 of each layer, of the 64 there are."""
    looked = await relayed(market, receipt_saying(market, rows_left=said), draws=1)
    assert (looked["delta_rows"], looked["rows_left"]) == (8, told)
    assert looked["delta_leak_percent"] > 0


@pytest.mark.parametrize(
    "changes",
    [{"answers": "0" * 64}, {"issued_at": 0.0}, {"issued_at": 4e9}],
    ids=["answers", "before", "after"],
)
async def test_receipt_for_something_else_is_refused(
    market: Market, autojump_clock: object, changes: dict[str, Any]
) -> None:
    with pytest.raises(PeerError, match="ProbeReceipt"):
        await relayed(market, receipt_saying(market, **changes))


async def test_receipt_before_its_answers_is_refused(
    market: Market, autojump_clock: object
) -> None:
    async def answer(stream: Stream) -> None:
        frame = await stream.receive_frame(max_size=MAX_REQUEST_SIZE, timeout_s=30)
        start = parse_start(frame)
        assert isinstance(start, ProbeStart)
        asked = open_signed(ProbeRequest, start.request, key=BLOB_KEY, now=wall()).record
        for _ in range(asked.count):
            parse_question(await stream.receive_frame(max_size=MAX_LORA_FRAME, timeout_s=30))
        receipt = ProbeReceipt(
            run=asked.run,
            offer=asked.offer,
            request=blob_id(start.request),
            answers=answers_digest([]),
            scalars_left=32,
            rows_left=0,
            issued_at=wall(),
        )
        await _send(stream, Receipt(market.sealed(receipt)))

    market.answers(answer)
    with pytest.raises(PeerError, match="got Receipt, expected Answer"):
        await last_of(market.bob.market.verify(LookWish(market.offer)))
