"""What a running node can be asked, by the command line and by the web page alike.

The HTTP server (`node.http`) speaks to this port and to nothing else in the node; `node.app` stands
behind it. Every answer is JSON-able: a dict of str, int, float, bool, None, list and dict.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Final, Protocol

SCHEMA: Final = 1
"""Version of every JSON object this program prints or answers."""

Json = dict[str, object]


class NodeApi(Protocol):
    """The running node. Methods raise `NodeError` for whatever a person should read."""

    def status(self) -> Json:
        """The node on one screen.

        {schema, peer_id, name, version, run, run_name, listening, peers, network, claims, training,
        storage, experts_held, uptime_s}.
        """
        ...

    def peers(self) -> Json:
        """Connections: {schema, peers: [{peer_id, name, address, direct, outbound, rtt_ms}]}."""
        ...

    def clusters(self) -> Json:
        """Who owns what, as this node sees it.

        {schema, run, clusters: [{cluster, owner, owner_name, epoch, expires_in_s, samples, budget,
        complete, mine}], coverage, next}.
        """
        ...

    async def find_experts(self, cluster: int | None) -> Json:
        """The experts the DHT tells of now.

        {schema, run, clusters, coverage, experts: [{cluster, owner, epoch, step, samples, cid,
        bytes, replicas, seen_s}]}.
        """
        ...

    async def show_expert(self, cid: str) -> Json:
        """One checkpoint's signed manifest.

        {schema, cid, run, cluster, owner, epoch, step, samples, loss, parent, bytes, files, local,
        providers}.
        """
        ...

    def pull_expert(self, cid: str) -> AsyncIterator[Json]:
        """Fetch one checkpoint, verified.

        Events {event: "progress", bytes, total, sources}, then {event: "done", cid, path, bytes,
        seconds}.
        """
        ...

    def generate(self, request: Mapping[str, object]) -> AsyncIterator[Json]:
        """Draw.

        `request`: {prompt, n, seed, strategy, top_k, threshold, router, sampler, steps, guidance,
        autoguidance, where, peer}.

        Events {event: "route", experts, missing: [cluster], dropped: {cluster: share}, starters:
        {cluster: share}, unaided: [cluster], unguided: [cluster]} (see
        `training.drawing.plan.Route`), {event: "progress", step, steps}, {event: "image", index,
        png_base64, receipt}, {event: "done", seed, strategy, sampler, where, experts: [{cluster,
        cid, peer, weight}], seconds}.
        """
        ...

    def stop(self) -> None:
        """Begin a graceful stop; returns at once."""
        ...
