"""What the API tells of a drawing here: the route, every picture, and who drew in the end."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio.lowlevel

from node.artist import Artist
from node.asking import Asking
from node.drawing import DrawOrder, Materials
from node.orders import GenerateOrder
from node.workers.link import Message
from p2p.ids import ClusterId
from p2p.routing import Routing
from tests.support.people import advert, advertised, alice
from tests.support.swarm import World, open_nodes, world

__all__ = ["world"]

PNG = b"\x89PNG\r\n\x1a\n and so on"
ONE, TWO = ClusterId(1), ClusterId(2)


@dataclass
class Drawing:
    """Stands in for `node.drawing.Drawing`: the worker's messages for two chunks of pictures."""

    async def materials(self) -> Materials:
        await trio.lowlevel.checkpoint()
        experts = {k: (Path("expert"), advertised(advert(k), alice)) for k in (ONE, TWO)}
        return Materials(Path("shared"), experts, {}, (ClusterId(0),))

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
