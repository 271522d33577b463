"""Records and claims on N nodes, for bench_p2p.py: our swarm children, and bare hivemind.

Run as a program this is the comparison: `bench_records.py NODES OPERATIONS SIZE` runs bare hivemind
`DHTNode`s with their defaults (no validator, no signatures, one process, reads of the latest value)
and prints JSON.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from p2p.claims import (
    ClusterView,
    HeldClaim,
    Hold,
    Idle,
    Me,
    Progress,
    Publish,
    Renew,
    Yield,
    decide,
    resolve_all,
)
from p2p.codec import Verified, open_signed, seal
from p2p.dht.client import DhtClient, open_dht
from p2p.dht.settings import DhtSettings
from p2p.identity import Identity
from p2p.ids import ClusterId, PeerId, RunId, blob_id
from p2p.records import Claim, ClaimPolicy, claim_key

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
RECORD_LIFE_S = 300.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Of many calls, in milliseconds."""

    p50_ms: float
    p95_ms: float
    calls: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        """Percentiles of some durations in seconds."""
        ordered = sorted(seconds)
        last = len(ordered) - 1
        return cls(
            1e3 * statistics.median(ordered), 1e3 * ordered[round(0.95 * last)], len(ordered)
        )


@asynccontextmanager
async def swarm(folder: Path, count: int, stores: Sequence[Path]) -> AsyncIterator[list[DhtClient]]:
    """`count` swarm children that know the first; the first ones serve the given blob stores."""
    async with AsyncExitStack() as stack:
        nodes: list[DhtClient] = []
        for number in range(count):
            settings = DhtSettings(
                seed=bytes([101 + number]) * 32,
                private_dir=folder / f"node-{number}",
                listen=LOOPBACK,
                bootstrap=nodes[0].addresses() if nodes else (),
                blob_root=stores[number] if number < len(stores) else None,
                log_path=folder / f"node-{number}.log",
                has_port_mapping=False,
            )
            nodes.append(await stack.enter_async_context(open_dht(settings)))
            if number == 0:
                await nodes[0].wait_ready(60)
        for node in nodes:
            await node.wait_ready(60)
        with trio.fail_after(60):
            while min([await node.known_peers() for node in nodes]) < min(count - 1, 5):  # noqa: ASYNC110
                await trio.sleep(0.1)  # nobody tells when the routing tables are full
        yield nodes


