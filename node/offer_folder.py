"""The private folder of an own offer: what will be delivered, whole and as it was, and to whom.

It is filled under a name that nobody looks for and moved into its place when the offer stands. The
bytes are hashed when they are written: a seller signs for what it sends, and a damaged disk must
not make it sign for something else. Everything here blocks on the disk.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from node.disk import on_disk
from p2p.errors import StorageError
from p2p.ids import PeerId
from training.errors import ConfigError
from training.files import remove_folder, sync_folder, write_file
from training.jsonio import canonical_json, read_json

DELIVERY_FILE: Final = "delivery.bin"
DIGEST_FILE: Final = "delivery.sha256"
BUYERS_FILE: Final = "buyers.json"
_MAKING: Final = ".making-"


@contextmanager
def workplace(offers: Path) -> Iterator[Path]:
    """A folder to make an offer in; gone afterwards, unless `settle` moved it.

    Raises:
        StorageError: the disk refuses.
    """
    with on_disk("make a folder for the offer"):
        offers.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=_MAKING, dir=offers))  # 0700 by mkdtemp
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what stays is swept at the next start


def settle(folder: Path, target: Path) -> None:
    """Give a filled workplace the name of its offer; whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    with on_disk("keep the offer"):
        folder.rename(target)
        sync_folder(target.parent)


def write_delivery(folder: Path, data: bytes) -> Path:
    """Write what will be delivered, and its hash; where it lies.

    Raises:
        StorageError: the disk refuses.
    """
    with on_disk("write the delivery"):
        write_file(folder / DELIVERY_FILE, data)
        write_file(folder / DIGEST_FILE, hashlib.sha256(data).hexdigest().encode())
    return folder / DELIVERY_FILE


def read_delivery(folder: Path) -> bytes:
    """What is delivered.

    Raises:
        StorageError: it is gone, or is not what was written.
    """
    with on_disk(f"read the delivery in {folder}"):
        data = (folder / DELIVERY_FILE).read_bytes()
        digest = (folder / DIGEST_FILE).read_bytes()
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise StorageError(f"the delivery in {folder} was altered on disk: make the offer anew")
    return data


def write_buyers(folder: Path, buyers: Sequence[PeerId]) -> None:
    """Write who may buy.

    Raises:
        StorageError: the disk refuses.
    """
    with on_disk("write who may buy"):
        write_file(folder / BUYERS_FILE, canonical_json({"buyers": list(buyers)}))


def read_buyers(folder: Path) -> frozenset[PeerId]:
    """Who may buy; empty for whoever signs the terms.

    Raises:
        StorageError: it can't be read: that must not open an offer to everybody.
    """
    try:
        said = read_json(folder / BUYERS_FILE).get("buyers")
    except ConfigError as error:
        raise StorageError(f"who may buy can't be read in {folder}: {error}") from error
    if not isinstance(said, list):
        raise StorageError(f"who may buy can't be read in {folder}: it is no list")
    return frozenset(PeerId(str(peer)) for peer in said)


def drop(folder: Path) -> None:
    """Remove the folder of an offer, if it is there.

    Raises:
        StorageError: the disk refuses.
    """
    if folder.exists():
        with on_disk(f"remove {folder}"):
            remove_folder(folder)


def sweep(offers: Path, standing: Collection[str]) -> None:
    """Remove folders of no standing offer, and what was begun. Only when nothing is being made.

    Files that a person is told of, such as proofs of fraud, stay.

    Raises:
        StorageError: the disk refuses.
    """
    with on_disk("clear the folder of offers"):
        for path in list(offers.iterdir()) if offers.is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                if path.name not in standing:
                    remove_folder(path)
            elif path.name.startswith("."):
                path.unlink()
