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

# --- LoRA offers -------------------------------------------------------------------------------
MAX_LORA_MODULES: Final = 1024
"""Layers one adapter changes: a net of 28 blocks has 280, and 1,024 of 10 columns fit one blob."""
MAX_LORA_RANK: Final = 64
MAX_LORA_WIDTH: Final = 65_536
"""Inputs or outputs of a layer; the widest of our nets has 4,608."""
MAX_LORA_SCALE: Final = 16.0
"""Of alpha over rank: beyond it an adapter is noise, or means to be."""
MAX_MODULE_NAME: Final = 120
"""Characters; ours are `transformer_blocks.27.attn1.to_out.0`."""
COMMITMENT_POINT_SIZE: Final = 64
"""A point of BN254: x and y of 32 bytes, one point a committed column."""
MAX_COMMITMENT_COLUMNS: Final = 16
"""A verifier's time grows with them; (1152, 16, 4608) with its salt takes 12 at k = 13."""
MAX_CLAIM_ROWS: Final = 4096
"""Rows of an offer's probe batch: a buyer runs all of them twice; trainers hold out 256."""
MAX_TERMS_LENGTH: Final = 500
"""Characters of an offer's terms: a few sentences, copied into every agreement."""
MAX_LICENCE_LENGTH: Final = 200
MAX_OFFER_LIFETIME_S: Final = 90 * 86_400.0
"""A base is trained on for weeks; what was offered on an older one helps nobody."""
MAX_OFFERS_PER_ADVERT: Final = 6
"""Three CIDs each: six fill three quarters of a DHT record."""
OFFER_PROOF_SIDE: Final = 4
"""Rows and columns of an offer proof's values: 16 estimates of the adapter's norm."""
OFFER_PROOF_SCALARS: Final = OFFER_PROOF_SIDE**2
MAX_SCALARS_PER_MODULE: Final = 32
"""Bilinear scalars of one module, whoever asks and the offer's 16 included: under 1 % of the
freedom of a rank 4 adapter of 1,152 inputs and outputs. A budget per peer would be one per name."""
MAX_PROOFS_PER_COMMITMENT: Final = 64
"""Commitments are not blinded: each proof tells one number about each column, the salt hides 64."""
MAX_PROBE_VALUE: Final = 2047
"""|x| < 2^11: one value that packs two (e1 + 2^11 e2) would read several rows of an adapter."""
MAX_PROBE_PAIRS: Final = 4
"""Singular pairs of one module's gradient: they hold 82 to 97 % of it."""
MAX_BLIND_QUESTIONS: Final = MAX_PROBE_PAIRS + 1
"""About one module in one request: its pairs, and one of signs, for the size of A B."""
MAX_QUESTIONS: Final = MAX_LORA_MODULES * MAX_BLIND_QUESTIONS
"""Question frames of one request, each answered by one proof."""
MAX_DELTA_ROWS_PER_REQUEST: Final = 1024
"""Of one module: four pictures of 256 tokens, and all there is to learn of most adapters."""
MAX_DELTA_ROWS: Final = 65_536
"""Budget of one offer: by then a delta mode has given everything away, as its owner was told."""
MAX_PROOF_SIZE: Final = 16 * KIB
"""Measured: 4 KiB for (1152, 4, 1152), 12 KiB for (1152, 16, 4608)."""
MAX_LORA_FRAME: Final = 640 * KIB
"""One question: 64 rows of 4,608 activations of 2 bytes are 576 KiB."""
MAX_ANSWER_FRAME: Final = 3 * MIB
"""One answer: 42 rows of 4,608 values of 16 bytes; with its question it fits the line to a prover,
which takes `MAX_CHILD_FRAME_SIZE`."""
MAX_QUESTIONS_SIZE: Final = 64 * MIB
"""All questions of one request: four pairs of 1,024 modules of 1,152 + 4,608 numbers are 47 MB."""
MAX_LETTER_SIZE: Final = 4 * KIB
"""A sealed agreement, delivery, request or receipt: names, and up to 2,000 bytes of terms."""
MAX_ASK_AGE_S: Final = 60.0
"""How old a signed request may be; its envelope never expires, so its nonce is remembered."""
MAX_DELIVERY_SIZE: Final = 64 * MIB
"""An encrypted adapter: 280 modules of rank 16 and 1,152 + 2,304 sides are 31 MB."""
DELIVERY_PIECE: Final = 256 * KIB
"""One frame of it: a quarter of a stream's window, so that sending never waits for one piece."""
MAX_OFFER_PROOFS_SIZE: Final = 8 * MIB
"""All proofs of one offer: 600 modules at 12 KiB, or 1,024 at the usual 4 KiB."""
MAX_FRAUD_SIZE: Final = MAX_DELIVERY_SIZE + 2 * MIB
"""A fraud proof holds the whole delivery, the offer (one blob) and two letters."""

# --- disk --------------------------------------------------------------------------------------
DEFAULT_QUOTA_BYTES: Final = 20 * 1024 * MIB
DISK_FLOOR_FRACTION: Final = 0.05
DISK_FLOOR_BYTES: Final = 2 * 1024 * MIB
"""Never fill a disk: keep free the larger of 5 % and 2 GiB."""
