"""Every number that bounds what a local program may make the node's HTTP server do."""

from typing import Final

MAX_BODY_BYTES: Final = 1024 * 1024
"""The longest request is a prompt of 1 KiB; a LoRA's adapter travels by CID, not here."""
MAX_HEADER_BYTES: Final = 16 * 1024
"""h11's own default, twice what browsers send."""
HEADER_TIMEOUT_S: Final = 10.0
"""From the connection, or the last answer, to the end of the next request's headers."""
BODY_TIMEOUT_S: Final = 10.0
WRITE_TIMEOUT_S: Final = 10.0
"""A reader that takes nothing for so long, while its buffers are full, is dropped."""
MAX_CONNECTIONS: Final = 32
"""A page opens 6; each holds some 50 KiB and a task here."""
BACKLOG: Final = 64
"""Connections that the kernel holds for us meanwhile."""
