"""Drawing as the API offers it: here, at a peer, or wherever it can be done; told as events."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import trio

from node.api import Json
from node.asking import Asking, PeerPicture
from node.context import NodeContext
from node.drawing import Drawing, DrawOrder, Materials, image_of, shares_of, to_base64
from node.errors import NodeError
from node.lora_choice import ChosenLora, choose_loras
from node.orders import GenerateOrder
from node.workers.link import Message
from p2p.codec import Verified
from p2p.errors import P2PError
from p2p.ids import ClusterId, PeerId, blob_id
from p2p.records import ImageReceipt


@dataclass(slots=True)
class Artist:
    """Turns orders into events; see `node.api.NodeApi.generate`."""

    context: NodeContext
    drawing: Drawing
    asking: Asking

    async def generate(self, order: GenerateOrder) -> AsyncGenerator[Json]:
        """Draw an order.

        Raises:
            NodeError: whatever the person should read.
        """
        loras = await self._loras(order)
        is_local = order.where == "local" or bool(loras)
        if order.where == "auto" and not is_local:
            is_local = await self._can_draw()
        events = (
            self._here(order.draw, loras) if is_local else self._at_peer(order.draw, order.peer)
        )
        async with aclosing(events):
            async for event in events:
                yield event

    async def _loras(self, order: GenerateOrder) -> tuple[ChosenLora, ...]:
        """The adapters to draw with; they never leave this machine, so a peer gets none."""
        if order.where == "peer":
            return ()
        return await trio.to_thread.run_sync(choose_loras, self.context.config.paths, order.loras)

    async def _can_draw(self) -> bool:
        """Whether to draw here: there is an expert, or nobody else to turn to."""
        if not self.asking.candidates(None):
            return True
        try:
            await self.drawing.materials()
        except (NodeError, P2PError):
            return False
        return True

    async def _here(self, order: DrawOrder, loras: Sequence[ChosenLora]) -> AsyncGenerator[Json]:
        started = time.monotonic()
        materials = await self.drawing.materials(loras)
        shares: dict[int, float] = {}
        async with aclosing(self.drawing.draw(order, materials)) as news:
            async for message in news:
                match message["kind"]:
                    case "route":
                        yield self._route(materials, message)
                    case "progress":
                        yield {
                            "event": "progress",
                            "step": message["step"],
                            "steps": message["steps"],
                        }
                    case _:
                        for cluster, share in shares_of(message).items():
                            shares[cluster] = shares.get(cluster, 0.0) + share / order.n
                        yield self._picture(order, materials, message)
        done = self._done(order, "local", self._rows(materials, shares), started)
        yield {**done, "loras": _lora_rows(materials)}

    def _route(self, materials: Materials, message: Message) -> Json:
        """Who will draw, what fell on experts that are missing, and who stands in near noise."""
        return {
            "event": "route",
            "experts": self._rows(materials, shares_of(message)),
            "missing": list(materials.missing),
            "dropped": _rounded(shares_of(message, "missing")),
            "starters": _rounded(shares_of(message, "starters")),
            "unaided": message["unaided"],
            "unguided": message["unguided"],
            "loras": _lora_rows(materials),
        }

    def _rows(self, materials: Materials, shares: dict[int, float]) -> list[Json]:
        return [
            {
                "cluster": cluster,
                "cid": expert.cid,
                "owner": expert.owner,
                "peer": self.context.identity.peer,
                "weight": round(shares.get(cluster, 0.0), 6),
            }
            for cluster, expert in materials.experts.items()
        ]

    def _picture(self, order: DrawOrder, materials: Materials, message: Message) -> Json:
        number, png = int(str(message["index"])), image_of(message)
        return {
            "event": "image",
            "index": number,
            "png_base64": to_base64(png),
            "receipt": {
                "run": self.context.run,
                "image": blob_id(png),
                "seed": order.seed + number,
                "strategy": order.routing.label(),
                "sampler": order.sampler,
                "steps": order.steps,
                "guidance": order.guidance,
                "computed_by": self.context.identity.peer,
                "experts": [
                    [cluster, materials.experts[ClusterId(cluster)].cid, share]
                    for cluster, share in shares_of(message).items()
                ],
                "loras": _lora_rows(materials),
            },
        }

    def _done(self, order: DrawOrder, where: str, experts: list[Json], started: float) -> Json:
        return {
            "event": "done",
            "seed": order.seed,
            "strategy": order.routing.label(),
            "sampler": order.sampler,
            "where": where,
            "experts": experts,
            "seconds": round(time.monotonic() - started, 3),
        }

    async def _at_peer(self, order: DrawOrder, wanted: PeerId | None) -> AsyncGenerator[Json]:
        started = time.monotonic()
        experts: list[Json] = []
        async with aclosing(self.asking.draw(order, wanted)) as answers:
            async for answer in answers:
                if isinstance(answer, PeerPicture):
                    experts = _peer_rows(answer.receipt)
                    yield {
                        "event": "image",
                        "index": answer.index,
                        "png_base64": to_base64(answer.png),
                        "receipt": _receipt_json(answer.receipt),
                    }
                else:
                    yield {"event": "progress", "step": answer.step, "steps": answer.steps}
        yield {**self._done(order, "peer", experts, started), "loras": []}


def _lora_rows(materials: Materials) -> list[Json]:
    return [lora.to_json() for lora in materials.loras]


def _rounded(shares: dict[int, float]) -> Json:
    """As JSON keeps them: cluster -> share."""
    return {str(cluster): round(share, 6) for cluster, share in shares.items()}


def _peer_rows(receipt: Verified[ImageReceipt]) -> list[Json]:
    return [
        {"cluster": cluster, "cid": cid, "peer": receipt.owner, "weight": round(weight, 6)}
        for cluster, cid, weight in receipt.record.experts
    ]


def _receipt_json(receipt: Verified[ImageReceipt]) -> Json:
    record = receipt.record
    return {
        "run": record.run,
        "image": record.image,
        "seed": record.seed,
        "strategy": record.strategy,
        "sampler": record.sampler,
        "steps": record.steps,
        "guidance": record.guidance,
        "computed_by": receipt.owner,
        "experts": [list(item) for item in record.experts],
        "seconds": record.seconds,
        "envelope": receipt.envelope.hex(),
    }
