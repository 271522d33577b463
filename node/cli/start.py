"""Start the node in the foreground, and stop it: signals, the lock, and the lines of the start."""

import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from node.api import SCHEMA
from node.cli.command import VerbCommand
from node.cli.local import own_version
from node.cli.options import Options, pass_options
from node.cli.output import print_json, short_id, size_text
from node.config import Config
from node.errors import ErrorCode, NodeError
from node.events import (
    ClusterReady,
    IdentityReady,
    NetworkReady,
    NodeReady,
    Notice,
    ServingReady,
    StartEvent,
    StorageReady,
    event_to_json,
)
from node.home import HomeLock, is_locked, prepare, read_api_file

if TYPE_CHECKING:
    import trio

STOP_TIMEOUT_S: Final = 10.0
"""How long `paris-node stop` waits: twice what a stop may take."""


@click.command(
    cls=VerbCommand,
    examples=(
        "paris-node start",
        "paris-node start --peer /ip4/192.168.1.7/tcp/4101/p2p/12D3KooW...",
        "paris-node start --home ~/second --api-port 0 --no-train",
    ),
)
@click.option("--run", metavar="CID", help="The run to join; the built-in one unless said.")
@click.option("--peer", "peers", metavar="ADDR", multiple=True, help="Another node; repeatable.")
@click.option("--name", metavar="NAME", help="Pet name shown to others.")
@click.option(
    "--host-listen", metavar="ADDR", multiple=True,
    help="Multiaddr for gossip and requests; repeatable.  [/ip4/0.0.0.0/tcp/4101]",
)  # fmt: skip
@click.option(
    "--bulk-listen", metavar="ADDR", multiple=True,
    help="Multiaddr for records and checkpoints; repeatable.  [/ip4/0.0.0.0/tcp/4102]",
)  # fmt: skip
@click.option("--api-port", metavar="N", help="Port of the local API; 0 is any.  [4180]")
@click.option("--quota", "quota_bytes", metavar="SIZE", help="Disk space to lend.  [20GiB]")
@click.option("--capacity", metavar="N", help="Clusters to train at a time.  [1]")
@click.option("--threads", metavar="N", help="CPU threads of a worker.  [1]")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.  [auto]")
@click.option("--models", metavar="DIR", help="Folder of pretrained parts.  [HOME/models]")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.  [info]")
@click.option("--train/--no-train", default=None, help="Claim clusters and train.")
@click.option("--serve/--no-serve", default=None, help="Draw for peers that ask.")
@click.option("--lan/--no-lan", "lan_discovery", default=None, help="Find nodes on this network.")
@click.option("--relay/--no-relay", default=None, help="Use relays, and relay for others.")
@pass_options
def start(options: Options, **flags: Any) -> None:  # noqa: ANN401
    """Start the node, in the foreground; the first start makes its identity.

    Ctrl-C, or `paris-node stop`, stops it gracefully within 5 seconds.
    """
    said = {key: value for key, value in flags.items() if value not in ((), None)}
    config = options.load(**said).config
    prepare(config.paths)
    with HomeLock(config.paths):
        from node.logs import configure

        configure(config.paths.log_file, "debug" if options.verbose else config.log_level)
        _run(config, options)
    if not options.quiet and not options.json:
        click.echo("Stopped.")


def _run(config: Config, options: Options) -> None:
    from node import app

    run_to_the_end(partial(app.run, config, _Teller(config, options)))


def run_to_the_end(node: Callable[[], Awaitable[None]]) -> None:
    """Run the node until it is stopped; its own errors come out as they were raised."""
    import trio

    try:
        trio.run(run_until_signal, node)
    except BaseExceptionGroup as group:
        known, rest = group.split((NodeError, KeyboardInterrupt))
        if rest is not None or known is None:
            raise
        raise _first(known) from group


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def run_until_signal(node: Callable[[], Awaitable[None]]) -> None:
    """Run `node`; the first SIGINT or SIGTERM cancels it, another ends the process where it is.

    The node itself listens once it has something to put in order; before and after that, this does.
    Its children end with it however it ends: their line to it closes.
    """
    import trio

    scope = trio.CancelScope()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, scope)
            with scope:
                await node()
            nursery.cancel_scope.cancel()


