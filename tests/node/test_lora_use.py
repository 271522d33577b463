"""The list of adapters in use: strict, whole, and never another adapter than was put there."""

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from node.errors import ErrorCode, NodeError
from node.home import Home
from node.lora_shelf import find_on_shelf
from node.lora_use import InUse, in_use, put_all_away, put_away, use
from tests.support.people import cid
from tests.support.shelf import id_of, put_on_shelf, shelf_home

OFFER = cid("offer")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = shelf_home(tmp_path / "home")
    put_on_shelf(made, "dark")
    put_on_shelf(made, "light", offer=OFFER)
    put_on_shelf(made, "wide", base={"cluster": 5})
    return made


def wear(home: Home, name: str, scale: float = 1.0) -> InUse | None:
    return use(home, find_on_shelf(home, name), scale)


def listed(home: Home) -> list[tuple[str, float]]:
    return [(entry.name, entry.scale) for entry in in_use(home)]


def test_nothing_is_in_use_at_first(home: Home, tmp_path: Path) -> None:
    assert in_use(home) == ()
    assert in_use(Home.at(tmp_path / "no home")) == ()


def test_use_is_remembered_with_its_scale_and_who_it_is(home: Home) -> None:
    assert wear(home, "wide", -0.5) is None
    assert wear(home, "light", 0.8) is None
    assert in_use(home) == (
        InUse("light", id_of("light"), 3, 0.8, OFFER),
        InUse("wide", id_of("wide"), 5, -0.5, ""),
    )


def test_second_adapter_of_an_expert_replaces_the_first_and_says_so(home: Home) -> None:
    wear(home, "wide")
    wear(home, "dark", 2.0)
    replaced = wear(home, "light")
    assert replaced is not None
    assert replaced.name == "dark"
    assert listed(home) == [("light", 1.0), ("wide", 1.0)]
    assert wear(home, "light", 0.5) is None  # the same one at another scale
    assert listed(home) == [("light", 0.5), ("wide", 1.0)]


def test_adapter_whose_base_no_node_has_is_refused_at_once(home: Home) -> None:
    put_on_shelf(home, "private", base={"cid": ""})
    with pytest.raises(NodeError, match="never published") as caught:
        wear(home, "private")
    assert caught.value.code is ErrorCode.REFUSED
    assert in_use(home) == ()


@pytest.mark.parametrize("scale", [16.1, -16.1, float("nan"), float("inf")])
def test_scale_that_no_drawing_takes_is_never_written(home: Home, scale: float) -> None:
    with pytest.raises(NodeError, match="scale") as caught:
        wear(home, "dark", scale)
    assert caught.value.code is ErrorCode.USAGE
    assert in_use(home) == ()
    for good in (16.0, -16.0):
        wear(home, "dark", good)
        assert listed(home) == [("dark", good)]


@pytest.mark.parametrize("wanted", ["light", OFFER, id_of("light")[:12]])
def test_put_away_by_name_id_or_offer_even_when_it_has_gone(home: Home, wanted: str) -> None:
    wear(home, "light")
    wear(home, "wide")
    (home.loras / "light").rename(home.data / "elsewhere")
    assert [entry.name for entry in put_away(home, wanted)] == ["light"]
    assert listed(home) == [("wide", 1.0)]


@pytest.mark.parametrize("wanted", ["dark", "", "lig", OFFER[:-1]])
def test_what_is_not_in_use_cannot_be_put_away(home: Home, wanted: str) -> None:
    wear(home, "light")
    with pytest.raises(NodeError, match="No LoRA in use") as caught:
        put_away(home, wanted)
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert listed(home) == [("light", 1.0)]


def test_all_are_put_away_at_once_and_again(home: Home) -> None:
    wear(home, "light")
    for _ in range(2):
        put_all_away(home)
        assert in_use(home) == ()
    assert not (home.loras / "in_use.json").exists()


GOOD: dict[str, Any] = {
    "name": "dark", "sha256": id_of("dark"), "cluster": 3, "scale": 1.0, "offer": "",
}  # fmt: skip


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b"{}",
        b'{"schema": 1}',
        b'{"schema": 2, "in_use": []}',
        b'{"schema": 1, "in_use": {}}',
        b'{"schema": 1, "in_use": [], "more": 1}',
        b'{"schema": 1, "in_use": ["dark"]}',
        json.dumps({"schema": 1, "in_use": [GOOD, GOOD]}).encode(),
        json.dumps({"schema": 1, "in_use": []}).encode().ljust(2**20 + 1),
    ],
)
def test_file_that_we_did_not_write_is_an_error_and_is_mended_by_off(
    home: Home, raw: bytes
) -> None:
    (home.loras / "in_use.json").write_bytes(raw)
    for read in (lambda: in_use(home), lambda: wear(home, "dark"), lambda: put_away(home, "dark")):
        with pytest.raises(NodeError, match="cannot be read") as caught:
            read()
        assert caught.value.code is ErrorCode.FAILED
        assert "lora use --off" in caught.value.fix
    put_all_away(home)
    assert in_use(home) == ()


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("name", "x", 7),
        ("sha256", id_of("x"), "ab"),
        ("cluster", 0, -1),
        ("cluster", 1023, 1024),
        ("cluster", 3, True),
        ("cluster", 3, 3.0),
        ("scale", 16, 16.1),
        ("scale", -16.0, -16.1),
        ("scale", 0, float("nan")),
        ("scale", 1, True),
        ("scale", 1.5, "1.5"),
        ("offer", OFFER, None),
    ],
)
def test_each_field_is_read_up_to_its_limit_and_refused_beyond(
    home: Home, field: str, good: object, bad: object
) -> None:
    path = home.loras / "in_use.json"
    path.write_text(json.dumps({"schema": 1, "in_use": [{**GOOD, field: good}]}))
    assert len(in_use(home)) == 1
    path.write_text(json.dumps({"schema": 1, "in_use": [{**GOOD, field: bad}]}))
    with pytest.raises(NodeError, match="cannot be read"):
        in_use(home)


def test_file_of_the_largest_size_is_read(home: Home) -> None:
    raw = json.dumps({"schema": 1, "in_use": []}).encode().ljust(2**20)
    (home.loras / "in_use.json").write_bytes(raw)
    assert in_use(home) == ()


def test_change_that_the_disk_breaks_off_leaves_the_list_as_it_was(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    wear(home, "light")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(NodeError, match="No space left") as caught:
            wear(home, "wide")
    assert caught.value.code is ErrorCode.RESOURCE
    assert listed(home) == [("light", 1.0)]
    assert sorted(path.name for path in home.loras.iterdir()) == [
        *("dark", "in_use.json", "light", "wide"),
    ]


def test_list_is_readable_by_its_owner_alone(home: Home) -> None:
    wear(home, "light")
    assert stat.S_IMODE((home.loras / "in_use.json").stat().st_mode) == 0o600


def test_commands_at_the_same_moment_lose_no_change(home: Home) -> None:
    names = [f"style-{number}" for number in range(8)]
    for number, name in enumerate(names):
        put_on_shelf(home, name, base={"cluster": 10 + number})
    together = threading.Barrier(len(names))

    def put_on(name: str) -> None:
        together.wait()
        wear(home, name)

    threads = [threading.Thread(target=put_on, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.name for entry in in_use(home)] == names
