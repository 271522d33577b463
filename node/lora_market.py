"""Looking into another's offer and buying it, as the API offers it; told as events.

    verify  proofs of the offer, size against the base, then a probe: the predicted effect
    deltas  the probe's loss through the owner's own answers, layer by layer
    buy     agreement, delivery, commitments recomputed, the probe measured beside the claim

Nothing is fetched for an offer whose base is another than the person named.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom
from typing import Final

from node.adapter_facts import DeltaJob, Place, ProbePlan
from node.adapters import Adapters
from node.api import Json, phase_event
from node.clock import now_s
from node.context import NodeContext
from node.errors import ErrorCode, NodeError
from node.lora_asking import LoraAsking, ProbeAnswer
from node.lora_convert import check_offer, module_named, offer_name, question_statement
from node.lora_figures import (
    int64_of,
    leak_of,
    looked_into,
    own_squares,
    questions_of,
    squares_of,
    values_of,
)
from node.lora_receiving import ReceivedDelivery, Receiving
from node.lora_rows import OfferStanding, SeenOffer
from node.offer_board import OfferBoard, OfferRefusedError
from node.offer_draft import place_of
from node.offer_files import unpacked_probe
from node.proving import Proving, RejectedByProofError
from p2p.codec import Verified
from p2p.errors import PeerError
from p2p.ids import BlobId
from p2p.lora_messages import Question
from p2p.lora_records import BLIND, DELTA, LoraOffer, ProbeReceipt
from p2p.lora_streams import rows_per_question
from verification.errors import PolicyError

logger = logging.getLogger(__name__)

MEASURE_TIMEOUT_S: Final = 600.0
DELTA_TIMEOUT_S: Final = 3600.0
"""Each layer's answer is a proof, and a layer waits for the one before it."""


@dataclass(frozen=True, slots=True)
class LookWish:
    """How a person wants an offer looked into, checked.

    Attributes:
        offer: its id.
        base: the checkpoint it must be for; None for whichever it says.
        probe: folder of the person's own probe; None for the offer's.
        pairs: of each layer's gradient that are asked, beside one of signs.
        delta_draws: of the probe, in delta mode; 0 for the blind probe alone.
    """

    offer: BlobId
    base: BlobId | None = None
    probe: Path | None = None
    pairs: int = 1
    delta_draws: int = 0


