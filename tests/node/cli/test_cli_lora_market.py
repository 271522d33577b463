"""`paris-node lora verify | buy`: others' offers, asked of a fake node."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from node.cli import cli
from node.cli.lora_market import DELTA_TIMEOUT_S
from node.cli.offer_calls import STEP_TIMEOUT_S
from node.client import SILENCE_TIMEOUT_S, NodeClient
from node.errors import ErrorCode, NodeError
from node.lora_market import DELTA_TIMEOUT_S as NODE_DELTA_TIMEOUT_S
from node.lora_market import MEASURE_TIMEOUT_S
from node.offer_draft import CLAIM_TIMEOUT_S
from tests.support.cli_run import Run, answer_of, refusal_of
from tests.support.expert_home import ExpertHome, make_expert_home
from tests.support.fake_node import FakeNode
from tests.support.fake_offers import BASE, MISSING_OFFER, OFFER, SELLER, TERMS, offer_row
from training.lora.probe import read_probe
from training.run import load_run

VERIFY = ("lora", "verify", OFFER)
BUY = ("lora", "buy", OFFER)
Answering = Callable[..., Result]


@pytest.fixture
def answering(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Answering:
    """Runs `paris-node ARGS` as on a terminal, at which a person types `answer`."""
    monkeypatch.setattr("node.cli.lora_market.can_ask", lambda: True)

    def invoke(answer: str, *arguments: str) -> Result:
        return CliRunner().invoke(
            cli, ["--home", str(home), *arguments], input=answer, catch_exceptions=False
        )

    return invoke


def test_the_client_waits_longer_than_any_step_of_the_node() -> None:
    assert min(STEP_TIMEOUT_S, DELTA_TIMEOUT_S) > SILENCE_TIMEOUT_S
    assert max(MEASURE_TIMEOUT_S, CLAIM_TIMEOUT_S) * 2 <= STEP_TIMEOUT_S
    assert DELTA_TIMEOUT_S > NODE_DELTA_TIMEOUT_S


def test_each_command_waits_as_long_as_its_steps_may_take(
    run: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, waited = NodeClient.stream, []

    def recorded(client: NodeClient, path: str, body: Any, *, silence_s: float) -> Any:
        waited.append(silence_s)
        return stream(client, path, body, silence_s=silence_s)

    monkeypatch.setattr(NodeClient, "stream", recorded)
    for command in (VERIFY, (*VERIFY, "--deltas", "1"), (*BUY, "--yes")):
        assert run(*command).exit_code == 0
    assert waited == [STEP_TIMEOUT_S, DELTA_TIMEOUT_S, STEP_TIMEOUT_S]


# --- verify ---------------------------------------------------------------------------------------
def test_verify_asks_for_one_number_a_layer_and_the_owners_probe_unless_told_otherwise(
    run: Run, node: FakeNode
) -> None:
    assert run(*VERIFY).exit_code == 0
    assert run(*VERIFY, "--pairs", "4", "--base", BASE, "--deltas", "2").exit_code == 0
    usual = {"base": None, "probe": None, "pairs": 1, "delta_draws": 0}
    more = {"base": BASE, "probe": None, "pairs": 4, "delta_draws": 2}
    assert node.offer_asked == [("verify", OFFER, usual), ("verify", OFFER, more)]


def test_verify_prints_prediction_beside_claim_and_what_is_left_to_ask(
    run: Run, node: FakeNode
) -> None:
    said = run(*VERIFY)
    flat = " ".join(said.stdout.split())
    assert f"weights of rank <= 4 for 40 layers of {BASE}" in flat
    assert "-0.5200 on the loss of the owner's probe, which is 1.3100 without it" in flat
    assert "83 % of the loss's gradient" in flat
    assert "4.2 % of the norm of the layers" in flat
    assert "loss 1.3180 -> 0.7160 (-46%) on the owner's probe *claimed*" in flat
    assert "3.43 % of its freedom so far, to all who asked; 15 numbers a layer are left" in flat
    assert flat.endswith(f"paris-node lora buy {OFFER}")
    assert "deltas" not in flat
    assert said.stderr == ""


def test_verify_in_json_is_one_object(run: Run, node: FakeNode) -> None:
    answer = answer_of(run(*VERIFY, "--json"))
    assert answer["schema"] == 1
    assert "event" not in answer
    assert answer.keys() >= {
        "predicted", "captured", "ratio", "claimed_loss", "leak_percent", "scalars_left",
    }  # fmt: skip
    assert "delta_loss" not in answer


def test_deltas_say_before_anything_starts_what_goes_where(run: Run, node: FakeNode) -> None:
    node.offer_error = NodeError(ErrorCode.REFUSED, "there is no delta mode", "")
    said = run(*VERIFY, "--deltas", "1")
    assert said.exit_code == 7
    warning, _, _ = said.stderr.partition("error:")
    assert "activations of your probe go to the owner" in warning
    assert "rows of the LoRA come back" in warning.replace("\n", " ")
    node.offer_error = None
    done = run(*VERIFY, "--deltas", "1", "-q")
    assert done.stderr == ""
    flat = " ".join(done.stdout.split())
    assert "loss 1.3000 -> 0.7500 (-42%) by 32 proved rows a layer" in flat
    assert "51.6 % of its freedom are told by rows; 4,064 rows a layer are left" in flat


@pytest.mark.parametrize(
    "wrong",
    [("--pairs", "0"), ("--pairs", "5"), ("--base", "x"), ("--deltas", "0"), ("--deltas", "65")],
)
def test_look_that_cannot_be_meant_is_usage(
    run: Run, node: FakeNode, wrong: tuple[str, str]
) -> None:
    assert refusal_of(run(*VERIFY, *wrong, "--json"))[0] == ErrorCode.USAGE.exit_code
    assert node.offer_asked == []


@pytest.mark.parametrize("verb", [VERIFY, (*BUY, "--yes")])
@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (ErrorCode.VERIFICATION_FAILED, 6),
        (ErrorCode.REFUSED, 7),
        (ErrorCode.NOT_FOUND, 4),
        (ErrorCode.TIMEOUT, 124),
    ],
)
def test_what_does_not_hold_is_refused_or_is_not_there_has_its_exit_code(
    run: Run, node: FakeNode, verb: tuple[str, ...], code: ErrorCode, exit_code: int
) -> None:
    node.late_offer_error = NodeError(code, "It is so.", "do this")
    assert refusal_of(run(*verb, "--json")) == (
        exit_code,
        {"code": code.label, "message": "It is so.", "fix": "do this"},
    )


# --- a probe of one's own -------------------------------------------------------------------------
@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> ExpertHome:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = make_expert_home(tmp_path_factory.mktemp("expert"))
    torch.set_num_threads(before)
    return made


@pytest.mark.slow
def test_own_pictures_become_a_probe_in_the_home_that_is_gone_afterwards(
    template: ExpertHome, home: Path, run: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shutil.copytree(template.home.data, home)
    node: FakeNode = request.getfixturevalue("node")
    shown = node.show_offer
    found: list[Path] = []

    async def show_offer(cid: str) -> dict[str, object]:
        return {**await shown(cid), "run": template.run}

    def looked(what: str, cid: str = "", wish: object = None) -> None:
        if what == "verify":
            assert isinstance(wish, dict)
            found.append(Path(wish["probe"]))
            shutil.copytree(found[0], tmp_path / "probe")

    node.show_offer = show_offer  # type: ignore[method-assign]
    node._ask = looked  # type: ignore[method-assign,assignment]
    said = run(*VERIFY, "--data", str(template.pictures))
    assert said.exit_code == 0, said.output
    (folder,) = found
    (shared,) = (home / "runs" / template.run / "unpacked").iterdir()
    probe = read_probe(tmp_path / "probe", load_run(shared).facts.latent)
    assert (len(probe), probe.seed) == (48, 0)
    assert "probe   48 of 48 pictures" in said.stderr
    assert "on the loss of your probe" in said.stdout
    assert folder.is_absolute()
    assert folder.parent.parent == home
    assert not folder.exists()
    assert not list(home.glob(".probe*"))


@pytest.mark.slow
def test_pictures_that_cannot_be_read_cost_no_number(
    template: ExpertHome, home: Path, run: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shutil.copytree(template.home.data, home)
    node: FakeNode = request.getfixturevalue("node")
    code, error = refusal_of(run(*VERIFY, "--data", str(tmp_path / "none"), "--json"))
    assert code == ErrorCode.NOT_FOUND.exit_code
    assert re.search("paris-node start --run bafkrei", error["fix"])  # the fake node's run
    assert [what for what, *_ in node.offer_asked] == ["show"]


# --- buy ------------------------------------------------------------------------------------------
def test_buyer_sees_terms_and_seller_before_signing_and_measure_beside_claim_after(
    answering: Answering, node: FakeNode
) -> None:
    said = answering("y\n", *BUY, "--base", BASE)
    assert said.exit_code == 0, said.output
    asked = said.stderr
    for told in (TERMS, SELLER, "calm-heron-07", "CC-BY-4.0", "loss 1.3180 -> 0.7160"):
        assert told in asked
    assert "Sign these terms" in asked
    lines = said.stdout.splitlines()
    assert lines[0] == "/home/x/loras/boots-v6am"
    assert lines[1].endswith("loss 1.3180 -> 0.7160 (-46%)")
    assert lines[2].startswith("measured")
    assert "loss 1.3175 -> 0.7204 (-45%)   on the same pictures, here" in lines[2]
    assert lines[-1].endswith("paris-node lora use boots-v6am")
    assert node.offer_asked[-1] == ("buy", OFFER, {"base": BASE})


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_nothing_is_signed_without_a_yes(answering: Answering, node: FakeNode, answer: str) -> None:
    said = answering(answer, *BUY)
    assert said.exit_code == ErrorCode.INTERRUPTED.exit_code
    assert [what for what, *_ in node.offer_asked] == ["show"]


def test_where_nobody_can_be_asked_yes_must_be_said(run: Run, node: FakeNode) -> None:
    code, error = refusal_of(run(*BUY, "--json"))
    assert code == ErrorCode.USAGE.exit_code
    assert "--yes" in error["fix"]
    assert run(*BUY).exit_code == ErrorCode.USAGE.exit_code
    assert node.offer_asked == []


def test_json_on_a_terminal_does_not_ask(answering: Answering, node: FakeNode) -> None:
    assert answering("y\n", *BUY, "--json").exit_code == ErrorCode.USAGE.exit_code
    assert node.offer_asked == []


def test_yes_still_shows_what_is_signed_unless_quiet(run: Run, node: FakeNode) -> None:
    assert TERMS in run(*BUY, "--yes").stderr
    quiet = run(*BUY, "--yes", "-q")
    assert (quiet.stdout, quiet.stderr) == ("/home/x/loras/boots-v6am\n", "")
    answer = answer_of(run(*BUY, "--yes", "--json"))
    assert answer["measured_loss"] == 0.7204
    assert answer["claimed_loss"] == 0.716
    assert answer["name"] == "boots-v6am"


def test_quiet_does_not_hide_what_is_asked_about(answering: Answering, node: FakeNode) -> None:
    assert TERMS in answering("y\n", *BUY, "-q").stderr


def test_refused_offer_is_not_bought(answering: Answering, node: FakeNode) -> None:
    node.offer_rows = [offer_row(standing="refused", why="to_q: not shown")]
    said = answering("y\n", *BUY)
    assert said.exit_code == ErrorCode.VERIFICATION_FAILED.exit_code
    assert "to_q: not shown" in said.stderr
    assert [what for what, *_ in node.offer_asked] == ["show"]


def test_offer_nobody_told_of_is_not_bought(run: Run, node: FakeNode) -> None:
    said = run("lora", "buy", MISSING_OFFER, "--yes", "--json")
    assert refusal_of(said)[0] == ErrorCode.NOT_FOUND.exit_code
