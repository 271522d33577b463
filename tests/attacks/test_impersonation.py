"""Nobody passes for another node: 0 of every kind of false identity is accepted."""
# mypy: disable-error-code="misc"

from collections.abc import Callable
from typing import Any

import pytest
import trio
from libp2p import PLAINTEXT_PROTOCOL_ID, TLS_PROTOCOL_ID, InsecureTransport, TLSTransport
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.noise.messages import NoiseHandshakePayload, make_handshake_payload_sig
from libp2p.security.noise.patterns import PatternXX
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.secio import transport as secio
from libp2p.stream_muxer.yamux import yamux
from libp2p.transport.upgrader import TransportUpgrader

from p2p.errors import TransportError
from p2p.host import Verdict
from p2p.libp2p_host import LibP2PHost, open_host
from tests.support.networks import eventually, settings
from tests.support.raw_peer import FOREIGN, attack, dial_tcp, new_identity, sign, upgrader_of

pytestmark = pytest.mark.slow


class LyingNoise(NoiseTransport):
    """Noise that names a public key it has no private key of."""

    def __init__(self, own: Any, claimed: Any, *, signer: Any = None) -> None:
        super().__init__(own, noise_privkey=create_new_x25519_key_pair().private_key)
        self.claimed = claimed
        self.signer = signer or own.private_key

    def get_pattern(self) -> Any:
        pattern = PatternXX(self.local_peer, self.libp2p_privkey, self.noise_privkey)
        static = self.noise_privkey.get_public_key()

        def payload(_extensions: object = None) -> NoiseHandshakePayload:
            return NoiseHandshakePayload(
                self.claimed, make_handshake_payload_sig(self.signer, static)
            )

        pattern.make_handshake_payload = payload
        return pattern


class StolenSignature(LyingNoise):
    """Names the victim's key with a signature the victim made for another session."""

    def get_pattern(self) -> Any:
        pattern = super().get_pattern()
        other = create_new_x25519_key_pair().private_key.get_public_key()

        def payload(_extensions: object = None) -> NoiseHandshakePayload:
            return NoiseHandshakePayload(
                self.claimed, make_handshake_payload_sig(self.signer, other)
            )

        pattern.make_handshake_payload = payload
        return pattern


def _forged(own: Any, victim: Any) -> NoiseTransport:
    return LyingNoise(own, victim.public_key)


def _replayed(own: Any, victim: Any) -> NoiseTransport:
    return StolenSignature(own, victim.public_key, signer=victim.private_key)


FALSE_NOISE = (_forged, _replayed)


async def _upgrade(address: str, upgrader: TransportUpgrader) -> None:
    """Go through the whole handshake as a dialler, as far as the node lets us."""
    target = ID.from_base58(address.rpartition("/p2p/")[2])
    async with await dial_tcp(address) as socket:
        raw = RawConnection(TrioTCPStream(socket), True)
        with trio.fail_after(5):
            secured = await upgrader.upgrade_security(raw, True, target)
            await upgrader.upgrade_connection(secured, target)


OTHER_SECURITY: dict[str, Callable[[Any], dict[Any, Any]]] = {
    "plaintext": lambda keys: {PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)},
    "secio": lambda keys: {secio.ID: secio.Transport(keys)},
    "tls": lambda keys: {TLS_PROTOCOL_ID: TLSTransport(keys)},
}


@pytest.mark.parametrize("make", OTHER_SECURITY.values(), ids=OTHER_SECURITY)
async def test_only_noise_is_spoken(make: Callable[[Any], dict[Any, Any]]) -> None:
    async with open_host(settings("node")) as node:
        upgrader = TransportUpgrader(make(new_identity().keys), {yamux.PROTOCOL_ID: yamux.Yamux})
        with pytest.raises(BaseLibp2pError):
            await _upgrade(node.listening()[0], upgrader)
        await eventually(lambda: node.counts["inbound_failed"] == 1)
        assert not node.connected()


@pytest.mark.parametrize("make", FALSE_NOISE)
async def test_a_dialler_cannot_name_a_key_it_does_not_have(make: Callable[..., Any]) -> None:
    async with open_host(settings("node")) as node:
        own, victim = new_identity(), new_identity()
        upgrader = upgrader_of(own.keys, make(own.keys, victim.keys))
        with pytest.raises((*FOREIGN, trio.TooSlowError)):
            await _upgrade(node.listening()[0], upgrader)
        await eventually(lambda: node.counts["inbound_failed"] == 1)
        assert not node.connected()


@pytest.mark.parametrize("make", FALSE_NOISE)
async def test_a_listener_cannot_name_a_key_it_does_not_have(make: Callable[..., Any]) -> None:
    own, victim = new_identity(), new_identity()
    upgrader = upgrader_of(own.keys, make(own.keys, victim.keys))

    async def answer(socket: trio.SocketStream) -> None:
        try:
            await upgrader.upgrade_security(RawConnection(TrioTCPStream(socket), False), False)
        except FOREIGN:
            return

    async with open_host(settings("node")) as node, trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, answer, 0)
        port = listeners[0].socket.getsockname()[1]
        address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{victim.peer}"
        with pytest.raises(TransportError):
            await node.connect(address, timeout_s=5)
        assert not node.connected()
        nursery.cancel_scope.cancel()


async def test_an_honest_handshake_is_accepted() -> None:
    """The same code with the right keys gets in: the refusals above are not for a wrong reason."""
    async with open_host(settings("node")) as node:
        own = new_identity()
        upgrader = upgrader_of(own.keys, LyingNoise(own.keys, own.keys.public_key))
        await _upgrade(node.listening()[0], upgrader)
        async with attack(node.listening()[0]) as attacker:
            await eventually(lambda: str(attacker.identity.peer) in _names(node))


async def test_gossip_in_anothers_name_is_dropped() -> None:
    heard = []

    def note(_peer: object, data: bytes) -> Verdict:
        heard.append(data)
        return Verdict.ACCEPT

    async with open_host(settings("node")) as node:
        await node.subscribe("topic", note)
        async with attack(node.listening()[0]) as attacker:
            victim = new_identity()
            forged = rpc_pb2.Message(
                data=b"forged", topicIDs=["topic"], from_id=victim.peer.to_bytes(), seqno=b"1"
            )
            sign(forged, attacker.identity)
            await attacker.rpc(rpc_pb2.RPC(publish=[forged, attacker.message("topic", b"own")]))
            await eventually(lambda: heard == [b"own"])


def _names(node: LibP2PHost) -> set[str]:
    return {connected.peer for connected in node.connected()}
