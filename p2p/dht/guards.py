"""hivemind's DHT with its holes closed: what a hostile peer sends meets our rules first.

Installed before any other peer can reach us. Each class names the fact it answers; the tests in
`tests/attacks` send the attack to a real node. All of hivemind's wire stays as it is.
"""

import logging
import time
from collections.abc import Collection, Iterator
from typing import Final

from p2p.dht.lean import prepare_hivemind

prepare_hivemind()

from hivemind.dht import node as hivemind_node  # noqa: E402
from hivemind.dht.protocol import DHTProtocol  # noqa: E402
from hivemind.dht.routing import DHTID  # noqa: E402
from hivemind.dht.storage import DictionaryDHTValue  # noqa: E402
from hivemind.dht.validation import DHTRecord, RecordValidatorBase  # noqa: E402
from hivemind.p2p import P2PContext, PeerID  # noqa: E402
from hivemind.proto import dht_pb2  # noqa: E402
from hivemind.utils import MSGPackSerializer, ValueWithExpiration  # noqa: E402

from p2p.dht.decode import decode_value  # noqa: E402
from p2p.dht.table import RecordTable  # noqa: E402
from p2p.dht.validator import check_record  # noqa: E402
from p2p.errors import DecodeError, LimitError, SignatureError  # noqa: E402

logger = logging.getLogger(__name__)

MAX_KEYS_PER_FIND: Final = 64
MAX_KEYS_PER_STORE: Final = 256
"""Checking a signature takes ~0.1 ms: one request must not hold the loop for long."""
_MAX_HANDOFF_BYTES: Final = 1024 * 1024
"""Given to a node that joins; the rest reaches it when owners put their records again."""
_SUBKEY_PREFIX: Final = b"\xc4\x20"  # msgpack: 32 bytes follow

FindReply = dict[DHTID, tuple[ValueWithExpiration | None, dict[DHTID, PeerID]]]


def expected_node_id(peer: PeerID) -> DHTID:
    """The DHT id that a peer must have: the hash of its peer id.

    hivemind lets everybody choose, so that an attacker could sit down next to any key.
    """
    return DHTID.generate(source=peer.to_bytes())


class GuardedSerializer(MSGPackSerializer):  # type: ignore[misc]
    """F4: decodes the three shapes the DHT needs and nothing nested."""

    @classmethod
    def loads(cls, buf: bytes) -> object:
        """What hivemind decodes. Raises `DecodeError`, which its callers treat as a bad peer."""
        value = decode_value(buf)
        if not isinstance(value, tuple):
            return value
        dictionary = DictionaryDHTValue()
        with dictionary.freeze():
            for record in value:
                dictionary.store(record.subkey, record.value, record.expires_at)
        return dictionary


class EnvelopeValidator(RecordValidatorBase):  # type: ignore[misc]
    """Every record must be an envelope of its owner for this very key and expiry."""

    def __init__(self) -> None:
        self.refused = 0
        """Records turned away so far."""

    def validate(self, record: DHTRecord) -> bool:
        """Whether the record may be kept or believed. Does not raise for bad input."""
        prefix, subkey = record.subkey[:2], record.subkey[2:]
        try:
            if prefix != _SUBKEY_PREFIX:
                raise DecodeError("record: not under an owner's subkey")
            check_record(record.key, subkey, record.value, record.expiration_time, now=time.time())
        except (DecodeError, SignatureError, LimitError) as error:
            self.refused += 1
            logger.debug("record refused: %s", error)
            return False
        except Exception:  # the guard of the DHT's validator: a bug here must not refuse in silence
            self.refused += 1
            logger.exception("the record validator failed")
            return False
        return True


