"""A LoRA from one node's disk to another node's picture, by the command line, in real processes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.offer_folder import write_delivery
from scripts.local_swarm import LocalNode, SwarmError, cli, wait_for
from tests.integration.conftest import draw_pictures
from tests.integration.test_swarm_processes import founder

pytestmark = pytest.mark.slow

Nodes = Callable[[str], LocalNode]
PROMPT = "a tall bar"


def run_cli(home: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and last JSON object of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "node", "--home", str(home), "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {"stderr": done.stderr}


def complete_expert(node: LocalNode) -> dict[str, Any] | None:
    """The expert that draws `PROMPT`, once all are trained."""
    clusters = node.get("/api/v1/clusters")["clusters"]
    if not all(row["complete"] for row in clusters):
        return None
    out = node.home.parent / "which.png"
    drawn = cli("generate", PROMPT, "-o", str(out), "--where", "local", home=node.home)
    found: dict[str, Any] = max(drawn["experts"], key=lambda expert: expert["weight"])
    return found


def striped(folder: Path) -> Path:
    """Other pictures than the run's, to learn: tall bars are wide and blue here."""
    from PIL import Image, ImageDraw

    folder.mkdir()
    lines = []
    for number in range(24):
        image = Image.new("RGB", (32, 32), "lightblue")
        left = 4 + number % 4
        ImageDraw.Draw(image).rectangle((left, 2, left + 18, 30), fill="darkblue")
        image.save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": PROMPT}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def seller_with_offer(
    swarm: Nodes, tiny_run: tuple[str, Path], tmp_path: Path
) -> tuple[LocalNode, str, dict[str, Any]]:
    """A node that trained the run's experts and a LoRA, and offers it: node, address, offer."""
    seller = founder(swarm, tiny_run, "seller")
    address = seller.wait_ready()["listening"][0]
    expert = wait_for(lambda: complete_expert(seller), "trained experts", 180)
    trained = cli(
        *("lora", "train", str(striped(tmp_path / "blue")), "--expert", expert["cid"]),
        *("--rank", "2", "--samples", "1600", "--modules", "attention", "--licence", "CC0-1.0"),
        home=seller.home,
    )["lora"]
    assert trained["held_out"]["after"] < trained["held_out"]["before"]
    offered = cli(
        *("lora", "offer", trained["name"], "--terms", "free for all", "--yes"),
        home=seller.home,
    )
    return seller, address, {**offered, "name": trained["name"]}


def buyer_of(swarm: Nodes, run: str, address: str, name: str = "buyer") -> LocalNode:
    """A node that trains nothing."""
    node = swarm(name)
    node.start(run=run, peers=[address], flags=["--no-train", "--no-serve"])
    node.wait_ready()
    return node


def standing(node: LocalNode, offer: str, wanted: str) -> dict[str, Any] | None:
    """The offer as a node lists it, once it has this standing."""
    for row in cli("lora", "list", home=node.home)["offers"]:
        if row["offer"] == offer and row["standing"] == wanted:
            return dict(row)
    return None


def test_a_lora_is_offered_proved_looked_into_bought_and_drawn_with(
    swarm: Nodes, tiny_run: tuple[str, Path], tmp_path: Path
) -> None:
    run, _ = tiny_run
    seller, address, offered = seller_with_offer(swarm, tiny_run, tmp_path)
    offer = offered["offer"]
    buyer = buyer_of(swarm, run, address)
    row = wait_for(lambda: standing(buyer, offer, "proved"), "the offer to be proved", 120)
    assert row["adapted_loss"] < row["base_loss"]
    shown = cli("lora", "show", offer, home=buyer.home)
    assert "knows" in shown["statement"]

    looked = cli("lora", "verify", offer, home=buyer.home)
    assert looked["predicted"] < 0
    assert 0 < looked["leak_percent"] < 50
    assert looked["base_loss"] == pytest.approx(row["base_loss"], rel=1e-3)

    code, failed = run_cli(buyer.home, "lora", "verify", offer, "--base", run)
    assert code == 7
    assert run in failed["error"]["message"]

    bought = cli("lora", "buy", offer, "--yes", home=buyer.home)
    assert bought["measured_loss"] == pytest.approx(row["adapted_loss"], rel=1e-3)
    assert standing(buyer, offer, "measured")

    draw = ("generate", PROMPT, "--seed", "5", "--where", "local", "-o")
    plain = cli(*draw, str(tmp_path / "plain.png"), home=buyer.home)
    with_lora = cli(*draw, str(tmp_path / "blue.png"), "--lora", offer, home=buyer.home)
    sellers = cli(*draw, str(tmp_path / "own.png"), "--lora", offered["name"], home=seller.home)
    before, after, own = (
        Path(made["files"][0]).read_bytes() for made in (plain, with_lora, sellers)
    )
    assert before != after
    assert blue(tmp_path / "blue.png") > blue(tmp_path / "plain.png") + 5
    assert own != before

    cli("lora", "use", bought["name"], home=buyer.home)
    in_use = cli(*draw, str(tmp_path / "used.png"), home=buyer.home)
    assert Path(in_use["files"][0]).read_bytes() == after
    cli("lora", "use", "--off", home=buyer.home)
    off = cli(*draw, str(tmp_path / "off.png"), home=buyer.home)
    assert Path(off["files"][0]).read_bytes() == before


def blue(path: Path) -> float:
    """How much more blue than red a picture is, 0..255."""
    from PIL import Image, ImageStat

    red, _, blues = ImageStat.Stat(Image.open(path).convert("RGB")).mean
    return float(blues - red)


def test_a_seller_that_delivers_something_else_is_judged_by_a_third(
    swarm: Nodes, tiny_run: tuple[str, Path], tmp_path: Path
) -> None:
    run, _ = tiny_run
    seller, address, offered = seller_with_offer(swarm, tiny_run, tmp_path)
    offer = offered["offer"]
    buyer = buyer_of(swarm, run, address)
    witness = buyer_of(swarm, run, address, "witness")
    wait_for(lambda: standing(buyer, offer, "proved"), "the offer to be proved", 120)

    folder = seller.home / "offers" / offer
    data = bytearray((folder / "delivery.bin").read_bytes())
    data[-7] ^= 4
    write_delivery(folder, bytes(data))
    code, failed = run_cli(buyer.home, "lora", "buy", offer, "--yes")
    assert code == 6
    file = Path(failed["error"]["fix"].split("judge ")[1])
    assert standing(buyer, offer, "refused")

    code, verdict = run_cli(witness.home, "lora", "judge", str(file))
    assert code == 0
    assert verdict["verdict"] == "guilty"
    assert verdict["seller"] == seller.status()["peer_id"]

    wait_for(lambda: standing(witness, offer, "proved"), "the witness's own view", 120)
    data[-7] ^= 4
    write_delivery(folder, bytes(data))
    honest = cli("lora", "buy", offer, "--yes", home=witness.home)
    assert honest["measured_loss"] > 0
    with pytest.raises(SwarmError, match="does not hold: fraud"):
        cli("lora", "buy", offer, "--yes", home=buyer.home)


__all__ = ["draw_pictures"]
