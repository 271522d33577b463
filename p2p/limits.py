"""Every number that bounds what a peer may make this node do, each with its reason.

Nothing here is a policy of a run (those stand in the run's manifest): these protect the machine.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- bytes -------------------------------------------------------------------------------------
CHUNK_SIZE: Final = MIB
"""A blob is at most one chunk: IPFS tools refuse blocks over 2 MiB, and 1 MiB hashes in ~1 ms."""
MAX_RECORD_SIZE: Final = 2 * KIB
"""A DHT value; a subkey dictionary travels whole in every reply: 64 owners stay below 128 KiB."""
MAX_GOSSIP_SIZE: Final = 16 * KIB
"""Only CIDs and metadata are gossiped; above 1 MiB GossipSub drops in silence."""
MAX_REQUEST_SIZE: Final = 64 * KIB
"""A request frame of any protocol; 10 MB of empty msgpack maps would become 733 MB."""
MAX_IMAGE_REPLY_SIZE: Final = 8 * MIB
MAX_CHILD_FRAME_SIZE: Final = 4 * MIB
"""Frames between the node and its own children; ours, but bounded so that a bug cannot eat RAM."""
MAX_DECODE_DEPTH: Final = 8
"""msgpack nesting: ~400 levels segfault hivemind's decoder; our deepest record has 5."""
DECODE_BYTES_PER_ITEM: Final = 16
"""A decoded value of n bytes (counted up to one chunk) may hold n/16 + 128 items: a manifest holds
one per 61 bytes, and 1 MiB of one-byte items would take 0.3 s and 70 MB to look at."""
MAX_MANIFEST_FILES: Final = 2_000
MAX_FILE_SIZE: Final = 16 * 1024 * MIB
MAX_FILE_NAME: Final = 120
"""Characters: file systems take 255 bytes, and ours are `shard-00017.safetensors`."""
MAX_LABEL: Final = 64
"""Characters of a name that is shown: a pet name, a run, a preset, a version, a strategy."""
MAX_ADDRESSES: Final = 8
MAX_ADDRESS_LENGTH: Final = 256
"""A relayed multiaddr with two peer ids takes about 190 characters."""
MAX_RECEIPT_EXPERTS: Final = 1024

# --- connections -------------------------------------------------------------------------------
MAX_CONNECTIONS: Final = 128
MAX_INBOUND_CONNECTIONS: Final = 64
MIN_OUTBOUND_CONNECTIONS: Final = 4
MAX_PENDING_CONNECTIONS: Final = 16
MAX_CONNECTIONS_PER_IP: Final = 4
"""Loopback is exempt: a swarm on one machine is a supported way to try the program."""
MAX_STREAMS_PER_PEER: Final = 32
MAX_NEW_CONNECTIONS_PER_IP_PER_S: Final = 10
MAX_TRACKED_STREAMS_PER_CONNECTION: Final = 128
"""Streams whose end the peer has not confirmed: they cost memory, so the next one is refused."""
MAX_STREAM_WINDOW: Final = MIB
"""What a peer may send ahead of our reading, per stream; yamux would grow to 16 MiB."""
MAX_BUFFERED_PER_CONNECTION: Final = 16 * MIB
"""Unread bytes of one connection: py-libp2p only warns when a peer ignores its window."""

# --- bulk transfers ----------------------------------------------------------------------------
MAX_BULK_STREAMS: Final = 32
"""Served at once; each holds up to 2 MiB: the blob being sent and the one read ahead."""
MAX_BULK_STREAMS_PER_PEER: Final = 4
"""A pull opens one; a few more for pulls side by side."""
MAX_BLOBS_PER_REQUEST: Final = 64
"""64 MiB asked at once; a larger request would let one frame queue minutes of work."""
MAX_BLOBS_OUTSTANDING: Final = 256
"""Asked and not yet answered on one stream; more is a peer that does not read."""
BULK_REFUSAL_PAUSE_S: Final = 0.01
"""Between refusals on one stream: naming blobs nobody has is cheap, looking for them is not."""

