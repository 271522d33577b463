"""Where a node keeps its files, and the lock that lets one node at a time use them.

A home is one folder, or the three that the platform gives (config, data, state). Nothing here reads
the environment: `node.config` says which folder. Imports nothing heavy: the command line loads it.
"""

import contextlib
import fcntl
import json
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from node.errors import ErrorCode, NodeError

APP_NAME: Final = "paris-node"
API_FILE_MAX_BYTES: Final = 4096
"""Ours is some 150 bytes: anything longer is not ours."""
_OTHERS_MAY: Final = 0o077


@dataclass(frozen=True, slots=True)
class Home:
    """The places of one node's files.

    Attributes:
        config: folder of `config.toml` and `identity.key`.
        data: folder of what is worth keeping: blobs, the database, runs.
        state: folder of what may be lost: logs, events, the address of the running node.
    """

    config: Path
    data: Path
    state: Path

    @classmethod
    def at(cls, folder: Path) -> Self:
        """The layout for `folder`: three folders if it is the platform's own, else one."""
        if folder == platform_home():
            import platformdirs  # noqa: PLC0415  # 30 ms that a home of one's own does not need

            return cls(
                config=Path(platformdirs.user_config_dir(APP_NAME)),
                data=folder,
                state=Path(platformdirs.user_state_dir(APP_NAME)),
            )
        return cls(config=folder, data=folder, state=folder)

    @property
    def config_file(self) -> Path:
        """Settings, TOML, written by the person."""
        return self.config / "config.toml"

    @property
    def identity_key(self) -> Path:
        """The root key, 0600."""
        return self.config / "identity.key"

    @property
    def blobs(self) -> Path:
        """The content-addressed store."""
        return self.data / "blobs"

    @property
    def database(self) -> Path:
        """SQLite: fencing epochs, claims, pins."""
        return self.data / "node.db"

    @property
    def runs(self) -> Path:
        """Runs made or joined here, one folder each."""
        return self.data / "runs"

    @property
    def loras(self) -> Path:
        """Adapters trained here, one folder each."""
        return self.data / "loras"

    @property
    def offers(self) -> Path:
        """Adapters offered from here, as they will be delivered; private."""
        return self.data / "offers"

    @property
    def circuits(self) -> Path:
        """Keys of proof circuits, derived here; made anew if they are lost."""
        return self.data / "circuits"

    @property
    def models(self) -> Path:
        """Weights of pretrained parts, put here by the person; one folder each."""
        return self.data / "models"

    @property
    def log_file(self) -> Path:
        """What the node did, for people."""
        return self.state / "node.log"

    def worker_log(self, name: str) -> Path:
        """What a child process prints: `swarm`, `trainer` or `expert`."""
        return self.state / f"{name}.log"

    @property
    def events_file(self) -> Path:
        """What the node did, one JSON object a line."""
        return self.state / "events.ndjson"

    @property
    def api_file(self) -> Path:
        """Address and token of the running node, 0600; gone when it stops."""
        return self.state / "api.json"

    @property
    def lock_file(self) -> Path:
        """Held by the running node."""
        return self.data / "lock"


def platform_home() -> Path:
    """The data folder that this platform gives a program of our name."""
    import platformdirs  # noqa: PLC0415

    return Path(platformdirs.user_data_dir(APP_NAME))


def prepare(home: Home) -> None:
    """Make the home's folders, 0700, and refuse a home that is broken or open to others.

    Raises:
        NodeError: `REFUSED` if a folder belongs to someone else or others may read it; `FAILED` if
            something of the wrong kind stands in the way; `RESOURCE` if the disk refuses.
    """
    for folder in dict.fromkeys((home.config, home.data, home.state)):
        _make_private(folder)
    for folder in (home.blobs, home.runs, home.loras):
        if folder.exists() and not folder.is_dir():
            raise _in_the_way(folder, "a folder")
    for file in (home.config_file, home.identity_key, home.database, home.log_file,
                 home.events_file, home.api_file, home.lock_file):  # fmt: skip
        if file.exists() and not file.is_file():
            raise _in_the_way(file, "a file")


