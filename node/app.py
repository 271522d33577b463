"""The composition root: every part of a running node is made here, once, and given to the others.

Reads as the order in which a node comes to life: who am I, where are my blobs, which run, the two
network parts, then the services in one nursery. Leaving is the same order backwards, under 5 s.
"""

import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Final

import trio

from node.adapters import Adapters
from node.artist import Artist
from node.asking import Asking
from node.board import Board
from node.catalog import Catalog
from node.claiming import Claiming
from node.config import Config
from node.context import NodeContext
from node.drawing import Drawing
from node.errors import NodeError
from node.events import (
    ClusterReady,
    IdentityReady,
    NetworkReady,
    NodeReady,
    Notice,
    ServingReady,
    StartEvent,
    StorageReady,
)
from node.failures import for_people
from node.fetching import Fetcher
from node.home import ApiFile, Home, new_token, remove_api_file, write_api_file
from node.http import serve_http
from node.http.server import UrlStatus
from node.joining import choose_run, obtain_manifest
from node.journal import Journal
from node.lora_asking import LoraAsking
from node.lora_market import LoraMarket
from node.lora_service import LoraService
from node.lora_serving import LoraServing
from node.membership import Membership
from node.offer_board import OfferBoard
from node.offer_draft import Drafting
from node.offers import Offers
from node.peerbook import PeerBook
from node.proving import Proving
from node.publishing import Publisher
from node.replication import Replicator
from node.runs import builtin_run_id
from node.service import NodeService
from node.serving import Serving
from node.state import State, open_state
from node.studio import Studio
from node.supervise import Supervisor
from node.watching import Watching
from p2p.blobs import BlobStore
from p2p.dht.client import open_dht
from p2p.dht.settings import DhtSettings
from p2p.errors import P2PError
from p2p.identity import Identity, load_or_create
from p2p.libp2p_host import open_host
from p2p.libp2p_settings import HostSettings
from p2p.pet_names import pet_name

logger = logging.getLogger(__name__)

StartHook = Callable[[StartEvent], None]
_Service = Callable[[], Awaitable[None]]
_SWARM_PATIENCE_S: Final = 90.0
"""Importing hivemind takes 4 to 9 s on a calm machine, and several nodes may start at once."""
_CLAIM_PATIENCE_S: Final = 10.0
_LOOPBACK: Final = ("/ip4/127.", "/ip6/::1/")


async def run(config: Config, on_event: StartHook) -> None:
    """Run a node until it is told to stop: by signal, or over its API.

    The caller holds the home's lock. Every failure a person can mend comes out as a `NodeError`.

    Args:
        config: all settings.
        on_event: told what is ready, as it becomes ready.

    Raises:
        NodeError: if the node cannot start, or cannot go on.
    """
    started = time.monotonic()
    with _failures_for_people():
        identity, is_new = load_or_create(config.paths.identity_key)
        config = _named(config, identity)
        on_event(IdentityReady(identity.peer, config.name, is_new))
        with open_state(config.paths.database) as state:
            blobs = await trio.to_thread.run_sync(_open_blobs, config)
            usage = await trio.to_thread.run_sync(blobs.usage)
            on_event(StorageReady(usage.disk_free, usage.used, usage.quota))
            async with _open_network(config, identity, state, blobs) as (context, membership):
                await _run_services(context, membership, on_event, started)


@contextmanager
def _failures_for_people() -> Iterator[None]:
    """Translate what the parts raise into sentences; nursery groups are opened first."""
    try:
        yield
    except* (NodeError, P2PError) as group:
        error = _first(group)
        assert isinstance(error, NodeError | P2PError)  # noqa: S101  by the clause above
        raise for_people(error) from error


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _named(config: Config, identity: Identity) -> Config:
    return config if config.name else replace(config, name=pet_name(identity.peer))


def _open_blobs(config: Config) -> BlobStore:
    return BlobStore.open(config.paths.blobs, quota_bytes=config.quota_bytes)


def _is_loopback(addresses: tuple[str, ...]) -> bool:
    return all(address.startswith(_LOOPBACK) for address in addresses)


@asynccontextmanager
async def _open_network(
    config: Config, identity: Identity, state: State, blobs: BlobStore
) -> AsyncIterator[tuple[NodeContext, Membership]]:
    """Start both network parts; neither waits for a peer."""
    run = choose_run(config, state, blobs)
    home = config.paths
    dht = DhtSettings(
        seed=identity.dht_seed(),
        private_dir=home.data,
        listen=config.bulk_listen,
        blob_root=blobs.root,
        log_path=home.worker_log("swarm"),
        has_port_mapping=not _is_loopback(config.bulk_listen),
        has_auto_relay=config.relay and not _is_loopback(config.bulk_listen),
    )
    host_settings = HostSettings(
        seed=identity.seed,
        listen=config.host_listen,
        lan_discovery=config.lan_discovery,
        run=run,
        relay_service=config.relay,
        relays=config.peers if config.relay else (),  # the peers we were given are our bootstraps
    )
    async with open_dht(dht) as swarm, open_host(host_settings) as host:
        peers = PeerBook(identity.peer)
        context = NodeContext(
            config=config,
            identity=identity,
            run=run,
            swarm=swarm,
            host=host,
            blobs=blobs,
            state=state,
            peers=peers,
            fetcher=Fetcher(run, blobs, swarm, swarm, peers),
            journal=Journal(home.events_file, identity.peer),
            folder=home.runs / run,
        )
        context.folder.mkdir(parents=True, exist_ok=True)
        yield context, Membership(context, host.discovered() if config.lan_discovery else None)


