"""What a running node can be asked, by the command line and by the web page alike.

The HTTP server (`node.http`) speaks to this port and to nothing else in the node; `node.app` stands
behind it. Every answer is JSON-able: a dict of str, int, float, bool, None, list and dict.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Final, Protocol

SCHEMA: Final = 1
"""Version of every JSON object this program prints or answers."""

Json = dict[str, object]


def phase_event(phase: str, done: int, total: int) -> Json:
    """How far a part of a longer work is, as an event of a stream."""
    return {"event": "progress", "phase": phase, "done": done, "total": total}


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
        autoguidance, where, peer, loras: [{id, scale}] or None for those in use}.

        Events {event: "route", experts, missing: [cluster], dropped: {cluster: share}, starters:
        {cluster: share}, unaided: [cluster], unguided: [cluster], loras} (see
        `training.drawing.plan.Route`), {event: "progress", step, steps}, {event: "image", index,
        png_base64, receipt}, {event: "done", seed, strategy, sampler, where, experts: [{cluster,
        cid, peer, weight}], seconds, loras: [{id, cluster, base, scale, offer if bought}]}.
        """
        ...

    def offers(self) -> Json:
        """Offers of LoRAs that still stand: those heard of, the newest first, and one's own.

        {schema, run, offers: [{offer, cluster, owner, owner_name, standing, why, name, base, rank,
        layers, base_loss, adapted_loss, rows, terms, licence, scalars, delta_rows, expires_in_s;
        measured_base, measured_loss, folder once it was bought}], own: [{offer, cluster, name,
        terms, expires_in_s, withdrawn, buyers, told_percent, worst_layer, worst_percent,
        proofs_made, proofs_limit}]}; what a refused offer never said is None.
        """
        ...

    async def show_offer(self, cid: str) -> Json:
        """One offer: a row of `offers` or of `own`, and what its signed record says.

        {schema, run, own, statement, alpha, targets, shapes: [{inputs, rank, outputs, layers,
        circuit, k}], probe: {cid, rows, seed}, leaks: {scalars, proofs, delta_rows, percent},
        created_at} on top; a refused offer has its row and its statement alone.
        """
        ...

    def make_offer(self, request: Mapping[str, object]) -> AsyncIterator[Json]:
        """Offer a LoRA of this home, with its proofs.

        `request`: {lora, terms, scalars, delta_rows, days, buyers: [peer]}.

        Events {event: "progress", phase: "measured" or "proved", done, total}, then {event:
        "done", offer, cluster, base, layers, base_loss, adapted_loss, float_loss, expires_at}.
        """
        ...

    def verify_offer(self, cid: str, request: Mapping[str, object]) -> AsyncIterator[Json]:
        """Look into an offer without having it.

        `request`: {base, probe: folder here, pairs, delta_draws}.

        Events {event: "progress", phase: "proofs" or "probe", done, total}, then {event: "done",
        offer, cluster, base, layers, rank, rows, base_loss, predicted, captured, ratio,
        claimed_base, claimed_loss, scalars_left, leak_percent; with delta_draws also delta_base,
        delta_loss, delta_rows, rows_left, delta_leak_percent}.
        """
        ...

    def buy_offer(self, cid: str, request: Mapping[str, object]) -> AsyncIterator[Json]:
        """Sign an offer's terms, take the LoRA, and measure it.

        `request`: {base}.

        Events {event: "progress", phase: "proofs", "delivered" or "commitments", done, total}, then
        {event: "done", offer, folder, name, cluster, base, claimed_base, claimed_loss, ratio,
        measured_base, measured_loss}.
        """
        ...

    def withdraw_offer(self, cid: str) -> Json:
        """Stop an own offer for good: {schema, offer, withdrawn: True}."""
        ...

    def stop(self) -> None:
        """Begin a graceful stop; returns at once."""
        ...
