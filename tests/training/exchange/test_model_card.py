"""The card tells facts, says what is unknown, and nothing in the data becomes markup."""

from dataclasses import replace

import pytest

from tests.support.exports import expert_info
from training.exchange.model_card import CardExpert, CardFacts, model_card
from training.run import Run


@pytest.fixture
def facts(run: Run) -> CardFacts:
    captions = ({"two bars": 20, "a disc": 4}, {"a disc": 24})
    experts = tuple(
        CardExpert(expert_info(run, k), f"bafkrei{k}", f"12D3Koo{k}", captions[k]) for k in range(2)
    )
    return CardFacts(
        run_id="bafkreirun", run=run.facts, run_digest=run.digest, experts=experts,
        parameters=343_632, routers=("gauss", "caption"), has_text=True,
        parts={"vae/codec.safetensors": "ab" * 32}, license="", data_license="",
    )  # fmt: skip


def test_card_tells_where_everything_came_from(facts: CardFacts) -> None:
    card = model_card(facts)
    assert '\nparis_node_run: "bafkreirun"\n' in card
    assert "| 0 | 24 | fm | 48 | 12 | 0.5000 | two bars (20), a disc (4) |" in card
    assert "| 1 | `bafkrei1` | `12D3Koo1` |" in card
    assert facts.run_digest in card
    assert "ab" * 32 in card
    assert 'pipe("a disc", seed=7)' in card  # the commonest caption of all


def test_unknown_licences_are_said_to_be_unknown(facts: CardFacts) -> None:
    card = model_card(facts)
    assert card.startswith("---\nlicense: unknown\n")
    assert "these weights: unknown" in card
    assert "training data: unknown" in card
    own = model_card(replace(facts, license="Our own: no war", data_license="CC0"))
    assert own.startswith('---\nlicense: other\nlicense_name: "Our own: no war"\n')
    assert "training data: CC0" in own
    assert model_card(replace(facts, license="MIT")).startswith("---\nlicense: mit\n")


def test_noise_predicting_experts_come_with_their_conversion(facts: CardFacts) -> None:
    assert "atan2" not in model_card(facts)
    info = replace(facts.experts[1].info, objective="ddpm-eps")
    mixed = replace(facts, experts=(facts.experts[0], replace(facts.experts[1], info=info)))
    card = model_card(mixed)
    assert "Expert 1 predicts the noise" in card
    assert "2 / pi * atan2(t, 1 - t)" in card
    assert "- ddpm\n- flow-matching\n" in card


def test_what_is_not_in_the_folder_is_to_be_passed(facts: CardFacts) -> None:
    assert "text_encoder=" not in model_card(facts)
    card = model_card(replace(facts, has_text=False))
    assert "text_encoder=..., tokenizer=..." in card
    assert "`minilm-l6` is not in the folder" in card


def test_unfinished_experts_are_named(facts: CardFacts) -> None:
    assert "Not trained to the end" not in model_card(facts)
    early = replace(facts.experts[0].info, samples=16)
    behind = replace(facts, experts=(replace(facts.experts[0], info=early), facts.experts[1]))
    assert "Not trained to the end of the budget: expert 0." in model_card(behind)


def test_captions_and_names_cannot_become_markup(facts: CardFacts) -> None:
    hostile = {"a | b\n| c": 9, "[x](javascript:1)": 8, "<script>alert(1)</script>": 7}
    experts = (replace(facts.experts[0], captions=hostile, owner="`rm`", cid="../x"),)
    card = model_card(replace(facts, experts=experts, license="x\n---\nlicense: mit"))
    (row,) = [line for line in card.splitlines() if line.startswith("| 0 | 24")]
    assert row.count(" | ") == 6  # no cell more than the table has
    assert "<script>" not in row
    assert "](javascript" not in row
    assert "`rm`" not in card
    assert "../x" not in card
    header = card.split("\n---\n")[0]
    assert [line for line in header.splitlines() if line.startswith("license:")] == [
        "license: other"
    ]
