"""Getting a connection to a peer that is known by its id."""

from node.context import NodeContext
from p2p.errors import P2PError, TransportError
from p2p.ids import PeerId
from p2p.limits import DIAL_TIMEOUT_S


async def reach(context: NodeContext, peer: PeerId) -> None:
    """Connect to a peer by the addresses in its node record, if it is not connected.

    Raises:
        TransportError: no address of it is known, or none answers.
    """
    host = context.host
    if any(connected.peer == peer for connected in host.connected()):
        return
    record = context.peers.get(peer)
    if record is None:
        raise TransportError(f"no address of peer {peer} is known")
    failure: P2PError | None = None
    for address in record.host_addresses:
        try:
            await host.connect(address, timeout_s=DIAL_TIMEOUT_S)
        except P2PError as error:
            failure = error
        else:
            return
    raise TransportError(f"peer {peer} can't be reached: {failure}")
