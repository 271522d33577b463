"""What the API tells of a drawing here: the route, every picture, and who drew in the end."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio.lowlevel

from node.artist import Artist
from node.asking import Asking
from node.drawing import DrawOrder, ExpertHere, Materials
from node.errors import ErrorCode, NodeError
from node.lora_choice import ChosenLora, LoraWish
from node.lora_shelf import find_on_shelf
from node.lora_use import use
from node.orders import GenerateOrder, order_of
from node.workers.link import Message
from p2p.ids import ClusterId, PeerId
from p2p.routing import Routing
from tests.support.people import alice, bob, cid
from tests.support.shelf import BASE, id_of, put_on_shelf
from tests.support.swarm import MemberNode, World, open_nodes, world

__all__ = ["world"]

PNG = b"\x89PNG\r\n\x1a\n and so on"
ONE, TWO = ClusterId(1), ClusterId(2)


@dataclass
class Drawing:
    """Stands in for `node.drawing.Drawing`: the worker's messages for two chunks of pictures."""

    asked: list[tuple[ChosenLora, ...]] = field(default_factory=list)

    async def materials(self, loras: Sequence[ChosenLora] = ()) -> Materials:
        await trio.lowlevel.checkpoint()
        self.asked.append(tuple(loras))
        experts = {
            k: ExpertHere(Path("expert"), cid(f"expert {k}"), alice.peer) for k in (ONE, TWO)
        }
        return Materials(Path("shared"), experts, {}, (ClusterId(0),), tuple(loras))

    async def draw(self, order: DrawOrder, materials: Materials) -> AsyncGenerator[Message]:
        del order, materials
        await trio.lowlevel.checkpoint()
        yield {
            "kind": "route",
            "shares": {"1": 0.75, "2": 0.25},
            "missing": {"0": 0.5},
            "starters": {"2": 1.0},
            "unaided": [1],
            "unguided": [2],
        }
        for index, cluster in enumerate(("1", "1", "1", "2")):
            yield {"kind": "image", "index": index, "png": PNG, "shares": {cluster: 1.0}}


async def test_route_and_end_tell_who_drew_and_what_was_missing(
    world: World, autojump_clock: object
) -> None:
    order = DrawOrder("a boat", 4, 7, Routing("topk", top_k=3, router="gauss"), "heun", 5, 4.0)
    async with open_nodes(world, ("ada",)) as (ada,):
        artist = Artist(ada.context, Drawing(), Asking(ada.context))  # type: ignore[arg-type]
        events: list[Any] = []
        async with aclosing(artist.generate(GenerateOrder(order, "local", None))) as told:
            events += [event async for event in told]
    route, *images, done = events
    assert [(row["cluster"], row["weight"]) for row in route["experts"]] == [(1, 0.75), (2, 0.25)]
    assert (route["missing"], route["dropped"]) == ([0], {"0": 0.5})
    assert (route["starters"], route["unaided"]) == ({"2": 1.0}, [1])
    assert route["unguided"] == [2]
    receipts = [image["receipt"] for image in images]
    assert [receipt["seed"] for receipt in receipts] == [7, 8, 9, 10]
    assert {(r["strategy"], r["sampler"]) for r in receipts} == {("top3@gauss", "heun")}
    drew = {row["cluster"]: row["weight"] for row in done["experts"]}
    assert drew == pytest.approx({1: 0.75, 2: 0.25})  # of all four pictures, not of the last
    assert done["strategy"] == "top3@gauss"


ORDER = DrawOrder("a boat", 4, 7, Routing(), "ab2", 5, 4.0)


@dataclass
class NoPeers(Asking):
    """Knows a peer that serves, and must not be asked."""

    def candidates(self, wanted: PeerId | None) -> tuple[PeerId, ...]:
        return (bob.peer,)

    async def draw(self, order: DrawOrder, wanted: PeerId | None) -> AsyncGenerator[Any]:
        await trio.lowlevel.checkpoint()
        if order.n:
            raise NodeError(ErrorCode.NO_PEERS, "a peer was asked")
        yield


