"""Finding adapters on the shelf: by name, id and offer; nothing broken, nothing outside."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from node.errors import ErrorCode, NodeError
from node.home import Home
from node.lora_shelf import LORA_FILE, PURCHASE_FILE, LoraFacts, base_of, find_on_shelf, read_facts
from p2p.limits import MAX_CLUSTERS
from tests.support.people import cid
from tests.support.shelf import BASE, id_of, put_on_shelf, shelf_home

OFFER = cid("offer")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return shelf_home(tmp_path / "home")


def test_facts_are_those_of_the_files(home: Home) -> None:
    own, bought = put_on_shelf(home, "own"), put_on_shelf(home, "bought", offer=OFFER)
    assert read_facts(own) == LoraFacts(own, id_of("own"), 3, BASE, id_of("weights"), "")  # type: ignore[arg-type]
    assert read_facts(bought).offer == OFFER


def test_found_by_name_by_the_beginning_of_its_id_and_by_its_offer(home: Home) -> None:
    put_on_shelf(home, "own")
    folder = put_on_shelf(home, "bought", offer=OFFER)
    for wanted in ("bought", id_of("bought"), id_of("bought")[:12], OFFER):
        assert find_on_shelf(home, wanted).folder == folder


def test_offer_written_in_lora_json_finds_it_too(home: Home) -> None:
    said = json.loads((put_on_shelf(home, "sold") / LORA_FILE).read_text())
    (home.loras / "sold" / LORA_FILE).write_text(json.dumps({**said, "offer": OFFER}))
    assert find_on_shelf(home, OFFER).name == "sold"


@pytest.mark.parametrize(
    "wanted", ["", "nothing", "../home", "loras", ".hidden", OFFER[:-1], "own/", "/", "a" * 300]
)
def test_what_is_not_on_the_shelf_is_not_found(home: Home, wanted: str) -> None:
    put_on_shelf(home, "own", offer=OFFER)
    put_on_shelf(home, ".hidden")
    (home.loras / "in_use.json").write_text("{}")
    with pytest.raises(NodeError, match="There is no LoRA") as caught:
        find_on_shelf(home, wanted)
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert "paris-node lora list" in caught.value.fix


def test_empty_home_has_none(home: Home) -> None:
    with pytest.raises(NodeError, match="There is no LoRA"):
        find_on_shelf(home, "own")


def test_id_of_two_names_neither(home: Home) -> None:
    for name in ("one", "two"):
        put_on_shelf(home, name, sha256=id_of("same"))
    with pytest.raises(NodeError, match="2 LoRAs here"):
        find_on_shelf(home, id_of("same")[:12])
    assert find_on_shelf(home, "two").name == "two"


def test_broken_neighbour_does_not_hide_the_others(home: Home) -> None:
    (put_on_shelf(home, "broken") / LORA_FILE).write_text("{")
    (home.loras / "empty").mkdir()
    put_on_shelf(home, "own")
    assert find_on_shelf(home, id_of("own")[:12]).name == "own"


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "ab"},
        {"sha256": "Z" * 64},
        {"sha256": None},
        {"base": {"cluster": -1}},
        {"base": {"cluster": MAX_CLUSTERS}},
        {"base": {"cluster": True}},
        {"base": {"cluster": "3"}},
        {"base": {"cid": None}},
        {"base": {"model_digest": ""}},
        {"offer": 7},
    ],
)
def test_adapter_that_says_what_cannot_be_fails_verification(
    home: Home, change: dict[str, Any]
) -> None:
    folder = put_on_shelf(home, "odd")
    said = json.loads((folder / LORA_FILE).read_text())
    changed = {**said, **change, "base": {**said["base"], **change.get("base", {})}}
    (folder / LORA_FILE).write_text(json.dumps(changed))
    with pytest.raises(NodeError, match="odd") as caught:
        find_on_shelf(home, "odd")
    assert caught.value.code is ErrorCode.VERIFICATION_FAILED


@pytest.mark.parametrize("text", ["", "[]", '{"base": 3}', '{"a": 1, "a": 2}'])
@pytest.mark.parametrize("name", [LORA_FILE, PURCHASE_FILE])
def test_file_that_is_no_object_fails_verification(home: Home, name: str, text: str) -> None:
    if name == PURCHASE_FILE and text.startswith('{"base"'):
        text = '{"offer": ["x"]}'
    (put_on_shelf(home, "odd") / name).write_text(text)
    with pytest.raises(NodeError, match="odd") as caught:
        read_facts(home.loras / "odd")
    assert caught.value.code is ErrorCode.VERIFICATION_FAILED


def test_largest_cluster_is_taken(home: Home) -> None:
    folder = put_on_shelf(home, "last", base={"cluster": MAX_CLUSTERS - 1})
    assert read_facts(folder).cluster == MAX_CLUSTERS - 1


def test_base_is_a_published_checkpoint_or_an_error(home: Home) -> None:
    assert base_of(read_facts(put_on_shelf(home, "good"))) == BASE
    with pytest.raises(NodeError, match="never published") as caught:
        base_of(read_facts(put_on_shelf(home, "private", base={"cid": ""})))
    assert caught.value.code is ErrorCode.REFUSED
    with pytest.raises(NodeError, match="names no checkpoint") as caught:
        base_of(read_facts(put_on_shelf(home, "odd", base={"cid": "bafknonsense"})))
    assert caught.value.code is ErrorCode.VERIFICATION_FAILED


@pytest.mark.slow
def test_shelf_is_read_without_torch(home: Home) -> None:
    """A node is not to hold 300 MB for the sake of a JSON file."""
    put_on_shelf(home, "own")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from node.home import Home\n"
        "from node.lora_choice import LoraWish, choose_loras\n"
        "assert choose_loras(Home.at(Path(sys.argv[1])), [LoraWish('own')])\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program, str(home.data)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
