"""What the node is and sees: status, id, peers, clusters."""

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from node.api import SCHEMA
from node.cli.command import VerbCommand
from node.cli.options import Options, pass_options, until_interrupted
from node.cli.output import (
    count_text,
    duration_text,
    owner_text,
    print_fields,
    print_json,
    print_table,
    short_id,
    size_text,
)
from node.errors import ErrorCode, NodeError

if TYPE_CHECKING:
    from node.client import NodeClient

Answer = Mapping[str, Any]
"""An answer of the API; printing reads it leniently, since the node may be a newer version."""


@click.command(
    cls=VerbCommand,
    examples=(
        "paris-node status",
        "paris-node status --watch",
        "paris-node status --json | jq .training",
    ),
)
@click.option("--watch", is_flag=True, help="Print again and again until Ctrl-C.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.2, max=3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Pause between two looks of --watch.",
)
@pass_options
def status(options: Options, watch: bool, every: float) -> None:
    """The node on one screen: network, cluster, training, storage."""
    client = options.client(has_deadline=not watch)
    deadline = math.inf if options.timeout is None else time.monotonic() + options.timeout
    with until_interrupted():
        while True:
            _look(client, options, clears=watch)
            if not watch or time.monotonic() + every > deadline:
                return
            time.sleep(every)


def _look(client: "NodeClient", options: Options, *, clears: bool) -> None:
    answer = client.get("/api/v1/status")
    if options.json:
        print_json(answer)
        return
    if clears:
        click.clear()
    _print_status(answer, options)


def _print_status(answer: Answer, options: Options) -> None:
    whole = options.verbose
    name = click.style(str(answer.get("name") or "unnamed"), bold=True)
    click.echo(
        f"{name}   {short_id(answer.get('peer_id'), whole=whole)}"
        f"   up {duration_text(answer.get('uptime_s'))}"
    )
    run_name = answer.get("run_name")
    run = short_id(answer.get("run"), whole=whole)
    print_fields(
        [
            ("run", f"{run_name}   {run}" if run_name else run),
            ("network", _network_text(answer)),
            ("listening", "\n".join(answer.get("listening") or ["nowhere"])),
            ("claims", _claims_text(answer)),
            ("training", _training_text(answer.get("training"))),
            *(_training_details(answer.get("training")) if whole else []),
            ("storage", _storage_text(answer.get("storage") or {})),
            ("experts", _experts_text(answer.get("experts_held"))),
        ]
    )


def _network_text(answer: Answer) -> str:
    peers = answer.get("peers")
    text = "1 peer" if peers == 1 else f"{count_text(peers)} peers"
    network = answer.get("network")
    if isinstance(network, Mapping):
        if {"direct", "relayed"} <= network.keys():
            text += f" ({network['direct']} direct, {network['relayed']} relayed)"
        if network.get("nat"):
            text += f"   NAT: {network['nat']}"
    elif isinstance(network, str) and network:
        text = network if network.startswith(text) else f"{text}   {network}"
    return text


def _claims_text(answer: Answer) -> str:
    claims = answer.get("claims")
    if not claims:
        note = answer.get("claim_note")
        return f"none: {note}" if note else "none"
    return "\n".join(
        f"cluster {claim.get('cluster')}   epoch {claim.get('epoch')}"
        f"   lease {duration_text(claim.get('expires_in_s'))}"
        for claim in claims
    )


def _training_text(training: Answer | None) -> str:
    if not training:
        return "not training"
    loss, samples, budget = training.get("loss"), training.get("samples"), training.get("budget")
    share = f" of {budget:,}" if isinstance(budget, int) else ""
    speed = training.get("samples_per_s")
    return "  ".join(
        [
            f"cluster {training.get('cluster')}",
            f"step {count_text(training.get('step'))}",
            f"{count_text(samples)}{share} samples",
            f"loss {loss:.4f}" if isinstance(loss, (int, float)) else "loss -",
            f"{speed:.0f} samples/s" if isinstance(speed, (int, float)) else "",
        ]
    ).rstrip()


def _training_details(training: Answer | None) -> list[tuple[str, str]]:
    """How it trains and why, and its loss by time: what `status -v` adds."""
    if not training:
        return []
    details = []
    how = training.get("how") or {}
    if how:
        details.append(
            (
                "computes",
                f"{how.get('reason')}\n{how.get('micro_batch')} samples at a time, "
                f"{how.get('processes')} process(es) of {how.get('threads')} thread(s)"
                f" on {how.get('device')}",
            )
        )
    losses = training.get("loss_by_t") or []
    if losses:
        heads = "".join(f"{part / len(losses):<6.1f}" for part in range(len(losses)))
        means = "".join("-     " if mean is None else f"{mean:<6.2f}" for mean in losses)
        details.append(("loss from t", f"{heads.rstrip()}\n{means.rstrip()}"))
    return details


