"""The node's settings: read once, checked once, then a frozen value that nothing can change.

Precedence: flag > `PARIS_NODE_*` > `--config` file > the home's `config.toml` > defaults. Argv and
the environment reach the program here and in `node.cli`, nowhere else. Imports nothing heavy.
"""

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.config_values import (
    boolean,
    byte_count,
    choice,
    cid,
    device,
    folder,
    gpu_count,
    host,
    listen_addresses,
    peer_addresses,
    pet_name,
    whole_number,
)
from node.errors import ErrorCode, NodeError
from node.home import Home, platform_home

ENV_PREFIX: Final = "PARIS_NODE_"
CONFIG_FILE_MAX_BYTES: Final = 64 * 1024
"""A config file is a screenful; a wrong path (a video, /dev/zero) must not fill the memory."""
DEFAULT_API_PORT: Final = 4180


@dataclass(frozen=True, slots=True)
class Config:
    """All that can be set about a node. `Config(home=folder)` is a node with the defaults.

    Attributes:
        home: the folder of the node's files; `paths` says where each one lies.
        run: CID of the run to join; None is the built-in run.
        peers: multiaddrs of other nodes' hosts, dialled at the start and remembered.
        name: pet name shown to others; empty derives one from the peer id.
        host_listen: multiaddrs the libp2p host listens on (gossip, requests, inference).
        bulk_listen: multiaddrs the DHT child listens on (records, blobs).
        lan_discovery: find nodes of the same run on this network without an address.
        relay: use relays when nobody can dial us, and relay for others when they can.
        api_host: loopback address of the HTTP API.
        api_port: its TCP port; 0 takes any free one.
        api_port_fallback: take any free port if `api_port` is taken; only for the default port.
        quota_bytes: the blob store never grows beyond this.
        train: claim clusters and train.
        serve: draw for peers that ask.
        capacity: clusters this machine trains at a time.
        threads: CPU threads of each worker process.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        models: folder of pretrained parts (`training.parts.hub`); empty is `models` in the home.
        gpus: GPUs that train one cluster together: "auto" is all; a CPU is always one process.
        precision: "auto" (by what the device can do), "fp32" or "bf16".
        join_timeout_s: how long a run that is not known here is looked for, seconds.
        log_level: "debug", "info", "warning" or "error".
    """

    home: Path
    run: str | None = None
    peers: tuple[str, ...] = ()
    name: str = ""
    host_listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4101",)
    bulk_listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4102",)
    lan_discovery: bool = True
    relay: bool = True
    api_host: str = "127.0.0.1"
    api_port: int = DEFAULT_API_PORT
    api_port_fallback: bool = True
    quota_bytes: int = 20 * 1024**3
    train: bool = True
    serve: bool = True
    capacity: int = 1
    threads: int = 1
    device: str = "auto"
    models: str = ""
    gpus: str = "auto"
    precision: str = "auto"
    join_timeout_s: int = 60
    log_level: str = "info"

    @property
    def models_folder(self) -> Path:
        """Where pretrained parts are looked for first."""
        return Path(self.models) if self.models else self.paths.models

    @property
    def paths(self) -> Home:
        """Where each file of the home lies."""
        return Home.at(self.home)


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A `Config` and, for each setting, where its value came from."""

    config: Config
    origins: Mapping[str, str]


Parser = Callable[[object], object]
"""A TOML value or a string in, the setting out; its ValueError says what it expected."""

_PARSERS: Final[Mapping[str, Parser]] = {
    "run": cid,
    "peers": peer_addresses,
    "name": pet_name,
    "host_listen": listen_addresses,
    "bulk_listen": listen_addresses,
    "lan_discovery": boolean,
    "relay": boolean,
    "api_host": host,
    "api_port": whole_number(0, 65535),
    "quota_bytes": byte_count,
    "train": boolean,
    "serve": boolean,
    "capacity": whole_number(1, 64),
    "threads": whole_number(1, 256),
    "device": device,
    "models": folder,
    "gpus": gpu_count,
    "precision": choice("auto", "fp32", "bf16"),
    "join_timeout_s": whole_number(1, 3600),
    "log_level": choice("debug", "info", "warning", "error"),
}
SETTINGS: Final = tuple(_PARSERS)
"""Keys of `config.toml`; the environment's are the same in capitals after `PARIS_NODE_`."""
_ENV_NOT_SETTINGS: Final = frozenset({"HOME", "CONFIG", "TIMEOUT"})
"""Variables under our prefix that are options of the command line, not settings."""