# --- time --------------------------------------------------------------------------------------
DIAL_TIMEOUT_S: Final = 10.0
UPGRADE_TIMEOUT_S: Final = 10.0
FIRST_BYTE_TIMEOUT_S: Final = 5.0
REQUEST_TIMEOUT_S: Final = 30.0
IDLE_STREAM_TIMEOUT_S: Final = 60.0
WRITE_STALL_TIMEOUT_S: Final = 10.0
"""One muxer frame (<= 64 KiB) must leave in this time, else the connection is dropped."""
PING_INTERVAL_S: Final = 15.0
PING_DROP_AFTER_S: Final = 45.0
DHT_CALL_TIMEOUT_S: Final = 10.0
"""`get` was seen to hang over 100 s on a bad dictionary: every DHT call has a deadline."""
MAX_CLOCK_SKEW_S: Final = 5.0
MAX_LEASE_S: Final = 600.0
MAX_RECORD_LIFETIME_S: Final = 3600.0

# --- claims ------------------------------------------------------------------------------------
MAX_LIVE_CLAIMS_PER_OWNER: Final = 2
MAX_CLUSTERS: Final = 1024
"""A run's K; keys are one per cluster, and a reader walks all of them."""
MAX_EPOCH: Final = 2**40
"""Fencing tokens saturate here: whoever claims this one cannot lock the cluster for ever."""
MAX_SAMPLES: Final = 2**53
"""Steps and samples: the integers a double still counts."""
MAX_OWNERS_PER_KEY: Final = 256
"""Subkeys of one DHT key that are looked at; the rest is spam, dropped and counted."""

# --- gossip ------------------------------------------------------------------------------------
MAX_GOSSIP_PER_PEER_PER_S: Final = 10.0
"""GossipSub's own per-topic limit: the publisher hits it first, so we raise before it drops."""
GOSSIP_BURST: Final = 40.0
"""Messages one sender may send at once: a neighbour forwards the adverts of many."""
GOSSIP_MEMORY: Final = 4096
"""Digests and senders remembered per topic, the oldest forgotten first: under 1 MiB."""

MAX_GOSSIP_TOPICS: Final = 64
"""Topics one node joins or publishes on; a run has fewer than ten."""
GOSSIP_CHANNEL_SIZE: Final = 256
"""Accepted messages that wait for their reader; py-libp2p's own queue of 32 drops in silence."""
MAX_GOSSIP_PER_FORWARDER_PER_S: Final = 200.0
"""What one neighbour may hand us before signatures are checked (~0.2 ms each): 4 % of a core."""

# --- inference ---------------------------------------------------------------------------------
MAX_PROMPT_BYTES: Final = KIB
MAX_STEPS: Final = 100
MAX_IMAGES_PER_REQUEST: Final = 16
MAX_INFERENCE_QUEUE: Final = 16
MAX_INFERENCE_PER_PEER: Final = 3
"""One running and two queued."""
MAX_GUIDANCE: Final = 30.0
MAX_AUTOGUIDANCE: Final = 5.0
MAX_SEED: Final = 2**63 - MAX_IMAGES_PER_REQUEST
"""Picture i of a request takes seed + i, and msgpack and torch both hold 63 bits."""
MAX_DEADLINE_S: Final = 600.0
MAX_REASON_LENGTH: Final = 500
"""Characters of a refusal's reason: one or two sentences."""

# --- disk --------------------------------------------------------------------------------------
DEFAULT_QUOTA_BYTES: Final = 20 * 1024 * MIB
DISK_FLOOR_FRACTION: Final = 0.05
DISK_FLOOR_BYTES: Final = 2 * 1024 * MIB
"""Never fill a disk: keep free the larger of 5 % and 2 GiB."""
