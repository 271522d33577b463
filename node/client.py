"""How the command line talks to the running node: its HTTP API, on loopback, with the home's token.

Synchronous and made of the standard library, so that `paris-node status` starts in no time.
"""

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from node.api import Json
from node.errors import ErrorCode, NodeError
from node.home import ApiFile, Home, read_api_file

DEFAULT_TIMEOUT_S: Final = 30.0
"""For an answer in one piece; the DHT's own deadline is 10 s."""
SILENCE_TIMEOUT_S: Final = 180.0
"""Between two events of a stream: one denoising step of a slow machine, with room."""
MAX_LINE_BYTES: Final = 32 * 1024 * 1024
"""A picture of `p2p.limits.MAX_IMAGE_REPLY_SIZE` in base64, with room."""
_HOSTS: Final = ("127.0.0.1", "::1")


class NodeClient:
    """One running node's API.

    Args:
        api: where it listens.
        timeout_s: the person's deadline for the whole command; None takes the defaults above.
    """

    def __init__(self, api: ApiFile, *, timeout_s: float | None = None) -> None:
        self._api = api
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._timeout_s = timeout_s

    @classmethod
    def of_home(cls, home: Home, *, timeout_s: float | None = None) -> "NodeClient":
        """The client of the node that runs on `home`.

        Raises:
            NodeError: `NOT_RUNNING` if none does; `FAILED` if `api.json` is not one of ours.
        """
        api = read_api_file(home)
        if api is None:
            raise not_running(home)
        return cls(api, timeout_s=timeout_s)

    @property
    def pid(self) -> int:
        """The node's process."""
        return self._api.pid

    def get(self, path: str) -> Json:
        """The answer of GET `path`.

        Raises:
            NodeError: whatever the node answers; `NOT_RUNNING`; `TIMEOUT`.
        """
        with self._answer("GET", path, None, DEFAULT_TIMEOUT_S) as lines:
            return _only(lines)

    def post(self, path: str, body: Mapping[str, object] | None = None) -> Json:
        """The answer of POST `path`; failures as for `get`."""
        with self._answer("POST", path, body, DEFAULT_TIMEOUT_S) as lines:
            return _only(lines)

    @contextmanager
    def stream(
        self,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        silence_s: float = SILENCE_TIMEOUT_S,
    ) -> Iterator[Iterator[Json]]:
        """The events of POST `path`, as they come; leaving early cancels the work in the node.

        Args:
            path: of the route.
            body: sent as JSON.
            silence_s: how long to wait for the next event, unless the person set a deadline.

        Raises:
            NodeError: also from the iterator, when the node reports a failure midway.
        """
        with self._answer("POST", path, body, silence_s) as lines:
            yield _events(lines)

    @contextmanager
    def _answer(
        self, method: str, path: str, body: Mapping[str, object] | None, silence_s: float
    ) -> Iterator[Iterator[Json]]:
        host, port = self._address()
        connection = http.client.HTTPConnection(host, port)
        try:
            with self._translated(silence_s):
                connection.timeout = self._patience(silence_s)
                connection.connect()
                wire = connection.sock
                headers = {"Authorization": f"Bearer {self._api.token}"}
                data = None if body is None else json.dumps(body).encode()
                connection.request(method, path, data, headers)
                response = connection.getresponse()
            lines = self._lines(response, wire, silence_s)
            if response.status >= 400:
                raise _failure(response.status, lines)
            yield lines
        finally:
            connection.close()

    def _address(self) -> tuple[str, int]:
        try:
            address = urlsplit(self._api.url)
            host, port = address.hostname, address.port
        except ValueError:
            host, port = None, None
        if host in _HOSTS and port and self._api.url.startswith("http://"):
            return host, port
        raise NodeError(  # the token must not travel to another machine
            ErrorCode.FAILED,
            f"The running node's address {self._api.url!r:.100} is not on this machine.",
            "remove api.json from the home, then: paris-node start",
        )

    @contextmanager
    def _translated(self, silence_s: float) -> Iterator[None]:
        try:
            yield
        except ConnectionRefusedError as error:
            raise NodeError(
                ErrorCode.NOT_RUNNING,
                f"No node answers at {self._api.url}.",
                "start it with: paris-node start",
            ) from error
        except TimeoutError as error:
            raise self._timed_out(silence_s) from error
        except (http.client.HTTPException, ConnectionError) as error:
            raise _broken_off() from error

    def _lines(
        self, response: http.client.HTTPResponse, wire: socket.socket, silence_s: float
    ) -> Iterator[Json]:
        while True:
            with self._translated(silence_s):
                wire.settimeout(self._patience(silence_s))
                line = response.readline(MAX_LINE_BYTES)
                if line and not line.endswith(b"\n"):
                    raise http.client.IncompleteRead(line)
            if not line:
                return
            yield _parse(line)

    def _patience(self, silence_s: float) -> float:
        left = silence_s if self._deadline is None else self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _timed_out(self, silence_s: float) -> NodeError:
        if self._timeout_s is not None:
            return NodeError(
                ErrorCode.TIMEOUT,
                f"The node did not finish within --timeout {self._timeout_s:g} s.",
                "allow more: --timeout SECONDS",
            )
        return NodeError(
            ErrorCode.TIMEOUT,
            f"The node said nothing for {silence_s:g} s.",
            "see what it does: paris-node logs",
        )


def not_running(home: Home) -> NodeError:
    """What to say when no node runs on `home`."""
    return NodeError(
        ErrorCode.NOT_RUNNING, f"No node runs on {home.data}.", "start it with: paris-node start"
    )


def _only(lines: Iterator[Json]) -> Json:
    for answer in lines:
        return answer
    raise _not_ours()


def _events(lines: Iterator[Json]) -> Iterator[Json]:
    kind: object = None
    for event in lines:
        kind = event.get("event")
        if kind == "error":
            raise _error_of(event)
        yield event
    if kind != "done":  # http.client's readline takes a broken-off body for a whole one
        raise _broken_off()


def _failure(status: int, lines: Iterator[Json]) -> NodeError:
    answer = next(lines, {})
    if status == 401:  # a process of the same number, a node of another home on the same port
        return NodeError(
            ErrorCode.NOT_RUNNING,
            "Another home's node answers in this one's place.",
            "paris-node start",
        )
    return _error_of(answer)


def _error_of(answer: Mapping[str, object]) -> NodeError:
    error = answer.get("error")
    if not isinstance(error, dict):
        raise _not_ours()
    return NodeError(
        ErrorCode.of_label(str(error.get("code"))),
        str(error.get("message", "")),
        str(error.get("fix", "")),
    )


def _broken_off() -> NodeError:
    return NodeError(
        ErrorCode.FAILED,
        "The node went away, or failed, in the middle of its answer.",
        "see why: paris-node logs",
    )


def _not_ours() -> NodeError:
    return NodeError(
        ErrorCode.FAILED, "What answers on the node's port is no node.", "see: paris-node logs"
    )


def _parse(line: bytes) -> Json:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise _not_ours() from error
    if not isinstance(value, dict):
        raise _not_ours()
    return value
