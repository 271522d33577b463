"""`paris-node lora judge`: exit codes and words, with no node and no home."""

import time
from pathlib import Path

import pytest

from node.cli.lora_judge import _time_text
from p2p.ids import blob_id
from p2p.lora_records import LoraOffer
from tests.support.cli_run import Run, answer_of, refusal_of
from tests.support.frauds import (
    SOLD,
    accusation,
    committed_offer,
    delivered,
    one_number_off,
    write_accusation,
)
from tests.support.people import alice, bob, sealed
from tests.support.proofs import shared_keys

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def offer(tmp_path_factory: pytest.TempPathFactory) -> LoraOffer:
    return committed_offer(shared_keys(tmp_path_factory))


@pytest.fixture
def guilty(tmp_path: Path, offer: LoraOffer) -> str:
    sent = delivered(SOLD[0], one_number_off(SOLD[1]))
    return str(write_accusation(tmp_path / "guilty.fraud", accusation(offer, sent)))


@pytest.fixture
def honest(tmp_path: Path, offer: LoraOffer) -> str:
    return str(write_accusation(tmp_path / "honest.fraud", accusation(offer)))


def test_guilty_is_exit_code_0_and_names_who_signed_what(
    run: Run, home: Path, offer: LoraOffer, guilty: str
) -> None:
    said = run("lora", "judge", guilty)
    assert said.exit_code == 0, said.output
    name = blob_id(sealed(offer, alice))
    first, *rest = said.stdout.splitlines()
    assert first.startswith(f"guilty: {alice.peer} signed and sent what its offer {name} does not")
    flat = " ".join(" ".join(rest).split())
    assert "why block.0.to_k" in flat
    assert f"buyer {bob.peer}, as the seller named it" in flat
    assert "sent 2027-01-15" in flat
    assert run("lora", "judge", guilty, "-q").stdout == f"{first}\n"
    answer = answer_of(run("lora", "judge", guilty, "--json"))
    assert answer["verdict"] == "guilty"
    assert (answer["seller"], answer["buyer"], answer["offer"]) == (alice.peer, bob.peer, name)
    assert "block.0.to_k" in answer["reason"]
    assert sorted(path.name for path in home.iterdir()) == ["circuits"]


def test_not_guilty_is_exit_code_1_and_no_error(run: Run, honest: str) -> None:
    said = run("lora", "judge", honest)
    assert said.exit_code == 1
    assert said.stdout.startswith(f"not guilty: {alice.peer} sent what its offer")
    assert "why" not in said.stdout
    assert said.stderr == ""
    asked = run("lora", "judge", honest, "--json")
    assert asked.exit_code == 1
    assert (answer_of(asked)["verdict"], answer_of(asked)["reason"]) == ("not guilty", "")


def test_file_that_proves_nothing_is_exit_code_6_with_the_reason(
    run: Run, guilty: str, tmp_path: Path
) -> None:
    data = bytearray(Path(guilty).read_bytes())
    data[-1] ^= 1
    Path(guilty).write_bytes(data)
    code, error = refusal_of(run("lora", "judge", guilty, "--json"))
    assert (code, error["code"]) == (6, "verification_failed")
    assert "signature does not match" in error["message"]
    assert refusal_of(run("lora", "judge", str(tmp_path / "none"), "--json"))[0] == 4


def test_what_cannot_be_decided_is_no_verdict(run: Run, home: Path, guilty: str) -> None:
    home.mkdir()
    (home / "circuits").touch()
    code, error = refusal_of(run("lora", "judge", guilty, "--json"))
    assert code == 8
    assert "Nothing is decided" in error["message"]


@pytest.mark.parametrize("seconds", [1e300, -1e300])
def test_time_that_cannot_be_is_told_in_words(seconds: float) -> None:
    assert _time_text(seconds) == "at no time that could be"
    assert _time_text(time.time()).endswith("by its clock")