def load(
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    config_file: Path | None = None,
) -> LoadedConfig:
    """Gather the settings from every place that may hold them.

    Args:
        flags: what the command line said, by setting; None and absent mean "not said".
        environ: the environment; the process's own by default.
        config_file: the file of `--config`, which must exist.

    Raises:
        NodeError: `USAGE` naming the file or variable, the key, what was found and expected.
    """
    said = {key: value for key, value in (flags or {}).items() if value is not None}
    variables = os.environ if environ is None else environ
    home, home_origin = _find_home(said.pop("home", None), variables)
    if config_file is None and variables.get("PARIS_NODE_CONFIG"):
        config_file = Path(variables["PARIS_NODE_CONFIG"])

    values: dict[str, Any] = {"home": home}
    origins = {"home": home_origin, **dict.fromkeys(SETTINGS, "default")}
    home_file = Home.at(home).config_file
    layers = [(f"file {home_file}", _read_file(home_file, must_exist=False))]
    if config_file is not None:
        layers.append((f"file {config_file}", _read_file(config_file, must_exist=True)))
    layers.append(("environment", _read_environment(variables)))
    layers.append(("flag", said))
    for origin, layer in layers:
        for key, raw in layer.items():
            where = _origin_of(origin, key)
            values[key] = _parse(key, raw, where)
            origins[key] = where
    values["api_port_fallback"] = origins["api_port"] == "default"
    return LoadedConfig(Config(**values), origins)


def _find_home(flag: object, variables: Mapping[str, str]) -> tuple[Path, str]:
    if flag is not None:
        return Path(str(flag)).expanduser().absolute(), "flag --home"
    if variables.get("PARIS_NODE_HOME"):
        path = Path(variables["PARIS_NODE_HOME"]).expanduser().absolute()
        return path, "environment PARIS_NODE_HOME"
    return platform_home(), "default"


def _origin_of(layer: str, key: str) -> str:
    if layer == "environment":
        return f"environment {ENV_PREFIX}{key.upper()}"
    return f"flag --{key.replace('_', '-')}" if layer == "flag" else layer


def _read_environment(variables: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for variable, text in variables.items():
        if not variable.startswith(ENV_PREFIX) or not text:
            continue
        suffix = variable.removeprefix(ENV_PREFIX)
        if suffix in _ENV_NOT_SETTINGS:
            continue
        if suffix.lower() not in _PARSERS:
            raise _unknown_key(suffix.lower(), f"environment variable {variable}")
        found[suffix.lower()] = text
    return found


def _read_file(path: Path, *, must_exist: bool) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            raw = file.read(CONFIG_FILE_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not must_exist:
            return {}
        raise NodeError(
            ErrorCode.USAGE, f"The config file {path} does not exist.", "correct --config FILE"
        ) from error
    except OSError as error:
        raise NodeError(
            ErrorCode.USAGE,
            f"The config file {path} cannot be read: {error.strerror}.",
            "make it a readable file, or name another with --config FILE",
        ) from error
    if len(raw) > CONFIG_FILE_MAX_BYTES:
        raise NodeError(
            ErrorCode.USAGE,
            f"The config file {path} is over {CONFIG_FILE_MAX_BYTES} bytes: not a config file.",
            "name the right one with --config FILE",
        )
    try:
        table = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise NodeError(
            ErrorCode.USAGE,
            f"The config file {path} is not TOML: {error}.",
            f'a line looks like:  api_port = {DEFAULT_API_PORT}    or:  name = "boat"',
        ) from error
    for key in table:
        if key not in _PARSERS:
            raise _unknown_key(key, f"config file {path}")
    return table


def _unknown_key(key: str, where: str) -> NodeError:
    import difflib  # noqa: PLC0415

    close = difflib.get_close_matches(key, SETTINGS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the keys are: {', '.join(SETTINGS)}"
    if key == "home":
        hint = "the home says where the file lies, so it is set by --home or PARIS_NODE_HOME"
    return NodeError(ErrorCode.USAGE, f"Unknown setting {key!r} in {where}.", hint)


def _parse(key: str, raw: object, where: str) -> object:
    try:
        return _PARSERS[key](raw)
    except ValueError as error:
        raise NodeError(
            ErrorCode.USAGE,
            f"Bad value for {key} ({where}): got {raw!r:.100}, expected {error}.",
            "see what is set and where: paris-node config show --origin",
        ) from error
