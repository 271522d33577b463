"""Drawing: files, receipts, what is asked and what is shown."""

import json
from pathlib import Path

import pytest

from node.errors import ErrorCode, NodeError
from tests.support.cli_run import Run, answer_of, refusal_of
from tests.support.fake_node import (
    CID,
    OTHER_PEER,
    PNG,
    FakeNode,
)


def test_generate_writes_the_picture_and_its_receipt(
    run: Run, node: FakeNode, tmp_path: Path
) -> None:
    result = run("generate", "a red boat", "-o", "boat.png", "--seed", "9", "--json")
    assert result.exit_code == 0, result.output
    answer = answer_of(result)
    assert answer == {
        "schema": 1,
        "files": ["boat.png"],
        "receipts": ["boat.png.json"],
        "seed": 9,
        "strategy": "sticky",
        "sampler": "ab2",
        "where": "local",
        "experts": [{"cluster": 3, "cid": CID, "peer": OTHER_PEER, "weight": 0.75}],
        "loras": [],
        "seconds": 4.125,
    }
    assert (tmp_path / "boat.png").read_bytes() == PNG
    assert json.loads((tmp_path / "boat.png.json").read_text())["prompt"] == "a red boat"


def test_generate_asks_for_what_was_said(run: Run, node: FakeNode) -> None:
    result = run(
        "generate", "a bag", "-n", "2", "--routing", "top2", "--sampler", "euler", "--steps", "20",
        "--guidance", "3", "--autoguidance", "0.5", "--peer", OTHER_PEER,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert node.requests == [
        {"prompt": "a bag", "n": 2, "seed": None, "strategy": "top2", "top_k": 2,
         "threshold": 0.1, "router": None, "sampler": "euler", "steps": 20,
         "guidance": 3.0, "autoguidance": 0.5, "where": "peer", "peer": OTHER_PEER,
         "loras": None}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ((), {"strategy": "sticky", "router": None}),
        (("--top-k", "3"), {"strategy": "topk", "top_k": 3}),
        (
            ("--threshold", "0.2", "--router", "learned"),
            {"strategy": "threshold", "threshold": 0.2, "router": "learned"},
        ),
        (("--strategy", "all", "--sampler", "heun"), {"strategy": "all", "sampler": "heun"}),
    ],
)
def test_generate_takes_a_strategy_its_number_and_a_router(
    run: Run, node: FakeNode, said: tuple[str, ...], asked: dict[str, object]
) -> None:
    result = run("generate", "a bag", *said)
    assert result.exit_code == 0, result.output
    assert asked.items() <= node.requests[0].items()


def test_a_number_with_another_strategy_is_bad_usage(run: Run, node: FakeNode) -> None:
    result = run("generate", "a bag", "--strategy", "all", "--top-k", "3")
    assert result.exit_code == 2
    assert "top_k goes with the strategy topk" in result.stderr


ADAPTER: dict[str, object] = {"id": "1f4d" * 16, "cluster": 3, "base": CID, "scale": 0.8}


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ((), None),
        (("--no-lora",), []),
        (("--lora", "my-style"), [{"id": "my-style", "scale": 1.0}]),
        (
            ("--lora", "my-style:0.8", "--lora", f"{CID}:-16"),
            [{"id": "my-style", "scale": 0.8}, {"id": CID, "scale": -16.0}],
        ),
        (("--lora", "my:style:16"), [{"id": "my:style", "scale": 16.0}]),
    ],
)
def test_generate_asks_for_loras_by_id_and_scale(
    run: Run, node: FakeNode, said: tuple[str, ...], asked: object
) -> None:
    result = run("generate", "a bag", *said)
    assert result.exit_code == 0, result.output
    assert node.requests[0]["loras"] == asked
    assert node.requests[0]["where"] == ("local" if asked else "auto")


@pytest.mark.parametrize(
    "said",
    [
        ("--lora", "x", "--where", "peer"),
        ("--lora", "x", "--peer", OTHER_PEER),
        ("--lora", "x", "--no-lora"),
        ("--lora", ""),
        ("--lora", ":1"),
        ("--lora", "x:strong"),
        ("--lora", "x:"),
        ("--lora", "x:nan"),
        ("--lora", "x:16.1"),
        ("--lora", "x", "--lora", "x:2"),
    ],
)
def test_lora_that_cannot_be_meant_is_bad_usage(
    run: Run, node: FakeNode, said: tuple[str, ...]
) -> None:
    code, error = refusal_of(run("generate", "a bag", *said, "--json"))
    assert code == ErrorCode.USAGE.exit_code
    assert not node.requests
    if "--where" in said or "--peer" in said:
        assert "never leaves this machine" in error["message"]


def test_lora_at_a_peer_is_bad_usage_even_if_no_node_runs(run: Run) -> None:
    assert run("generate", "a bag", "--lora", "x", "--where", "peer").exit_code == 2