async def told_by(node: MemberNode, order: GenerateOrder) -> tuple[list[Any], Drawing]:
    drawing = Drawing()
    artist = Artist(node.context, drawing, NoPeers(node.context))  # type: ignore[arg-type]
    async with aclosing(artist.generate(order)) as told:
        return [event async for event in told], drawing


def put_to_use(node: MemberNode, name: str, *, cluster: int = 1, offer: str = "") -> None:
    home = node.context.config.paths
    put_on_shelf(home, name, base={"cluster": cluster}, offer=offer)
    use(home, find_on_shelf(home, name), 0.5)


@pytest.mark.parametrize("where", ["auto", "local"])
async def test_adapters_in_use_are_drawn_with_here_and_named_everywhere(
    world: World, autojump_clock: object, where: str
) -> None:
    async with open_nodes(world, ("ada",)) as (ada,):
        put_to_use(ada, "dark", offer=cid("offer"))
        events, drawing = await told_by(ada, GenerateOrder(ORDER, where, None))
    assert [[lora.scale for lora in loras] for loras in drawing.asked] == [[0.5]]
    route, *images, done = events
    row = {"id": id_of("dark"), "cluster": 1, "base": BASE, "scale": 0.5, "offer": cid("offer")}
    assert route["loras"] == done["loras"] == [row]
    assert done["where"] == "local"
    for image, cluster in zip(images, (1, 1, 1, 2), strict=True):
        assert image["receipt"]["loras"] == [row]
        assert image["receipt"]["experts"] == [[cluster, cid(f"expert {cluster}"), 1.0]]


async def test_adapters_asked_for_are_drawn_with_instead_of_those_in_use(
    world: World, autojump_clock: object
) -> None:
    async with open_nodes(world, ("ada",)) as (ada,):
        put_to_use(ada, "dark")
        put_on_shelf(ada.context.config.paths, "wide", base={"cluster": 2})
        wishes = (LoraWish("wide", 2.0),)
        events, _ = await told_by(ada, GenerateOrder(ORDER, "local", None, wishes))
        assert events[-1]["loras"] == [
            {"id": id_of("wide"), "cluster": 2, "base": BASE, "scale": 2.0}
        ]
        events, drawing = await told_by(ada, GenerateOrder(ORDER, "local", None, ()))
    assert events[-1]["loras"] == events[0]["loras"] == events[1]["receipt"]["loras"] == []
    assert drawing.asked == [()]


async def test_peer_that_is_asked_to_draw_is_told_of_no_adapter(
    world: World, autojump_clock: object
) -> None:
    async with open_nodes(world, ("ada",)) as (ada,):
        put_to_use(ada, "dark")
        with pytest.raises(NodeError, match="a peer was asked"):
            await told_by(ada, GenerateOrder(ORDER, "peer", None))


async def test_adapter_that_cannot_be_found_is_an_error_before_anything_is_drawn(
    world: World, autojump_clock: object
) -> None:
    async with open_nodes(world, ("ada",)) as (ada,):
        with pytest.raises(NodeError, match="There is no LoRA 'dark'"):
            await told_by(ada, GenerateOrder(ORDER, "auto", None, (LoraWish("dark"),)))


@pytest.mark.parametrize(
    ("said", "wishes"),
    [
        (None, None),
        ([], ()),
        ([{"id": "x"}, {"id": "y", "scale": 2}], (LoraWish("x", 1.0), LoraWish("y", 2.0))),
    ],
)
def test_order_has_the_adapters_of_its_request(said: object, wishes: object) -> None:
    request = {
        "prompt": "a bag", "n": 1, "seed": 3, "strategy": "all", "top_k": 2, "threshold": 0.1,
        "router": None, "sampler": "ab2", "steps": 5, "guidance": 4.0, "autoguidance": 0.0,
        "where": "local", "peer": None, "loras": said,
    }  # fmt: skip
    assert order_of(request).loras == wishes
