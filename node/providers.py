"""Who holds which folder: provider records in the DHT, written for ourselves and read of others."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from node.clock import now_s
from p2p.codec import open_signed, seal
from p2p.dht.port import RecordStore
from p2p.errors import PeerError
from p2p.identity import Identity
from p2p.ids import BlobId, PeerId, RunId
from p2p.limits import MAX_OWNERS_PER_KEY
from p2p.records import ProviderRecord, provider_key

logger = logging.getLogger(__name__)

LIFETIME_S: Final = 3600.0
RENEW_S: Final = 900.0
MAX_ROOTS_PER_RECORD: Final = 24
"""24 CIDs of 59 characters and the envelope stay under the 2 KiB a record may have."""


async def find_providers(records: RecordStore, run: RunId, root: BlobId) -> tuple[PeerId, ...]:
    """Peers that say they hold `root`, by opened records only; bad ones are logged and skipped."""
    key = provider_key(run, root)
    found: list[PeerId] = []
    for stored in (await records.get(key))[:MAX_OWNERS_PER_KEY]:
        try:
            record = open_signed(ProviderRecord, stored.value, key=key, now=now_s())
        except PeerError as error:
            logger.info("provider record dropped: %s", error)
            continue
        if record.record.run == run and root in record.record.roots:
            found.append(record.owner)
    return tuple(found)


async def announce_roots(
    records: RecordStore, identity: Identity, run: RunId, roots: Iterable[BlobId]
) -> None:
    """Say that we hold some folders, newest first: one record per key they fall under.

    Raises:
        TransportError: if the DHT can't be reached.
    """
    by_key: defaultdict[str, list[BlobId]] = defaultdict(list)
    for root in roots:
        by_key[provider_key(run, root)].append(root)
    for key, group in by_key.items():
        now = now_s()
        record = ProviderRecord(run, tuple(group[:MAX_ROOTS_PER_RECORD]), issued_at=now)
        expires_at = now + LIFETIME_S
        envelope = seal(record, identity, key=key, expires_at=expires_at)
        await records.put(key, identity.public_key, envelope, expires_at)
