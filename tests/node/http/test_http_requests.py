"""What may be asked of the local API: fields, sizes, each limit on both sides."""

import json

import pytest

from node.http.limits import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
)
from tests.support.fake_node import CID, MISSING_CID, OTHER_PEER, PEER
from tests.support.http_served import ASK, parse, read_all, running


async def test_unsaid_fields_get_their_defaults() -> None:
    async with running() as served:
        assert (await served.ask("POST", "/api/v1/generate", json.dumps(ASK).encode()))[0] == 200
        assert served.node.requests == [
            {"prompt": "a red boat", "n": 1, "seed": None, "strategy": "sticky", "top_k": 2,
             "threshold": 0.1, "router": None, "sampler": "ab2", "steps": 10, "guidance": 4.0,
             "autoguidance": 0.0,
             "where": "auto", "peer": None, "loras": None}
        ]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b"{}", b'{"prompt": NaN}', b"[" * 100_000,
     b'{"prompt": "x", "guidance": Infinity}'],
)  # fmt: skip
async def test_body_that_is_no_request_is_400(body: bytes) -> None:
    async with running() as served:
        status, answer = await served.ask("POST", "/api/v1/generate", body)
        assert (status, answer["error"]["code"]) == (400, "usage")
        assert not served.node.requests


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("prompt", "x" * 1024, "x" * 1025),
        ("prompt", "é" * 512, "é" * 513),
        ("prompt", "x", "  "),
        ("prompt", "x", "\ud800"),
        ("prompt", "x", ["x"]),
        ("n", 1, 0),
        ("n", 16, 17),
        ("n", 2, True),
        ("n", 2, 2.0),
        ("seed", 0, -1),
        ("seed", 2**63 - 1, 2**63),
        ("strategy", "top2", "top3"),
        ("strategy", "threshold", "random"),
        ("top_k", 1, 0),
        ("top_k", 1024, 1025),
        ("top_k", 3, 3.0),
        ("threshold", 0, -0.1),
        ("threshold", 1, 1.1),
        ("threshold", 0.5, "0.5"),
        ("router", "caption", "best"),
        ("sampler", "heun", "heun2"),
        ("sampler", "ab2", ["ab2"]),
        ("steps", 1, 0),
        ("steps", 100, 101),
        ("guidance", 0, -0.1),
        ("guidance", 30.0, 30.1),
        ("guidance", 1, "1"),
        ("guidance", 2.5, True),
        ("autoguidance", 0, -0.1),
        ("autoguidance", 5.0, 5.1),
        ("where", "local", "cloud"),
        ("peer", PEER, PEER[:-1]),
        ("peer", None, "x" * 5000),
        ("where", "auto", 7),
        ("loras", [], {}),
        ("loras", [{"id": "x"}], "x"),
        ("loras", [{"id": "x", "scale": 16}], [{"id": "x", "scale": 16.1}]),
        ("loras", [{"id": "x", "scale": -16.0}], [{"id": "x", "scale": -16.1}]),
        ("loras", [{"id": "x", "scale": 0}], [{"id": "x", "scale": None}]),
        ("loras", [{"id": "x", "scale": 1}], [{"id": "x", "scale": True}]),
        ("loras", [{"id": "x" * 255}], [{"id": "x" * 256}]),
        ("loras", [{"id": "x"}], [{"id": ""}]),
        ("loras", [{"id": "x"}], [{"id": 7}]),
        ("loras", [{"id": "x"}], [{"scale": 1}]),
        ("loras", [{"id": "x"}], [{"id": "x", "cluster": 1}]),
        ("loras", [{"id": "x"}, {"id": "y"}], [{"id": "x"}, {"id": "x", "scale": 2}]),
        ("loras", [{"id": f"{n}"} for n in range(1024)], [{"id": f"{n}"} for n in range(1025)]),
        ("loras", [{"id": "x"}], ["x"]),
    ],
)
async def test_field_is_taken_up_to_its_limit_and_refused_beyond(
    field: str, good: object, bad: object
) -> None:
    async with running() as served:
        body = json.dumps({**ASK, field: good}).encode()
        assert (await served.ask("POST", "/api/v1/generate", body))[0] == 200
        body = json.dumps({**ASK, field: bad}).encode()
        status, answer = await served.ask("POST", "/api/v1/generate", body)
        assert (status, answer["error"]["code"]) == (400, "usage")
        assert field in answer["error"]["message"]
        assert len(served.node.requests) == 1


@pytest.mark.parametrize(
    ("said", "strategy"),
    [
        ({"top_k": 3}, "topk"),
        ({"threshold": 0.3}, "threshold"),
        ({"top_k": 3, "strategy": "topk"}, "topk"),
    ],
)
async def test_a_number_of_one_strategy_implies_it(said: dict[str, object], strategy: str) -> None:
    async with running() as served:
        body = json.dumps({**ASK, **said}).encode()
        assert (await served.ask("POST", "/api/v1/generate", body))[0] == 200
        assert served.node.requests[0]["strategy"] == strategy


