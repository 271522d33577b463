#!/usr/bin/env python3
"""How fast the network half is, beside the plainest thing that does the same, in one run.

Blobs through two swarm children against a bare TCP copy and a plain py-libp2p stream, all with the
same hashing and writing; signed records at N nodes against bare hivemind; and how long N nodes that
start at once need to agree who trains which of N clusters. Everything on 127.0.0.1, in at most
5 minutes. Figures of one run compare with each other, hardly with those of another machine.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from bench_copies import Wanted, copy_by_child, copy_by_libp2p, copy_by_tcp, empty, serving
from bench_machine import machine
from bench_records import (
    POLICY,
    Latency,
    measure_bare_hivemind,
    measure_claims,
    measure_records,
    record_size,
    swarm,
)
from p2p.blob_health import remove_altered
from p2p.blobs import BlobStore, blobs_of
from p2p.dht.client import DhtClient
from p2p.limits import CHUNK_SIZE
from p2p.transfer import BulkPeer

LIMIT_S = 300.0
Figures = dict[str, Any]
"""JSON-shaped."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    mib: int
    repeats: int
    nodes: int
    operations: int
    claim_trials: int


FULL = Plan(mib=256, repeats=5, nodes=8, operations=100, claim_trials=3)
QUICK = Plan(mib=16, repeats=1, nodes=3, operations=10, claim_trials=1)


def main() -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small run that only shows it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    figures: Figures = {"machine": machine(), "plan": asdict(plan)}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="paris-bench-") as folder:
        trio.run(measure, Path(folder), plan, figures)
    figures["seconds"] = round(time.perf_counter() - started, 1)
    print("\n".join(table(figures)))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


async def measure(folder: Path, plan: Plan, figures: Figures) -> None:
    """Everything, one after the other; nothing else of ours runs meanwhile."""
    source, target = folder / "source", folder / "target"
    store = BlobStore.open(source, floor_bytes=0)
    content = folder / "content"
    content.write_bytes(os.urandom(plan.mib * CHUNK_SIZE))
    wanted = blobs_of(store.add_files({"content": content}))
    empty(target)
    with trio.fail_after(LIMIT_S):
        _say(f"starting {plan.nodes} swarm children")
        async with swarm(folder, plan.nodes, [source, target]) as nodes:
            _say(f"copying {plan.mib} MiB, {plan.repeats} times in three ways")
            figures["copies"] = await measure_copies(nodes, wanted, folder, plan.repeats)
            _say(f"{plan.operations} records at {plan.nodes} nodes")
            put, get = await measure_records(nodes, plan.operations)
            _say(f"claims of {plan.nodes} nodes on {plan.nodes} clusters")
            trials = [await measure_claims(nodes, 60) for _ in range(plan.claim_trials)]
        _say("the same records on bare hivemind")
        bare_put, bare_get = await trio.to_thread.run_sync(
            measure_bare_hivemind, plan.nodes, plan.operations
        )
    latencies = {"put": put, "get": get, "bare_put": bare_put, "bare_get": bare_get}
    figures["records"] = {name: asdict(latency) for name, latency in latencies.items()}
    figures["records"]["bytes"] = record_size()
    figures["claims"] = {
        "seconds": [seconds for seconds, _ in trials],
        "rounds": [rounds for _, rounds in trials],
        "settle_s": POLICY.settle_s,
    }


async def measure_copies(
    nodes: list[DhtClient], wanted: Wanted, folder: Path, repeats: int
) -> dict[str, list[float]]:
    """MB/s of each way, `repeats` times, taking turns; the first copy by each is not counted."""
    size = sum(blob_size for _, blob_size in wanted)
    source, target = folder / "source", folder / "target"
    peer = BulkPeer(nodes[0].peer, nodes[0].addresses())
    seconds: dict[str, list[float]] = {"child": [], "tcp": [], "libp2p": []}
    with serving("tcp", source) as tcp, serving("libp2p", source) as libp2p:
        for turn in range(repeats + 1):
            part = wanted if turn else wanted[:16]  # the first turn warms up
            took = {}
            empty(target)
            took["child"] = await copy_by_child(nodes[1], part, peer)
            empty(target)
            took["tcp"] = await trio.to_thread.run_sync(copy_by_tcp, tcp, part, target)
            empty(target)
            took["libp2p"] = await copy_by_libp2p(libp2p, part, target)
            if turn:
                for way, duration in took.items():
                    seconds[way].append(duration)
    checked, altered = remove_altered(target)
    if altered or checked != len(wanted):
        raise RuntimeError(f"after the last copy {checked} blobs are there, {altered} altered")
    return {way: [size / 1e6 / one for one in durations] for way, durations in seconds.items()}


def table(figures: Figures) -> list[str]:
    """The figures as lines for people."""
    host, plan = figures["machine"], figures["plan"]
    copies, records, claims = figures["copies"], figures["records"], figures["claims"]
    rate = {way: statistics.median(rates) for way, rates in copies.items()}
    lines = [
        f"{host['cpu']}, {host['cores']} cores, Python {host['python']}, {host['system']}, "
        f"load {host['load_at_start']} at the start",
        "",
        f"blobs: {plan['mib']} MiB between two processes, hashed at both ends and written; "
        f"median of {plan['repeats']}",
        f"  {'':34}{'MB/s':>8}{'ours is':>10}",
        f"  {'swarm child to swarm child (p2pd)':34}{rate['child']:8.0f}",
        f"  {'bare TCP loopback':34}{rate['tcp']:8.0f}{rate['child'] / rate['tcp']:9.2f}x",
        f"  {'plain py-libp2p stream':34}{rate['libp2p']:8.0f}"
        f"{rate['child'] / rate['libp2p']:9.2f}x",
        "",
        f"records: {records['put']['calls']} of {records['bytes']} bytes at {plan['nodes']} nodes",
        f"  {'ms':34}{'put p50':>8}{'p95':>8}{'get p50':>10}{'p95':>8}",
    ]
    for name, prefix in (("swarm children (signed, checked)", ""), ("bare hivemind", "bare_")):
        put, get = Latency(**records[f"{prefix}put"]), Latency(**records[f"{prefix}get"])
        lines.append(
            f"  {name:34}{put.p50_ms:8.1f}{put.p95_ms:8.1f}{get.p50_ms:10.1f}{get.p95_ms:8.1f}"
        )
    seconds = sorted(claims["seconds"])
    lines += [
        "",
        f"claims: {plan['nodes']} nodes on {plan['nodes']} clusters, all at once, settle "
        f"{claims['settle_s']:g} s",
        f"  agreed after {statistics.median(seconds):.1f} s (median of {len(seconds)}; "
        f"{seconds[0]:.1f} to {seconds[-1]:.1f}), {max(claims['rounds'])} rounds at most",
        "",
        f"all in {figures['seconds']} s",
    ]
    return lines


def _say(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
