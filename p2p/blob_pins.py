"""Pins: which blobs must stay, and may never be lost again. One small file per pinned root.

A pin is written after everything it names was fsynced, so a pin that can be read is a promise that
survives a power cut. Pins are made by this node only; nothing a peer sends can make one.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p.blob_files import CHUNKS, PINS, blob_path, storage_error, sync, write_atomically
from p2p.errors import BlobMissingError, DecodeError, StorageError
from p2p.ids import BlobId, parse_blob_id

logger = logging.getLogger(__name__)

_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class Pin:
    """A root blob and everything it needs, kept until unpinned."""

    root: BlobId
    label: str
    """For people: why it is kept."""
    children: tuple[BlobId, ...]

    @property
    def blobs(self) -> tuple[BlobId, ...]:
        """The root and its children."""
        return (self.root, *self.children)


def save_pin(store_root: Path, pin: Pin) -> None:
    """Make everything a pin names durable, then the pin itself.

    Raises:
        BlobMissingError: if a blob it names is not on disk; nothing is pinned then.
        StorageError: if the disk refuses.
    """
    for blob in pin.blobs:
        try:
            sync(blob_path(store_root, blob))
        except FileNotFoundError as error:
            raise BlobMissingError(blob) from error
        except OSError as error:
            raise storage_error(error, f"make blob {blob} durable") from error
    try:
        sync(store_root / CHUNKS)
    except OSError as error:
        raise storage_error(error, "make the blob folder durable") from error
    write_atomically(_pin_path(store_root, pin.root), [_encode(pin)], is_durable=True)


def remove_pin(store_root: Path, root: BlobId) -> bool:
    """Forget a pin; say whether there was one. Its blobs stay until garbage is collected.

    Raises:
        StorageError: if the disk refuses.
    """
    path = _pin_path(store_root, root)
    try:
        path.unlink()
        sync(path.parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, f"unpin {root}") from error
    return True


def load_pins(store_root: Path) -> tuple[dict[BlobId, Pin], tuple[Path, ...]]:
    """Every pin on disk, and the files that were meant to be one but cannot be read.

    Raises:
        StorageError: if the disk refuses.
    """
    pins: dict[BlobId, Pin] = {}
    damaged: list[Path] = []
    try:
        for path in sorted((store_root / PINS).iterdir()):
            if path.name.startswith("."):
                continue
            try:
                pin = _decode(path.name, path.read_bytes())
            except DecodeError as error:
                logger.error("pin %s cannot be read: %s", path, error)
                damaged.append(path)
            else:
                pins[pin.root] = pin
    except OSError as error:
        raise storage_error(error, f"read the pins in {store_root}") from error
    return pins, tuple(damaged)


def refuse_damaged(damaged: Iterable[Path]) -> None:
    """Raise if a pin cannot be read: then nobody knows what may be deleted.

    Raises:
        StorageError: naming the first such file and the way out.
    """
    for path in damaged:
        raise StorageError(
            f"pin {path} was altered on disk, so nothing is deleted: pin {path.name} again or "
            "remove that file"
        )


def _pin_path(store_root: Path, root: BlobId) -> Path:
    return store_root / PINS / parse_blob_id(root)


def _encode(pin: Pin) -> bytes:
    body = json.dumps(
        {"schema": _SCHEMA, "root": pin.root, "label": pin.label, "children": pin.children}
    )
    return f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}".encode()


def _decode(name: str, data: bytes) -> Pin:
    digest, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise DecodeError(f"pin {name}: it no longer matches its checksum")
    fields = json.loads(body)
    if fields["schema"] != _SCHEMA:
        raise DecodeError(f"pin {name}: schema {fields['schema']}, expected {_SCHEMA}")
    if fields["root"] != name:
        raise DecodeError(f"pin {name}: it names another root, {fields['root']}")
    children = tuple(parse_blob_id(child) for child in fields["children"])
    return Pin(parse_blob_id(fields["root"]), str(fields["label"]), children)