def _make_private(folder: Path) -> None:
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise _in_the_way(folder, "a folder")
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        info = folder.stat()
        if info.st_uid == os.geteuid() and info.st_mode & _OTHERS_MAY and not any(folder.iterdir()):
            folder.chmod(0o700)  # a fresh `mkdir`: nothing in it that others could have touched
            info = folder.stat()
        usable = os.access(folder, os.R_OK | os.W_OK | os.X_OK)
    except OSError as error:
        raise NodeError(
            ErrorCode.RESOURCE,
            f"The home {folder} cannot be used: {error.strerror}.",
            "choose another with --home DIR, or PARIS_NODE_HOME",
        ) from error
    if info.st_uid != os.geteuid():
        raise NodeError(
            ErrorCode.REFUSED,
            f"The home {folder} belongs to user {info.st_uid}, not to you.",
            "choose another with --home DIR, or PARIS_NODE_HOME",
        )
    if info.st_mode & _OTHERS_MAY:
        mode = stat.S_IMODE(info.st_mode)
        raise NodeError(
            ErrorCode.REFUSED,
            f"Other users can look into the home {folder} (mode {mode:04o}), where the key lies.",
            f"chmod 700 {folder}",
        )
    if not usable:
        raise NodeError(
            ErrorCode.RESOURCE,
            f"The home {folder} cannot be read and written.",
            f"chmod 700 {folder}",
        )


def _in_the_way(path: Path, expected: str) -> NodeError:
    return NodeError(
        ErrorCode.FAILED,
        f"The home is broken: {path} should be {expected}.",
        f"move it away: mv {path} {path}.old",
    )


class HomeLock:
    """Keeps a second node off the same home, from before its files are touched until the end.

    `paris-node start` holds it around `node.app.run`. The kernel drops it when the process ends,
    however it ends; child processes do not inherit it.
    """

    def __init__(self, home: Home) -> None:
        self._path = home.lock_file
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            NodeError: `REFUSED` if another process holds it.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NodeError(
                ErrorCode.RESOURCE,
                f"The lock {self._path} cannot be opened: {error.strerror}.",
                "choose another home with --home DIR",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            who = f"process {holder}" if holder.isdecimal() else "another process"
            raise NodeError(
                ErrorCode.REFUSED,
                f"A node already runs on this home ({who} holds {self._path}).",
                "stop it with: paris-node stop    or start a second one with its own --home DIR",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drop the lock; the file stays, so that no two processes ever lock different files."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(home: Home) -> bool:
    """Whether a process holds the home's lock."""
    try:
        with home.lock_file.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@dataclass(frozen=True, slots=True)
class ApiFile:
    """How to reach the running node: what `api.json` holds."""

    url: str
    token: str
    pid: int


def new_token() -> str:
    """A fresh bearer token, 256 bits."""
    return secrets.token_urlsafe(32)


def write_api_file(home: Home, api: ApiFile) -> None:
    """Tell the command line where the node listens; whole or not at all, readable by us only."""
    text = json.dumps({"url": api.url, "token": api.token, "pid": api.pid})
    descriptor, name = tempfile.mkstemp(dir=home.state, prefix=".api-")  # 0600 by mkstemp
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(home.api_file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remove_api_file(home: Home) -> None:
    """Say that no node runs here any more."""
    home.api_file.unlink(missing_ok=True)


def read_api_file(home: Home) -> ApiFile | None:
    """The running node's address; None if there is none, or its process is gone.

    Raises:
        NodeError: `FAILED` if the file is not one that we wrote.
    """
    try:
        with home.api_file.open("rb") as file:
            raw = file.read(API_FILE_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _bad_api_file(home, error.strerror or "unreadable") from error
    try:
        fields: Any = json.loads(raw) if len(raw) <= API_FILE_MAX_BYTES else None
        url, token, pid = fields["url"], fields["token"], fields["pid"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _bad_api_file(home, "it is not what a node writes") from error
    if not (isinstance(url, str) and isinstance(token, str) and type(pid) is int and pid > 0):
        raise _bad_api_file(home, "its url, token or pid has the wrong type")
    return ApiFile(url, token, pid) if is_process_alive(pid) else None


def _bad_api_file(home: Home, why: str) -> NodeError:
    return NodeError(
        ErrorCode.FAILED,
        f"The running node's address in {home.api_file} cannot be read: {why}.",
        f"rm {home.api_file}    then: paris-node start",
    )


def is_process_alive(pid: int) -> bool:
    """Whether a process of that number exists (it may be another program's by now)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):  # a zombie has ended; its parent has not looked yet
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
