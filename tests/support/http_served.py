"""A fake node served by the real HTTP server on a port, and raw ways to talk to it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http.client import HTTPResponse
from io import BytesIO
from typing import Any

import trio

from node.http import serve_http
from tests.support.fake_node import FakeNode

TOKEN = "the-token-of-this-test"
ASK = {"prompt": "a red boat"}


class Served:
    """A node served on a port, and the ways to talk to it."""

    def __init__(self, node: FakeNode, url: str, scope: trio.CancelScope) -> None:
        self.node = node
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.scope = scope

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    def head(self, method: str, path: str, **headers: str | None) -> bytes:
        """A request's head; a header given as None is left out."""
        given = {"Host": f"127.0.0.1:{self.port}", "Authorization": f"Bearer {TOKEN}"}
        lines = [f"{method} {path} HTTP/1.1"]
        for name, value in {
            **given,
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }.items():
            if value is not None:
                lines.append(f"{name}: {value}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    async def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str | None
    ) -> tuple[int, Any]:
        """One request on a connection of its own; status and the parsed answer."""
        if body is not None:
            headers["Content-Length"] = str(len(body))
        async with await self.connect() as stream:
            await stream.send_all(self.head(method, path, Connection="close", **headers))
            if body:
                await stream.send_all(body)
            return parse(await read_all(stream))


async def read_all(stream: trio.SocketStream) -> bytes:
    data = b""
    while piece := await stream.receive_some(65536):
        data += piece
    return data


class _Canned:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> BytesIO:
        return BytesIO(self._data)


def parse(raw: bytes) -> tuple[int, Any]:
    response = HTTPResponse(_Canned(raw))  # type: ignore[arg-type]  # all it needs of a socket
    response.begin()
    lines = [json.loads(line) for line in response.read().splitlines()]
    is_stream = response.headers["content-type"] == "application/x-ndjson"
    return response.status, lines if is_stream else lines[0] if lines else None


@asynccontextmanager
async def running(node: FakeNode | None = None) -> AsyncIterator[Served]:
    actual = node or FakeNode()
    async with trio.open_nursery() as nursery:
        serve = partial(serve_http, actual, host="127.0.0.1", port=0, token=TOKEN)
        url = await nursery.start(serve)
        yield Served(actual, url, nursery.cancel_scope)
        nursery.cancel_scope.cancel()