def _storage_text(storage: Answer) -> str:
    return f"{size_text(storage.get('bytes'))} of {size_text(storage.get('quota'))}"


def _experts_text(held: object) -> str:
    if isinstance(held, list):
        return ", ".join(map(str, held)) or "none held here"
    return count_text(held)


@click.command(
    "id",
    cls=VerbCommand,
    examples=("paris-node id", "paris-node id -v", "paris-node id --json | jq -r .peer_id"),
)
@pass_options
def show_id(options: Options) -> None:
    """This node's peer id and name; works whether or not it runs."""
    answer = _identity(options)
    if options.json:
        print_json(answer)
        return
    click.echo(answer["peer_id"])
    if answer.get("name"):
        click.echo(answer["name"])
    if options.verbose:
        for address in answer.get("listening", []):
            click.echo(address)


def _identity(options: Options) -> dict[str, Any]:
    config = options.settings()
    try:
        status_now = options.client().get("/api/v1/status")
    except NodeError as error:
        if error.code is not ErrorCode.NOT_RUNNING:
            raise
    else:
        kept = {key: status_now.get(key) for key in ("peer_id", "name", "listening")}
        return {"schema": SCHEMA, **kept}
    from p2p.errors import IdentityError
    from p2p.identity import load_or_create

    key = config.paths.identity_key
    if not key.exists():
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"There is no identity in {key.parent} yet.",
            "the first start makes one: paris-node start",
        )
    try:
        peer_id = load_or_create(key)[0].peer
    except IdentityError as error:
        raise NodeError(ErrorCode.REFUSED, f"{error}.", f"chmod 600 {key}") from error
    return {"schema": SCHEMA, "peer_id": peer_id, "name": config.name or None, "listening": []}


@click.command(
    cls=VerbCommand,
    examples=("paris-node peers", "paris-node peers -v", "paris-node peers --json | jq .peers"),
)
@pass_options
def peers(options: Options) -> None:
    """Who is connected: name, round trip, direct or relayed, version."""
    answer: Answer = options.client().get("/api/v1/peers")
    if options.json:
        print_json(answer)
        return
    found = answer.get("peers") or []
    if not found:
        click.echo("No peers yet. Give the others this node's address: paris-node status")
        return
    rows = [
        (
            str(peer.get("name") or "-"),
            short_id(peer.get("peer_id"), whole=options.verbose),
            f"{peer['rtt_ms']:.0f} ms" if peer.get("rtt_ms") is not None else "-",
            ("direct" if peer.get("direct") else "relayed")
            + (", dialled" if peer.get("outbound") else ""),
            str(peer.get("version") or "-"),
            str(peer.get("address") or "-"),
        )
        for peer in found
    ]
    print_table(("NAME", "PEER", ">RTT", "LINK", "VERSION"), rows, under=True)


@click.command(
    cls=VerbCommand,
    examples=(
        "paris-node clusters",
        "paris-node clusters -v",
        "paris-node clusters --json | jq .coverage",
    ),
)
@pass_options
def clusters(options: Options) -> None:
    """Who owns which cluster, how far it is trained, and which needs a node most."""
    answer: Answer = options.client().get("/api/v1/clusters")
    if options.json:
        print_json(answer)
        return
    rows = [_cluster_row(cluster, options) for cluster in answer.get("clusters") or []]
    print_table((">CLUSTER", "OWNER", ">EPOCH", ">LEASE", ">SAMPLES", ">TRAINED"), rows)
    coverage = answer.get("coverage")
    if isinstance(coverage, (int, float)):
        following = answer.get("next")
        gap = "" if following is None else f"   the gap that most needs a node: {following}"
        click.echo(f"coverage {coverage:.0%}{gap}")


def _cluster_row(cluster: Answer, options: Options) -> tuple[str, ...]:
    owner = "-"
    if cluster.get("owner"):
        owner = owner_text(cluster, whole=options.verbose)
        if cluster.get("mine"):
            owner += " (this node)"
    samples, budget = cluster.get("samples"), cluster.get("budget")
    share = f"{samples / budget:.0%}" if isinstance(samples, int) and budget else "-"
    lease = cluster.get("expires_in_s")
    return (
        str(cluster.get("cluster")),
        owner,
        count_text(cluster.get("epoch")),
        duration_text(lease),
        count_text(samples),
        "done" if cluster.get("complete") else share,
    )
