"""`paris-node lora offer | withdraw | list | show`: offers, asked of a fake node."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from node.cli import cli
from node.errors import ErrorCode, NodeError
from node.home import ApiFile, Home, prepare, write_api_file
from tests.support.cli_run import Run, answer_of, refusal_of
from tests.support.fake_node import OTHER_PEER, PEER, FakeNode
from tests.support.fake_offers import (
    BASE,
    MISSING_OFFER,
    OFFER,
    OWN_OFFER,
    SELLER,
    STATEMENT,
    TERMS,
    offer_row,
    own_row,
)
from tests.support.shelf import put_on_shelf

VERBS = ("", "train", "list", "show", "offer", "withdraw", "verify", "buy", "judge", "use")
OFFERED = ("lora", "offer", "boots", "--terms", TERMS)
Answering = Callable[..., Result]


@pytest.fixture
def shelf(home: Path) -> Path:
    """The test's home, with one adapter in it as its own file tells of it."""
    prepare(Home.at(home))
    put_on_shelf(Home.at(home), "boots", targets="attention", base={"preset": "fashion-tiny"})
    return home


@pytest.fixture
def answering(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Answering:
    """Runs `paris-node ARGS` as on a terminal, at which a person types `answer`."""
    monkeypatch.setattr("node.cli.lora_offers.can_ask", lambda: True)

    def invoke(answer: str, *arguments: str) -> Result:
        return CliRunner().invoke(
            cli, ["--home", str(home), *arguments], input=answer, catch_exceptions=False
        )

    return invoke


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_three_examples_and_fits_80_columns(run: Run, verb: str) -> None:
    result = run("lora", *verb.split(), "--help")
    assert result.exit_code == 0
    *_, examples = result.stdout.partition("Examples:\n")
    lines = examples.strip().splitlines()
    assert len(lines) == 3
    assert all("paris-node " in line for line in lines)
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_group_says_of_every_verb_what_it_is_for(run: Run) -> None:
    lines = run("lora", "--help").stdout.splitlines()
    told = {line.split()[0]: line for line in lines if line.startswith("  ") and line.split()}
    assert all(told[verb].endswith(".") for verb in VERBS if verb)


@pytest.mark.parametrize(
    "arguments",
    [
        OFFERED,
        ("lora", "withdraw", OWN_OFFER),
        ("lora", "verify", OFFER),
        ("lora", "verify", OFFER, "--data", "nowhere"),
        ("lora", "buy", OFFER, "--yes"),
        ("lora", "show", OFFER),
    ],
)
def test_without_a_node_it_is_exit_code_3_with_the_way_to_start_it(
    run: Run, arguments: tuple[str, ...]
) -> None:
    code, error = refusal_of(run(*arguments, "--json"))
    assert (code, error["code"]) == (3, "not_running")
    assert "paris-node start" in error["fix"]


# --- offer ----------------------------------------------------------------------------------------
def test_offer_asks_the_node_for_all_that_was_said_and_prints_its_id(
    run: Run, node: FakeNode
) -> None:
    said = run(
        *OFFERED, "--days", "7.5", "--scalars", "20", "--allow-deltas", "64", "--to", PEER,
        "--to", OTHER_PEER,
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    assert node.offer_asked == [
        ("make", "", {"lora": "boots", "terms": TERMS, "scalars": 20, "delta_rows": 64,
                      "days": 7.5, "buyers": [PEER, OTHER_PEER]})
    ]  # fmt: skip
    lines = said.stdout.splitlines()
    assert lines[0] == OWN_OFFER
    assert any("loss 1.3180 -> 0.7170 (-46%) as it is delivered; 0.7160" in line for line in lines)
    assert lines[-1].endswith(f"paris-node lora withdraw {OWN_OFFER}")


def test_unsaid_choices_of_an_offer_are_the_safest(run: Run, node: FakeNode) -> None:
    assert run(*OFFERED).exit_code == 0
    asked = node.offer_asked[0][2]
    assert (asked["scalars"], asked["delta_rows"], asked["days"]) == (32, 0, 30.0)
    assert asked["buyers"] == []


def test_offer_in_json_is_one_object_and_quiet_is_its_id(run: Run, node: FakeNode) -> None:
    answer = answer_of(run(*OFFERED, "--json"))
    assert answer.keys() == {
        "schema", "offer", "cluster", "base", "layers", "base_loss", "adapted_loss", "float_loss",
        "expires_at",
    }  # fmt: skip
    assert answer["offer"] == OWN_OFFER
    assert run(*OFFERED, "-q").stdout == f"{OWN_OFFER}\n"


def test_person_is_told_what_the_world_learns_before_it_does(
    answering: Answering, node: FakeNode, shelf: Path
) -> None:
    said = answering("y\n", *OFFERED, "--scalars", "24")
    assert said.exit_code == 0, said.output
    told = " ".join(said.stderr.split())
    assert "Offering boots tells everybody, for good" in told
    assert "now 16 numbers of each of its 32 layers: 3.2 % of its freedom" in told
    assert "up to 24 numbers a layer in all, whoever asks: 4.8 % of its freedom" in told
    assert "pictures held out from its training" in told
    assert "Delivery is automatic: whoever signs the terms gets the LoRA itself" in told
    assert "No payment is built in" in told
    assert "rows" not in told
    assert max(map(len, said.stderr.splitlines())) <= 100
    assert said.stdout.splitlines()[0] == OWN_OFFER


def test_person_is_told_of_deltas_and_of_who_alone_may_buy(
    answering: Answering, node: FakeNode, shelf: Path
) -> None:
    told = answering("y\n", *OFFERED, "--allow-deltas", "64", "--to", OTHER_PEER).stderr
    assert "as you allow deltas, 64 rows a layer: 100 % in all" in told
    assert "these peers get the LoRA itself" in told
    assert f"  {OTHER_PEER}\n" in told
    assert "whoever signs" not in told


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_nothing_is_offered_without_a_yes(
    answering: Answering, node: FakeNode, shelf: Path, answer: str
) -> None:
    said = answering(answer, *OFFERED)
    assert said.exit_code == ErrorCode.INTERRUPTED.exit_code
    assert node.offer_asked == []
    assert said.stdout == ""


def test_each_phase_has_a_bar_of_its_own(
    run: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.cli.progress.LINE_EVERY_S", 0.0)
    told = [line.split("  ")[:2] for line in run(*OFFERED).stderr.splitlines()]
    assert told == [["measured", "1 of 1"], ["proved", "1 of 40"], ["proved", "40 of 40"]]
    assert run(*OFFERED, "-q").stderr == ""


@pytest.mark.parametrize("extra", ["--yes", "--json"])
def test_who_says_yes_or_wants_json_is_not_asked(
    answering: Answering, node: FakeNode, shelf: Path, extra: str
) -> None:
    said = answering("", *OFFERED, extra)
    assert said.exit_code == 0
    assert said.stderr == ""
    assert len(node.offer_asked) == 1


def test_lora_that_is_not_here_is_not_found_before_anybody_is_asked(
    answering: Answering, node: FakeNode
) -> None:
    assert answering("y\n", *OFFERED).exit_code == ErrorCode.NOT_FOUND.exit_code
    assert node.offer_asked == []


@pytest.mark.parametrize(
    "wrong",
    [("--days", "0"), ("--days", "91"), ("--scalars", "15"), ("--scalars", "33"),
     ("--allow-deltas", "-1"), ("--allow-deltas", "65537"), ("--to", "somebody"),
     ("--terms", "two\nlines")],
)  # fmt: skip
def test_offer_that_cannot_be_meant_is_usage(
    run: Run, node: FakeNode, wrong: tuple[str, str]
) -> None:
    assert refusal_of(run(*OFFERED, *wrong, "--json"))[0] == ErrorCode.USAGE.exit_code
    assert node.offer_asked == []


def test_offer_without_terms_is_usage(run: Run, node: FakeNode) -> None:
    assert run("lora", "offer", "boots").exit_code == ErrorCode.USAGE.exit_code
    assert run("lora", "offer", "boots", "--terms", " ").exit_code == ErrorCode.USAGE.exit_code
    assert node.offer_asked == []


@pytest.mark.parametrize("field", ["offer_error", "late_offer_error"])
def test_failure_of_an_offer_is_the_nodes_sentence(run: Run, node: FakeNode, field: str) -> None:
    setattr(node, field, NodeError(ErrorCode.REFUSED, "It has no probe.", "train it anew"))
    code, error = refusal_of(run(*OFFERED, "--json"))
    assert (code, error["message"]) == (7, "It has no probe.")


# --- withdraw -------------------------------------------------------------------------------------
def test_withdrawn_offer_is_named(run: Run, node: FakeNode) -> None:
    said = run("lora", "withdraw", OWN_OFFER)
    assert f"withdrawn   {OWN_OFFER}" in said.stdout
    assert "stays told" in said.stdout
    assert node.offer_asked == [("withdraw", OWN_OFFER, {})]
    assert answer_of(run("lora", "withdraw", OWN_OFFER, "--json"))["withdrawn"] is True
    assert run("lora", "withdraw", OWN_OFFER, "-q").stdout == ""


def test_offer_of_somebody_else_is_not_withdrawn(run: Run, node: FakeNode) -> None:
    code, _ = refusal_of(run("lora", "withdraw", OFFER, "--json"))
    assert code == ErrorCode.NOT_FOUND.exit_code


@pytest.mark.parametrize("verb", ["withdraw", "verify", "buy"])
def test_what_is_no_cid_is_usage_and_says_where_they_are(
    run: Run, node: FakeNode, verb: str
) -> None:
    code, error = refusal_of(run("lora", verb, "../etc", "--json"))
    assert code == ErrorCode.USAGE.exit_code
    assert "lora list" in error["fix"]
    assert node.offer_asked == []


# --- list -----------------------------------------------------------------------------------------
EMPTY = {"schema": 1, "loras": [], "broken": []}


@pytest.mark.slow  # reads the shelf with torch
def test_list_tells_offers_by_standing_and_own_ones_by_what_they_told(
    run: Run, node: FakeNode
) -> None:
    node.offer_rows += [
        offer_row(
            offer=BASE, standing="claimed", name="a name of more than twenty characters",
            expires_in_s=86_400 * 29 + 80_000.0, owner_name="another such name for the owner",
        ),
        offer_row(
            offer=MISSING_OFFER, standing="refused", why="LoraOffer.base: no checkpoint " * 9,
            name=None, rank=None, base_loss=None, adapted_loss=None, owner_name=None,
        ),
        offer_row(offer=OWN_OFFER, standing="measured", measured_loss=0.7204),
    ]  # fmt: skip
    node.own_rows.append(own_row(withdrawn=True))
    said = run("lora", "list")
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()

    def over(cid: str) -> str:
        return " ".join(lines[lines.index(f"    {cid}") - 1].split())

    assert over(OFFER) == "boots proved calm-heron-07 3 1.318 -> 0.716 29 d"
    assert over(BASE).startswith("a name of more … claimed")
    assert over(MISSING_OFFER) == f"? refused …{SELLER[-8:]} - ? -> ? 29 d"
    assert lines[lines.index(f"    {MISSING_OFFER}") + 1].strip().startswith("LoraOffer.base: no")
    assert "1.318 -> 0.720" in over(OWN_OFFER)
    assert "ukiyo-e 5 0.348 % 0.696 % 5 of 34 3 d" in " ".join(said.stdout.split())
    assert "5 of 34 withdrawn" in " ".join(said.stdout.split())
    assert max(map(len, lines)) <= 80


@pytest.mark.slow
def test_list_in_json_has_both_kinds_of_offers_if_a_node_runs(run: Run, node: FakeNode) -> None:
    answer = answer_of(run("lora", "list", "--json"))
    assert answer == {**EMPTY, "offers": node.offer_rows, "own": node.own_rows}


@pytest.mark.slow
def test_list_of_a_node_that_heard_of_nothing_says_so(run: Run, node: FakeNode) -> None:
    node.offer_rows, node.own_rows = [], []
    said = run("lora", "list").stdout
    assert "No offer was heard of yet." in said
    assert "Own offers" not in said


@pytest.mark.slow
@pytest.mark.parametrize("is_dead", [False, True])
def test_list_without_a_node_is_the_shelf_alone(run: Run, home: Path, is_dead: bool) -> None:
    if is_dead:  # it was killed, and its address is still there
        prepare(Home.at(home))
        write_api_file(Home.at(home), ApiFile("http://127.0.0.1:1", "t", os.getpid()))
    assert answer_of(run("lora", "list", "--json")) == EMPTY
    assert run("lora", "list").stdout == (
        "No LoRA is kept here yet: paris-node lora train DATA --expert CID\n"
    )


def test_list_that_the_node_cannot_answer_is_its_sentence(run: Run, node: FakeNode) -> None:
    node.offer_error = NodeError(ErrorCode.RESOURCE, "the disk is full", "")
    assert refusal_of(run("lora", "list", "--json"))[0] == ErrorCode.RESOURCE.exit_code


# --- show -----------------------------------------------------------------------------------------
def test_show_of_an_offer_says_in_words_what_is_proved_and_what_is_only_claimed(
    run: Run, node: FakeNode
) -> None:
    said = run("lora", "show", OFFER)
    assert said.exit_code == 0, said.output
    flat = " ".join(said.stdout.split())
    assert STATEMENT in flat
    assert "1.3180 -> 0.7160 (-46%) on 32 pictures of its own *claimed*" in flat
    assert "measured here" not in flat
    assert "40 of 64 x 4 x 64 k 10 abababababababab" in flat
    assert "up to 32 numbers a layer in 34 proofs, no deltas: 6.45 % of its freedom" in flat
    assert TERMS in flat
    assert f"paris-node lora verify {OFFER}" in flat
    lines = [line for line in said.stdout.splitlines() if "paris-node" not in line]
    assert max(map(len, lines)) <= 80
    assert answer_of(run("lora", "show", OFFER, "--json"))["statement"] == STATEMENT


def test_show_of_what_was_bought_sets_the_measure_under_the_claim(run: Run, node: FakeNode) -> None:
    found = {"measured_base": 1.3175, "measured_loss": 0.7204, "folder": "/x/loras/boots"}
    node.offer_rows[0] |= {"standing": "measured", **found}
    lines = run("lora", "show", OFFER).stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if "*claimed*" in line)
    assert "1.3175 -> 0.7204 (-45%) on the same   *measured here*" in lines[at + 1]
    assert lines[at + 2].endswith("/x/loras/boots")


def test_show_of_an_own_offer_tells_how_much_is_told(run: Run, node: FakeNode) -> None:
    node.own_rows[0]["buyers"] = [OTHER_PEER]
    flat = " ".join(run("lora", "show", OWN_OFFER).stdout.split())
    assert "owner this node" in flat
    assert "told 0.348 % of its freedom; 0.696 % of transformer_blocks.0.attn1.to_q" in flat
    assert "proofs 5 of 34" in flat
    assert f"to {OTHER_PEER}" in flat
    assert "lora verify" not in flat
    node.own_rows[0] |= {"buyers": [], "withdrawn": True}
    flat = " ".join(run("lora", "show", OWN_OFFER).stdout.split())
    assert "ends in withdrawn" in flat
    assert "whoever signs the terms" not in flat


def test_show_of_a_refused_offer_says_why(run: Run, node: FakeNode) -> None:
    node.offer_rows = [offer_row(standing="refused", why="to_q: not shown", name=None)]
    node.show_offer = _refused  # type: ignore[method-assign]
    said = run("lora", "show", OFFER).stdout
    assert "refused: to_q: not shown" in said
    assert "terms" not in said


async def _refused(cid: str) -> dict[str, object]:
    return {"schema": 1, "offer": cid, "own": False, "statement": "refused: to_q: not shown"}


def test_show_of_an_offer_nobody_told_of_is_not_found(run: Run, node: FakeNode) -> None:
    code, error = refusal_of(run("lora", "show", MISSING_OFFER, "--json"))
    assert code == ErrorCode.NOT_FOUND.exit_code
    assert "has not heard of" in error["message"]


@pytest.mark.slow  # reads the shelf with torch
@pytest.mark.parametrize("runs", [True, False])
def test_show_of_an_offer_that_only_the_shelf_knows_is_the_lora_bought_by_it(
    run: Run, shelf: Path, runs: bool, request: pytest.FixtureRequest
) -> None:
    put_on_shelf(Home.at(shelf), "bought", offer=MISSING_OFFER)
    if runs:
        request.getfixturevalue("node")
    code, error = refusal_of(run("lora", "show", MISSING_OFFER, "--json"))
    assert code == ErrorCode.VERIFICATION_FAILED.exit_code  # found, and no more than a stub
    assert "bought" in error["message"]


def test_show_that_the_node_cannot_answer_is_its_sentence_whatever_the_shelf_has(
    run: Run, shelf: Path, node: FakeNode
) -> None:
    put_on_shelf(Home.at(shelf), "bought", offer=OFFER)
    node.offer_error = NodeError(ErrorCode.TIMEOUT, "late", "")
    assert refusal_of(run("lora", "show", OFFER, "--json"))[0] == 124