def test_explain_names_the_lora_its_base_and_its_offer(run: Run, node: FakeNode) -> None:
    node.loras = [ADAPTER]
    told = run("generate", "x", "-o", "b.png", "--explain").stderr
    assert "LoRA 1f4d1f4d1f4d at 0.8 on expert 3, its base bafkreihdw…uvyku"[:50] in told
    assert "bought" not in told
    assert "changed nothing" not in told
    node.loras = [{**ADAPTER, "offer": CID}]
    assert f"bought as {CID[:10]}" in run("generate", "x", "-o", "b.png", "--explain").stderr
    assert answer_of(run("generate", "x", "-o", "b.png", "--json"))["loras"] == node.loras


def test_lora_of_an_expert_that_drew_nothing_is_told(run: Run, node: FakeNode) -> None:
    node.loras = [{**ADAPTER, "cluster": 5}]
    result = run("generate", "x", "-o", "b.png")
    assert "LoRA 1f4d1f4d1f4d changed nothing: expert 5 had no part in it" in result.stderr
    assert run("generate", "x", "-o", "b.png", "-q").stderr == ""


def test_several_pictures_are_numbered(run: Run, node: FakeNode, tmp_path: Path) -> None:
    answer = answer_of(run("generate", "x", "-n", "3", "-o", "b.png", "--json"))
    assert answer["files"] == ["b-1.png", "b-2.png", "b-3.png"]
    assert all((tmp_path / name).read_bytes() == PNG for name in answer["files"])


def test_unnamed_picture_is_named_after_its_prompt_and_overwrites_nothing(
    run: Run, node: FakeNode, tmp_path: Path
) -> None:
    for _ in range(2):
        assert run("generate", "A red boat, ../at dawn!").exit_code == 0
    assert run("generate", "ボート").exit_code == 0
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["a-red-boat-at-dawn.png", "a-red-boat-at-dawn~2.png", "picture.png"]


def test_named_picture_is_replaced_whole(run: Run, node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "boat.png").write_bytes(b"old")
    assert run("generate", "x", "-o", "boat.png").exit_code == 0
    assert (tmp_path / "boat.png").read_bytes() == PNG
    assert not list(tmp_path.glob(".*"))


def test_explain_names_experts_and_weights(run: Run, node: FakeNode) -> None:
    result = run("generate", "x", "-o", "b.png", "--explain")
    assert "route   expert 3 (0.75, 12D3KooWPj…t9HyQ6X"[:34] in result.stderr
    assert "drew    expert 3 (0.75, " in result.stdout
    assert "by sticky" in result.stdout
    assert "route" not in run("generate", "x", "-o", "b.png").stderr


def test_explain_says_what_is_missing_and_who_stands_in(run: Run, node: FakeNode) -> None:
    node.route = {"missing": [6], "dropped": {"6": 0.12}, "starters": {"1": 1.0}, "unaided": [2]}
    node.route["unguided"] = [4, 5]
    told = run("generate", "x", "-o", "b.png", "--explain").stderr
    assert "renormalised: expert 6 offline (-0.12)" in told
    assert "near noise   expert 1 (1.00)" in told
    assert "expert 2 predicts noise and no other can start for it" in told
    assert "no earlier self   expert 4, expert 5" in told


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("none/boat.png", ErrorCode.RESOURCE),
        ("file/boat.png", ErrorCode.RESOURCE),
        ("boat.jpg", ErrorCode.USAGE),
        ("boat", ErrorCode.USAGE),
        ("folder.png", ErrorCode.USAGE),
        ("", ErrorCode.USAGE),
    ],
)
def test_unwritable_output_is_found_before_the_node_is_asked(
    run: Run, node: FakeNode, tmp_path: Path, output: str, code: ErrorCode
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    result = run("generate", "x", "-o", output, "--json")
    assert result.exit_code == code.exit_code
    assert not node.requests


def test_failure_midway_leaves_no_half_file(run: Run, node: FakeNode, tmp_path: Path) -> None:
    node.late_error = NodeError(ErrorCode.NO_PEERS, "The peer left.", "try again")
    code, error = refusal_of(run("generate", "x", "-o", "b.png", "--json"))
    assert (code, error) == (
        5,
        {"code": "no_peers", "message": "The peer left.", "fix": "try again"},
    )
    assert not list(tmp_path.glob("*.png*"))
    assert not list(tmp_path.glob(".*"))


def test_what_is_no_picture_is_not_written(run: Run, node: FakeNode, tmp_path: Path) -> None:
    node.png = b"<svg>"
    assert run("generate", "x", "-o", "b.png").exit_code == ErrorCode.VERIFICATION_FAILED.exit_code
    assert not list(tmp_path.glob("*.png"))


def test_deadline_of_generate_is_124(run: Run, node: FakeNode) -> None:
    node.is_endless = True
    assert refusal_of(run("generate", "x", "-o", "b.png", "--timeout", "0.1", "--json"))[0] == 124
