"""What is told of an offer: rows, per cents, and words that claim no more than is shown."""

from dataclasses import replace

import pytest

from node.lora_budget import Leak
from node.lora_rows import OfferStanding, OwnOffer, SeenOffer
from node.offer_rows import own_in_words, own_row, record_row, seen_row, statement_in_words
from p2p.ids import ClusterId
from p2p.lora_records import LoraModule
from tests.support.lora_offers import OFFER_ID, lora_offer
from tests.support.people import NOW, RUN, alice, bob, carol, cid
from verification.circuit import Shape, known

SQUARE, WIDE = Shape(64, 4, 64), Shape(64, 4, 256)
MODULES = (
    LoraModule("block.0.to_q", 64, 64, known(SQUARE).circuit, b"c" * 128),
    LoraModule("block.0.up", 64, 256, known(WIDE).circuit, b"c" * 128),
    LoraModule("block.1.to_q", 64, 64, known(SQUARE).circuit, b"c" * 128),
)
RECORD = lora_offer(modules=MODULES)
FACTS = {
    "name": "ukiyo-e",
    "base": RECORD.base,
    "rank": 4,
    "layers": 3,
    "base_loss": 0.5,
    "adapted_loss": 0.25,
    "rows": 64,
    "terms": RECORD.terms,
    "licence": RECORD.licence,
    "scalars": 32,
    "delta_rows": 4,
    "squares": {"block.0.to_q": 1.0},
}
SEEN = SeenOffer(
    offer=OFFER_ID,
    run=RUN,
    cluster=ClusterId(2),
    owner=alice.peer,
    proofs=cid("proofs"),
    standing=OfferStanding.PROVED,
    why="",
    facts=FACTS,
    expires_at=NOW + 600,
    updated_at=NOW,
)
OWN = OwnOffer(
    offer=OFFER_ID,
    run=RUN,
    cluster=ClusterId(2),
    adapter="ab" * 32,
    folder="/home/x/loras/dark",
    proofs=cid("proofs"),
    created_at=NOW,
    expires_at=NOW + 600,
)


def test_offer_of_another_is_told_with_its_owner_and_without_what_only_the_node_needs() -> None:
    row = seen_row(SEEN, owner_name="calm-heron-07", now=NOW)
    assert row == {
        **{name: value for name, value in FACTS.items() if name != "squares"},
        "offer": OFFER_ID,
        "cluster": 2,
        "owner": alice.peer,
        "owner_name": "calm-heron-07",
        "standing": "proved",
        "why": "",
        "expires_in_s": 600.0,
    }


def test_what_was_bought_is_told_with_its_measure() -> None:
    found = {"measured_base": 0.5, "measured_loss": 0.26, "folder": "/x/loras/y"}
    row = seen_row(replace(SEEN, facts=FACTS | found), owner_name=None, now=NOW)
    assert row.items() >= found.items()


def test_refused_offer_that_never_said_anything_has_a_row_all_the_same() -> None:
    refused = replace(SEEN, standing=OfferStanding.REFUSED, why="LoraOffer.base: x", facts={})
    row = seen_row(refused, owner_name=None, now=NOW)
    assert (row["standing"], row["why"]) == ("refused", "LoraOffer.base: x")
    assert row["name"] is row["terms"] is row["base_loss"] is None
    assert "measured_loss" not in row


def test_own_offer_tells_how_much_is_known_and_of_which_layer_most() -> None:
    leaks = {"block.0.to_q": Leak(16, 0, 1), "block.1.to_q": Leak(18, 0, 3)}
    row = own_row(OWN, RECORD, leaks, {carol.peer, bob.peer}, now=NOW)
    freedom = 4 * (64 + 64 - 4)
    total = 2 * freedom + 4 * (64 + 256 - 4)
    assert row["told_percent"] == pytest.approx(100 * (16 + 18) / total, abs=1e-3)
    assert row["worst_layer"] == "block.1.to_q"
    assert row["worst_percent"] == pytest.approx(100 * 18 / freedom, abs=1e-3)
    assert (row["proofs_made"], row["proofs_limit"]) == (3, 64)
    assert row["buyers"] == sorted([bob.peer, carol.peer])
    assert (row["withdrawn"], row["expires_in_s"]) == (False, 600.0)


def test_own_offer_of_which_nothing_is_told_yet_says_so() -> None:
    row = own_row(replace(OWN, is_withdrawn=True), RECORD, {}, frozenset(), now=NOW)
    assert (row["told_percent"], row["worst_layer"], row["proofs_made"]) == (0.0, "", 0)
    assert (row["withdrawn"], row["buyers"]) == (True, [])


def test_record_tells_each_shape_once_with_its_circuit_and_the_most_that_may_leak() -> None:
    row = record_row(RECORD)
    assert row["shapes"] == [
        {"inputs": 64, "rank": 4, "outputs": 64, "layers": 2, "k": 10,
         "circuit": known(SQUARE).circuit},
        {"inputs": 64, "rank": 4, "outputs": 256, "layers": 1, "k": 10,
         "circuit": known(WIDE).circuit},
    ]  # fmt: skip
    assert row["probe"] == {"cid": cid("probe"), "rows": 64, "seed": 7}
    leaks = row["leaks"]
    assert isinstance(leaks, dict)
    assert (leaks["scalars"], leaks["proofs"], leaks["delta_rows"]) == (32, 64, 4)
    rows_alone = record_row(replace(RECORD, leaks=replace(RECORD.leaks, scalars=16)))["leaks"]
    assert isinstance(rows_alone, dict)
    assert 50 < rows_alone["percent"] < leaks["percent"] < 100


@pytest.mark.parametrize(
    ("count", "words"), [(3, "for 3 layers of checkpoint"), (1, "for 1 layer of checkpoint")]
)
def test_proved_says_what_is_known_and_what_is_not(count: int, words: str) -> None:
    said = statement_in_words(SEEN, replace(RECORD, modules=MODULES[:count]))
    assert said == (
        f"proved: whoever signed this knows weights of rank <= 4 {words} {RECORD.base}, fixed by "
        "its commitments; not that they are good, new, or theirs"
    )


def test_claimed_says_that_nothing_is_shown_and_why_not_yet() -> None:
    claimed = replace(SEEN, standing=OfferStanding.CLAIMED, why="its proofs are being checked")
    said = statement_in_words(claimed, RECORD)
    assert said.startswith("claimed: ")
    assert "not shown" in said
    assert said.endswith("(its proofs are being checked)")
    assert "knows" not in said


def test_measured_sets_the_measure_beside_the_claim() -> None:
    found = {"measured_base": 0.5, "measured_loss": 0.2612}
    measured = replace(SEEN, standing=OfferStanding.MEASURED, facts=FACTS | found)
    said = statement_in_words(measured, RECORD)
    assert "0.5000 without it and 0.2612 with it; claimed was 0.2500" in said
    assert "worse" not in said
    worse = statement_in_words(replace(measured, why="the probe's loss is 0.4"), RECORD)
    assert worse.endswith("which is worse: the probe's loss is 0.4")


@pytest.mark.parametrize("record", [None, RECORD])
def test_refused_says_why_and_nothing_else(record: object) -> None:
    refused = replace(SEEN, standing=OfferStanding.REFUSED, why="block.0.to_q: not shown")
    said = statement_in_words(refused, RECORD if record else None)
    assert said == "refused: block.0.to_q: not shown"


def test_own_words_say_no_more_of_ours_than_of_others() -> None:
    assert own_in_words(RECORD).endswith("not that they are good, new, or theirs")