@pytest.mark.parametrize(
    "said",
    [
        {"top_k": 3, "strategy": "all"},
        {"threshold": 0.3, "strategy": "sticky"},
        {"top_k": 3, "threshold": 0.3},
        {"router": "gauss"},
        {"router": "learned", "strategy": "sticky"},
    ],
)
async def test_a_number_or_router_that_its_strategy_does_not_take_is_refused(
    said: dict[str, object],
) -> None:
    async with running() as served:
        body = json.dumps({**ASK, **said}).encode()
        status, answer = await served.ask("POST", "/api/v1/generate", body)
        assert (status, answer["error"]["code"]) == (400, "usage")
        assert "strategy" in answer["error"]["fix"]
        assert not served.node.requests


@pytest.mark.parametrize("where", ["auto", "local", None])
async def test_whoever_asks_for_a_lora_means_to_draw_here(where: str | None) -> None:
    async with running() as served:
        asked = {**ASK, "where": where, "loras": [{"id": "x"}], "n": 17}
        body = json.dumps(asked).encode()
        assert (await served.ask("POST", "/api/v1/generate", body))[0] == 200
        assert served.node.requests[0]["where"] == "local"


@pytest.mark.parametrize("said", [{"where": "peer"}, {"peer": OTHER_PEER}])
async def test_no_peer_can_be_asked_to_draw_with_a_lora(said: dict[str, object]) -> None:
    async with running() as served:
        for loras, status in ((None, 200), ([], 200), ([{"id": "x"}], 400)):
            body = json.dumps({**ASK, **said, "loras": loras}).encode()
            got, answer = await served.ask("POST", "/api/v1/generate", body)
            assert got == status
        assert "never leaves this machine" in answer["error"]["message"]
        assert len(served.node.requests) == 2


@pytest.mark.parametrize("extra", [{"size": 1}, {"peer": OTHER_PEER, "where": "local"}])
async def test_unknown_or_contradicting_fields_are_refused(extra: dict[str, object]) -> None:
    async with running() as served:
        body = json.dumps({**ASK, **extra}).encode()
        assert (await served.ask("POST", "/api/v1/generate", body))[0] == 400


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"experts/{CID}", 200),
        (f"experts/{MISSING_CID}", 404),
        ("experts/nothing", 400),
        ("experts/..%2f..%2fetc", 404),
        (f"experts/{CID.upper()}", 400),
        ("experts?cluster=3", 200),
        ("experts?cluster=1023", 200),
        ("experts?cluster=1024", 400),
        ("experts?cluster=-1", 400),
        ("experts?cluster=" + "9" * 5000, 400),
        ("experts?cluster=%D9%A3", 400),
        ("experts?cluster=", 400),
    ],
)
async def test_path_and_query_are_checked(path: str, status: int) -> None:
    async with running() as served:
        assert (await served.ask("GET", f"/api/v1/{path}"))[0] == status


async def test_cluster_narrows_the_search() -> None:
    async with running() as served:
        assert len((await served.ask("GET", "/api/v1/experts?cluster=3"))[1]["experts"]) == 1
        assert not (await served.ask("GET", "/api/v1/experts?cluster=4"))[1]["experts"]


async def test_body_of_the_largest_size_is_read_and_one_byte_more_is_not() -> None:
    body = json.dumps(ASK).encode()
    async with running() as served:
        largest = body.ljust(MAX_BODY_BYTES)
        assert (await served.ask("POST", "/api/v1/generate", largest))[0] == 200
        status, answer = await served.ask("POST", "/api/v1/generate", largest + b" ")
        assert (status, answer["error"]["code"]) == (413, "usage")


@pytest.mark.parametrize(("size", "status"), [(MAX_BODY_BYTES, 200), (MAX_BODY_BYTES + 1, 413)])
async def test_body_of_unannounced_size_is_counted(size: int, status: int) -> None:
    body = json.dumps(ASK).encode().ljust(size)
    async with running() as served, await served.connect() as stream:
        head = served.head(
            "POST", "/api/v1/generate", Transfer_Encoding="chunked", Connection="close"
        )
        await stream.send_all(head + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
        assert parse(await read_all(stream))[0] == status


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 400, "0x10"])
async def test_length_that_is_no_number_is_refused(length: str) -> None:
    async with running() as served, await served.connect() as stream:
        await stream.send_all(served.head("POST", "/api/v1/generate", Content_Length=length))
        status = (await read_all(stream)).split(b" ", 2)[1]
        assert status in (b"400", b"413")
        assert not served.node.requests


@pytest.mark.parametrize(
    ("size", "is_answered"), [(MAX_HEADER_BYTES - 400, True), (MAX_HEADER_BYTES + 100, False)]
)
async def test_headers_are_bounded(size: int, is_answered: bool) -> None:
    async with running() as served, await served.connect() as stream:
        head = served.head("GET", "/api/v1/status", Connection="close", X_Filler="x" * size)
        await stream.send_all(head)
        status = (await read_all(stream)).split(b" ", 2)[1]
        assert status == (b"200" if is_answered else b"431")
