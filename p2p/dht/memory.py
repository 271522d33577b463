"""A DHT without a network: one table that every node of a test shares, with the real one's rules.

Nodes may be cut off from each other: `MemoryDht.partition` gives each group a view of its own, and
`heal` joins them again, as republishing does in the real one.
"""

import time
from collections.abc import Callable, Iterable

import trio

from p2p.dht.port import StoredRecord
from p2p.dht.table import RecordTable
from p2p.dht.validator import check_record, key_hash
from p2p.errors import DecodeError, LimitError, SignatureError, TransportError
from p2p.limits import MAX_RECORD_SIZE


class MemoryDht:
    """What all nodes of one test share.

    Args:
        clock: seconds since the epoch; tests pass their own.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._whole = RecordTable(clock=clock)
        self._group_of: dict[str, RecordTable] = {}
        self._down: set[str] = set()

    def store(self, name: str) -> "MemoryRecordStore":
        """The store of the node called `name`."""
        return MemoryRecordStore(self, name)

    def table(self, name: str) -> RecordTable:
        """The records that `name` can reach.

        Raises:
            TransportError: if the node was taken down.
        """
        if name in self._down:
            raise TransportError(f"the DHT of {name} is down")
        return self._group_of.get(name, self._whole)

    def partition(self, *groups: Iterable[str]) -> None:
        """Cut the network: each group (and the rest) stops seeing the others' new records."""
        for group in groups:
            table = RecordTable(clock=self.clock)
            _copy(self._whole, table)
            self._group_of |= dict.fromkeys(group, table)

    def heal(self) -> None:
        """Join all groups: every record that is alive anywhere is seen everywhere."""
        for table in self._group_of.values():
            _copy(table, self._whole)
        self._group_of.clear()

    def take_down(self, name: str) -> None:
        """Make every call of one node fail, as when its swarm child is gone."""
        self._down.add(name)

    def bring_up(self, name: str) -> None:
        """Undo `take_down`."""
        self._down.discard(name)


class MemoryRecordStore:
    """One node's `RecordStore` over a shared `MemoryDht`."""

    def __init__(self, dht: MemoryDht, name: str) -> None:
        self._dht = dht
        self._name = name

    async def put(self, key: str, subkey: bytes, value: bytes, expires_at: float) -> bool:
        """See `RecordStore.put`."""
        await trio.lowlevel.checkpoint()
        if len(value) > MAX_RECORD_SIZE:
            raise LimitError(f"record: got {len(value)} bytes, the limit is {MAX_RECORD_SIZE}")
        table = self._dht.table(self._name)
        place = key_hash(key)
        try:
            check_record(place, subkey, value, expires_at, now=self._dht.clock())
        except (DecodeError, SignatureError):
            return False
        return table.put(place, subkey, value, expires_at)

    async def get(self, key: str) -> tuple[StoredRecord, ...]:
        """See `RecordStore.get`."""
        await trio.lowlevel.checkpoint()
        slots = self._dht.table(self._name).get(key_hash(key))
        return tuple(
            StoredRecord(subkey, slot.value, slot.expires_at) for subkey, slot in slots.items()
        )


def _copy(source: RecordTable, target: RecordTable) -> None:
    for key in source:
        for owner, slot in source.get(key).items():
            target.put(key, owner, slot.value, slot.expires_at)