async def _run_services(
    context: NodeContext, membership: Membership, on_event: StartHook, started: float
) -> None:
    supervisor = Supervisor()
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, stop)
        nursery.start_soon(_cancel_on_stop, stop, nursery.cancel_scope)
        nursery.start_soon(supervisor.run, "membership", membership.run)
        manifest = await obtain_manifest(context, membership, lambda text: on_event(Notice(text)))
        catalog = Catalog(context, manifest)
        publisher = Publisher(context, catalog)
        studio = Studio(context.config.paths)
        drawing = Drawing(context, catalog, studio)
        replicator = Replicator(context, catalog)
        board = Board(context, catalog)
        watching = Watching(context, catalog, board, replicator)
        claiming = Claiming(context, manifest, catalog, board, publisher)
        artist = Artist(context, drawing, Asking(context))
        loras, lora_services = _loras(context, catalog)
        api = NodeService(
            context,
            manifest,
            catalog,
            claiming,
            artist,
            membership,
            supervisor,
            nursery,
            stop_event=stop,
            loras=loras,
        )
        services = {
            "watching": watching.run,
            "publishing": publisher.run,
            "storage": api.watch_storage,
            "replication": replicator.run,
            "studio": studio.run,
            **lora_services,
        }
        if context.config.train:
            services["claiming"] = claiming.run
        if context.config.serve:
            services["serving"] = Serving(context, drawing).run
        for name, service in services.items():
            nursery.start_soon(supervisor.run, name, service)
        async with _open_api(context.config, api) as url:
            context.journal.write("ready", run=context.run, name=context.config.name)
            await context.swarm.wait_ready(_SWARM_PATIENCE_S)
            on_event(_network_ready(context))
            on_event(await _cluster_ready(context, claiming, manifest.clusters))
            on_event(ServingReady(url))
            on_event(NodeReady(time.monotonic() - started, _example(context)))
            await stop.wait()
    context.journal.write("stopped")


def _loras(context: NodeContext, catalog: Catalog) -> tuple[LoraService, dict[str, _Service]]:
    """What answers about offers of adapters, and the services behind it."""
    proving, adapters = Proving(context.config.paths), Adapters(context.config.paths)
    offers = Offers(context, Drafting(context, catalog, adapters, proving), proving)
    board = OfferBoard(context, catalog, proving)
    market = LoraMarket(context, board, adapters, proving, LoraAsking(context))
    services: dict[str, _Service] = {
        "proving": proving.run,
        "offers": offers.run,
        "offer board": board.run,
        "lora serving": LoraServing(context, offers, proving).run,
    }
    return LoraService(context, offers, board, market), services


@asynccontextmanager
async def _open_api(config: Config, api: NodeService) -> AsyncIterator[str]:
    """Serve the API, and tell the command line where, for as long as it is served."""
    home: Home = config.paths
    token = new_token()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(_serve_api, config, api, token)
        write_api_file(home, ApiFile(url, token, os.getpid()))
        try:
            yield url
        finally:
            remove_api_file(home)
            nursery.cancel_scope.cancel()


async def _serve_api(
    config: Config, api: NodeService, token: str, *, task_status: UrlStatus
) -> None:
    await serve_http(
        api,
        host=config.api_host,
        port=config.api_port,
        token=token,
        fallback=config.api_port_fallback,
        task_status=task_status,
    )


def _network_ready(context: NodeContext) -> NetworkReady:
    connected = context.host.connected()
    relayed = sum(peer.is_relayed for peer in connected)
    return NetworkReady(
        peers=len(connected),
        direct=len(connected) - relayed,
        relayed=relayed,
        nat="" if connected else "looking for peers",
        listening=context.host.listening(),
    )


def _example(context: NodeContext) -> str:
    """Something worth trying to draw."""
    return "a sneaker" if context.run == builtin_run_id() else "words from the run's captions"


async def _cluster_ready(context: NodeContext, claiming: Claiming, clusters: int) -> ClusterReady:
    """What this node trains, as soon as that is known; a short wait if nobody answers."""
    if not context.config.train:
        return ClusterReady((), clusters, "not training: started with --no-train")
    with trio.move_on_after(_CLAIM_PATIENCE_S):
        await claiming.first_round.wait()
    held = tuple(int(one.claim.cluster) for one in claiming.held())
    note = "" if held else claiming.reason or "looking for a cluster"
    return ClusterReady(held, clusters, note)


async def _stop_on_signal(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            logger.info("signal %d: stopping", number)
            stop.set()
            return


async def _cancel_on_stop(stop: trio.Event, scope: trio.CancelScope) -> None:
    await stop.wait()
    scope.cancel()
