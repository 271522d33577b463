"""Our own files: what the system says when they can't be read or written, in the node's words."""

from collections.abc import Iterator
from contextlib import contextmanager

from p2p.blob_files import storage_error


@contextmanager
def on_disk(action: str) -> Iterator[None]:
    """Do something with files.

    Args:
        action: what it is, for the message: "write the delivery".

    Raises:
        QuotaError: the disk is full.
        StorageError: it refuses for another reason.
    """
    try:
        yield
    except OSError as error:
        raise storage_error(error, action) from error