# --- put and get --------------------------------------------------------------------------------
async def measure_records(nodes: Sequence[DhtClient], operations: int) -> tuple[Latency, Latency]:
    """(put, get) of signed claims, each written by one node and read by another."""
    puts, gets = [], []
    run = RunId(blob_id(os.urandom(8)))
    owner = Identity.from_seed(os.urandom(32))
    for number in range(operations):
        key, value, expires_at = _sealed(run, ClusterId(number), owner)
        started = time.perf_counter()
        is_stored = await nodes[number % len(nodes)].put(key, owner.public_key, value, expires_at)
        puts.append(time.perf_counter() - started)
        started = time.perf_counter()
        found = await nodes[(number + len(nodes) // 2) % len(nodes)].get(key)
        gets.append(time.perf_counter() - started)
        if not is_stored or [record.value for record in found] != [value]:
            raise RuntimeError(f"record {number} was not stored and found")
    return Latency.of(puts), Latency.of(gets)


def _sealed(run: RunId, cluster: ClusterId, owner: Identity) -> tuple[str, bytes, float]:
    now = time.time()
    claim = Claim(run, cluster, 1, 0, 0, None, now, now + RECORD_LIFE_S)
    key = claim_key(run, cluster)
    return key, seal(claim, owner, key=key, expires_at=claim.expires_at), claim.expires_at


def record_size() -> int:
    """Bytes of the records that are put."""
    owner = Identity.from_seed(bytes(32))
    return len(_sealed(RunId(blob_id(b"")), ClusterId(0), owner)[1])


def measure_bare_hivemind(nodes: int, operations: int) -> tuple[Latency, Latency]:
    """(put, get) of opaque values of the same size, in a process of its own."""
    command = [sys.executable, __file__, str(nodes), str(operations), str(record_size())]
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=120)
    durations = json.loads(answer.stdout.splitlines()[-1])
    return Latency.of(durations["puts"]), Latency.of(durations["gets"])


async def _bare_hivemind(count: int, operations: int, size: int) -> dict[str, list[float]]:
    from hivemind.dht.node import DHTNode  # noqa: PLC0415  # never in the node's own process

    nodes = [await DHTNode.create()]
    peers = [str(address) for address in await nodes[0].get_visible_maddrs()]
    nodes += [await DHTNode.create(initial_peers=peers) for _ in range(count - 1)]
    puts, gets = [], []
    subkey = os.urandom(32)
    for number in range(operations):
        key, value = f"bench/{os.urandom(8).hex()}", os.urandom(size)
        until = time.time() + RECORD_LIFE_S
        started = time.perf_counter()
        await nodes[number % count].store(key, value, until, subkey=subkey)
        puts.append(time.perf_counter() - started)
        started = time.perf_counter()
        found = await nodes[(number + count // 2) % count].get(key, latest=True)
        gets.append(time.perf_counter() - started)
        if found is None or found.value[subkey].value != value:
            raise RuntimeError(f"record {number} was not stored and found")
    for node in nodes:
        await node.shutdown()
    return {"puts": puts, "gets": gets}


# --- claims -------------------------------------------------------------------------------------
POLICY = ClaimPolicy(lease_s=30.0, renew_s=8.0, settle_s=1.0)


@dataclass(slots=True)
class Claimer:
    """One node's loop around `p2p.claims.decide`, with no training."""

    run: RunId
    identity: Identity
    records: DhtClient
    clusters: int
    on_round: Callable[[], None]
    held: dict[ClusterId, HeldClaim] = field(default_factory=dict)
    own: dict[ClusterId, Verified[Claim]] = field(default_factory=dict)
    resting: set[ClusterId] = field(default_factory=set)
    seen: dict[ClusterId, PeerId | None] = field(default_factory=dict)
    """The owners as this node read them last."""
    trains: tuple[ClusterId, ...] = ()
    rounds: int = 0

    async def work(self) -> None:
        """Claim and hold until cancelled."""
        while True:
            read_at = trio.current_time()
            views = await self._read()
            self.rounds += 1
            pause_s = await self._act(views, read_at)
            self.on_round()
            await trio.sleep(pause_s)

    async def _read(self) -> tuple[ClusterView, ...]:
        claims: dict[ClusterId, list[Verified[Claim]]] = {}

        async def read(cluster: ClusterId) -> None:
            key = claim_key(self.run, cluster)
            found = await self.records.get(key)
            now = time.time()
            claims[cluster] = [open_signed(Claim, r.value, key=key, now=now) for r in found]
            if cluster in self.own:
                claims[cluster].append(self.own[cluster])

        async with trio.open_nursery() as nursery:
            for number in range(self.clusters):
                nursery.start_soon(read, ClusterId(number))
        owned = resolve_all(
            claims, now=time.time(), policy=POLICY, progress=Progress(), highest_epochs={}
        )
        self.seen = {cluster: ownership.owner for cluster, ownership in sorted(owned.items())}
        return tuple(
            ClusterView(ownership, None, 0, is_complete=False, last_trained_at=None)
            for ownership in owned.values()
        )

    async def _act(self, views: tuple[ClusterView, ...], read_at: float) -> float:
        """Do what `decide` says until it says to wait; how long."""
        while True:
            now = trio.current_time()
            resting = frozenset(self.resting)
            me = Me(self.identity.peer, now, tuple(self.held.values()), 1, resting, read_at)
            match decide(views, me, run=self.run, now=time.time(), policy=POLICY):
                case Publish(claim):
                    await self._put(claim)
                    self.held[claim.cluster] = HeldClaim.first(claim, at=now)
                    return POLICY.settle_s
                case Renew(claim):
                    await self._put(claim)
                    self.held[claim.cluster] = self.held[claim.cluster].renewed(claim, at=now)
                case Yield(cluster, _, release):
                    del self.held[cluster]
                    if release is not None:
                        await self._put(release)
                    self.own.pop(cluster, None)
                    self.resting.add(cluster)
                case Hold(train, again_in_s):
                    self.trains = train
                    for cluster in train:
                        self.held[cluster] = self.held[cluster].confirmed()
                    return min(again_in_s, POLICY.settle_s)
                case Idle(_, again_in_s):
                    return min(again_in_s, POLICY.settle_s)

    async def _put(self, claim: Claim) -> None:
        key = claim_key(self.run, claim.cluster)
        envelope = seal(claim, self.identity, key=key, expires_at=claim.expires_at)
        await self.records.put(key, self.identity.public_key, envelope, claim.expires_at)
        self.own[claim.cluster] = open_signed(Claim, envelope, key=key, now=time.time())


async def measure_claims(nodes: Sequence[DhtClient], timeout_s: float) -> tuple[float, int]:
    """As many nodes as clusters start at once, knowing nothing.

    Returns:
        Seconds until every node trains one cluster, no two the same, and all nodes read the same
        owners; and the most rounds of reading that a node needed.
    """
    run = RunId(blob_id(os.urandom(8)))
    agreed = trio.Event()

    def look() -> None:
        if _has_converged(claimers):
            agreed.set()

    claimers = [
        Claimer(run, Identity.from_seed(os.urandom(32)), node, len(nodes), look) for node in nodes
    ]
    started = time.perf_counter()
    with trio.fail_after(timeout_s):
        async with trio.open_nursery() as nursery:
            for claimer in claimers:
                nursery.start_soon(claimer.work)
            await agreed.wait()
            seconds = time.perf_counter() - started
            nursery.cancel_scope.cancel()
    return seconds, max(claimer.rounds for claimer in claimers)


def _has_converged(claimers: Sequence[Claimer]) -> bool:
    trained = sorted(cluster for claimer in claimers for cluster in claimer.trains)
    views = [list(claimer.seen.values()) for claimer in claimers]
    owners = {claimer.identity.peer for claimer in claimers}
    return (
        trained == list(range(len(claimers)))
        and set(views[0]) == owners
        and all(view == views[0] for view in views)
    )


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_bare_hivemind(*map(int, sys.argv[1:4])))))
