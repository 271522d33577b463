"""Which adapters a drawing gets: those asked for or those in use, one for each expert."""

from pathlib import Path

import pytest

from node.errors import ErrorCode, NodeError
from node.home import Home
from node.lora_choice import ChosenLora, LoraWish, choose_loras
from node.lora_shelf import find_on_shelf
from node.lora_use import use
from p2p.ids import ClusterId
from tests.support.people import cid
from tests.support.shelf import BASE, id_of, put_on_shelf, shelf_home

OFFER = cid("offer")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = shelf_home(tmp_path / "home")
    put_on_shelf(made, "dark")
    put_on_shelf(made, "light", offer=OFFER)
    put_on_shelf(made, "wide", base={"cluster": 5})
    return made


def chosen(home: Home, name: str, *, cluster: int = 3, scale: float = 1.0) -> ChosenLora:
    return ChosenLora(id_of(name), home.loras / name, ClusterId(cluster), BASE, scale)


def test_nothing_said_and_nothing_in_use_is_nothing(home: Home) -> None:
    assert choose_loras(home, None) == ()


def test_those_in_use_are_drawn_with_unless_others_or_none_are_asked_for(home: Home) -> None:
    use(home, find_on_shelf(home, "dark"), 0.5)
    assert choose_loras(home, None) == (chosen(home, "dark", scale=0.5),)
    assert choose_loras(home, ()) == ()
    wide = LoraWish(id_of("wide")[:12], 2.0)
    assert choose_loras(home, [wide]) == (chosen(home, "wide", cluster=5, scale=2.0),)


def test_row_names_id_cluster_base_and_scale_and_the_offer_of_a_bought_one(home: Home) -> None:
    own, bought = choose_loras(home, [LoraWish("wide"), LoraWish(OFFER, 0.5)])
    assert own.to_json() == {"id": id_of("wide"), "cluster": 5, "base": BASE, "scale": 1.0}
    assert bought.to_json() == {
        "id": id_of("light"), "cluster": 3, "base": BASE, "scale": 0.5, "offer": OFFER,
    }  # fmt: skip


def test_two_for_one_expert_are_a_mistake_however_they_are_called(home: Home) -> None:
    with pytest.raises(NodeError, match="cluster 3: dark and light") as caught:
        choose_loras(home, [LoraWish("dark"), LoraWish("wide"), LoraWish(OFFER)])
    assert caught.value.code is ErrorCode.USAGE
    with pytest.raises(NodeError, match="cluster 3: dark and dark"):
        choose_loras(home, [LoraWish("dark"), LoraWish(id_of("dark"))])


def test_adapter_in_use_that_moved_to_anothers_expert_is_no_reason_to_draw_with_two(
    home: Home,
) -> None:
    """Its `lora.json` was altered: same id, another cluster."""
    for name in ("dark", "wide"):
        use(home, find_on_shelf(home, name), 1.0)
    path = home.loras / "wide" / "lora.json"
    path.write_text(path.read_text().replace('"cluster": 5', '"cluster": 3'))
    with pytest.raises(NodeError, match="Two LoRAs"):
        choose_loras(home, None)


def test_adapter_in_use_that_has_gone_is_an_error_with_both_ways_out(home: Home) -> None:
    use(home, find_on_shelf(home, "dark"), 1.0)
    (home.loras / "dark").rename(home.data / "elsewhere")
    with pytest.raises(NodeError, match="dark is in use, but: There is no LoRA") as caught:
        choose_loras(home, None)
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert "lora use --off dark" in caught.value.fix
    assert "--no-lora" in caught.value.fix


def test_another_adapter_in_the_folder_of_one_in_use_is_not_drawn_with(home: Home) -> None:
    use(home, find_on_shelf(home, "dark"), 1.0)
    (home.loras / "dark").rename(home.data / "elsewhere")
    put_on_shelf(home, "dark", sha256=id_of("another"))
    with pytest.raises(NodeError, match="not the one put to use") as caught:
        choose_loras(home, None)
    assert caught.value.code is ErrorCode.VERIFICATION_FAILED
    assert choose_loras(home, [LoraWish("dark")])[0].sha256 == id_of("another")


def test_adapter_of_a_base_that_was_never_published_is_refused(home: Home) -> None:
    put_on_shelf(home, "private", base={"cid": ""})
    with pytest.raises(NodeError, match="never published") as caught:
        choose_loras(home, [LoraWish("private")])
    assert caught.value.code is ErrorCode.REFUSED
