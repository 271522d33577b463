"""`paris-node lora use`: on real adapters of a home, with a node and without one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from node.errors import ErrorCode
from node.home import Home
from node.lora_choice import choose_loras
from tests.support.cli_run import Run, answer_of, refusal_of
from tests.support.fake_node import CID, MISSING_CID, FakeNode
from tests.training.lora.test_files import BASE, INFO, SHAPE
from training.lora.files import ADAPTER_WEIGHTS_FILE, write_lora
from training.lora.modules import fresh_weights

OFFER = MISSING_CID


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters for the expert of cluster 1, one of them bought, and one for that of 2."""
    shelf = tmp_path_factory.mktemp("shelf") / "loras"
    shelf.mkdir()
    for seed, (name, cluster, cid) in enumerate(
        [("dark", 1, CID), ("light", 1, CID), ("wide", 2, CID), ("private", 3, "")]
    ):
        weights = {k: v + torch.ones(1) for k, v in fresh_weights(SHAPE, seed).items()}
        write_lora(
            shelf / name, replace(INFO, base=replace(BASE, cid=cid, cluster=cluster)), weights
        )
    (shelf / "light" / "purchase.json").write_text(json.dumps({"offer": OFFER}))
    return shelf


@pytest.fixture
def shelf(template: Path, home: Path) -> Path:
    """The test's home, with those adapters in it."""
    home.mkdir(mode=0o700)
    shutil.copytree(template, home / "loras")
    return home / "loras"


def id_of(shelf: Path, name: str) -> str:
    return str(json.loads((shelf / name / "lora.json").read_text())["sha256"])


def test_use_shows_what_is_in_use_and_the_node_draws_with_it(run: Run, shelf: Path) -> None:
    said = run("lora", "use", "dark", "--scale", "0.8")
    assert said.exit_code == 0, said.output
    assert id_of(shelf, "dark")[:12] in said.stdout
    assert run("lora", "use").stdout == said.stdout
    (chosen,) = choose_loras(Home.at(shelf.parent), None)
    assert (chosen.folder.name, chosen.scale, chosen.base) == ("dark", 0.8, CID)


def test_json_names_what_is_in_use_and_what_was_put_away(run: Run, shelf: Path) -> None:
    run("lora", "use", "dark")
    answer = answer_of(run("lora", "use", OFFER, "--scale", "-2", "--json"))
    light = {"name": "light", "id": id_of(shelf, "light"), "cluster": 1, "scale": -2.0}
    dark = {"name": "dark", "id": id_of(shelf, "dark"), "cluster": 1, "scale": 1.0, "offer": None}
    assert answer == {"schema": 1, "in_use": [{**light, "offer": OFFER}], "put_away": [dark]}
    assert answer_of(run("lora", "use", "--json")) == {**answer, "put_away": []}


def test_replaced_one_is_told(run: Run, shelf: Path) -> None:
    run("lora", "use", "dark")
    assert "no longer used   dark" in run("lora", "use", "light").stderr
    run("lora", "use", "wide")
    assert answer_of(run("lora", "list", "--json"))["broken"] == []
    assert [row["name"] for row in answer_of(run("lora", "use", "--json"))["in_use"]] == [
        *("light", "wide"),
    ]


def test_off_puts_one_or_all_away(run: Run, shelf: Path) -> None:
    for name in ("light", "wide"):
        run("lora", "use", name)
    shutil.rmtree(shelf / "light")  # one that has gone can be put away too
    answer = answer_of(run("lora", "use", "--off", OFFER, "--json"))
    assert [row["name"] for row in answer["put_away"]] == ["light"]
    assert [row["name"] for row in answer["in_use"]] == ["wide"]
    for _ in range(2):
        said = run("lora", "use", "--off")
        assert said.exit_code == 0
        assert "No LoRA is in use" in said.stdout
    assert refusal_of(run("lora", "use", "--off", "wide", "--json"))[0] == 4


def test_list_that_is_broken_is_a_sentence_and_off_mends_it(run: Run, shelf: Path) -> None:
    (shelf / "in_use.json").write_text("{")
    code, error = refusal_of(run("lora", "use", "--json"))
    assert code == ErrorCode.FAILED.exit_code
    assert error["fix"].endswith("paris-node lora use --off")
    assert run("lora", "use", "--off").exit_code == 0
    assert run("lora", "use", "dark").exit_code == 0


def test_use_works_beside_a_running_node(run: Run, node: FakeNode, home: Path) -> None:
    assert run("lora", "use").exit_code == 0
    assert run("lora", "use", "--off").exit_code == 0
    assert not node.requests


def test_home_that_is_new_has_none_in_use(run: Run, home: Path) -> None:
    assert "No LoRA is in use" in run("lora", "use").stdout
    assert not home.exists()
    assert run("lora", "use", "--off").exit_code == 0
    assert refusal_of(run("lora", "use", "dark", "--json"))[0] == ErrorCode.NOT_FOUND.exit_code


@pytest.mark.parametrize("wanted", ["nothing", "../loras/dark", "home/loras/dark", ""])
def test_only_what_is_on_the_shelf_can_be_used(run: Run, shelf: Path, wanted: str) -> None:
    code, error = refusal_of(run("lora", "use", wanted, "--json"))
    assert code == ErrorCode.NOT_FOUND.exit_code
    assert str(shelf) in error["fix"]


def test_altered_adapter_is_not_put_to_use(run: Run, shelf: Path) -> None:
    weights = shelf / "dark" / ADAPTER_WEIGHTS_FILE
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(data)
    code, error = refusal_of(run("lora", "use", "dark", "--json"))
    assert code == ErrorCode.VERIFICATION_FAILED.exit_code
    assert "altered" in error["message"]
    assert answer_of(run("lora", "use", "--json"))["in_use"] == []


def test_adapter_of_an_unpublished_base_is_refused(run: Run, shelf: Path) -> None:
    code, error = refusal_of(run("lora", "use", "private", "--json"))
    assert code == ErrorCode.REFUSED.exit_code
    assert "never published" in error["message"]


@pytest.mark.parametrize(
    "said",
    [
        ("--scale", "1"),
        ("--off", "--scale", "1"),
        ("dark", "--off", "--scale", "1"),
        ("dark", "--scale", "16.5"),
        ("dark", "--scale", "-16.5"),
        ("dark", "--scale", "nan"),
        ("dark", "light"),
    ],
)
def test_what_cannot_be_meant_is_usage(run: Run, shelf: Path, said: tuple[str, ...]) -> None:
    assert refusal_of(run("lora", "use", *said, "--json"))[0] == ErrorCode.USAGE.exit_code
    assert not (shelf / "in_use.json").exists()


def test_show_finds_a_bought_one_by_its_offer(run: Run, shelf: Path) -> None:
    assert answer_of(run("lora", "show", OFFER, "--json"))["lora"]["name"] == "light"


@pytest.mark.parametrize("verb", ["lora", "lora use", "generate"])
def test_help_fits_80_columns_and_ends_with_three_examples(run: Run, verb: str) -> None:
    text = run(*verb.split(), "--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    *_, examples = text.partition("Examples:\n")
    assert len(examples.strip().splitlines()) == 3
    assert "lora use" in text if verb == "generate" else "use" in text