class TableStorage:
    """hivemind's storage interface over our `RecordTable` (F5 and bounds live there)."""

    def __init__(self, table: RecordTable) -> None:
        self._table = table

    def get(self, key: DHTID) -> ValueWithExpiration | None:
        """All owners' live records as hivemind's dictionary, or None."""
        slots = self._table.get(key.to_bytes())
        if not slots:
            return None
        dictionary = DictionaryDHTValue()
        for owner, slot in slots.items():
            dictionary.store(owner, slot.value, slot.expires_at)
        return ValueWithExpiration(dictionary, dictionary.latest_expiration_time)

    def store(
        self, key: DHTID, value: bytes, expiration_time: float, subkey: object = None
    ) -> bool:
        """Only records under a subkey are kept."""
        if not isinstance(subkey, bytes):
            return False
        return self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: bytes, value: bytes, expiration_time: float) -> bool:
        """Keep one validated record."""
        return self._table.put(key.to_bytes(), subkey, value, expiration_time)

    def items(self) -> Iterator[tuple[DHTID, ValueWithExpiration]]:
        """What a node that joins is offered, as much as fits into one message."""
        size = 0
        for raw_key in self._table:
            key = DHTID.from_bytes(raw_key)
            item = self.get(key)
            if item is None:
                continue
            size += sum(len(value) for _, (value, _) in item.value.items())
            if size > _MAX_HANDOFF_BYTES:
                return
            yield key, item


class NoCache:
    """Peers may fill hivemind's cache, which is *preferred* in replies and so hides records."""

    def get(self, _key: object) -> None:
        """Nothing."""

    def store(self, *_args: object, **_kwargs: object) -> bool:
        """Refuse."""
        return False

    store_subkey = store

    def __contains__(self, _key: object) -> bool:
        return False


class GuardedProtocol(DHTProtocol):  # type: ignore[misc]
    """hivemind's RPCs between us and the peers, under our limits."""

    serializer = GuardedSerializer

    async def add_p2p_handlers(self, *args: object, **kwargs: object) -> None:
        """Swap the storages before the first peer can ask."""
        self.storage = TableStorage(RecordTable(clock=time.time))
        self.cache = NoCache()
        await super().add_p2p_handlers(*args, **kwargs)

    @classmethod
    def _get_handle_name(cls, namespace: str | None, method_name: str) -> str:
        """The names vanilla hivemind uses: they come from the class's name."""
        return str(DHTProtocol._get_handle_name(namespace, method_name))

    def _validate_dictionary(self, key_bytes: bytes, dictionary: object) -> bool:
        """Drop bad entries, not the whole: one that just expired must not hide the rest."""
        if not isinstance(dictionary, DictionaryDHTValue):
            return False
        with dictionary.freeze():
            for subkey, (value, expires_at) in list(dictionary.items()):
                if not self._validate_record(key_bytes, _SUBKEY_PREFIX + subkey, value, expires_at):
                    del dictionary[subkey]
            return bool(dictionary)

    async def rpc_store(
        self, request: dht_pb2.StoreRequest, context: P2PContext
    ) -> dht_pb2.StoreResponse:
        """Bounded work for one request. Raises `LimitError`, which goes back to the caller."""
        if len(request.keys) > MAX_KEYS_PER_STORE:
            raise LimitError(f"store: got {len(request.keys)} keys, limit {MAX_KEYS_PER_STORE}")
        return await super().rpc_store(request, context)

    async def rpc_find(
        self, request: dht_pb2.FindRequest, context: P2PContext
    ) -> dht_pb2.FindResponse:
        """Bounded work for one request. Raises `LimitError`, which goes back to the caller."""
        if len(request.keys) > MAX_KEYS_PER_FIND:
            raise LimitError(f"find: got {len(request.keys)} keys, limit {MAX_KEYS_PER_FIND}")
        return await super().rpc_find(request, context)

    async def call_find(self, peer: PeerID, keys: Collection[DHTID]) -> FindReply | None:
        """Believe only neighbours whose id is theirs."""
        response: FindReply | None = await super().call_find(peer, keys)
        if not response:
            return response
        return {
            key: (value, _believable(neighbors)) for key, (value, neighbors) in response.items()
        }

    async def update_routing_table(
        self, node_id: DHTID | None, peer_id: PeerID, responded: bool = True
    ) -> None:
        """Keep out nodes that chose their own place in the id space."""
        if responded and node_id != expected_node_id(peer_id):
            return
        await super().update_routing_table(node_id, peer_id, responded=responded)


def _believable(neighbors: dict[DHTID, PeerID]) -> dict[DHTID, PeerID]:
    """Neighbours whose id is theirs; the search itself tries only the nearest of them."""
    return {node: peer for node, peer in neighbors.items() if node == expected_node_id(peer)}


def install() -> None:
    """Make hivemind's `DHTNode` use the guarded parts. Call before a node is created."""
    MSGPackSerializer.loads = GuardedSerializer.loads
    hivemind_node.DHTProtocol = GuardedProtocol
