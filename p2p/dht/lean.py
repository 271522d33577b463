"""Import hivemind's DHT without the rest of hivemind.

`import hivemind` loads torch, its optimizers and its server: 1.9 s and 280 MB on an idle machine,
4 to 8 s on a busy one. The DHT itself needs none of it: 0.2 s and 38 MB, which decides how fast a
killed child is back. So `hivemind`, `hivemind.utils` and `hivemind.dht` are put in place as bare
packages (their `__init__` is not run) with the few names that the DHT's modules take from them.

Written for hivemind 1.1.12, which pyproject.toml pins; `tests/p2p/dht` checks that it still holds.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Final

_UTILS_NAMES: Final = {
    "logging": ("get_logger",),
    "serializer": ("MSGPackSerializer", "SerializerBase"),
    "timed_storage": ("get_dht_time", "TimedStorage", "DHTExpiration", "ValueWithExpiration"),
}


def prepare_hivemind() -> None:
    """Make `from hivemind.dht.node import DHTNode` cheap; does nothing if it is loaded already.

    Raises:
        ImportError: if hivemind is not installed.
    """
    if "hivemind" in sys.modules:
        return
    package = _bare_package("hivemind")
    utils = _bare_package("hivemind.utils")
    dht = _bare_package("hivemind.dht")
    package.__dict__.update(utils=utils, dht=dht)
    for module_name, names in _UTILS_NAMES.items():
        module = importlib.import_module(f"hivemind.utils.{module_name}")
        utils.__dict__.update({name: getattr(module, name) for name in names})


def _bare_package(name: str) -> ModuleType:
    """Put the package `name` in place as its files stand, without running its `__init__`."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{name} is not installed")
    package = ModuleType(name)
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package
    return package
