"""What may be asked of the local API about offers: routes, fields, each limit on both sides."""

import json
from typing import Any

import pytest

from node.cli import lora_market, lora_offers
from node.errors import ErrorCode, NodeError
from node.http import offer_requests
from node.http.limits import MAX_BODY_BYTES
from p2p.ids import blob_id
from p2p.limits import MAX_OFFER_LIFETIME_S
from tests.support.fake_node import OTHER_PEER, PEER, FakeNode
from tests.support.fake_offers import BASE, MISSING_OFFER, OFFER, OWN_OFFER, TERMS
from tests.support.http_served import running
from tests.support.people import person

OFFERS = "/api/v1/offers"
WISH: dict[str, object] = {"lora": "boots", "terms": TERMS}


async def test_unsaid_fields_get_their_defaults() -> None:
    async with running() as served:
        for path, body in ((OFFERS, WISH), (f"{OFFERS}/{OFFER}/verify", {})):
            assert (await served.ask("POST", path, json.dumps(body).encode()))[0] == 200
        assert (await served.ask("POST", f"{OFFERS}/{OFFER}/buy", b"{}"))[0] == 200
        assert served.node.offer_asked == [
            ("make", "", {"lora": "boots", "terms": TERMS, "scalars": 32, "delta_rows": 0,
                          "days": 30, "buyers": []}),
            ("verify", OFFER, {"base": None, "probe": None, "pairs": 1, "delta_draws": 0}),
            ("buy", OFFER, {"base": None}),
        ]  # fmt: skip


PEOPLE = [person(n).peer for n in range(65)]


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("lora", "x" * 255, "x" * 256),
        ("lora", "x", ""),
        ("lora", "x", 7),
        ("lora", "x", None),
        ("terms", "x" * 500, "x" * 501),
        ("terms", "é" * 500, "é" * 501),
        ("terms", "x", "  "),
        ("terms", "x", "x\ny"),
        ("terms", "x", "x\x1b[31m"),
        ("terms", "x", "\ud800"),
        ("terms", "x", None),
        ("terms", "x", ["x"]),
        ("scalars", 16, 15),
        ("scalars", 32, 33),
        ("scalars", 20, 20.0),
        ("scalars", 20, True),
        ("delta_rows", 0, -1),
        ("delta_rows", 65_536, 65_537),
        ("delta_rows", 1, "1"),
        ("days", 0.01, 0.009),
        ("days", 90, 90.1),
        ("days", 1.5, "1"),
        ("days", 1, True),
        ("buyers", [], {}),
        ("buyers", [PEER], PEER),
        ("buyers", [PEER, OTHER_PEER], [PEER, PEER]),
        ("buyers", [PEER], [PEER[:-1]]),
        ("buyers", [PEER], [7]),
        ("buyers", [PEER], [[PEER]]),
        ("buyers", PEOPLE[:64], PEOPLE),
    ],
)
async def test_field_of_an_offer_is_taken_up_to_its_limit_and_refused_beyond(
    field: str, good: object, bad: object
) -> None:
    await _both_sides(OFFERS, WISH, field, (good, bad))


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("base", BASE, BASE[:-1]),
        ("base", None, BASE.upper()),
        ("base", BASE, 7),
        ("probe", "/tmp/my probe", "tmp/probe"),
        ("probe", "/x", "~/probe"),
        ("probe", "/x", ""),
        ("probe", "/x", "/x\0y"),
        ("probe", "/x", "/\ud800"),
        ("probe", "/x", ["/x"]),
        ("probe", "/" + "x" * 4095, "/" + "x" * 4096),
        ("pairs", 1, 0),
        ("pairs", 4, 5),
        ("pairs", 2, 2.0),
        ("pairs", 2, True),
        ("delta_draws", 0, -1),
        ("delta_draws", 64, 65),
        ("delta_draws", 1, "1"),
    ],
)
async def test_field_of_a_look_is_taken_up_to_its_limit_and_refused_beyond(
    field: str, good: object, bad: object
) -> None:
    await _both_sides(f"{OFFERS}/{OFFER}/verify", {}, field, (good, bad))


@pytest.mark.parametrize("bad", [BASE[:-1], 7, ["x"]])
async def test_base_of_a_purchase_is_a_cid(bad: object) -> None:
    await _both_sides(f"{OFFERS}/{OFFER}/buy", {}, "base", (BASE, bad))


async def _both_sides(
    path: str, usual: dict[str, object], field: str, sides: tuple[object, object]
) -> None:
    async with running() as served:
        good, bad = ({**usual, field: side} for side in sides)
        assert (await served.ask("POST", path, json.dumps(good).encode()))[0] == 200
        said = served.node.offer_asked[0][2]
        assert said[field] == good[field]
        status, answer = await served.ask("POST", path, json.dumps(bad).encode())
        assert (status, answer["error"]["code"]) == (400, "usage")
        assert field in answer["error"]["message"]
        assert len(served.node.offer_asked) == 1