@dataclass(slots=True)
class LoraMarket:
    """What can be done with others' offers."""

    context: NodeContext
    board: OfferBoard
    adapters: Adapters
    proving: Proving
    asking: LoraAsking
    _being_bought: set[BlobId] = field(default_factory=set)

    async def verify(self, wish: LookWish) -> AsyncGenerator[Json]:
        """Look into an offer without having it.

        Events {event: "progress", phase, done, total}, then {event: "done", ...}.

        Raises:
            NodeError: whatever the person should read; `VERIFICATION_FAILED` if it does not hold,
                `REFUSED` for a wrong base, naming both, or a size out of the policy's band.
            P2PError: a peer or the disk.
        """
        seen, offer = await self._offer(wish)
        squares = await self._proved(seen, offer)
        yield phase_event("proofs", len(squares), len(offer.record.modules))
        place = await self._place(offer)
        probe = wish.probe or await unpacked_probe(
            self.context, offer.record.claims.probe, offer.owner
        )
        plan = await self.adapters.pairs(
            place, probe, offer.record.targets, wish.pairs, timeout_s=MEASURE_TIMEOUT_S
        )
        self._sized(offer, squares, plan)
        answers: list[ProbeAnswer] = []
        receipt: ProbeReceipt | None = None
        questions = questions_of(plan, SystemRandom())
        async with aclosing(self.asking.probe(offer, BLIND, questions)) as replies:
            async for reply in replies:
                if isinstance(reply, ProbeReceipt):
                    receipt = reply
                    continue
                await self._check(offer, reply)
                answers.append(reply)
                yield phase_event("probe", len(answers), len(questions))
        assert receipt is not None  # noqa: S101  it ends the iteration
        values = values_of(answers)
        ratio = self._sized(offer, own_squares(values), plan)
        done = looked_into(offer, plan, values, ratio, receipt)
        if wish.delta_draws:
            done |= await self._deltas(offer, place, probe, wish.delta_draws)
        yield done

    async def buy(self, wish: LookWish) -> AsyncGenerator[Json]:
        """Sign an offer's terms, take the adapter, and see whether it is what was offered.

        Events as `verify`. What does not match what was committed to leaves a fraud proof.

        Raises:
            NodeError, P2PError: as `verify`; `REFUSED` while it is being bought already.
        """
        with self._one_purchase(wish.offer):
            async with aclosing(self._buy(wish)) as events:
                async for event in events:
                    yield event

    @contextmanager
    def _one_purchase(self, offer: BlobId) -> Iterator[None]:
        if offer in self._being_bought:
            raise NodeError(
                ErrorCode.REFUSED,
                f"The offer {offer} is being bought already.",
                "see what comes of that: paris-node lora list",
            )
        self._being_bought.add(offer)
        try:
            yield
        finally:
            self._being_bought.discard(offer)

    async def _buy(self, wish: LookWish) -> AsyncGenerator[Json]:
        seen, offer = await self._offer(wish)
        squares = await self._proved(seen, offer)
        yield phase_event("proofs", len(squares), len(offer.record.modules))
        place = await self._place(offer)
        probe = await unpacked_probe(self.context, offer.record.claims.probe, offer.owner)
        plan = await self.adapters.pairs(
            place, probe, offer.record.targets, 1, timeout_s=MEASURE_TIMEOUT_S
        )
        ratio = self._sized(offer, squares, plan)
        bought = await self.asking.buy(offer)
        yield phase_event("delivered", 1, 1)
        delivery = ReceivedDelivery(offer, place, probe, bought)
        folder = await Receiving(self.context, self.board, self.adapters, self.proving).keep(
            delivery
        )
        yield phase_event("commitments", len(offer.record.modules), len(offer.record.modules))
        measured = await self.adapters.measure(place, probe, folder, timeout_s=MEASURE_TIMEOUT_S)
        claims = offer.record.claims
        facts: Json = {
            "measured_base": measured.base_loss,
            "measured_loss": measured.adapted_loss,
            "folder": str(folder),
        }
        try:
            self.board.policy.check_claim(claims.adapted_loss, measured.adapted_loss)
        except PolicyError as error:
            self.board.note(offer, seen.proofs, OfferStanding.MEASURED, str(error), facts)
            self.board.strike(offer.owner, f"offer {wish.offer}: {error}")
            raise NodeError(
                ErrorCode.VERIFICATION_FAILED,
                f"What was delivered is what was committed to, but does not do what was claimed: "
                f"{error}.",
                f"it lies in {folder}",
            ) from error
        self.board.note(offer, seen.proofs, OfferStanding.MEASURED, "", facts)
        self.context.journal.write("bought", offer=wish.offer, owner=offer.owner)
        yield {
            "event": "done",
            "offer": wish.offer,
            "folder": str(folder),
            "name": folder.name,
            "cluster": offer.record.cluster,
            "base": offer.record.base,
            "claimed_base": claims.base_loss,
            "claimed_loss": claims.adapted_loss,
            "ratio": ratio,
            **facts,
        }

    # --- steps ----------------------------------------------------------------------------------
    async def _offer(self, wish: LookWish) -> tuple[SeenOffer, Verified[LoraOffer]]:
        """The offer, if this node heard of it, and its base is the one that is meant."""
        seen = self.context.state.loras.seen(wish.offer)
        if seen is None:
            raise NodeError(
                ErrorCode.NOT_FOUND,
                f"This node has not heard of an offer {wish.offer}.",
                "see those it knows: paris-node lora list",
            )
        if self.context.state.loras.is_banned(seen.owner, now_s()):
            raise NodeError(
                ErrorCode.REFUSED,
                f"What the owner {seen.owner} signed did not hold: this node has nothing to do "
                "with its offers for now.",
                "see why: paris-node lora list",
            )
        offer = await self.board.offer(wish.offer, seen.owner)
        base = offer.record.base
        if wish.base is not None and wish.base != base:
            raise NodeError(
                ErrorCode.REFUSED,
                f"The offer is for the checkpoint {base}, not for {wish.base}: on another base an "
                "adapter does nothing it was trained to do.",
                "look for one for yours: paris-node lora list",
            )
        await self.board.check_base(offer.record, offer.owner)
        try:
            check_offer(offer.record, self.board.catalog.manifest.preset, self.board.policy)
        except PolicyError as error:
            raise NodeError(ErrorCode.REFUSED, f"{str(error).capitalize()}.") from error
        return seen, offer

    async def _proved(self, seen: SeenOffer, offer: Verified[LoraOffer]) -> Mapping[str, float]:
        """Squared norms of the layers by the offer's proofs, checked now if they were not."""
        if seen.standing in (OfferStanding.PROVED, OfferStanding.MEASURED):
            known = squares_of(seen.facts, offer.record)
            if known is not None:
                return known
        try:
            found = await self.board.prove(offer, seen.proofs)
        except (OfferRefusedError, PeerError) as error:
            self.board.note(offer, seen.proofs, OfferStanding.REFUSED, str(error)[:500])
            self.board.strike(offer.owner, f"offer {seen.offer}: {error}")
            raise NodeError(
                ErrorCode.VERIFICATION_FAILED, f"The offer's proofs do not hold: {error}."
            ) from error
        self.board.note(offer, seen.proofs, OfferStanding.PROVED, facts={"squares": found})
        return found

    async def _place(self, offer: Verified[LoraOffer]) -> Place:
        """The offer's base on this disk."""
        base, shared = offer.record.base, self.board.catalog.manifest.shared
        manifest = await self.context.fetcher.manifest(base, hints=(offer.owner,))
        return await place_of(self.context, base, manifest.owner, shared)

    def _sized(
        self, offer: Verified[LoraOffer], squares: Mapping[str, float], plan: ProbePlan
    ) -> float:
        """||dW|| / ||W||, within this node's band."""
        scaling = offer.record.alpha / offer.record.rank
        try:
            return self.board.policy.check_size(
                {name: square * scaling**2 for name, square in squares.items()},
                {module.module: module.norm for module in plan.modules},
            )
        except PolicyError as error:
            raise NodeError(ErrorCode.REFUSED, f"{str(error).capitalize()}.") from error

    async def _check(self, offer: Verified[LoraOffer], reply: ProbeAnswer) -> None:
        """Check the proof of an answer."""
        statement = question_statement(
            offer.record, offer_name(offer), reply.question, reply.nonce, reply.answer
        )
        try:
            await self.proving.verify(statement, reply.answer.proof)
        except RejectedByProofError as error:
            self.board.strike(offer.owner, f"an answer of {offer_name(offer)}: {error}")
            raise NodeError(
                ErrorCode.VERIFICATION_FAILED,
                f"The owner's answer on {reply.question.module} is not proved: {error}.",
                "do not buy from it",
            ) from error

    async def _deltas(
        self, offer: Verified[LoraOffer], place: Place, probe: Path, draws: int
    ) -> Json:
        """The probe's loss with the adapter, through the owner's proved answers alone."""
        record = offer.record
        job = DeltaJob(probe, record.targets, record.alpha / record.rank, draws)
        rows_left = record.leaks.delta_rows
        asked: Counter[str] = Counter()

        async def answer(layer: str, rows: int, x: bytes) -> bytes:
            nonlocal rows_left
            module = module_named(record, layer)
            most, width = rows_per_question(module), 2 * module.inputs
            parts = []
            for start in range(0, rows, most):
                count = min(most, rows - start)
                left = x[start * width : (start + count) * width]
                question = Question(layer, count, 0, left, b"")
                async with aclosing(self.asking.probe(offer, DELTA, [question])) as replies:
                    async for reply in replies:
                        if isinstance(reply, ProbeReceipt):
                            asked[layer] += count
                            most_left = record.leaks.delta_rows - max(asked.values())
                            rows_left = max(0, min(reply.rows_left, most_left))
                            continue
                        await self._check(offer, reply)
                        parts.append(int64_of(reply.answer.values))
            return b"".join(parts)

        found = await self.adapters.deltas(place, job, answer, timeout_s=DELTA_TIMEOUT_S)
        return {
            "delta_base": found.base_loss,
            "delta_loss": found.adapted_loss,
            "delta_rows": found.rows_used,
            "rows_left": rows_left,
            "delta_leak_percent": leak_of(record, rows=record.leaks.delta_rows - rows_left),
        }