async def _obey(signals: AsyncIterator[int], scope: "trio.CancelScope") -> None:
    async for _ in signals:
        if scope.cancel_called:
            os._exit(ErrorCode.INTERRUPTED.exit_code)
        scope.cancel()


class _Teller:
    """Prints the start's events: the four lines a person reads, or NDJSON."""

    def __init__(self, config: Config, options: Options) -> None:
        self._config = config
        self._options = options

    def __call__(self, event: StartEvent) -> None:
        """Print one event."""
        if self._options.json:
            print_json({"schema": SCHEMA, **event_to_json(event)})
        elif not self._options.quiet:
            for line in start_lines(event, self._config, verbose=self._options.verbose):
                click.echo(line)


def start_lines(event: StartEvent, config: Config, *, verbose: bool = False) -> list[str]:
    """What a person reads when `event` happens."""
    match event:
        case IdentityReady():
            new = f"\nidentity created; keep a copy of {config.paths.identity_key}"
            name = click.style(event.name, bold=True)
            peer = short_id(event.peer_id, whole=verbose)
            line = f"paris-node {own_version()}   {name}   {peer}"
            lines = (line + (new if event.is_new else "")).split("\n")
        case StorageReady():
            lines = [
                f"[1/4] storage   {size_text(event.free_bytes)} free, "
                f"{size_text(event.used_bytes)} used, limit {size_text(event.limit_bytes)}"
            ]
        case NetworkReady():
            peers = "1 peer" if event.peers == 1 else f"{event.peers} peers"
            split = f" ({event.direct} direct, {event.relayed} relayed)" if event.peers else ""
            nat = f"   {event.nat}" if event.nat else ""
            addresses = [f"                {address}" for address in event.listening]
            lines = [f"[2/4] network   {peers}{split}{nat}", *(addresses if verbose else ())]
        case ClusterReady():
            lines = [f"[3/4] cluster   {_cluster_text(event)}"]
        case ServingReady():
            lines = [f"[4/4] serving   {event.url}"]
        case NodeReady():
            try_it = f'paris-node generate "{event.example}" -o picture.png'
            lines = [f"Ready in {event.seconds:.1f} s.  Try:  {try_it}"]
        case Notice():
            lines = [f"      {event.text}"]
    return lines


def _cluster_text(event: ClusterReady) -> str:
    note = f" ({event.note})" if event.note else ""
    if not event.claimed:
        return f"none of {event.clusters}{note}"
    claimed = " and ".join(str(cluster) for cluster in event.claimed)
    return f"claimed {claimed} of {event.clusters}{note}"


@click.command(
    cls=VerbCommand,
    examples=(
        "paris-node stop",
        "paris-node stop --timeout 30",
        "paris-node stop --home /tmp/second",
    ),
)
@pass_options
def stop(options: Options) -> None:
    """Stop the running node gracefully, and wait until it has ended."""
    home = options.settings().paths
    limit_s = STOP_TIMEOUT_S if options.timeout is None else options.timeout
    begun = time.monotonic()
    client = options.client()
    client.post("/api/v1/stop")
    while read_api_file(home) is not None or is_locked(home):
        if time.monotonic() - begun > limit_s:
            raise NodeError(
                ErrorCode.TIMEOUT,
                f"The node (process {client.pid}) still runs after {limit_s:g} s.",
                f"kill {client.pid}",
            )
        time.sleep(0.05)
    if options.json:
        print_json(
            {"schema": SCHEMA, "stopped": True, "seconds": round(time.monotonic() - begun, 3)}
        )
    elif not options.quiet:
        click.echo(f"Stopped in {time.monotonic() - begun:.1f} s.")