@pytest.mark.parametrize("what", ["", f"/{OFFER}/verify", f"/{OFFER}/buy"])
@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"price": 1}', b'{"days": NaN}'])
async def test_body_that_is_no_request_is_400(what: str, body: bytes) -> None:
    async with running() as served:
        status, answer = await served.ask("POST", OFFERS + what, body)
        assert (status, answer["error"]["code"]) == (400, "usage")
        assert not served.node.offer_asked


@pytest.mark.parametrize("what", ["", f"/{OFFER}/verify", f"/{OFFER}/buy", f"/{OFFER}/withdraw"])
async def test_body_beyond_the_limit_is_not_read(what: str) -> None:
    async with running() as served:
        body = json.dumps(WISH).encode().ljust(MAX_BODY_BYTES + 1)
        assert (await served.ask("POST", OFFERS + what, body))[0] == 413
        assert not served.node.offer_asked


@pytest.mark.parametrize("what", ["", "/verify", "/buy", "/withdraw"])
@pytest.mark.parametrize("cid", ["nothing", OFFER.upper(), "..%2f" + OFFER, PEER])
async def test_what_is_no_cid_is_nobodys_offer(what: str, cid: str) -> None:
    async with running() as served:
        method = "POST" if what else "GET"
        status, answer = await served.ask(method, f"{OFFERS}/{cid}{what}", b"{}")
        assert status in (400, 404)
        if status == 400:
            assert "lora list" in answer["error"]["fix"]
        assert not served.node.offer_asked


async def test_offers_are_told_and_shown_and_withdrawn() -> None:
    async with running() as served:
        status, known = await served.ask("GET", OFFERS)
        assert (status, known["schema"]) == (200, 1)
        assert [row["offer"] for row in known["offers"]] == [OFFER]
        assert [row["offer"] for row in known["own"]] == [OWN_OFFER]
        status, shown = await served.ask("GET", f"{OFFERS}/{OFFER}")
        assert (status, shown["statement"][:6]) == (200, "proved")
        withdraw = f"{OFFERS}/{OWN_OFFER}/withdraw"
        assert await served.ask("POST", withdraw) == (
            200,
            {"schema": 1, "offer": OWN_OFFER, "withdrawn": True},
        )
        for path in (f"{OFFERS}/{MISSING_OFFER}", f"{OFFERS}/{blob_id(b'none')}"):
            status, answer = await served.ask("GET", path)
            assert (status, answer["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("what", ["", f"/{OFFER}/verify", f"/{OFFER}/buy"])
async def test_work_on_an_offer_is_streamed_to_its_end_or_its_failure(what: str) -> None:
    late = NodeError(ErrorCode.VERIFICATION_FAILED, "not proved", "do not buy")
    for node, last in ((FakeNode(), "done"), (FakeNode(late_offer_error=late), "error")):
        async with running(node) as served:
            body = json.dumps({} if what else WISH).encode()
            status, events = await served.ask("POST", OFFERS + what, body)
            assert status == 200
            assert events[0]["event"] == "progress"
            assert events[-1]["event"] == last
    error: dict[str, Any] = events[-1]["error"]
    assert error == {"code": "verification_failed", "message": "not proved", "fix": "do not buy"}


async def test_refusal_before_the_first_event_has_its_status() -> None:
    node = FakeNode(offer_error=NodeError(ErrorCode.REFUSED, "on another base", ""))
    async with running(node) as served:
        assert (await served.ask("POST", f"{OFFERS}/{OFFER}/verify", b"{}"))[0] == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", OFFERS), ("POST", f"{OFFERS}/{OFFER}"), ("GET", f"{OFFERS}/{OFFER}/buy"),
     ("GET", f"{OFFERS}/{OFFER}/withdraw"), ("GET", f"{OFFERS}/{OFFER}/verify")],
)  # fmt: skip
async def test_wrong_method_is_405_and_does_nothing(method: str, path: str) -> None:
    async with running() as served:
        assert (await served.ask(method, path))[0] == 405
        assert not served.node.offer_asked


async def test_without_the_token_nothing_is_offered_told_or_bought() -> None:
    async with running() as served:
        for method, path in (
            ("GET", OFFERS),
            ("POST", OFFERS),
            ("GET", f"{OFFERS}/{OFFER}"),
            *(("POST", f"{OFFERS}/{OFFER}/{verb}") for verb in ("verify", "buy", "withdraw")),
        ):
            status, _ = await served.ask(method, path, b"{}", Authorization=None)
            assert status == 401
        assert not served.node.offer_asked


def test_the_command_lines_limits_are_the_apis() -> None:
    options = {
        option.name: option for option in (*lora_offers.offer.params, *lora_market.verify.params)
    }

    def bounds(name: str) -> tuple[Any, Any]:
        kind: Any = options[name].type
        return kind.min, kind.max

    assert bounds("days") == (offer_requests.LEAST_DAYS, offer_requests.MOST_DAYS)
    assert offer_requests.MOST_DAYS * 86_400 == MAX_OFFER_LIFETIME_S
    assert bounds("scalars") == (16, 32)
    assert bounds("delta_rows") == (0, 65_536)
    assert bounds("pairs") == (1, 4)
    assert bounds("draws") == (1, offer_requests.MAX_DELTA_DRAWS)
