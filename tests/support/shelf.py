"""Adapters on a home's shelf as a node sees them: `lora.json` alone, no weights."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from node.home import Home, prepare
from node.lora_shelf import LORA_FILE, PURCHASE_FILE
from tests.support.people import cid

BASE = cid("checkpoint 3")


def shelf_home(folder: Path) -> Home:
    """An empty home."""
    home = Home.at(folder)
    prepare(home)
    return home


def id_of(name: str) -> str:
    """The sha256 of an adapter of that name."""
    return sha256(name.encode()).hexdigest()


def put_on_shelf(home: Home, name: str, *, offer: str = "", **changes: Any) -> Path:
    """An adapter of that name for the expert of cluster 3; `changes` go into its `lora.json`."""
    folder = home.loras / name
    folder.mkdir(parents=True)
    base = {"cluster": 3, "cid": BASE, "model_digest": id_of("weights"), "run": id_of("run")}
    said = {"schema": 1, "sha256": id_of(name), "rank": 4, "base": base}
    base |= changes.pop("base", {})
    (folder / LORA_FILE).write_text(json.dumps({**said, **changes}))
    if offer:
        (folder / PURCHASE_FILE).write_text(json.dumps({"offer": offer, "price": "nothing"}))
    return folder
