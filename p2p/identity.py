"""A node's one root key: who it is, how it signs, and where the key is kept.

The file is PKCS#8 PEM, unencrypted, as `openssl genpkey -algorithm ed25519` writes it, mode 0600 in
a folder of mode 0700. The DHT's child gets a derived key and never sees the root.
"""

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2p.errors import IdentityError
from p2p.ids import PeerId, peer_id

_DHT_INFO: Final = b"paris-dht"
_MAX_FILE_SIZE: Final = 4096
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class Identity:
    """An Ed25519 root key. Its text form shows the peer id and never the seed.

    Args:
        key: the private key; use `from_seed` or `load_or_create`.
    """

    __slots__ = ("_key", "peer", "public_key")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes_raw()
        self.peer: PeerId = peer_id(self.public_key)

    @classmethod
    def from_seed(cls, seed: bytes) -> "Identity":
        """The identity of a 32-byte seed.

        Raises:
            IdentityError: if it is not 32 bytes.
        """
        if len(seed) != 32:
            raise IdentityError(f"identity seed: got {len(seed)} bytes, expected 32")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes, for the libp2p host in this same process; never log or send them."""
        return self._key.private_bytes_raw()

    def dht_seed(self) -> bytes:
        """32 bytes for the DHT child's own key: HKDF-SHA256 of the root, one way."""
        return HKDF(hashes.SHA256(), length=32, salt=None, info=_DHT_INFO).derive(self.seed)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `message`."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Identity({self.peer})"


def load_or_create(path: Path) -> tuple[Identity, bool]:
    """Read the key file, or make it if there is none.

    Returns:
        The identity, and whether it was created now.

    Raises:
        IdentityError: if the file or its folder is unreadable, malformed, a link, or open to
            others; the message says what to do.
    """
    try:
        _check_folder(path.parent)
        created = not os.path.lexists(path) and _create(path)
        return _load(path), created
    except OSError as error:
        raise IdentityError(
            f"identity {path}: {error.strerror}: check the path and owner"
        ) from error


def export_pem(identity: Identity) -> bytes:
    """The key file's bytes: a backup. Whoever reads them is this node."""
    return Ed25519PrivateKey.from_private_bytes(identity.seed).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _check_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise IdentityError(f"identity folder {folder} is a link: use the folder it points to")
    if found.st_uid != os.geteuid():
        raise IdentityError(f"identity folder {folder} belongs to another user: use one of yours")
    if found.st_mode & _OTHERS:
        raise IdentityError(
            f"identity folder {folder} is open to others "
            f"(mode {stat.S_IMODE(found.st_mode):o}): run chmod 700 {folder}"
        )


def _create(path: Path) -> bool:
    """Write a new key so that the file is whole or absent; False if another process was first."""
    pem = export_pem(Identity(Ed25519PrivateKey.generate()))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path, follow_symlinks=False)  # unlike rename, never replaces a key
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True


def _load(path: Path) -> Identity:
    if path.is_symlink():
        raise IdentityError(f"identity {path} is a link: move the real file there")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise IdentityError(f"identity {path} is not a regular file: move it away")
        if found.st_uid != os.geteuid():
            raise IdentityError(f"identity {path} belongs to another user: run as its owner")
        if found.st_mode & _OTHERS:
            raise IdentityError(
                f"identity {path} is open to others "
                f"(mode {stat.S_IMODE(found.st_mode):o}): run chmod 600 {path}"
            )
        data = file.read(_MAX_FILE_SIZE + 1)
    return _parse(data, path)


def _parse(data: bytes, path: Path) -> Identity:
    hint = "restore your backup, or move the file away to become a new node"
    try:
        key = serialization.load_pem_private_key(data[:_MAX_FILE_SIZE], password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"identity {path} is not a readable PEM key: {hint}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(f"identity {path} holds a key that is not Ed25519: {hint}")
    return Identity(key)
