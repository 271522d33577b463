"""Which run this node belongs to, and getting hold of its manifest."""

import logging
from collections.abc import Callable
from typing import Final

import trio

from node.config import Config
from node.context import NodeContext
from node.errors import ErrorCode, NodeError
from node.membership import Membership
from node.runs import (
    builtin_run_id,
    install_builtin_run,
    keep_run_manifest,
    parse_run_id,
)
from node.state import State
from p2p.blobs import BlobStore
from p2p.errors import BlobCorruptError, BlobMissingError, P2PError
from p2p.ids import BlobId, RunId
from p2p.records import RunManifest

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 0.5


def choose_run(config: Config, state: State, blobs: BlobStore) -> RunId:
    """The run asked for, or this home's run, or the built-in one.

    The home is bound to it by `obtain_manifest`, once it is known to exist.

    Raises:
        NodeError: if the id is malformed, or the home belongs to another run.
    """
    run = parse_run_id(config.run) if config.run else state.run() or builtin_run_id()
    state.check_run(run)
    if run == builtin_run_id():
        install_builtin_run(blobs)
    return run


async def obtain_manifest(
    context: NodeContext, membership: Membership, notify: Callable[[str], None]
) -> RunManifest:
    """The run's manifest, from this home or from the first peer that has it; binds the home.

    Raises:
        NodeError: NO_PEERS or NOT_FOUND if nobody gave it in time, VERIFICATION_FAILED if the id
            names something else.
    """
    manifest = await _find_manifest(context, membership, notify)
    context.state.bind_run(context.run)
    return manifest


async def _find_manifest(
    context: NodeContext, membership: Membership, notify: Callable[[str], None]
) -> RunManifest:
    try:
        return keep_run_manifest(context.run, context.blobs)
    except (BlobMissingError, BlobCorruptError):
        notify(f"looking for run {context.run}")
    reason = ""
    with trio.move_on_after(context.config.join_timeout_s):
        while not _is_hopeless(context, membership):
            try:
                await context.fetcher.blob(BlobId(context.run), hints=context.peers.peers())
            except (NodeError, P2PError) as error:
                reason = str(error)
                await trio.sleep(_AGAIN_S)
            else:
                return keep_run_manifest(context.run, context.blobs)
    raise _not_found(context, membership, reason)


def _is_hopeless(context: NodeContext, membership: Membership) -> bool:
    """Whether every address we were given leads to another run."""
    targets = {address.rpartition("/p2p/")[2] for address in context.config.peers}
    return bool(targets) and targets <= set(membership.other_runs)


def _not_found(context: NodeContext, membership: Membership, reason: str) -> NodeError:
    if membership.other_runs:
        other = next(iter(membership.other_runs.values()))
        return NodeError(
            ErrorCode.NOT_FOUND,
            f"run {context.run} is not known here, and the peers that answered are in {other}",
            f"join theirs from a fresh home: paris-node --home DIR start --run {other} --peer ...",
        )
    if not context.peers.peers():
        return NodeError(
            ErrorCode.NO_PEERS,
            f"run {context.run} is not known here, and no peer could be reached to ask",
            "name a node that is up: paris-node start --run ... --peer ADDRESS "
            "(its address is in its own: paris-node status)",
        )
    return NodeError(
        ErrorCode.NOT_FOUND,
        f"no peer could give run {context.run}: {reason}",
        "check the run id with whoever gave it to you",
    )
