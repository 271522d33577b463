"""A `NodeApi` with nothing behind it but what a test puts there, for the real HTTP server."""

import base64
import math
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from node.api import SCHEMA, Json
from node.errors import ErrorCode, NodeError
from node.home import ApiFile, Home, new_token, prepare, remove_api_file, write_api_file
from node.http import serve_http
from tests.support.fake_offers import FakeOffers

PEER = "12D3KooWGRUacXdVmGyVVK2vdPZzcnVPhPyyRTeFi9PyqDTMZSnA"
OTHER_PEER = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"
RUN = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
CID = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
MISSING_CID = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@dataclass
class FakeNode(FakeOffers):
    """Answers like a node that trains cluster 3 of 8; a test sets what should differ.

    Attributes:
        requests: what `generate` was asked, in order.
        cancelled: how many streams ended because their listener left.
        route: more fields of the route event.
        loras: what it says of adapters at the route and at the end.
        generate_error: raised before the first event, if set.
        late_error: raised after the first progress event, if set.
        is_endless: `generate` never ends by itself.
        is_silent: nor does it say anything.
        event_size: bytes of filler in each endless event.
        png: the pictures it draws.
        ended: set when a `generate` is over, however.
    """

    requests: list[Mapping[str, object]] = field(default_factory=list)
    cancelled: int = 0
    generate_error: Exception | None = None
    route: Json = field(default_factory=dict)
    loras: list[Json] = field(default_factory=list)
    late_error: Exception | None = None
    is_endless: bool = False
    is_silent: bool = False
    event_size: int = 10
    is_stopped: bool = False
    on_stop: Callable[[], None] = lambda: None
    png: bytes = PNG
    ended: trio.Event = field(default_factory=trio.Event)
    training: Mapping[str, object] | None = field(
        default_factory=lambda: {
            "cluster": 3,
            "step": 1200,
            "samples": 19_200,
            "loss": 0.4375,
            "samples_per_s": 212.5,
            "loss_by_t": [None, 1.75, *[0.5] * 7, 0.25],
            "how": {
                "device": "cpu",
                "precision": "fp32",
                "reason": "fp32 because AMD EPYC has neither avx512_bf16 nor amx_bf16",
                "threads": 1,
                "processes": 1,
                "micro_batch": 32,
            },
        }
    )

    def status(self) -> Json:
        return {
            "schema": SCHEMA,
            "peer_id": PEER,
            "name": "brave-otter-41",
            "version": "0.1.0",
            "run": RUN,
            "run_name": "fashion",
            "listening": [f"/ip4/127.0.0.1/tcp/4101/p2p/{PEER}"],
            "peers": 2,
            "network": {"direct": 2, "relayed": 0, "nat": "unknown"},
            "claims": [{"cluster": 3, "epoch": 1, "expires_in_s": 211.4}],
            "training": self.training,
            "storage": {"bytes": 31_457_280, "quota": 20 * 1024**3},
            "experts_held": [3, 5],
            "uptime_s": 3725.0,
        }

    def peers(self) -> Json:
        peer = {
            "peer_id": OTHER_PEER,
            "name": "calm-heron-07",
            "address": "/ip4/192.168.1.7/tcp/4101",
            "direct": True,
            "outbound": True,
            "rtt_ms": 24.2,
            "version": "0.1.0",
        }
        return {"schema": SCHEMA, "peers": [peer, {**peer, "peer_id": PEER, "rtt_ms": None}]}

    def clusters(self) -> Json:
        mine = {
            "cluster": 3,
            "owner": PEER,
            "owner_name": "brave-otter-41",
            "epoch": 1,
            "expires_in_s": 211.4,
            "samples": 19_200,
            "budget": 32_000,
            "complete": False,
            "mine": True,
        }
        free = {
            "cluster": 5,
            "owner": None,
            "owner_name": None,
            "epoch": 0,
            "expires_in_s": None,
            "samples": 0,
            "budget": 32_000,
            "complete": False,
            "mine": False,
        }
        return {"schema": SCHEMA, "run": RUN, "clusters": [mine, free], "coverage": 0.5, "next": 5}

    async def find_experts(self, cluster: int | None) -> Json:
        expert = {
            "cluster": 3,
            "owner": OTHER_PEER,
            "epoch": 1,
            "step": 1200,
            "samples": 19_200,
            "cid": CID,
            "bytes": 12_582_912,
            "replicas": 2,
            "seen_s": 4.2,
        }
        experts = [expert] if cluster in (None, 3) else []
        return {"schema": SCHEMA, "run": RUN, "clusters": 8, "coverage": 0.125, "experts": experts}

    async def show_expert(self, cid: str) -> Json:
        _known(cid)
        return {
            "schema": SCHEMA,
            "cid": cid,
            "run": RUN,
            "cluster": 3,
            "owner": OTHER_PEER,
            "epoch": 1,
            "step": 1200,
            "samples": 19_200,
            "loss": 0.4375,
            "parent": None,
            "bytes": 12_582_912,
            "files": [{"name": "model.safetensors", "bytes": 12_582_000}],
            "local": False,
            "providers": [OTHER_PEER],
        }

    async def pull_expert(self, cid: str) -> AsyncIterator[Json]:
        _known(cid)
        for done in (4_194_304, 8_388_608, 12_582_912):
            yield {"event": "progress", "bytes": done, "total": 12_582_912, "sources": 2}
        yield {"event": "done", "cid": cid, "path": "/x", "bytes": 12_582_912, "seconds": 1.5}

    async def generate(self, request: Mapping[str, object]) -> AsyncIterator[Json]:
        self.requests.append(request)
        is_whole = False
        try:
            async with aclosing(self._generate(request)) as events:
                async for event in events:
                    yield event
            is_whole = True
        finally:
            self.cancelled += not is_whole
            self.ended.set()

    async def _generate(self, request: Mapping[str, object]) -> AsyncGenerator[Json, None]:
        if self.generate_error is not None:
            raise self.generate_error
        experts = [{"cluster": 3, "cid": CID, "peer": OTHER_PEER, "weight": 0.75}]
        yield {"event": "route", "experts": experts, "loras": self.loras, **self.route}
        steps, count = request["steps"], request["n"]
        assert isinstance(steps, int)
        assert isinstance(count, int)
        for step in range(1, steps + 1):
            yield {"event": "progress", "step": step, "steps": steps}
            if self.late_error is not None:
                raise self.late_error
        while self.is_endless:
            await trio.sleep(math.inf if self.is_silent else 0.01)
            yield {"event": "progress", "step": steps, "steps": steps, "x": "x" * self.event_size}
        for index in range(count):
            yield {
                "event": "image",
                "index": index,
                "png_base64": base64.b64encode(self.png).decode(),
                "receipt": {"seed": 7 + index, "prompt": request["prompt"]},
            }
        yield {
            "event": "done",
            "seed": 7 if request["seed"] is None else request["seed"],
            "strategy": request["strategy"],
            "sampler": request["sampler"],
            "where": "local",
            "experts": experts,
            "loras": self.loras,
            "seconds": 4.125,
        }

    def stop(self) -> None:
        self.is_stopped = True
        self.on_stop()


def _known(cid: str) -> None:
    if cid == MISSING_CID:
        raise NodeError(ErrorCode.NOT_FOUND, f"Nobody has {cid}.", "paris-node experts find")


@contextmanager
def served(node: FakeNode, folder: Path, *, pid: int) -> Iterator[ApiFile]:
    """Serve `node` by the real server on a thread, with the `api.json` of a home at `folder`."""
    home = Home.at(folder)
    prepare(home)
    token = new_token()
    is_ready = threading.Event()
    url = ""
    scope = trio.CancelScope()
    trio_token: trio.lowlevel.TrioToken | None = None

    async def main() -> None:
        nonlocal url, trio_token
        trio_token = trio.lowlevel.current_trio_token()
        node.on_stop = lambda: remove_api_file(home)
        with scope:
            async with trio.open_nursery() as nursery:
                serve = partial(serve_http, node, host="127.0.0.1", port=0, token=token)
                url = await nursery.start(serve)
                is_ready.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    try:
        assert is_ready.wait(10)
        api = ApiFile(url, token, pid)
        write_api_file(home, api)
        yield api
    finally:
        assert trio_token is not None
        trio_token.run_sync_soon(scope.cancel)
        thread.join(10)
        assert not thread.is_alive()
